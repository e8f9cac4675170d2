//! The operator's view: logs, traces, projects, tokens, quotas, errors.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde_json::Value;
use skiff_e2e::{at_once, good};
use skiff_testkit::{
    Finished, Held, Server, ServerOptions, SharedServer, deadline, run, unused_port, wait_for,
};

static SHARED: SharedServer = SharedServer::new();

fn server() -> Held {
    SHARED.get(|| ServerOptions::with(&["testapp"]))
}

#[test]
fn logs_show_what_was_written_and_follow_what_comes() {
    let server = server();
    let host = server.deploy("talker", &[]);
    assert_eq!(good(server.get(&host, "/log/first-words")), "logged\n");
    let shown = wait_for("the words are there", 20, || {
        let text = server.cli(&["logs", "talker"]).ok();
        (text.matches("first-words").count() == 2).then_some(text)
    });
    assert!(
        shown.contains("stdout") && shown.contains("stderr"),
        "{shown}"
    );

    let mut follower = server.cli_started(&["logs", "talker", "--follow", "--output", "json"]);
    let (tell, told) = std::sync::mpsc::sync_channel(1000);
    let out = BufReader::new(follower.0.stdout.take().unwrap());
    std::thread::spawn(move || {
        out.lines()
            .map_while(Result::ok)
            .try_for_each(|line| tell.send(line))
    });
    let next = |text: &str| {
        let line = std::iter::from_fn(|| told.recv_timeout(deadline(20)).ok())
            .find(|line| line.contains(text));
        serde_json::from_str::<Value>(&line.unwrap_or_else(|| panic!("{text} does not come")))
            .unwrap()
    };
    assert_eq!(next("first-words")["revision"], "talker-00001");
    assert_eq!(good(server.get(&host, "/log/later-words")), "logged\n");
    let line = next("later-words");
    assert!(
        line["unix_ms"].is_u64() && line["instance"].is_string(),
        "{line}"
    );
    // Also of a revision that comes after.
    let host = server.deploy("talker", &["--env", "A=1"]);
    assert_eq!(good(server.get(&host, "/log/newest-words")), "logged\n");
    assert_eq!(next("newest-words")["revision"], "talker-00002");
}

#[test]
fn logs_are_bounded() {
    let server = Server::start(
        ServerOptions::with(&["testapp"]).set("worker.log_bytes_per_service=1048576"),
    );
    let host = server.deploy("chatty", &["--concurrency", "10"]);
    let long = "y".repeat(8000);
    let _replies = at_once(4, |_| {
        for _ in 0..50 {
            assert_eq!(good(server.get(&host, &format!("/log/{long}"))), "logged\n");
        }
    });
    let folder = server.data_dir().join("logs");
    let kept: u64 = run("du", ["-sb".as_ref(), folder.as_os_str()])
        .ok()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // 3.2 MB were written.
    assert!(kept < 2 * 1_048_576, "{kept} bytes");
    assert_eq!(good(server.get(&host, "/log/the-last")), "logged\n");
    wait_for("the last line is kept", 20, || {
        server
            .cli(&["logs", "chatty", "-n", "5"])
            .ok()
            .contains("the-last")
            .then_some(())
    });
}

#[test]
fn every_command_speaks_json() {
    let server = server();
    let host = server.deploy("speaker", &[]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    for args in [
        &["ls"][..],
        &["describe", "speaker"],
        &["traffic", "speaker"],
        &["trace", "speaker"],
        &["usage"],
        &["usage", "--check"],
        &["image", "ls"],
        &["image", "prune"],
        &["project", "ls"],
        &["secret", "ls"],
        &["token", "ls"],
        &["doctor"],
    ] {
        let value = server.json(args);
        assert!(value.is_array() || value.is_object(), "{args:?}: {value}");
        let text = server.cli(args).ok();
        assert!(
            !text.starts_with(['{', '[']) || text.is_empty(),
            "{args:?}: {text}"
        );
    }
    let told = server
        .cli(&[
            "deploy",
            "speaker",
            "--image",
            "testapp:1",
            "--memory",
            "64",
            "--output",
            "json",
        ])
        .ok();
    for line in told.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["event"].is_string(), "{line}");
    }
}

