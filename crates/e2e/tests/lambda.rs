//! AWS Lambda's API with AWS's own clients: boto3, botocore's signers and the
//! AWS CLI. The cases are in `aws/clients.py`, `aws/names.py`, `aws/zips.py`,
//! `aws/urls.py`, `aws/logs.py`, `aws/extensions.py` and `aws/cli.py`.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use skiff_e2e::aws::{Served, endpoint, python};
use skiff_e2e::peak_kib;
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, run, started, wait_for};

static SERVER: SharedServer = SharedServer::new();

fn options() -> ServerOptions {
    ServerOptions::with(&["hello-python", "python-function"])
        .set("lambda.listen=127.0.0.1:0")
        .set(r#"lambda.runtimes={"python3.12"="python-function:1"}"#)
}

/// What a case is told of a server.
#[derive(Debug)]
struct World {
    endpoint: String,
    gateway: String,
    own: (String, String),
    other: (String, String),
    account: String,
    scratch: tempfile::TempDir,
}

impl World {
    fn of(server: &Server) -> Self {
        let made = server.json(&["project", "create", "other"]);
        let key = |project: &str| {
            let key = server.json(&["key", "create", "a test's", "--project", project]);
            let field = |name: &str| key[name].as_str().unwrap().to_owned();
            (field("id"), field("secret"))
        };
        Self {
            endpoint: endpoint(server),
            gateway: server.gateway().to_owned(),
            own: key("default"),
            other: key("other"),
            account: made["id"].as_str().unwrap().to_owned(),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    fn case(&self, name: &str) {
        self.case_of("clients.py", name, &[]);
    }

    /// A case of functions from zip files.
    fn code(&self, name: &str) {
        let bootstrap = format!("BOOTSTRAP={}", bootstrap().display());
        self.case_of("zips.py", name, &[bootstrap]);
    }

    /// A case of functions' names, beside a service's.
    fn name(&self, name: &str, service: &str) {
        let more = ["SINK=".to_owned(), format!("SERVICE={service}")];
        self.case_of("names.py", name, &more);
    }

    /// A server that was started anew is elsewhere.
    fn moved(&mut self, server: &Server) {
        (self.endpoint, self.gateway) = (endpoint(server), server.gateway().to_owned());
    }

    /// A case of functions' URLs.
    fn url(&self, name: &str) {
        self.case_of("urls.py", name, &[]);
    }

    /// A case of external extensions.
    fn extension(&self, name: &str) {
        self.case_of("extensions.py", name, &[]);
    }

    fn case_of(&self, script: &str, name: &str, more: &[String]) {
        let variables = [
            format!("AWS_ENDPOINT_URL_LAMBDA={}", self.endpoint),
            format!("GATEWAY={}", self.gateway),
            format!("AWS_ACCESS_KEY_ID={}", self.own.0),
            format!("AWS_SECRET_ACCESS_KEY={}", self.own.1),
            "AWS_DEFAULT_REGION=us-east-1".to_owned(),
            "AWS_EC2_METADATA_DISABLED=true".to_owned(),
            format!("OTHER_ACCESS_KEY_ID={}", self.other.0),
            format!("OTHER_SECRET_ACCESS_KEY={}", self.other.1),
            format!("OTHER_ACCOUNT={}", self.account),
            format!("SCRATCH={}", self.scratch.path().display()),
            format!("HOME={}", self.scratch.path().display()),
        ];
        let program = [python().display().to_string(), script_of(script)];
        let words = variables.into_iter().chain(more.iter().cloned());
        let words = words.chain(program).chain([name.to_owned()]);
        let _out = run("env", words).ok();
    }
}

fn script_of(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws");
    folder.join(name).display().to_string()
}

/// A static runtime's file.
fn bootstrap() -> &'static Path {
    static MADE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_folder, file) = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bootstrap");
        let out = file.display().to_string();
        let source = script_of("bootstrap.rs");
        let flags = ["--edition", "2024", "-C", "target-feature=+crt-static"];
        let words = flags
            .iter()
            .copied()
            .chain(["-C", "strip=symbols", "-o", &out, &source]);
        let _out = run(option_env!("RUSTC").unwrap_or("rustc"), words).ok();
        (folder, file)
    });
    file
}

