//! From service to service, and from server to server.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use rustix::process::Signal;
use skiff_e2e::{good, under_load};
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, wait_for};

static SHARED: SharedServer = SharedServer::new();

fn server() -> Held {
    SHARED.get(|| ServerOptions::with(&["testapp"]))
}

fn call(server: &Server, host: &str, target: &str, path: &str) -> String {
    good(server.get(host, &format!("/get/{target}/80/{path}")))
}

#[test]
fn a_service_reaches_another_by_name_from_zero() {
    let server = server();
    let caller = server.deploy("caller", &[]);
    let _host = server.deploy("called", &["--keep-alive", "1", "--env", "WHO=called"]);
    server.wait_for_instances("called", 0);
    let told = call(&server, &caller, "called.skiff.internal", "env,WHO");
    assert!(
        told.starts_with("HTTP/1.1 200") && told.ends_with("called"),
        "{told}"
    );
    // Also itself, and with a way out.
    let _host = server.deploy("caller", &["--egress", "--env", "WHO=caller"]);
    for (target, who) in [("called", "called"), ("caller", "caller")] {
        let told = call(
            &server,
            &caller,
            &format!("{target}.skiff.internal"),
            "env,WHO",
        );
        assert!(told.ends_with(who), "{told}");
    }
    // It is billed as any request.
    let usage = server.json(&["usage", "called"]);
    assert_eq!(usage["rows"][0]["requests"], 2, "{usage}");
}

/// A resolver on a loopback address of its own, which knows one name.
fn resolver(name: &'static str, address: [u8; 4]) -> String {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let place = format!("127.53.{high}.{low}");
    let socket = std::net::UdpSocket::bind((place.as_str(), 53)).unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let answer = resolved(&query[..length], name, address);
            socket.send_to(&answer, from).unwrap();
        }
    });
    place
}

/// RFC 1035 § 4.1: one question, and an address if it is asked for the name's.
fn resolved(query: &[u8], name: &str, address: [u8; 4]) -> Vec<u8> {
    let mut wanted = Vec::new();
    for label in name.split('.') {
        wanted.push(u8::try_from(label.len()).unwrap());
        wanted.extend(label.bytes());
    }
    wanted.push(0);
    let asked = &query[12..12 + wanted.len().min(query.len() - 12)];
    let knows = asked.eq_ignore_ascii_case(&wanted);
    let kind = query.get(12 + wanted.len() + 1);
    let answers = u8::from(knows && kind == Some(&1));
    let code = if knows { 0 } else { 3 };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    let question = query[12..].iter().position(|byte| *byte == 0).unwrap() + 12 + 5;
    answer.extend(&query[12..question]);
    if answers == 1 {
        answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
    }
    answer
}

#[test]
fn a_name_of_the_world_is_asked_of_the_configured_resolver() {
    let place = resolver("somewhere.example", [192, 0, 2, 77]);
    let options = ServerOptions::with(&["testapp"]).set(format!("network.dns=[\"{place}\"]"));
    let server = Server::start(options);
    let open = server.deploy("open", &["--egress"]);
    let resolve = |host: &str, name: &str| good(server.get(host, &format!("/resolve/{name}")));
    assert_eq!(resolve(&open, "somewhere.example"), "192.0.2.77\n");
    let unknown = resolve(&open, "nowhere.example");
    assert!(!unknown.contains("192.0.2"), "{unknown}");
    // Without a way out there are the project's names and no other.
    let closed = server.deploy("closed", &[]);
    let refused = resolve(&closed, "somewhere.example");
    assert!(!refused.contains("192.0.2"), "{refused}");
    let own = resolve(&closed, "open.skiff.internal");
    assert!(own.trim().parse::<Ipv4Addr>().is_ok(), "{own}");
}

#[test]
fn a_service_of_another_project_is_not_there() {
    let server = server();
    let _out = server.cli(&["project", "create", "vault"]).ok();
    let deploy = [
        "deploy",
        "safe",
        "--image",
        "testapp:1",
        "--memory",
        "64",
        "--project",
        "vault",
    ];
    let _url = server.cli(&deploy).ok();
    let caller = server.deploy("burglar", &["--egress"]);
    for name in [
        "safe.skiff.internal",
        "safe.vault.skiff.internal",
        "safe.vault.skiff.localhost",
    ] {
        let told = call(&server, &caller, name, "");
        assert!(!told.contains("200 OK"), "{name}: {told}");
    }
    assert!(!good(server.get(&caller, "/connect/127.0.0.1/8000")).contains("connected"));
}

#[test]
fn another_server_takes_over_and_no_request_fails() {
    let mut server = Server::start(ServerOptions::with(&["testapp"]));
    let host = server.deploy("handed", &["--min", "1"]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let before = server.instances("handed");
    let statuses = under_load(&mut server, &host, 4, "/sleep/50", |server| {
        for _ in 0..2 {
            server.replace();
            assert!(good(server.get(&host, "/")).starts_with("hello"));
        }
    });
    assert!(
        statuses.len() > 4 && statuses.iter().all(|status| *status == 200),
        "{statuses:?}"
    );
    assert_eq!(server.instances("handed"), before);
    let check = wait_for("the books are whole", 20, || {
        let check = server.cli(&["usage", "--check"]);
        (check.code == 0).then_some(check)
    });
    assert!(!check.out.contains("FAIL"), "{}", check.out);
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 0);
    server.launch(&[]);
    server.stop_all();
}