#[test]
fn an_error_is_one_line_with_its_cause() {
    let server = server();
    for (args, parts) in [
        (&["describe", "nothing"][..], &["nothing"][..]),
        (&["logs", "nothing"], &["nothing"]),
        (&["rm", "nothing"], &["nothing"]),
        (&["deploy", "app", "--image", "no-such:1"], &["no-such:1"]),
        (
            &["deploy", "app", "--image", "testapp:1", "--memory", "1"],
            &["memory", "16"],
        ),
        (
            &["deploy", "app", "--image", "testapp:1", "--cpu", "0"],
            &["CPU"],
        ),
        (
            &["deploy", "app", "--image", "testapp:1", "--env", "NOVALUE"],
            &["NOVALUE"],
        ),
        (&["ls", "--project", "unknown"], &["unknown"]),
        (&["image", "import", "/no/such"], &["/no/such"]),
        (
            &["ls", "--host", "unix:///no/such.sock"],
            &["/no/such.sock", "skiff server"],
        ),
        (&["ls", "--host", "ftp://x"], &["ftp://x"]),
        (&["apply", "-f", "/no/such.toml"], &["/no/such.toml"]),
    ] {
        let told = server.cli(args).failed();
        assert_eq!(told.lines().count(), 1, "{args:?}: {told}");
        for part in parts {
            assert!(told.contains(part), "{args:?}: `{part}` is not in {told}");
        }
    }
    let server_refused = |setting: &str| {
        let mut command = skiff_base::process::command(skiff_testkit::skiff_binary());
        command
            .args(["server", "--set", setting])
            .stderr(std::process::Stdio::piped());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (setting, parts) in [
        ("gateway.lisen=1", ["gateway.lisen", "--set"]),
        ("worker.memory_mib=much", ["worker.memory_mib", "much"]),
    ] {
        let told = server_refused(setting);
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }
}

#[test]
fn projects_have_names_quotas_and_nothing_in_common() {
    let server = server();
    let _out = server
        .cli(&["project", "create", "team", "--instances", "1"])
        .ok();
    let deploy = [
        "deploy",
        "web",
        "--image",
        "testapp:1",
        "--memory",
        "64",
        "--project",
        "team",
    ];
    let _url = server
        .cli(&[&deploy[..], &["--concurrency", "1", "--env", "WHO=team"]].concat())
        .ok();
    let own = server.deploy("web", &["--env", "WHO=default"]);
    assert_eq!(good(server.get(&own, "/env/WHO")), "default");
    let host = "web.team.skiff.localhost";
    assert_eq!(good(server.get(host, "/env/WHO")), "team");
    let most = std::thread::scope(|scope| {
        let load = scope.spawn(|| at_once(4, |_| server.get(host, "/sleep/700").status));
        let mut most = 0;
        while !load.is_finished() {
            let service = server.json(&["describe", "web", "--project", "team"]);
            most = most.max(service["instances"].as_array().map_or(0, Vec::len));
        }
        let statuses = load.join().unwrap();
        // They wait for the only instance, one after the other.
        assert_eq!(statuses, [200; 4]);
        most
    });
    assert_eq!(most, 1);

    let _out = server
        .cli(&["project", "quota", "team", "--requests", "2"])
        .ok();
    let statuses = at_once(8, |_| server.get(host, "/sleep/1500").status);
    assert!(statuses.contains(&429), "{statuses:?}");
    assert!(
        statuses.iter().all(|status| [200, 429].contains(status)),
        "{statuses:?}"
    );
    let told = server.cli(&["project", "rm", "team"]).failed();
    assert!(told.contains("team"), "{told}");
    let _out = server.cli(&["rm", "web", "--project", "team"]).ok();
    let _out = server.cli(&["project", "rm", "team"]).ok();
    assert_eq!(server.get(host, "/").status, 404);
    assert_eq!(good(server.get(&own, "/env/WHO")), "default");
}

#[test]
fn an_idle_instance_gives_way_and_a_busy_one_does_not() {
    // A test's instance has 64 MiB: one fits.
    let server = Server::start(ServerOptions::with(&["testapp"]).set("worker.memory_mib=100"));
    let first = server.deploy("first", &["--env", "WHO=first"]);
    assert_eq!(good(server.get(&first, "/env/WHO")), "first");
    // Its instance would be kept for a minute.
    let second = server.deploy("second", &["--env", "WHO=second"]);
    assert_eq!(good(server.get(&second, "/env/WHO")), "second");
    let described = server.json(&["describe", "first"]);
    assert_eq!(described["instances"].as_array().map(Vec::len), Some(0));
    assert_eq!(good(server.get(&first, "/env/WHO")), "first");
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.get(&first, "/sleep/4000").status);
        wait_for("a busy instance", 20, || {
            let described = server.json(&["describe", "first"]);
            (described["instances"][0]["in_flight"] == 1).then_some(())
        });
        let deploy = ["deploy", "third", "--image", "testapp:1", "--memory", "64"];
        let told = server.cli(&deploy).failed();
        assert!(told.contains("memory is short: 64 MiB"), "{told}");
        assert_eq!(busy.join().unwrap(), 200);
    });
}

