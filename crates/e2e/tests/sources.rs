//! Event source mappings with AWS's own clients, queues of SQS's kind and
//! streams of DynamoDB's: batches, filters and failures, and their life across
//! crashes. The cases are in `aws/sources.py`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use skiff_e2e::aws::{Served, endpoint, metrics, python};
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, run, wait_for};

static SERVER: SharedServer = SharedServer::new();

/// What a case is told of a server.
#[derive(Debug)]
struct World {
    endpoint: String,
    key: (String, String),
    queues: Served,
    scratch: tempfile::TempDir,
}

impl World {
    /// Before there is a server.
    fn new() -> Self {
        Self {
            endpoint: String::new(),
            key: Default::default(),
            queues: Served::queues(),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    fn options(&self) -> ServerOptions {
        self.options_with(self.queues.url())
    }

    /// Streams are there.
    fn options_with(&self, streams: &str) -> ServerOptions {
        let secret = self.scratch.path().join("secret");
        std::fs::write(&secret, "any\n").unwrap();
        // The server's user reads the file.
        let _out = run("chmod", ["755".as_ref(), self.scratch.path().as_os_str()]).ok();
        let secret = secret.display();
        bare()
            .set(format!("lambda.events.sqs_endpoint={}", self.queues.url()))
            .set("lambda.events.sqs_access_key=any")
            .set(format!("lambda.events.sqs_secret_file={secret}"))
            .set(format!("lambda.events.dynamodb_endpoint={streams}"))
            .set("lambda.events.dynamodb_access_key=any")
            .set(format!("lambda.events.dynamodb_secret_file={secret}"))
    }

    fn enter(&mut self, server: &Server) {
        let key = server.json(&["key", "create", "a test's"]);
        let field = |name: &str| key[name].as_str().unwrap().to_owned();
        self.key = (field("id"), field("secret"));
        self.endpoint = endpoint(server);
    }

    /// With a server of its own.
    fn alone(options: impl FnOnce(&Self) -> ServerOptions) -> (Server, Self) {
        let mut world = Self::new();
        let server = Server::start(options(&world));
        world.enter(&server);
        (server, world)
    }

    fn case(&self, name: &str) {
        let script = script("sources.py");
        let scratch = self.scratch.path().display();
        let words = [
            format!("AWS_ENDPOINT_URL_LAMBDA={}", self.endpoint),
            format!("AWS_ACCESS_KEY_ID={}", self.key.0),
            format!("AWS_SECRET_ACCESS_KEY={}", self.key.1),
            "AWS_DEFAULT_REGION=us-east-1".to_owned(),
            "AWS_EC2_METADATA_DISABLED=true".to_owned(),
            format!("HOME={scratch}"),
            format!("SQS={}", self.queues.url()),
            python().display().to_string(),
            script.display().to_string(),
            name.to_owned(),
        ];
        let _out = run("env", words).ok();
    }
}

fn script(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws");
    folder.join(name)
}

/// Without queues.
fn bare() -> ServerOptions {
    ServerOptions::with(&["hello-python"]).set("lambda.listen=127.0.0.1:0")
}

fn shared() -> (Held, &'static World) {
    static WORLD: OnceLock<World> = OnceLock::new();
    static BEFORE: OnceLock<Mutex<Option<World>>> = OnceLock::new();
    let before = BEFORE.get_or_init(|| Mutex::new(Some(World::new())));
    let server = SERVER.get(|| before.lock().unwrap().as_ref().unwrap().options());
    let world = WORLD.get_or_init(|| {
        let mut world = before.lock().unwrap().take().unwrap();
        world.enter(&server);
        world
    });
    (server, world)
}

/// What a metric has counted; a server that has just come up may not have it.
fn counted(server: &Server, line: &str) -> u64 {
    let metrics = metrics(server);
    let value = metrics.lines().find_map(|known| known.strip_prefix(line));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

#[test]
fn mappings_are_made_changed_and_deleted() {
    let (_server, world) = shared();
    world.case("mappings");
}

#[test]
fn mappings_that_cannot_be_are_refused() {
    let (_server, world) = shared();
    world.case("refusals");
}

#[test]
fn a_server_without_queues_says_what_it_lacks() {
    let (_server, world) = World::alone(|_| bare());
    world.case("no_queues");
}

#[test]
fn messages_reach_functions_in_batches() {
    let (server, world) = shared();
    world.case("events");
    assert!(counted(&server, "skiff_source_batches_total{result=\"taken\"}") > 0);
}

#[test]
fn messages_that_no_pattern_takes_are_deleted() {
    let (server, world) = shared();
    world.case("filters");
    assert!(counted(&server, "skiff_source_records_total{result=\"filtered\"}") >= 5);
}

#[test]
fn messages_that_failed_come_again() {
    let (server, world) = shared();
    world.case("failures");
    assert!(counted(&server, "skiff_source_records_total{result=\"left\"}") >= 3);
    assert!(counted(&server, "skiff_source_batches_total{result=\"failed\"}") >= 1);
}

#[test]
fn messages_wait_for_a_function_that_takes_none() {
    let (server, world) = shared();
    world.case("throttles");
    assert!(counted(&server, "skiff_source_batches_total{result=\"throttled\"}") > 0);
}

#[test]
fn messages_of_a_group_keep_their_order() {
    let (_server, world) = shared();
    world.case("order");
}

#[test]
fn a_mapping_that_is_disabled_takes_nothing() {
    let (_server, world) = shared();
    world.case("pauses");
}

/// How often the server is killed: `SKIFF_TEST_ROUNDS`, and no more often than
/// there is work for.
fn rounds() -> u64 {
    let rounds = std::env::var("SKIFF_TEST_ROUNDS");
    rounds.map_or(2, |text| text.parse().unwrap()).clamp(1, 20)
}

#[test]
fn records_of_a_stream_reach_functions_in_order() {
    let (_server, world) = shared();
    world.case("streams");
}

#[test]
fn records_that_failed_are_tried_and_given_up() {
    let (server, world) = shared();
    world.case("stream_failures");
    assert!(counted(&server, "skiff_source_records_total{result=\"given_up\"}") >= 1);
}

#[test]
fn shards_go_on_beside_each_other_and_after_their_parents() {
    let streams = Served::script(&script("shards.py"));
    let (_server, world) = World::alone(|world| world.options_with(streams.url()));
    world.case("shards");
}

#[test]
fn tries_of_a_record_count_across_kill_9() {
    let (mut server, mut world) = World::alone(World::options);
    world.case("before_the_tries_crashes");
    let failed = "skiff_source_batches_total{result=\"failed\"}";
    for _ in 0..2 {
        wait_for("it was tried once more", 120, || {
            (counted(&server, failed) >= 1).then_some(())
        });
        server.kill();
        server.launch(&[]);
    }
    world.endpoint = endpoint(&server);
    world.case("after_the_tries_crashes");
}

#[test]
fn a_stream_goes_on_where_it_was_across_kill_9() {
    let (mut server, mut world) = World::alone(World::options);
    world.case("before_the_streams_crashes");
    let most = 40 / rounds();
    let done = "skiff_source_records_total{result=\"done\"}";
    for _ in 0..rounds() {
        let until = 1 + skiff_base::random::u64() % most;
        wait_for("more records are done", 120, || {
            (counted(&server, done) >= until).then_some(())
        });
        server.kill();
        server.launch(&[]);
    }
    world.endpoint = endpoint(&server);
    world.case("after_the_streams_crashes");
    // There are 60: what was done before is not done again.
    let last = counted(&server, done);
    assert!((1..60).contains(&last), "{last}");
}

#[test]
fn no_message_is_lost_to_kill_9() {
    let (mut server, mut world) = World::alone(World::options);
    world.case("before_the_crashes");
    // There are 200.
    let most = 150 / rounds();
    for _ in 0..rounds() {
        let done = "skiff_source_records_total{result=\"done\"}";
        let until = 1 + skiff_base::random::u64() % most;
        wait_for("more messages are done", 120, || {
            (counted(&server, done) >= until).then_some(())
        });
        server.kill();
        server.launch(&[]);
    }
    world.endpoint = endpoint(&server);
    world.case("after_the_crashes");
}