fn shared() -> (Held, &'static World) {
    static WORLD: OnceLock<World> = OnceLock::new();
    let server = SERVER.get(options);
    let world = WORLD.get_or_init(|| World::of(&server));
    (server, world)
}

#[test]
fn functions_are_made_changed_and_deleted() {
    let (_server, world) = shared();
    world.case("functions");
}

#[test]
fn functions_have_names_that_no_service_can_have() {
    let mut server = Server::start(options());
    let mut world = World::of(&server);
    world.name("made", "");
    let listed = server.cli(&["ls"]).ok();
    let rows = listed.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next_back()?, words.next()?.to_owned()))
    });
    let services: HashMap<&str, String> = rows.collect();
    let service = services["MyStack-Handler_1A2B"].clone();
    let other = &services["mystack-handler_1a2b"];
    let stem = "mystack-handler-1a2b-";
    assert!(service.starts_with(stem) && other.starts_with(stem) && service != *other);
    let shown = server.json(&["describe", &service]);
    assert_eq!(shown["revisions"][0]["spec"]["scaling"]["max"], 1000);
    server.kill();
    server.launch(&[]);
    world.moved(&server);
    world.name("kept", "");
    let sent = ["invoke", &service, "--event", "-d", "\"typed\""];
    let _id = server.cli(&sent).ok();
    let daily = ["schedule", "create", "typed", "rate(1 day)"];
    let _out = server
        .cli(&[&daily[..], &["--function", &service]].concat())
        .ok();
    world.name("service", &service);
    world.name("gone", "");
    assert!(!server.cli(&["ls"]).ok().contains(stem));
    server.import("testapp");
    let _host = server.deploy(&service, &[]);
    world.name("taken", "");
    let shown = server.cli(&["describe", &service]).ok();
    assert!(!shown.contains("function"), "{shown}");
}

#[test]
fn what_cannot_be_is_told_in_awss_words() {
    let (_server, world) = shared();
    world.case("failures");
}

#[test]
fn events_reach_functions_and_answers_come_back() {
    let (_server, world) = shared();
    world.case("invocations");
}

#[test]
fn no_more_run_at_once_than_are_reserved() {
    let (_server, world) = shared();
    world.case("reservations");
}

#[test]
fn an_invocation_outlives_its_caller_and_counts_until_it_is_over() {
    let (_server, world) = shared();
    world.case("hung_up");
}

#[test]
fn an_invocation_ends_at_its_timeout() {
    let (_server, world) = shared();
    world.case("timeouts");
}

#[test]
fn each_waiter_ends_as_it_should() {
    let (_server, world) = shared();
    world.case("waiters");
}

#[test]
fn a_function_is_deleted_while_it_is_deployed() {
    let (_server, world) = shared();
    world.case("hasty_ends");
}

#[test]
fn versions_stay_and_aliases_lead_to_them() {
    let (_server, world) = shared();
    world.case("versions");
}

#[test]
fn versions_and_aliases_are_kept_warm() {
    let (_server, world) = shared();
    world.case("provisioned");
}

#[test]
fn other_projects_get_in_where_a_policy_says_so() {
    let (_server, world) = shared();
    world.case("permissions");
}

#[test]
fn only_what_a_key_of_ours_signs_now_and_once_is_taken() {
    let (_server, world) = shared();
    world.case("signatures");
}

#[test]
fn functions_outlive_a_server_that_is_killed_or_replaced() {
    let mut server = Server::start(options());
    let mut world = World::of(&server);
    world.case("before_the_crash");
    server.kill();
    server.launch(&[]);
    world.moved(&server);
    world.case("after_the_crash");
    server.replace();
    world.case("known");
    let _out = server.cli(&["rm", "kept"]).ok();
    world.case("after_its_service");
}

