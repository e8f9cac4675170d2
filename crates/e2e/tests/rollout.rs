//! Revisions: good, bad, split, tagged, rolled back, declared.
#![allow(clippy::unwrap_used)]

use skiff_e2e::{at_once, good};
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, wait_for};

static SHARED: SharedServer = SharedServer::new();

fn server() -> Held {
    SHARED.get(|| ServerOptions::with(&["testapp"]))
}

fn deploy(server: &Server, name: &str, rest: &[&str]) -> skiff_testkit::Finished {
    let base = ["deploy", name, "--image", "testapp:1", "--memory", "64"];
    server.cli(&[&base, rest].concat())
}

#[test]
fn a_bad_revision_leaves_the_old_one_serving_and_says_why() {
    let server = server();
    let host = server.deploy("brave", &[]);
    for (rest, why) in [
        (&["--", "3"][..], &["code 3", "| leaving as told"][..]),
        (&["--command", "/no/such"], &["/no/such", "No such file"]),
        (
            &["--env", "START_DELAY_MS=600000", "--start-timeout", "1"],
            &["port 8080"],
        ),
        (&["--probe", "/exit/4"], &["code 4"]),
    ] {
        let told = deploy(&server, "brave", rest).failed();
        for part in why {
            assert!(told.contains(part), "{rest:?}: `{part}` is not in {told}");
        }
        assert!(good(server.get(&host, "/")).starts_with("hello from brave-00001"));
    }
    let service = server.json(&["describe", "brave"]);
    assert_eq!(service["traffic"][0]["percent"], 100, "{service}");
    assert_eq!(service["revisions"][0]["state"], "failed", "{service}");
    assert!(
        service["revisions"][0]["reason"]
            .as_str()
            .is_some_and(|why| why.contains("code 4")),
        "{service}"
    );
    let good_again = deploy(&server, "brave", &["--env", "A=1"]);
    let _url = good_again.ok();
    assert_eq!(good(server.get(&host, "/env/A")), "1");
}

#[test]
fn the_first_revision_being_bad_leaves_no_route() {
    let server = server();
    let told = deploy(&server, "stillborn", &["--", "9"]).failed();
    assert!(told.contains("code 9"), "{told}");
    let reply = server.get(&server.host_of("stillborn"), "/");
    assert!(matches!(reply.status, 404 | 503), "{reply:?}");
    let _out = server.cli(&["rm", "stillborn"]).ok();
}

#[test]
fn the_same_again_makes_no_revision() {
    let server = server();
    let _host = server.deploy("same", &["--env", "A=1"]);
    let _host = server.deploy("same", &["--env", "A=1"]);
    let count = |server: &Server| {
        server.json(&["describe", "same"])["revisions"]
            .as_array()
            .map_or(0, Vec::len)
    };
    assert_eq!(count(&server), 1);
    let _host = server.deploy("same", &["--env", "A=1", "--force"]);
    assert_eq!(count(&server), 2);
}