/// A certificate of its own for 127.0.0.1 and its key.
fn certificate(folder: &Path) -> [String; 2] {
    let path = |name: &str| folder.join(name).display().to_string();
    let (certificate, key) = (path("api.pem"), path("api.key"));
    let args = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=skiff",
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        &key,
        "-out",
        &certificate,
    ];
    let _out = run("openssl", args).ok();
    let _out = run("chmod", ["a+r", &key, &certificate]).ok();
    [certificate, key]
}

#[test]
fn tokens_open_the_api_over_tls_for_their_project_only() {
    let folder = tempfile::Builder::new()
        .prefix("skiff-e2e-tls.")
        .tempdir()
        .unwrap();
    let _out = run("chmod", ["711".as_ref(), folder.path().as_os_str()]).ok();
    let [certificate, key] = certificate(folder.path());
    let port = unused_port();
    let server = Server::start(
        ServerOptions::with(&["testapp"])
            .set(format!("api.listen=127.0.0.1:{port}"))
            .set(format!("api.tls_certificate={certificate}"))
            .set(format!("api.tls_key={key}")),
    );
    let url = format!("https://127.0.0.1:{port}");
    let _host = server.deploy("mine", &[]);
    let _out = server.cli(&["project", "create", "other"]).ok();
    let token = |flags: &[&str]| {
        server
            .cli(&[&["token", "create", "test"], flags].concat())
            .ok()
            .trim()
            .to_owned()
    };
    let (operator, bound) = (token(&["--operator"]), token(&["--project", "other"]));
    let ask = |token: &str, args: &[&str]| -> Finished {
        server.cli(
            &[
                &["--host", &url, "--ca", &certificate, "--token", token],
                args,
            ]
            .concat(),
        )
    };
    assert!(ask(&operator, &["ls"]).ok().contains("mine"));
    assert!(
        !ask(&bound, &["ls", "--project", "other"])
            .ok()
            .contains("mine")
    );
    for args in [
        &["ls"][..],
        &["describe", "mine"],
        &["rm", "mine"],
        &["logs", "mine"],
        &["secret", "ls"],
        &["token", "ls"],
        &["usage", "--all-projects"],
        &["project", "create", "third"],
        &["image", "prune"],
    ] {
        let told = ask(&bound, args).failed();
        assert!(!told.contains(&bound), "{told}");
    }
    for wrong in ["", "nonsense", &operator[..operator.len() - 1]] {
        let _told = ask(wrong, &["ls"]).failed();
    }
    let untrusted = server.cli(&["--host", &url, "--token", &operator, "ls"]);
    assert!(untrusted.failed().to_lowercase().contains("certificate"));
    assert!(server.json(&["ls"]).to_string().contains("mine"));
    let listed = server.json(&["token", "ls"]);
    assert!(!listed.to_string().contains(&operator), "{listed}");
    let ids = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["id"].as_str().unwrap().to_owned());
    for id in ids {
        let _out = server.cli(&["token", "rm", &id]).ok();
    }
    let _told = ask(&operator, &["ls"]).failed();
    let found = run(
        "grep",
        [
            "-rlaF".as_ref(),
            operator.as_ref(),
            server.data_dir().as_os_str(),
        ],
    );
    assert_eq!(found.out, "");
}

#[test]
fn metrics_and_health_are_told() {
    let server = server();
    let socket = server.run_dir().join("skiff.sock");
    let get = |path: &str| {
        let url = format!("http://skiff{path}");
        run(
            "curl",
            ["-sf", "--unix-socket", socket.to_str().unwrap(), &url],
        )
        .ok()
    };
    assert!(!get("/healthz").is_empty());
    let host = server.deploy("measured", &[]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let metrics = get("/metrics");
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("# TYPE skiff_")),
        "{metrics}"
    );
    let document: Value = serde_json::from_str(&get("/v1/openapi.json")).unwrap();
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with('3'))
    );
}