#[test]
fn a_key_that_is_revoked_signs_nothing_more() {
    let (server, world) = shared();
    let key = server.json(&["key", "create", "short"]);
    let own = ["id", "secret"].map(|name| key[name].as_str().unwrap().to_owned());
    let short = World {
        endpoint: world.endpoint.clone(),
        gateway: world.gateway.clone(),
        own: own.clone().into(),
        other: world.other.clone(),
        account: world.account.clone(),
        scratch: tempfile::tempdir().unwrap(),
    };
    short.case("known");
    let _out = server.cli(&["key", "rm", &own[0]]).ok();
    short.case("unknown");
}

#[test]
fn the_aws_cli_works_unchanged() {
    let (_server, world) = shared();
    world.case("cli");
}

#[test]
fn the_aws_cli_calls_every_operation() {
    let (queues, secret) = (Served::queues(), hidden("any"));
    let options = options()
        .set(format!("lambda.events.sqs_endpoint={}", queues.url()))
        .set("lambda.events.sqs_access_key=any")
        .set(format!(
            "lambda.events.sqs_secret_file={}",
            secret.path().display()
        ));
    let server = Server::start(options);
    let sqs = format!("SQS={}", queues.url());
    World::of(&server).case_of("cli.py", "every_operation", &[sqs]);
}

#[test]
fn urls_are_made_changed_and_deleted() {
    let (_server, world) = shared();
    world.url("configs");
}

#[test]
fn urls_make_events_of_requests_and_replies_of_answers() {
    let (_server, world) = shared();
    world.url("requests");
}

#[test]
fn an_event_that_its_instance_cannot_take_reaches_another() {
    let (_server, world) = shared();
    world.case("unreached");
}

#[test]
fn streamed_answers_end_with_their_log_and_their_error() {
    let (_server, world) = shared();
    world.case("streams");
}

#[test]
fn urls_tell_other_origins_what_they_may() {
    let (_server, world) = shared();
    world.url("origins");
}

#[test]
fn urls_take_signatures_of_who_may_call() {
    let (_server, world) = shared();
    world.url("signatures");
}

#[test]
fn bodies_that_never_end_keep_no_others_out() {
    let (_server, world) = shared();
    world.url("crowds");
}

#[test]
fn urls_stream_answers_as_they_come() {
    let (_server, world) = shared();
    world.url("streams");
}

#[test]
fn urls_outlive_a_server_that_is_killed_and_end_with_their_function() {
    let mut server = Server::start(options());
    let mut world = World::of(&server);
    world.url("before_the_crash");
    server.kill();
    // A proxy stands in front of this one.
    server.launch(&["--set", "gateway.trust_forwarded=true"]);
    world.moved(&server);
    world.url("after_the_crash");
    let _out = server.cli(&["rm", "lasting"]).ok();
    world.url("after_its_service");
}

#[test]
fn what_functions_wrote_is_read_as_from_cloudwatch() {
    let (_server, world) = shared();
    world.case_of("logs.py", "reads", &[]);
}

#[test]
fn zip_files_become_functions() {
    let (_server, world) = shared();
    world.code("zips");
}

#[test]
fn a_function_has_a_scratch_folder_of_its_size() {
    let (_server, world) = shared();
    world.code("scratch");
}

#[test]
fn a_static_program_needs_nothing_below_it() {
    let (_server, world) = shared();
    world.code("bootstraps");
}

#[test]
fn layers_lie_below_code_and_outlive_their_deletion() {
    let (_server, world) = shared();
    world.code("layers");
}

#[test]
fn extensions_of_layers_start_before_the_runtime_and_watch_it() {
    let mut server = Server::start(options());
    let mut world = World::of(&server);
    world.extension("watches");
    server.kill();
    server.launch(&[]);
    world.moved(&server);
    world.extension("again");
    world.extension("changed");
    let words = "watcher gets SHUTDOWN spindown";
    wait_for(words, 60, || {
        let log = server.cli(&["logs", "watched"]).ok();
        log.contains(words).then_some(())
    });
}

