//! Event invocations with AWS's own clients: their rules, destinations and
//! limits, and their life across crashes. The cases are in `aws/events.py`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use skiff_base::{Clock as _, SystemClock};
use skiff_e2e::aws::{Served, endpoint, metrics, python};
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, run, wait_for};

static SERVER: SharedServer = SharedServer::new();

/// An HTTP endpoint that keeps what it is sent, a line each. The path
/// `/flaky` refuses the first of each event.
#[derive(Debug)]
struct Sink {
    url: String,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Sink {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sink");
        let url = format!("http://{}", listener.local_addr().unwrap());
        let kept = Arc::new(Mutex::new(File::create(&file).unwrap()));
        let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (kept, seen) = (Arc::clone(&kept), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    while exchange(&mut reader, &kept, &seen).is_some() {}
                });
            }
        });
        Self {
            url,
            file,
            _folder: folder,
        }
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// One request and its answer; `None` once the client is gone.
fn exchange(
    reader: &mut BufReader<TcpStream>,
    kept: &Mutex<File>,
    seen: &Mutex<BTreeSet<String>>,
) -> Option<()> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let id = headers.get("ce-id").cloned().unwrap_or_default();
    let line = json!({"path": path, "headers": headers, "body": String::from_utf8(body).ok()?});
    writeln!(kept.lock().unwrap(), "{line}").ok()?;
    let is_new = seen.lock().unwrap().insert(id);
    let status = match path == "/flaky" && is_new {
        true => "503 Service Unavailable",
        false => "200 OK",
    };
    write!(
        reader.get_mut(),
        "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"
    )
    .ok()
}

/// What a case is told of a server.
#[derive(Debug)]
struct World {
    endpoint: String,
    key: (String, String),
    sink: Sink,
    queues: Served,
    scratch: tempfile::TempDir,
}

