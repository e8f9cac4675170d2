//! Commands in instances that run.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};

use skiff_e2e::good;
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, skiff_binary, wait_for};

static SHARED: SharedServer = SharedServer::new();

fn server() -> Held {
    SHARED.get(|| ServerOptions::with(&["busybox"]))
}

/// A service of busybox's own web server, with an instance that runs.
fn deploy(server: &Server, name: &str, flags: &[&str]) {
    let command =
        "mkdir -p /tmp/www; echo up >/tmp/www/index.html; exec httpd -f -p $PORT -h /tmp/www";
    let args = [
        &["deploy", name, "--image", "busybox:1", "--memory", "64"],
        flags,
        &["--command", "/bin/sh", "--", "-c", command],
    ]
    .concat();
    let _out = server.cli(&args).ok();
    assert_eq!(good(server.get(&server.host_of(name), "/")), "up\n");
}

#[test]
fn a_command_has_its_streams_and_its_exit_code() {
    let server = server();
    deploy(&server, "streams", &["--env", "GREETING=hello"]);
    let shell = |script: &'static str| ["exec", "streams", "--", "/bin/sh", "-c", script];
    let done = server.cli(&shell("echo $GREETING; echo bad >&2; cat; exit 7"));
    assert_eq!((done.code, &*done.out, &*done.err), (7, "hello\n", "bad\n"));
    let done = server.cli(&shell("kill -TERM $$"));
    assert_eq!(done.code, 128 + 15, "{}", done.err);

    // Far more than any buffer on the way.
    let many = vec![b'x'; 3 << 20];
    let args = [
        "exec",
        "-i",
        "streams",
        "--",
        "sh",
        "-c",
        "wc -c; head -c 2000000 /dev/zero | wc -c",
    ];
    let done = server.cli_with_input(&args, &many);
    assert_eq!(done.ok(), format!("{}\n2000000\n", many.len()));
    let written = server
        .cli(&shell("head -c 3000000 /dev/zero | tr '\\0' y"))
        .ok();
    assert_eq!(written.len(), 3_000_000);

    let [instance] = &*server.instances("streams") else {
        panic!("there is not one instance")
    };
    let args = [
        "exec",
        "--env",
        "GREETING=bye",
        "--workdir",
        "/tmp",
        instance,
        "--",
    ];
    let script = [
        "sh",
        "-c",
        "echo $GREETING; pwd; cat /proc/1/comm; hostname",
    ];
    let told = server.cli(&[&args[..], &script].concat()).ok();
    assert_eq!(told.lines().take(2).collect::<Vec<_>>(), ["bye", "/tmp"]);
    assert_eq!(told.lines().last(), Some(instance.as_str()));
}

#[test]
fn what_cannot_run_is_told() {
    let server = server();
    deploy(&server, "refuser", &["--min", "1"]);
    for (args, part) in [
        (&["exec", "nobody", "--", "true"][..], "nobody"),
        (&["exec", "0000000000000000", "--", "true"], "no instance"),
        (
            &["exec", "refuser", "--", "/no/such/program"],
            "/no/such/program",
        ),
        (
            &["exec", "refuser", "--workdir", "/nowhere", "--", "true"],
            "/nowhere",
        ),
        (
            &["exec", "--tty", "refuser", "--", "true"],
            "--tty needs a terminal",
        ),
    ] {
        let told = server.cli(args).failed();
        assert!(told.contains(part), "{args:?}: {told}");
    }
    let _out = server.cli(&["project", "create", "apart"]).ok();
    let [instance] = &*server.instances("refuser") else {
        panic!("there is not one instance")
    };
    let others = server.cli(&["exec", "--project", "apart", instance, "--", "true"]);
    assert!(others.failed().contains("no instance"));
}

#[test]
fn a_command_ends_with_its_client() {
    let server = server();
    deploy(&server, "leaver", &["--min", "1"]);
    let mut running = server.cli_started(&[
        "exec",
        "leaver",
        "--",
        "sh",
        "-c",
        "echo on; exec sleep 4711",
    ]);
    let mut out = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "on\n");
    let sleeps = || {
        let told = server
            .cli(&["exec", "leaver", "--", "sh", "-c", "ps -o args"])
            .ok();
        told.contains("sleep 4711")
    };
    assert!(sleeps());
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    wait_for("the command's end", 30, || (!sleeps()).then_some(()));
}

#[test]
fn one_that_is_paused_runs_for_a_command() {
    let server = server();
    deploy(&server, "sleeper", &["--cpu-mode", "request", "--min", "1"]);
    let state = || server.json(&["describe", "sleeper"])["instances"][0]["state"].clone();
    let paused = || {
        wait_for("it to be paused", 30, || {
            (state() == "paused").then_some(())
        })
    };
    paused();
    let mut running = server.cli_started(&[
        "exec",
        "sleeper",
        "--",
        "sh",
        "-c",
        "echo on; exec sleep 1000000",
    ]);
    let mut out = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), state().as_str()), ("on\n", Some("ready")));
    // A request's end does not let it stand.
    assert_eq!(good(server.get(&server.host_of("sleeper"), "/")), "up\n");
    let done = server.cli(&["exec", "sleeper", "--", "echo", "two"]);
    assert_eq!(done.ok(), "two\n");
    assert_eq!(state(), "ready");
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    paused();
}

#[test]
fn a_terminal_is_the_users() {
    let server = server();
    deploy(&server, "terminal", &["--min", "1"]);
    let script = "tty; stty size; printf 'ready>'; read word; echo \"<$word>\"; \
                  printf 'ready>'; read word; \
                  until [ \"$(stty size)\" = '12 40' ]; do sleep 0.1; done; \
                  trap 'echo interrupted; hit=1' INT; printf 'ready>'; \
                  while [ -z \"$hit\" ]; do sleep 0.1; done; echo the end; exit 9";
    let binary = skiff_binary().display().to_string();
    let host = server.host();
    let exec = ["exec", "-it", "terminal", "--", "/bin/sh", "-c", script];
    let command = [&[&*binary, "--host", &host][..], &exec].concat();
    let done = skiff_testkit::started_on_a_terminal("good day|^Wmore|^C", &command).wait();
    assert_eq!(done.code, 9, "{}{}", done.out, done.err);
    for part in ["/dev/pts/", "33 97", "<good day>", "interrupted", "the end"] {
        assert!(done.out.contains(part), "{part} is not in {}", done.out);
    }
}

#[test]
fn commands_end_with_a_server_that_is_killed() {
    let mut server = Server::start(ServerOptions::with(&["busybox"]));
    deploy(&server, "left", &["--min", "1"]);
    let mut running =
        server.cli_started(&["exec", "left", "--", "sh", "-c", "echo on; exec sleep 4711"]);
    let mut line = String::new();
    let mut out = BufReader::new(running.0.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "on\n");
    server.kill();
    server.launch(&[]);
    let done = running.wait();
    assert!(done.failed().contains("broke off"));
    wait_for("the command's end", 30, || {
        let told = server.cli(&["exec", "left", "--", "sh", "-c", "ps -o args"]);
        (told.code == 0 && !told.out.contains("sleep 4711")).then_some(())
    });
}
