//! From zero to many and back.
#![allow(clippy::unwrap_used)]

use skiff_e2e::{at_once, good};
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, wait_for};

static SHARED: SharedServer = SharedServer::new();

fn server() -> Held {
    SHARED.get(|| ServerOptions::with(&["testapp"]))
}

#[test]
fn from_zero_to_one_to_many_and_back() {
    let server = server();
    let host = server.deploy(
        "tide",
        &["--keep-alive", "1", "--concurrency", "1", "--max", "4"],
    );
    server.wait_for_instances("tide", 0);

    let cold = server.get(&host, "/");
    assert_eq!(cold.status, 200, "{cold:?}");
    let timing = cold.header("server-timing").unwrap_or_default().to_owned();
    for phase in [
        "queue",
        "placement",
        "image",
        "sandbox",
        "app",
        "first_byte",
    ] {
        assert!(timing.contains(phase), "{phase} is not in `{timing}`");
    }
    let traces = server.json(&["trace", "tide", "-n", "1"]);
    let trace = &traces[0];
    let sum: u64 = trace["phases_us"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|phase| phase[1].as_u64())
        .sum();
    let total = trace["total_us"].as_u64().unwrap();
    assert!(
        sum <= total && sum * 10 > total * 8,
        "the phases explain {sum} of {total}: {trace}"
    );
    let warm = server.get(&host, "/");
    assert!(
        cold.header("server-timing").is_some() && warm.header("server-timing").is_none(),
        "{warm:?} {cold:?}"
    );

    let replies = at_once(4, |_| server.get(&host, "/sleep/2500").status);
    assert_eq!(replies, [200; 4]);
    let many = server.instances("tide").len();
    assert!((2..=4).contains(&many), "{many} instances");
    server.wait_for_instances("tide", 0);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
}

#[test]
fn an_instance_that_hangs_fails_its_liveness_probe_and_is_replaced() {
    let server = server();
    let host = server.deploy("stuck", &["--probe", "/", "--liveness", "1"]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let before = server.instances("stuck");
    assert_eq!(good(server.get(&host, "/hang")), "hanging\n");
    // It still takes connections, and answers none.
    wait_for("another one serves", 30, || {
        let reply = server.curl(&host, "/", &["--max-time", "2"]);
        (reply.status == 200).then_some(())
    });
    let after = server.instances("stuck");
    assert!(!after.contains(&before[0]), "{before:?} {after:?}");
    let log = server.log();
    assert!(log.contains("liveness probe failed three times"), "{log}");
}

#[test]
fn as_many_as_min_stay() {
    let server = server();
    let host = server.deploy("floor", &["--keep-alive", "0", "--min", "2"]);
    server.wait_for_instances("floor", 2);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let _out = server.cli(&["scale", "floor", "--min", "0"]).ok();
    server.wait_for_instances("floor", 0);
    // Back from zero, and the settings that were not named are kept.
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let scaling = &server.json(&["describe", "floor"])["revisions"][0]["spec"]["scaling"];
    assert_eq!(
        (&scaling["keep_alive_s"], &scaling["min"]),
        (&0.into(), &0.into()),
        "{scaling}"
    );
    let _out = server.cli(&["rm", "floor"]).ok();
}

#[test]
fn never_more_than_max() {
    let server = server();
    let host = server.deploy("roof", &["--concurrency", "2", "--max", "2"]);
    let replies = std::thread::scope(|scope| {
        let load = scope.spawn(|| at_once(12, |_| server.get(&host, "/sleep/300").status));
        let mut most = 0;
        while !load.is_finished() {
            most = most.max(server.instances("roof").len());
        }
        assert!(most <= 2, "{most} instances");
        load.join().unwrap()
    });
    assert_eq!(replies, [200; 12]);
}

#[test]
fn cpu_on_request_pauses_what_is_idle() {
    let server = server();
    let host = server.deploy("paused", &["--cpu-mode", "request", "--keep-alive", "60"]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    wait_for("the idle instance is paused", 30, || {
        let service = server.json(&["describe", "paused"]);
        (service["instances"][0]["state"] == "paused").then_some(())
    });
    let before = server.instances("paused");
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    assert_eq!(server.instances("paused"), before);
}

#[test]
fn who_gets_no_room_is_told_what_is_short() {
    let small = ServerOptions::with(&["testapp"]).set("worker.memory_mib=100");
    let server = Server::start(small);
    let first = server.deploy("first", &["--min", "1"]);
    let refused = server
        .cli(&["deploy", "second", "--image", "testapp:1", "--memory", "64"])
        .failed();
    assert!(refused.contains("memory"), "{refused}");
    assert!(good(server.get(&first, "/")).starts_with("hello"));

    let _out = server.cli(&["rm", "first"]).ok();
    server.wait_for_instances_of_all(0);
    let second = server.deploy("second", &["--keep-alive", "0"]);
    server.wait_for_instances("second", 0);
    let first = server.deploy("first", &["--min", "1"]);
    assert!(good(server.get(&first, "/")).starts_with("hello"));
    let reply = server.get(&second, "/");
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.body.contains("memory"), "{reply:?}");
    assert!(reply.header("retry-after").is_some(), "{reply:?}");
}