impl World {
    /// Before there is a server.
    fn new() -> Self {
        Self {
            endpoint: String::new(),
            key: Default::default(),
            sink: Sink::open(),
            queues: Served::queues(),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    fn options(&self) -> ServerOptions {
        let secret = self.scratch.path().join("secret");
        std::fs::write(&secret, "any\n").unwrap();
        // The server's user reads the file.
        let _out = run("chmod", ["755".as_ref(), self.scratch.path().as_os_str()]).ok();
        ServerOptions::with(&["hello-python"])
            .set("lambda.listen=127.0.0.1:0")
            .set("lambda.events.retry_ms=100")
            .set("lambda.events.backoff_ms=50")
            .set("lambda.events.per_function=16")
            .set(format!("lambda.events.destinations={}/", self.sink.url))
            .set(format!("lambda.events.sqs_endpoint={}", self.queues.url()))
            .set("lambda.events.sqs_access_key=any")
            .set(format!(
                "lambda.events.sqs_secret_file={}",
                secret.display()
            ))
    }

    fn enter(&mut self, server: &Server) {
        let key = server.json(&["key", "create", "a test's"]);
        let field = |name: &str| key[name].as_str().unwrap().to_owned();
        self.key = (field("id"), field("secret"));
        self.endpoint = endpoint(server);
    }

    fn words(&self, name: &str, more: &[String]) -> Vec<String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws/events.py");
        let scratch = self.scratch.path().display();
        let variables = [
            format!("AWS_ENDPOINT_URL_LAMBDA={}", self.endpoint),
            format!("AWS_ACCESS_KEY_ID={}", self.key.0),
            format!("AWS_SECRET_ACCESS_KEY={}", self.key.1),
            "AWS_DEFAULT_REGION=us-east-1".to_owned(),
            "AWS_EC2_METADATA_DISABLED=true".to_owned(),
            format!("SCRATCH={scratch}"),
            format!("HOME={scratch}"),
            format!("SINK={}", self.sink.url),
            format!("SINK_FILE={}", self.sink.file.display()),
            format!("SQS={}", self.queues.url()),
        ];
        let program = [python().display().to_string(), script.display().to_string()];
        let words = variables.into_iter().chain(more.iter().cloned());
        words.chain(program).chain([name.to_owned()]).collect()
    }

    /// With a server of its own.
    fn alone(options: impl FnOnce(&Self) -> ServerOptions) -> (Server, Self) {
        let mut world = Self::new();
        let server = Server::start(options(&world));
        world.enter(&server);
        (server, world)
    }

    fn case(&self, name: &str) {
        let _out = run("env", self.words(name, &[])).ok();
    }
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

#[test]
fn rules_are_kept_by_qualifier() {
    let (_server, world) = shared();
    world.case("configurations");
}

#[test]
fn events_are_tried_and_their_destinations_told() {
    let (server, world) = shared();
    world.case("outcomes");
    let log = server.cli(&["logs", "later", "--tail", "1000"]).ok();
    assert_eq!(log.matches("try thrice").count(), 3, "{log}");
    assert_eq!(log.matches("try never").count(), 0, "{log}");
    let metrics = metrics(&server);
    for line in [
        "skiff_events_ended_total{condition=\"RetriesExhausted\"}",
        "skiff_events_ended_total{condition=\"Success\"}",
        "skiff_event_deliveries_total{result=\"delivered\"}",
        "skiff_event_deliveries_total{result=\"failed\"}",
    ] {
        let value = metrics.lines().find_map(|known| known.strip_prefix(line));
        let value: u64 = value.unwrap().trim().parse().unwrap();
        assert!(value > 0, "{line} is 0");
    }
}

#[test]
fn functions_are_destinations_and_loops_end() {
    let (server, world) = shared();
    world.case("destinations");
    let tries = || server.cli(&["logs", "second", "--tail", "1000"]).ok();
    wait_for("the loop is told of", 120, || {
        server
            .log()
            .contains("lie behind this event already")
            .then_some(())
    });
    assert_eq!(tries().matches("try around").count(), 1);
}

#[test]
fn queues_get_records_and_dead_letters() {
    let (_server, world) = shared();
    world.case("queues");
}

#[test]
fn what_is_too_much_is_refused() {
    let (_server, world) = shared();
    world.case("limits");
}

#[test]
fn the_aws_cli_sends_events_unchanged() {
    let (_server, world) = shared();
    world.case("cli");
}

#[test]
fn an_event_is_handed_in_by_the_cli() {
    let (server, world) = shared();
    world.case("takes");
    let context = r#"{"custom":{"by":"hand"}}"#;
    let words = ["invoke", "takes", "--event", "--client-context", context];
    let sent = server.cli_with_input(
        &[&words[..], &["-d", "-"]].concat(),
        br#"{"id": "by hand"}"#,
    );
    let id = sent.ok().trim().to_owned();
    let record = wait_for("the event has succeeded", 300, || {
        let lines = world.sink.lines();
        lines.into_iter().find(|line| line["path"] == "/takes")
    });
    let record: Value = serde_json::from_str(record["body"].as_str().unwrap()).unwrap();
    assert_eq!(record["requestContext"]["requestId"], *id, "{record}");
    assert_eq!(record["requestPayload"]["id"], "by hand", "{record}");
    let told = &record["responsePayload"]["told"];
    assert_eq!(told["lambda-runtime-aws-request-id"], *id, "{record}");
    assert_eq!(told["lambda-runtime-client-context"], context, "{record}");
    let sent = server.json(&["invoke", "takes", "--event"]);
    assert_eq!(sent["request_id"].as_str().unwrap().len(), 36, "{sent}");

    let refused = |words: &[&str]| server.cli(&[&["invoke"], words].concat()).failed();
    let words = refused(&["takes", "--event", "-d", "{"]);
    assert!(words.contains("the event is not JSON"), "{words}");
    let words = refused(&["nobody", "--event"]);
    assert!(words.contains("no function nobody takes events"), "{words}");
    let words = refused(&["takes", "--event", "--log"]);
    assert!(words.contains("cannot be used with"), "{words}");
}

#[test]
fn schedules_fire_and_are_told_as_botocore_has_it() {
    let (server, world) = shared();
    world.case("schedules");
    let make = |name: &str, more: &[&str]| {
        let words = [
            "schedule",
            "create",
            name,
            "cron(0 12 * * ? *)",
            "--function",
            "timed",
        ];
        server.cli(&[&words, more].concat())
    };
    let made = make("typed", &["--timezone", "Europe/Berlin", "-d", "{}"]);
    assert!(made.ok().contains("typed fires next 2"));
    let refused = make("bad", &["--timezone", "Nowhere"]);
    assert!(refused.failed().contains("time zone"));
    assert!(
        server
            .cli(&["schedule", "ls"])
            .ok()
            .contains("Europe/Berlin")
    );
    let shown = server.json(&["schedule", "describe", "typed"]);
    assert_eq!(shown["input"], "{}");
    let _out = server.cli(&["schedule", "rm", "typed"]).ok();
    let gone = server.cli(&["schedule", "describe", "typed"]);
    assert!(gone.failed().contains("no schedule typed"));
}

/// What a hook is asked with.
const POST: &str = "POST";

/// A hook, as who posts to it knows it.
#[derive(Debug)]
struct Hook {
    url: String,
    token: String,
}

impl Hook {
    fn create(server: &Server, name: &str, function: &str, more: &[&str]) -> Self {
        let words = ["hook", "create", name, "--function", function];
        let made = server.json(&[&words[..], more].concat());
        let field = |name: &str| made[name].as_str().unwrap().to_owned();
        Self {
            url: field("url"),
            token: field("token"),
        }
    }

    fn bearer(&self) -> String {
        format!("authorization: Bearer {}", self.token)
    }

    /// What MinIO posts to it, or another.
    fn told(&self, body: &str) -> (u16, String) {
        ask(POST, &self.url, &self.bearer(), body)
    }
}

/// The status and the body that a hook answers.
fn ask(method: &str, url: &str, header: &str, body: &str) -> (u16, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), body).unwrap();
    let data = format!("@{}", file.path().display());
    let mut words = vec!["-s", "-w", "\n%{http_code}", "-H", header, url];
    match method {
        "HEAD" => words.push("-I"),
        _ => words.extend(["-X", method, "--data-binary", &data]),
    }
    let answer = run("curl", words).ok();
    let (body, status) = answer.trim_end().rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// What MinIO says of a new object (its `internal/event`, and its webhook).
fn minio_record(bucket: &str, key: &str) -> Value {
    json!({
        "eventVersion": "2.0",
        "eventSource": "minio:s3",
        "awsRegion": "",
        "eventTime": "2026-11-27T10:00:00.123Z",
        "eventName": "s3:ObjectCreated:Put",
        "userIdentity": {"principalId": "minioadmin"},
        "requestParameters": {"principalId": "minioadmin", "region": "", "sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": "17A", "x-minio-origin-endpoint": "http://127.0.0.1:9000"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "Config",
            "bucket": {
                "name": bucket,
                "ownerIdentity": {"principalId": "minioadmin"},
                "arn": format!("arn:aws:s3:::{bucket}"),
            },
            "object": {"key": key, "size": 3, "eTag": "acbd18db", "sequencer": "17A"},
        },
        "source": {"host": "127.0.0.1", "port": "", "userAgent": "MinIO (linux; amd64)"},
    })
}

fn minio(bucket: &str, key: &str) -> String {
    let (name, path) = ("s3:ObjectCreated:Put", format!("{bucket}/{key}"));
    json!({"EventName": name, "Key": path, "Records": [minio_record(bucket, key)]}).to_string()
}

/// Keys of the objects that a function has been told of, by its destination.
fn keys_told(world: &World, path: &str) -> BTreeSet<String> {
    let lines = world.sink.lines().into_iter();
    let told = lines.filter(|line| line["path"] == path).flat_map(|line| {
        let record: Value = serde_json::from_str(line["body"].as_str().unwrap()).unwrap();
        record["requestPayload"]["Records"]
            .as_array()
            .unwrap()
            .clone()
    });
    told.map(|record| {
        assert_eq!(record["eventSource"], "aws:s3", "{record}");
        assert_eq!(record["eventName"], "ObjectCreated:Put", "{record}");
        record["s3"]["object"]["key"].as_str().unwrap().to_owned()
    })
    .collect()
}

#[test]
fn a_hook_takes_events_of_the_buckets_that_the_policy_lets_in() {
    let (server, world) = shared();
    world.case("objects");
    let hook = Hook::create(&server, "images", "objects", &[]);
    let alias = Hook::create(&server, "live", "objects", &["--qualifier", "live"]);
    let listed = server.cli(&["hook", "ls"]).ok();
    assert!(listed.contains(&hook.url) && listed.contains("objects:live"));
    assert!(!listed.contains(&hook.token), "{listed}");

    let good = minio("images-1", "never%2Fbefore");
    let foreign = hook.url.replace("000000000001", "000000000009");
    let unknown = hook.url.replace("/images", "/nobody");
    for (url, header) in [
        (&hook.url, "x: y".to_owned()),
        (&hook.url, "authorization: Bearer".to_owned()),
        (&hook.url, format!("{}0", hook.bearer())),
        (&hook.url, alias.bearer()),
        (&unknown, hook.bearer()),
        (&foreign, hook.bearer()),
    ] {
        let (status, said) = ask(POST, url, &header, &good);
        assert_eq!(status, 403, "{url} {header}: {said}");
        assert_eq!(ask("HEAD", url, &header, "").0, 403, "{url} {header}");
    }
    for bucket in ["others", "theirs", "images"] {
        let (status, said) = hook.told(&minio(bucket, "never"));
        assert_eq!(status, 403, "{said}");
        let words = format!("--source-arn arn:aws:s3:::{bucket}");
        assert!(
            said.contains("add-permission") && said.contains(&words),
            "{said}"
        );
    }
    let both = [
        minio_record("images-1", "never"),
        minio_record("others", "never"),
    ];
    let both = json!({"Records": both}).to_string();
    assert_eq!(hook.told(&both).0, 403);
    let (status, said) = alias.told(&good);
    assert!(status == 403 && said.contains("--qualifier live"), "{said}");
    for (body, expected) in [
        ("{", 400),
        ("{\"Records\": []}", 400),
        ("{\"Records\": [{\"eventSource\": \"aws:sqs\"}]}", 400),
        (&*" ".repeat(1024 * 1024 + 1), 413),
        (&*" ".repeat(8 * 1024 * 1024), 413),
    ] {
        let (status, said) = hook.told(body);
        assert_eq!(status, expected, "{said}");
    }

    assert_eq!(ask("HEAD", &hook.url, &hook.bearer(), "").0, 200);
    let test = json!({"Service": "S3", "Event": "s3:TestEvent", "Bucket": "Test-Bucket"});
    assert_eq!(hook.told(&test.to_string()).0, 200);
    assert_eq!(hook.told(&minio("images-1", "my+photos%2Fa.jpg")).0, 202);
    let plain = format!("authorization: {}", hook.token);
    assert_eq!(ask(POST, &hook.url, &plain, &minio("images-2", "b")).0, 202);
    let with_password = hook
        .url
        .replace("http://", &format!("http://any:{}@", hook.token));
    let alone = minio_record("images-3", "c").to_string();
    assert_eq!(ask(POST, &with_password, "x: y", &alone).0, 202);
    let several = ["d", "e"].map(|key| minio_record("images-4", key));
    let several = json!({"Records": several}).to_string();
    assert_eq!(hook.told(&several).0, 202);
    let expected = ["b", "c", "d", "e", "my+photos/a.jpg"].map(str::to_owned);
    wait_for("the function was told of all objects", 300, || {
        (keys_told(world, "/objects").len() >= expected.len()).then_some(())
    });

    world.case("no_objects");
    assert_eq!(hook.told(&good).0, 403);
    let _out = server.cli(&["hook", "rm", "images"]).ok();
    let (status, said) = hook.told(&good);
    assert!(status == 403 && said.contains("no such hook"), "{said}");
    let pending = || {
        let metrics = metrics(&server);
        metrics.contains("skiff_events_pending 0\n").then_some(())
    };
    wait_for("nothing is left", 300, pending);
    assert_eq!(keys_told(world, "/objects"), BTreeSet::from(expected));

    let refused = |words: &[&str]| server.cli(&[&["hook", "create"], words].concat()).failed();
    let words = refused(&["new", "--function", "nobody"]);
    assert!(words.contains("no function nobody takes events"), "{words}");
    let words = refused(&["new", "--function", "objects", "--qualifier", "none"]);
    assert!(words.contains("no version or alias none"), "{words}");
    let words = refused(&["live", "--function", "objects"]);
    assert!(words.contains("there is a hook live already"), "{words}");
}

#[test]
fn an_event_that_a_hook_took_outlives_kill_9() {
    let more = |world: &World| world.options().set("lambda.events.per_function=64");
    let (mut server, world) = World::alone(more);
    world.case("before_the_objects");
    let hook = Hook::create(&server, "kept", "kept", &[]);
    let keys: BTreeSet<String> = (0..20).map(|number| format!("object-{number}")).collect();
    for key in &keys {
        let (status, said) = hook.told(&minio("images", key));
        assert_eq!(status, 202, "{said}");
    }
    server.kill();
    server.launch(&[]);
    let told = wait_for("the function was told of all objects", 300, || {
        let told = keys_told(&world, "/kept");
        (told.len() >= keys.len()).then_some(told)
    });
    assert_eq!(told, keys);
    // The hook is still there, at the server's new address.
    let url = server.json(&["hook", "ls"])[0]["url"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(ask("HEAD", &url, &hook.bearer(), "").0, 200);
}

#[test]
fn a_schedule_fires_once_for_its_time_across_kill_9() {
    let (mut server, world) = World::alone(World::options);
    world.case("before_the_hour");
    // Some times are met, some are cut through, some are missed.
    for _ in 0..=rounds() {
        let wait = skiff_base::random::u32() % 2000;
        let clock = SystemClock;
        let until = clock.now().plus(Duration::from_millis(wait.into()));
        wait_for("the moment", 10, || (clock.now() >= until).then_some(()));
        server.kill();
        server.launch(&[]);
    }
    let fired = || -> BTreeMap<String, BTreeSet<String>> {
        let mut fired: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in world.sink.lines() {
            let record: Value = serde_json::from_str(line["body"].as_str().unwrap()).unwrap();
            let id = record["requestPayload"]["id"].as_str().unwrap().to_owned();
            let request = &record["requestContext"]["requestId"];
            let request = request.as_str().unwrap().to_owned();
            fired.entry(id).or_default().insert(request);
        }
        fired
    };
    let all = || (fired().len() == 12).then_some(());
    wait_for("every schedule has fired", 180, all);
    let pending = || {
        metrics(&server)
            .contains("skiff_events_pending 0\n")
            .then_some(())
    };
    wait_for("nothing is left", 120, pending);
    let fired = fired();
    assert!(fired.values().all(|events| events.len() == 1), "{fired:?}");
}

/// How often the server is killed: `SKIFF_TEST_ROUNDS`.
fn rounds() -> u64 {
    std::env::var("SKIFF_TEST_ROUNDS").map_or(2, |text| text.parse().unwrap())
}

#[test]
fn no_acknowledged_event_is_lost_to_kill_9_or_tried_too_often() {
    let more = |world: &World| world.options().set("lambda.events.per_function=100000");
    let (mut server, world) = World::alone(more);
    world.case("before_the_crashes");
    let place = |name: &str| world.scratch.path().join(name);
    std::fs::write(place("endpoint"), &world.endpoint).unwrap();
    let more = [
        ("ACKNOWLEDGED", "acknowledged"),
        ("STOP", "stop"),
        ("ENDPOINT_FILE", "endpoint"),
    ]
    .map(|(name, file)| format!("{name}={}", place(file).display()));
    let load = skiff_testkit::started("env", world.words("load", &more));
    let acknowledged = || -> Vec<String> {
        let text = std::fs::read_to_string(place("acknowledged")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(str::to_owned).collect()
    };
    for round in 0..rounds() {
        let before = acknowledged().len();
        let more = 10 + usize::try_from(skiff_base::random::u32() % 60).unwrap();
        wait_for("more events are acknowledged", 120, || {
            (acknowledged().len() >= before + more).then_some(())
        });
        server.kill();
        server.launch(&[]);
        let next = place(&format!("endpoint-{round}"));
        std::fs::write(&next, endpoint(&server)).unwrap();
        std::fs::rename(next, place("endpoint")).unwrap();
    }
    std::fs::write(place("stop"), "").unwrap();
    let _out = load.wait().ok();
    let acknowledged = acknowledged();

    let ended = || -> BTreeMap<String, BTreeSet<String>> {
        let mut ended: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in world.sink.lines() {
            let record: Value = serde_json::from_str(line["body"].as_str().unwrap()).unwrap();
            let id = record["requestPayload"]["id"].as_str().unwrap().to_owned();
            let context = &record["requestContext"];
            let tries = context["approximateInvokeCount"].as_u64().unwrap();
            assert!((1..=3).contains(&tries), "{record}");
            let condition = context["condition"].as_str().unwrap().to_owned();
            ended.entry(id).or_default().insert(condition);
        }
        ended
    };
    let ended = wait_for("every acknowledged event has its end", 300, || {
        let ended = ended();
        let all = acknowledged.iter().all(|id| ended.contains_key(id));
        all.then_some(ended)
    });
    // A record may be told twice, but never two ends.
    assert!(
        ended.values().all(|conditions| conditions.len() == 1),
        "{ended:?}"
    );
    let log = server.cli(&["logs", "lasting", "--tail", "100000"]).ok();
    let mut tries: BTreeMap<&str, u32> = BTreeMap::new();
    for (_, id) in log.lines().filter_map(|line| line.split_once("try ")) {
        *tries.entry(id.trim()).or_default() += 1;
    }
    assert!(tries.values().all(|tries| *tries <= 3), "{tries:?}");
    let pending = || {
        let metrics = metrics(&server);
        let line = metrics
            .lines()
            .find(|line| line.starts_with("skiff_events_pending "));
        line.unwrap().ends_with(" 0").then_some(())
    };
    wait_for("nothing is left", 120, pending);
}
