//! AWS Lambda's API with AWS's own clients: boto3, botocore's signers and the
//! AWS CLI. The cases are in `aws/clients.py`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use skiff_testkit::{Held, Server, ServerOptions, SharedServer, aws_clients, run};

static SERVER: SharedServer = SharedServer::new();

fn options() -> ServerOptions {
    ServerOptions::with(&["hello-python"]).set("lambda.listen=127.0.0.1:0")
}

/// What a case is told of a server.
#[derive(Debug)]
struct World {
    endpoint: String,
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
            own: key("default"),
            other: key("other"),
            account: made["id"].as_str().unwrap().to_owned(),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    fn case(&self, name: &str) {
        static CLIENTS: OnceLock<PathBuf> = OnceLock::new();
        let python = CLIENTS.get_or_init(aws_clients).join("bin/python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws/clients.py");
        let variables = [
            format!("AWS_ENDPOINT_URL_LAMBDA={}", self.endpoint),
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
        let program = [python.display().to_string(), script.display().to_string()];
        let words = variables.into_iter().chain(program);
        let _out = run("env", words.chain([name.to_owned()])).ok();
    }
}

fn endpoint(server: &Server) -> String {
    let version = server.api("GET", "/v1/version", None).unwrap();
    format!("http://{}", version["lambda"].as_str().unwrap())
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
fn an_invocation_ends_at_its_timeout() {
    let (_server, world) = shared();
    world.case("timeouts");
}

#[test]
fn versions_stay_and_aliases_lead_to_them() {
    let (_server, world) = shared();
    world.case("versions");
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
    world.endpoint = endpoint(&server);
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