#[test]
fn a_runtime_waits_for_every_extension() {
    let (_server, world) = shared();
    world.extension("several");
}

#[test]
fn an_extension_that_ends_takes_its_instance_along() {
    let (_server, world) = shared();
    world.extension("crashes");
    world.extension("posts");
}

#[test]
fn an_extension_is_told_of_a_timeout() {
    let (_server, world) = shared();
    world.extension("outlasts");
}

#[test]
fn an_extension_is_told_that_its_runtime_has_failed() {
    let (server, world) = shared();
    world.extension("survives");
    let words = "survivor gets SHUTDOWN failure";
    wait_for(words, 60, || {
        let log = server.cli(&["logs", "survives"]).ok();
        (log.matches(words).count() == 2).then_some(())
    });
}

#[test]
fn an_extension_that_cannot_start_ends_the_start() {
    let (_server, world) = shared();
    world.extension("refuses");
}

#[test]
fn roles_give_credentials_to_functions_of_their_project() {
    let secret = hidden("hidden-secret");
    let file = secret.path().display();
    let role = format!(
        r#"{{access_key_id="AKIDAPP",secret_access_key_file="{file}",endpoints={{s3="https://s3.example"}}}}"#
    );
    let arn = "arn:aws:iam::000000000001:role/app";
    let server = Server::start(options().set(format!(r#"roles={{"{arn}"={role}}}"#)));
    World::of(&server).code("roles");
    let revisions = server.json(&["describe", "role"]).to_string();
    assert!(!revisions.contains("hidden"), "{revisions}");
    let stored = std::fs::read(server.data_dir().join("state/skiff.db")).unwrap();
    let secret = b"hidden-secret";
    assert!(!stored.windows(secret.len()).any(|window| window == secret));
}

/// A file that the server's user may read.
fn hidden(text: &str) -> tempfile::NamedTempFile {
    use std::os::unix::fs::PermissionsExt as _;

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{text}\n")).unwrap();
    let readable = std::fs::Permissions::from_mode(0o644);
    file.as_file().set_permissions(readable).unwrap();
    file
}

#[test]
fn hostile_and_wrong_zip_files_are_refused() {
    let (_server, world) = shared();
    world.code("refusals");
    world.code("no_objects");
}

#[test]
fn the_aws_cli_brings_zip_files() {
    let (_server, world) = shared();
    world.code("cli");
}

#[test]
fn a_large_zip_file_is_never_whole_in_memory() {
    let server = Server::start(options());
    let world = World::of(&server);
    world.code("bootstraps");
    let before = peak_kib(&server);
    world.code("large");
    let grown = peak_kib(&server) - before;
    // The body has 64 MiB and the zip file 48.
    assert!(grown < 24 * 1024, "{grown} KiB");
}

#[test]
fn code_outlives_a_server_that_is_killed_and_a_collection() {
    let mut server = Server::start(options());
    let mut world = World::of(&server);
    world.code("before_the_crash");
    server.kill();
    server.launch(&[]);
    world.moved(&server);
    let _out = server.cli(&["image", "prune"]).ok();
    world.code("after_the_crash");
}

#[test]
fn code_comes_from_a_store_of_objects() {
    use std::io::{BufRead as _, BufReader};

    let mut moto = started(python(), [script_of("s3.py")]);
    let mut url = String::new();
    let mut out = BufReader::new(moto.0.stdout.take().unwrap());
    out.read_line(&mut url).unwrap();
    let url = url.trim();
    let secret = hidden("secret");
    let file = secret.path().display();
    let options = options()
        .set(format!("lambda.s3.endpoint={url}"))
        .set("lambda.s3.access_key_id=id")
        .set(format!("lambda.s3.secret_access_key_file={file}"));
    let server = Server::start(options);
    let world = World::of(&server);
    world.case_of("zips.py", "objects", &[format!("S3={url}")]);
}
