//! Secrets: used by applications, seen nowhere else.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use skiff_e2e::good;
use skiff_testkit::{Server, ServerOptions, run};

const VALUE: &str = "hunter2-3f9a61c8e5";
const BASE64: &str = "aHVudGVyMi0zZjlhNjFjOGU1";

/// Files below a folder that contain a text.
fn containing(folder: &Path, text: &str) -> Vec<String> {
    let found = run(
        "grep",
        ["-rlaF".as_ref(), text.as_ref(), folder.as_os_str()],
    );
    found.out.lines().map(str::to_owned).collect()
}

#[test]
fn a_secret_is_in_the_application_and_nowhere_else() {
    let mut server = Server::start(ServerOptions::with(&["testapp"]).set("log.level=debug"));
    let told = server
        .cli(&[
            "deploy",
            "early",
            "--image",
            "testapp:1",
            "--secret",
            "KEY=api-key",
        ])
        .failed();
    assert!(told.contains("api-key"), "{told}");

    let set = server.cli_with_input(&["secret", "set", "api-key"], VALUE.as_bytes());
    assert_eq!(set.code, 0, "{}", set.err);
    let host = server.deploy("holder", &["--secret", "KEY=api-key", "--env", "PLAIN=1"]);
    assert_eq!(good(server.get(&host, "/env/KEY")), VALUE);

    let listed = server.json(&["secret", "ls"]);
    assert_eq!(listed[0]["name"], "api-key");
    let first_key = listed[0]["key_id"].as_str().unwrap().to_owned();
    let answers = [
        listed.to_string(),
        server.json(&["describe", "holder"]).to_string(),
        server.json(&["ls"]).to_string(),
        server
            .api("GET", "/v1/projects/default/secrets", None)
            .unwrap()
            .to_string(),
        server.cli(&["logs", "holder"]).ok(),
        server.log(),
        format!("{}{}", set.out, set.err),
    ];
    for answer in &answers {
        assert!(
            !answer.contains(VALUE) && !answer.contains(BASE64),
            "{answer}"
        );
    }
    assert!(
        server
            .api("GET", "/v1/projects/default/secrets/api-key", None)
            .is_none()
    );

    server.signal(rustix::process::Signal::TERM);
    let _code = server.wait();
    for text in [VALUE, BASE64] {
        assert_eq!(containing(server.home(), text), [""; 0]);
    }
    let key = std::fs::read(server.key_file()).unwrap();
    assert!(!server.key_file().starts_with(server.data_dir()));
    assert!(key.len() >= 32);
    let mode = run(
        "stat",
        ["-c".as_ref(), "%a".as_ref(), server.key_file().as_os_str()],
    )
    .ok();
    assert!(["600", "400"].contains(&mode.trim()), "{mode}");

    // With the key it is readable after a restart, also by new instances.
    server.launch(&[]);
    let host = server.deploy("holder", &["--secret", "KEY=api-key", "--env", "PLAIN=2"]);
    assert_eq!(good(server.get(&host, "/env/KEY")), VALUE);

    let new_key = server.key_file().with_file_name("new.key");
    let _out = server
        .cli(&["secret", "rekey", "--key-file", new_key.to_str().unwrap()])
        .ok();
    let listed = server.json(&["secret", "ls"]);
    assert_ne!(listed[0]["key_id"], first_key.as_str());
    let host = server.deploy("holder", &["--secret", "KEY=api-key", "--env", "PLAIN=3"]);
    assert_eq!(good(server.get(&host, "/env/KEY")), VALUE);
    server.signal(rustix::process::Signal::TERM);
    let _code = server.wait();
    server.configure(format!("secrets.key_file={}", new_key.display()));
    server.launch(&[]);
    let host = server.deploy("holder", &["--secret", "KEY=api-key", "--env", "PLAIN=4"]);
    assert_eq!(good(server.get(&host, "/env/KEY")), VALUE);
}

#[test]
fn a_secret_of_another_project_is_none() {
    let server = Server::start(ServerOptions::with(&["testapp"]));
    let _out = server.cli(&["project", "create", "other"]).ok();
    let set = ["secret", "set", "token", "--project", "other"];
    let _out = server.cli_with_input(&set, VALUE.as_bytes()).ok();
    let told = server
        .cli(&[
            "deploy",
            "thief",
            "--image",
            "testapp:1",
            "--secret",
            "KEY=token",
        ])
        .failed();
    assert!(told.contains("token") && !told.contains(VALUE), "{told}");
    assert_eq!(server.json(&["secret", "ls"]).as_array().unwrap().len(), 0);
    let told = server
        .cli_with_input(&["secret", "set", "large"], &[b'x'; 70_000])
        .failed();
    assert!(told.contains("65536"), "{told}");
}