#[test]
fn traffic_is_split_tagged_and_rolled_back() {
    let server = server();
    let host = server.deploy("split", &["--env", "V=1"]);
    let _host = server.deploy("split", &["--env", "V=2", "--no-traffic", "--tag", "next"]);
    assert_eq!(good(server.get(&host, "/env/V")), "1");
    assert_eq!(
        good(server.get("next---split.skiff.localhost", "/env/V")),
        "2"
    );

    let _out = server
        .cli(&["traffic", "split", "split-00001=50", "split-00002=50,next"])
        .ok();
    let answers = at_once(4, |_| {
        let bodies = (0..25).map(|_| good(server.get(&host, "/env/V")));
        bodies.filter(|body| body == "2").count()
    });
    let second: usize = answers.iter().sum();
    // 100 draws of one half: outside of this once in 10^9.
    assert!((20..=80).contains(&second), "{second} of 100");

    let _out = server.cli(&["traffic", "split", "latest=100"]).ok();
    assert_eq!(good(server.get(&host, "/env/V")), "2");
    let _out = server.cli(&["rollback", "split"]).ok();
    assert_eq!(good(server.get(&host, "/env/V")), "1");
    let _out = server
        .cli(&["rollback", "split", "--to", "split-00002"])
        .ok();
    assert_eq!(good(server.get(&host, "/env/V")), "2");
    let before = server.json(&["traffic", "split"]);
    for (bad, part) in [
        (&["split-00001=60"][..], "sum to 60"),
        (&["split-00009=100"], "split-00009"),
        (&["split-00001"], "split-00001"),
        (
            &["split-00001=50", "split-00001=50"],
            "split-00001 is given requests twice",
        ),
    ] {
        let told = server.cli(&[&["traffic", "split"], bad].concat()).failed();
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(server.json(&["traffic", "split"]), before);
    assert_eq!(good(server.get(&host, "/env/V")), "2");
}

#[test]
fn a_roll_out_under_load_fails_no_request() {
    let server = server();
    let host = server.deploy("rolling", &["--env", "V=0"]);
    let done = std::sync::atomic::AtomicBool::new(false);
    let statuses = std::thread::scope(|scope| {
        let (done, server, host) = (&done, &server, &host);
        let load = scope.spawn(move || {
            at_once(3, |_| {
                let mut statuses = Vec::new();
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    statuses.push(server.get(host, "/sleep/20").status);
                }
                statuses
            })
            .concat()
        });
        for version in 1..5 {
            let _host = server.deploy("rolling", &["--env", &format!("V={version}")]);
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        load.join().unwrap()
    });
    assert!(
        statuses.len() > 10 && statuses.iter().all(|&status| status == 200),
        "{statuses:?}"
    );
    assert_eq!(good(server.get(&host, "/env/V")), "4");
    // What has no traffic goes, at the latest when its keep-alive is over.
    wait_for("only the newest has instances", 90, || {
        let service = server.json(&["describe", "rolling"]);
        let instances = service["instances"].as_array()?.clone();
        instances
            .iter()
            .all(|instance| instance["revision"] == "rolling-00005")
            .then_some(())
    });
}

#[test]
fn what_is_removed_is_gone() {
    let server = server();
    let host = server.deploy("gone", &["--min", "1"]);
    let _out = server.cli(&["rm", "gone"]).ok();
    assert_eq!(server.get(&host, "/").status, 404);
    let told = server.cli(&["describe", "gone"]).failed();
    assert!(told.contains("gone"), "{told}");
    let services = server.json(&["ls"]);
    assert!(
        services
            .as_array()
            .unwrap()
            .iter()
            .all(|service| service["name"] != "gone")
    );
    // The name can be had again.
    let host = server.deploy("gone", &[]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
}

#[test]
fn a_file_declares_services() {
    let server = server();
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = r#"
        [[services]]
        name = "declared"
        image = "testapp:1"
        resources = { memory_mib = 64 }
        env = { COLOUR = "blue" }

        [[services]]
        name = "other"
        image = "testapp:1"
        resources = { memory_mib = 64 }
        scaling = { keep_alive_s = 1 }
    "#;
    let path = file.path().to_str().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let _out = server.cli(&["apply", "-f", path]).ok();
    assert_eq!(
        good(server.get(&server.host_of("declared"), "/env/COLOUR")),
        "blue"
    );
    assert!(good(server.get(&server.host_of("other"), "/")).starts_with("hello"));
    let _out = server
        .cli_with_input(&["apply", "-f", "-"], text.as_bytes())
        .ok();
    let revisions = server.json(&["describe", "declared"])["revisions"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(revisions, 1);
    std::fs::write(file.path(), text.replace("memory_mib", "memry_mib")).unwrap();
    let told = server.cli(&["apply", "-f", path]).failed();
    assert!(told.contains("memry_mib") && told.contains(path), "{told}");
}
