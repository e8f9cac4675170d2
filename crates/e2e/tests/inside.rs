//! From service to service, and from server to server.
#![allow(clippy::unwrap_used)]

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
