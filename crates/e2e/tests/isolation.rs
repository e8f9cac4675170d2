//! What an instance must not reach, and what it must not take.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::time::Duration;

use skiff_e2e::{at_once, good, timed};
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, wait_for};

static SHARED: SharedServer = SharedServer::new();

fn server() -> Held {
    SHARED.get(|| ServerOptions::with(&["testapp", "busybox"]))
}

fn reach(server: &Server, host: &str, address: &str, port: &str) -> String {
    good(server.get(host, &format!("/connect/{address}/{port}")))
}

/// Addresses of this machine that are not loopback.
fn host_addresses() -> Vec<String> {
    let told = skiff_testkit::run("hostname", ["-I"]).out;
    told.split_whitespace()
        .filter(|text| text.contains('.'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn without_egress_there_is_nothing_to_reach() {
    let server = server();
    let host = server.deploy("closed", &[]);
    let gateway = server.port().to_owned();
    let mut places = vec![
        ("127.0.0.1".to_owned(), gateway.clone()),
        ("169.254.169.254".to_owned(), "80".to_owned()),
        ("10.0.0.1".to_owned(), "80".to_owned()),
        ("192.0.2.1".to_owned(), "80".to_owned()),
    ];
    places.extend(
        host_addresses()
            .into_iter()
            .map(|address| (address, gateway.clone())),
    );
    for (address, port) in places {
        let told = reach(&server, &host, &address, &port);
        assert!(!told.contains("connected"), "{address}:{port}: {told}");
    }
}

#[test]
fn with_egress_the_host_and_neighbours_stay_closed() {
    let server = server();
    let host = server.deploy("open", &["--egress"]);
    let neighbour = server.deploy("neighbour", &["--egress", "--min", "1"]);
    assert!(good(server.get(&neighbour, "/")).starts_with("hello"));
    // A service on every address of the host.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let mut places: Vec<(String, String)> = host_addresses()
        .into_iter()
        .map(|address| (address, port.clone()))
        .collect();
    places.push(("169.254.169.254".to_owned(), "80".to_owned()));
    places.push(("127.0.0.1".to_owned(), server.port().to_owned()));
    for address in addresses_of_instances(&server) {
        places.push((address.clone(), "8080".to_owned()));
        places.push((address, port.clone()));
    }
    assert!(places.len() > 3, "{places:?}");
    let answers = at_once(places.len(), |index| {
        let (address, port) = &places[index];
        reach(&server, &host, address, port)
    });
    let own = answers
        .iter()
        .filter(|told| told.contains("connected"))
        .count();
    // It may reach itself, at one of the instances' addresses.
    assert!(own <= 1, "{places:?} {answers:?}");
}

/// The addresses of the server's instances that have a way out.
fn addresses_of_instances(server: &Server) -> Vec<String> {
    let end = &server.id()[server.id().len() - 6..];
    let routes = skiff_testkit::run("ip", ["-4", "route", "show"]).out;
    let own = routes.lines().filter(|line| line.contains(end));
    own.filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

#[test]
fn the_admin_socket_and_the_host_files_are_not_there() {
    let server = server();
    let script = "while :; do { \
        echo HTTP/1.0 200 OK; echo; \
        ls /run/skiff /var/lib/skiff 2>/dev/null; \
        find / -xdev -name '*.sock' 2>/dev/null; \
        ls /dev; cat /proc/mounts; \
        cat /proc/self/status; \
        echo uid-map $(cat /proc/self/uid_map); \
        } | nc -l -p 8080; done";
    let args = [
        "deploy",
        "looker",
        "--image",
        "busybox:1",
        "--memory",
        "64",
        "--command",
        "/bin/sh",
        "--",
        "-c",
        script,
    ];
    let deployed = server.cli(&args);
    assert_eq!(deployed.code, 0, "{}", deployed.err);
    let told = wait_for("the shell answers", 20, || {
        let reply = server.get(&server.host_of("looker"), "/");
        (reply.status == 200).then_some(reply.body)
    });
    assert!(!told.contains(".sock"), "{told}");
    let home = server.home().display().to_string();
    assert!(!told.contains(&home), "{told}");
    for device in ["sda", "mem", "kmsg", "fuse", "loop0"] {
        assert!(
            !told.lines().any(|line| line == device),
            "{device} in {told}"
        );
    }
    // Root inside is nobody outside.
    let map: Vec<&str> = told
        .lines()
        .find(|line| line.starts_with("uid-map"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(map[1], "0");
    assert!(map[2].parse::<u32>().unwrap() > 65_535, "{map:?}");
}

#[test]
fn memory_beyond_the_limit_ends_the_instance_and_is_told() {
    let server = server();
    let host = server.deploy("eater", &[]);
    let before = server.instances("eater");
    let reply = server.get(&host, "/allocate/200");
    assert_eq!(reply.status, 502, "{reply:?}");
    wait_for("the log says why", 20, || {
        let log = server.cli(&["logs", "eater"]).ok().to_lowercase();
        log.contains("memory").then_some(())
    });
    wait_for("another serves", 20, || {
        (server.get(&host, "/").status == 200).then_some(())
    });
    assert_ne!(server.instances("eater"), before);
}

#[test]
fn a_full_writable_layer_in_memory_fails_a_write_and_nothing_else() {
    let server = server();
    let host = server.deploy("writer", &[]);
    let before = server.instances("writer");
    let told = good(server.get(&host, "/write/big/60000"));
    assert!(told.contains("No space left"), "{told}");
    assert!(good(server.get(&host, "/write/big/1000")).contains("written"));
    assert_eq!(server.instances("writer"), before);
}

#[test]
fn processes_writes_and_processor_time_have_bounds() {
    let server = server();
    let host = server.deploy(
        "greedy",
        &["--cpu", "0.2", "--concurrency", "4", "--disk", "32"],
    );
    let told = good(server.get(&host, "/write/big/200000"));
    assert!(told.contains("No space left"), "{told}");
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let threads: u32 = good(server.get(&host, "/threads/3000"))
        .trim()
        .parse()
        .unwrap();
    assert!((100..1024).contains(&threads), "{threads}");
    let (_, took) = timed(|| good(server.get(&host, "/burn/1000")));
    assert!(took < Duration::from_secs(20), "{took:?}");
    let usage = server.json(&["describe", "greedy"]);
    assert_eq!(usage["instances"].as_array().unwrap().len(), 1, "{usage}");
}

#[test]
fn overload_is_refused_quickly() {
    let server = server();
    let host = server.deploy(
        "busy",
        &["--concurrency", "2", "--max", "1", "--timeout", "10"],
    );
    let (replies, took) = timed(|| {
        at_once(60, |_| {
            server.curl(&host, "/sleep/500", &["--max-time", "60"])
        })
    });
    let count = |status: u16| {
        replies
            .iter()
            .filter(|reply| reply.status == status)
            .count()
    };
    assert!(
        replies
            .iter()
            .all(|reply| [200, 429, 503].contains(&reply.status)),
        "{replies:?}"
    );
    assert!(count(200) >= 20, "{} of 60", count(200));
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn cpu_limit_is_enforced() {
    let server = server();
    let host = server.deploy("tenth", &["--cpu", "0.1", "--keep-alive", "1"]);
    // Two seconds by the wall are two tenths of a second of processor time.
    assert_eq!(good(server.get(&host, "/burn/2000")), "burnt\n");
    server.wait_for_instances("tenth", 0);
    let used = wait_for("the bill has it", 20, || {
        let used = server.json(&["usage", "tenth"])["rows"][0]["cpu_s"].as_f64()?;
        (used > 0.02).then_some(used)
    });
    assert!(used < 1.0, "{used} s");
}

#[test]
fn a_class_that_does_not_serve_here_is_told_and_asked_for_in_vain() {
    // No kernel is installed, so whatever KVM is worth there are no machines.
    let server = server();
    let host = server.deploy("unasked", &["--min", "1"]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let described = server.json(&["describe", "unasked"]);
    let reason = described["instances"][0]["class_reason"].as_str().unwrap();
    let why = reason.strip_prefix("container: ").unwrap();
    assert!(why.contains("skiff-vmm") || why.contains("kernel"), "{why}");
    for args in [&["describe", "unasked"][..], &["ls"]] {
        let text = server.cli(args).ok();
        assert!(text.contains(reason), "{args:?}: {text}");
    }
    let row = server.json(&["usage", "unasked"])["rows"][0].clone();
    assert_eq!(row["class"], "container", "{row}");
    assert_eq!(row["fell_back"], serde_json::json!([why]), "{row}");
    let text = server.cli(&["usage"]).ok();
    let note = text.lines().find(|line| line.contains(why)).unwrap();
    assert!(note.contains("default/unasked"), "{text}");

    let file = server.home().join("doctor.toml");
    let folders = format!(
        "data_dir = {:?}\nrun_dir = {:?}\n",
        server.data_dir(),
        server.run_dir()
    );
    std::fs::write(&file, folders).unwrap();
    let checks = server.json(&["doctor", "--config", file.to_str().unwrap()]);
    let isolation = checks.as_array().unwrap().iter();
    let mut isolation = isolation.filter(|check| check["name"] == "isolation");
    let detail = isolation.next().unwrap()["detail"].as_str().unwrap();
    assert_eq!(detail, format!("container; no microvm: {why}"));

    // Nothing falls back, and nothing is left of it.
    let args = [
        "deploy",
        "asked",
        "--image",
        "testapp:1",
        "--isolation",
        "microvm",
    ];
    let refused = server.cli(&args);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains(why), "{} {}", refused.out, refused.err);
    assert_ne!(server.get(&server.host_of("asked"), "/").status, 200);
}
