//! Functions: events for real runtimes, through the gateway.
#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use skiff_base::{Clock as _, SystemClock};
use skiff_e2e::{answer, at_once, failure, good, invoke, invoke_with, processes, timed};
use skiff_testkit::{Held, Reply, Server, ServerOptions, SharedServer, deadline, wait_for};

static SHARED: SharedServer = SharedServer::new();

const EVENT_BYTES: usize = 6 * 1024 * 1024;

fn server() -> Held {
    SHARED.get(|| ServerOptions::with(&["shell-function", "python-function"]))
}

fn deploy(server: &Server, name: &str, image: &str, flags: &[&str]) -> String {
    let image = format!("{image}-function:1");
    let args = [
        &[
            "deploy",
            name,
            "--function",
            "--image",
            &image,
            "--memory",
            "128",
            "--cpu",
            "0.25",
        ],
        flags,
    ]
    .concat();
    let _out = server.cli(&args).ok();
    server.host_of(name)
}

#[test]
fn a_shell_bootstrap_answers_its_events() {
    let server = server();
    let host = deploy(&server, "shell", "shell", &["--env", "MIXED=a=b=c"]);
    let reply = invoke(&server, &host, r#"{"hello":"world"}"#);
    assert_eq!(
        reply.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(reply.header("x-amz-request-id").map(str::len), Some(36));
    assert_eq!(good(reply), r#"{"hello":"world"}"#);
    for (event, answer) in [
        (r#""env MIXED""#, "a=b=c"),
        (r#""env AWS_LAMBDA_FUNCTION_NAME""#, "shell"),
        (r#""env AWS_LAMBDA_FUNCTION_VERSION""#, "$LATEST"),
        (r#""env AWS_LAMBDA_FUNCTION_MEMORY_SIZE""#, "128"),
        (r#""env LAMBDA_TASK_ROOT""#, "/var/task"),
        (r#""write""#, "root read-only, tmp writable"),
        (
            r#""wrong id""#,
            r#""400 {errorType:InvalidRequestID,errorMessage:Invalid request ID}""#,
        ),
    ] {
        assert_eq!(good(invoke(&server, &host, event)), answer, "{event}");
    }
    let refused = server.get(&host, "/");
    assert_eq!(
        (refused.status, refused.header("allow")),
        (405, Some("POST"))
    );
    let _out = server.cli(&["rm", "shell"]).ok();
}

#[test]
fn a_runtime_is_told_of_its_caller_and_its_time() {
    let server = server();
    let host = deploy(&server, "told", "shell", &["--timeout", "30"]);
    let id = "2f2b9c4e-52e3-4a0f-8f6a-1f0e7c1d2b3a";
    let arn = "arn:aws:lambda:us-east-1:000000000000:function:told";
    let own = good(invoke(&server, &host, r#""context""#));
    let own = own.split(' ').next().unwrap();
    assert!(
        own.ends_with(":function:told") && own.starts_with("arn:aws:lambda:"),
        "{own}"
    );
    let with = |arn: &str| {
        let context = STANDARD.encode(r#"{"custom":{"k":"v"}}"#);
        let flags = [
            format!("x-amz-request-id: {id}"),
            format!("x-amz-client-context: {context}"),
            format!("x-amz-invoked-arn: {arn}"),
            "x-amzn-trace-id: Root=1-2-3".to_owned(),
        ];
        let flags: Vec<&str> = flags.iter().flat_map(|h| ["-H", h.as_str()]).collect();
        let reply = invoke_with(&server, &host, r#""context""#, &flags);
        assert_eq!(reply.header("x-amz-request-id"), Some(id));
        good(reply)
    };
    let expected = |arn: &str| format!(r#"{arn} {{"custom":{{"k":"v"}}}} {id} 993 Root=1-2-3"#);
    let qualified = format!("{own}:live");
    assert_eq!(with(&qualified), expected(&qualified));
    // Nobody calls a function by another's name.
    assert_eq!(with(&arn.replace(":told", ":other")), expected(own));
    let bad = invoke_with(&server, &host, "1", &["-H", "x-amz-client-context: %%"]);
    assert_eq!(bad.status, 400, "{bad:?}");
    let remaining: u64 = good(invoke(&server, &host, r#""remaining""#))
        .parse()
        .unwrap();
    assert!((1..=30_000).contains(&remaining), "{remaining}");
    let _out = server.cli(&["rm", "told"]).ok();
}

#[test]
fn errors_exits_and_crashes_are_told_in_aws_s_words() {
    let server = server();
    let host = deploy(&server, "broken", "shell", &[]);
    let error = failure(&invoke(&server, &host, r#""error""#));
    assert_eq!(
        error,
        json!({"errorType": "Own.Error", "errorMessage": "as asked"})
    );
    for (event, words) in [
        (r#""exit 1""#, "Runtime exited with error: exit status 1"),
        (r#""exit 0""#, "Runtime exited without providing a reason"),
        (r#""crash""#, "signal: segmentation fault"),
    ] {
        let reply = invoke(&server, &host, event);
        let error = failure(&reply);
        assert_eq!(error["errorType"], "Runtime.ExitError", "{error}");
        let message = error["errorMessage"].as_str().unwrap();
        assert!(
            message.starts_with("RequestId: ") && message.ends_with(words),
            "{message}"
        );
        // The next event finds another instance, and its caller nothing amiss.
        assert_eq!(good(invoke(&server, &host, "7")), "7");
    }
    let _out = server.cli(&["rm", "broken"]).ok();
}

#[test]
fn a_timeout_ends_its_own_sandbox_in_time() {
    let server = server();
    let host = deploy(&server, "slow", "shell", &["--timeout", "2"]);
    let other = deploy(&server, "bystander", "shell", &[]);
    assert_eq!(good(invoke(&server, &other, "1")), "1");
    let bystander = server.instances("bystander");
    let (reply, took) = timed(|| invoke(&server, &host, r#""sleep""#));
    let error = failure(&reply);
    let message = error["errorMessage"].as_str().unwrap();
    assert!(
        message.ends_with("Task timed out after 2.00 seconds"),
        "{error}"
    );
    assert!(took < deadline(20), "{took:?}");
    assert_eq!(good(invoke(&server, &host, "2")), "2");
    assert_eq!(server.instances("bystander"), bystander);
    for name in ["slow", "bystander"] {
        let _out = server.cli(&["rm", name]).ok();
    }
}

#[test]
fn a_late_answer_never_reaches_the_next_event() {
    let server = server();
    let host = deploy(&server, "late", "shell", &[]);
    assert_eq!(good(invoke(&server, &host, r#""late""#)), r#""fresh none""#);
    assert_eq!(good(invoke(&server, &host, r#""late""#)), r#""fresh 403""#);
    let _out = server.cli(&["rm", "late"]).ok();
}

#[test]
fn events_and_answers_have_aws_s_bounds() {
    let server = server();
    let host = deploy(&server, "large", "shell", &["--timeout", "60"]);
    let event = format!("\"{}\"", "x".repeat(EVENT_BYTES - 2));
    assert_eq!(good(invoke(&server, &host, &event)).len(), EVENT_BYTES);
    let refused = invoke(&server, &host, &format!("{event} "));
    assert_eq!(refused.status, 413, "{}", refused.head);
    let whole = invoke(&server, &host, &format!("\"large {}\"", EVENT_BYTES + 100));
    assert_eq!(good(whole).len(), EVENT_BYTES + 100);
    let error = failure(&invoke(
        &server,
        &host,
        &format!("\"large {}\"", EVENT_BYTES + 101),
    ));
    assert_eq!(
        error["errorType"], "Function.ResponseSizeTooLarge",
        "{error}"
    );
    assert_eq!(good(invoke(&server, &host, "1")), "1");
    let _out = server.cli(&["rm", "large"]).ok();
}

#[test]
fn a_streamed_answer_passes_as_it_comes() {
    let server = server();
    let host = deploy(&server, "stream", "shell", &["--timeout", "30"]);
    let reply = invoke(&server, &host, r#""stream""#);
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain"),
        "{reply:?}"
    );
    assert_eq!(good(reply), "first\nsecond\n");
    // The end of its log stands behind it.
    let told = server.cli(&["invoke", "stream", "-d", r#""stream""#, "--log"]);
    assert!(told.out.starts_with("first\nsecond\n"), "{told:?}");
    assert!(told.err.contains("REPORT RequestId: "), "{told:?}");
    let _out = server.cli(&["rm", "stream"]).ok();
}

#[test]
fn the_end_of_its_log_comes_with_the_answer() {
    let server = server();
    let host = deploy(&server, "speak", "shell", &[]);
    let tail = |reply: &Reply| {
        let log = reply.header("x-amz-log-result").unwrap_or_default();
        String::from_utf8(STANDARD.decode(log).unwrap()).unwrap()
    };
    let flags = ["-H", "x-amz-log-type: Tail"];
    let reply = invoke_with(&server, &host, r#""speak""#, &flags);
    let log = tail(&reply);
    for line in [
        "START RequestId: ",
        "it says something\n",
        "and complains\n",
        "REPORT RequestId: ",
    ] {
        assert!(log.contains(line), "{line} is not in {log}");
    }
    let report = [
        "Memory Size: 128 MB",
        "Max Memory Used: ",
        "Init Duration: ",
    ];
    for part in report {
        assert!(log.contains(&format!("\t{part}")), "{part} is not in {log}");
    }
    // Of this invocation and not of the one before.
    let log = tail(&invoke_with(&server, &host, "1", &flags));
    assert!(log.contains("START") && !log.contains("says"), "{log}");
    assert!(!log.contains("Init Duration"), "{log}");
    let log = tail(&invoke_with(&server, &host, r#""exit 1""#, &flags));
    let end = "\tStatus: error\tError Type: Runtime.ExitError\n";
    assert!(log.ends_with(end), "{log}");
    assert_eq!(invoke(&server, &host, "1").header("x-amz-log-result"), None);

    let told = server.cli(&["invoke", "speak", "-d", r#""speak""#, "--log"]);
    assert_eq!(told.out.trim(), r#""spoken""#, "{told:?}");
    assert!(told.err.contains("it says something"), "{told:?}");
    let told = server.cli_with_input(&["invoke", "speak", "-d", "-"], b"[1,2]");
    assert_eq!(told.ok().trim(), "[1,2]");
    let told = server.cli(&["invoke", "speak", "-d", r#""error""#]);
    assert!(told.out.contains("as asked"), "{told:?}");
    assert!(told.failed().contains("the function speak has failed"));
    let _out = server.cli(&["rm", "speak"]).ok();
}

#[test]
fn what_does_not_come_up_is_not_deployed() {
    let server = server();
    let refused = |name: &str, handler: &[&str]| {
        let args = [
            &[
                "deploy",
                name,
                "--function",
                "--image",
                "shell-function:1",
                "--init-timeout",
                "3",
            ],
            handler,
        ]
        .concat();
        server.cli(&args).failed()
    };
    let words = refused("init-error", &["--handler", "init.fails"]);
    assert!(words.contains("it does not start"), "{words}");
    let words = refused("init-exit", &["--handler", "init.exits"]);
    assert!(words.contains("exited with code 7"), "{words}");
    let words = refused("init-slow", &["--handler", "init.slow"]);
    assert!(words.contains("has not asked for an event"), "{words}");
}

/// Waits for a second of the wall clock.
fn until(second: u64) {
    wait_for("the time has come", 60, || {
        (SystemClock.unix_ms() / 1000 >= second).then_some(())
    });
}

/// Instances of a function that were started, by its log.
fn starts_of(server: &Server, name: &str) -> usize {
    let log = server.cli(&["logs", name, "-n", "10000"]).ok();
    log.matches("starts in a ").count()
}

#[test]
fn an_event_whose_instance_does_not_come_up_is_told_why() {
    let server = server();
    for (how, kind, words) in [
        ("init.fails", "Init.Broken", "it does not start"),
        ("init.exits", "Runtime.ExitError", "exit status 7"),
    ] {
        let second = SystemClock.unix_ms() / 1000 + deadline(3).as_secs();
        let name = how.replace('.', "-");
        let until_then = second.to_string();
        let flags = ["--", "init.until", &until_then, how];
        let host = deploy(&server, &name, "shell", &flags);
        until(second);
        let _ended = failure(&invoke(&server, &host, r#""exit 1""#));
        // Each event starts two, one after the other, and is told of the second.
        let before = starts_of(&server, &name);
        for count in 1..=5 {
            let error = failure(&invoke(&server, &host, "1"));
            assert_eq!(error["errorType"], kind, "{error}");
            let message = error["errorMessage"].as_str().unwrap();
            assert!(message.ends_with(words), "{error}");
            wait_for("both starts are in the log", 30, || {
                (starts_of(&server, &name) >= before + 2 * count).then_some(())
            });
        }
        let _out = server.cli(&["rm", &name]).ok();
    }
}

/// A function whose init takes five seconds from now on, and may take three;
/// none of its instances is there.
fn slow_to_start(server: &Server, name: &str, timeout: &str) -> String {
    let second = SystemClock.unix_ms() / 1000 + deadline(3).as_secs();
    let until_then = second.to_string();
    let args = ["--", "init.until", &until_then, "init.five"];
    let flags = ["--init-timeout", "3", "--timeout", timeout];
    let host = deploy(server, name, "shell", &[&flags[..], &args].concat());
    until(second);
    let _ended = failure(&invoke(server, &host, r#""exit 1""#));
    host
}

#[test]
fn an_init_that_takes_long_begins_again_inside_the_first_invocation() {
    let server = server();
    let host = slow_to_start(&server, "long", "60");
    let before = starts_of(&server, "long");
    assert_eq!(good(invoke(&server, &host, "3")), "3");
    wait_for("both starts are in the log", 30, || {
        (starts_of(&server, "long") >= before + 2).then_some(())
    });
    assert_eq!(good(invoke(&server, &host, "4")), "4");
    let _out = server.cli(&["rm", "long"]).ok();
}

#[test]
fn an_init_that_outlasts_its_invocation_times_out() {
    let server = server();
    let host = slow_to_start(&server, "too-long", "2");
    for _ in 0..2 {
        let error = failure(&invoke(&server, &host, "3"));
        assert_eq!(error["errorType"], "Sandbox.Timedout", "{error}");
        let message = error["errorMessage"].as_str().unwrap();
        assert!(message.ends_with("timed out after 2.00 seconds"), "{error}");
    }
    let _out = server.cli(&["rm", "too-long"]).ok();
}

#[test]
fn an_extension_works_on_after_the_answer_and_is_told_of_the_end() {
    let server = server();
    let host = deploy(&server, "extended", "shell", &["--handler", "extension"]);
    assert_eq!(good(invoke(&server, &host, "1")), "1");
    let log = |words: &str| {
        wait_for(words, 30, || {
            let log = server.cli(&["logs", "extended"]).ok();
            log.contains(words).then_some(())
        });
    };
    // It is not frozen before it has asked for its next event.
    log(r#"the extension has seen {"deadlineMs":"#);
    assert_eq!(good(invoke(&server, &host, "2")), "2");
    let _out = server.cli(&["scale", "extended", "--max", "1"]).ok();
    log("the extension ends");
    let _out = server.cli(&["rm", "extended"]).ok();
}

#[test]
fn cloud_events_are_events_in_every_mode() {
    let server = server();
    let host = deploy(&server, "cloud", "shell", &[]);
    let event = json!({"specversion": "1.0", "id": "7", "source": "/a", "type": "t"});
    let send = |body: &str, headers: &[&str]| {
        let flags: Vec<&str> = headers.iter().flat_map(|h| ["-H", *h]).collect();
        invoke_with(&server, &host, body, &flags)
    };
    let structured = ["content-type: application/cloudevents+json"];
    assert_eq!(answer(send(&event.to_string(), &structured)), event);
    let batch = json!([event, event]);
    let batched = ["content-type: application/cloudevents-batch+json"];
    assert_eq!(answer(send(&batch.to_string(), &batched)), batch);
    let binary = [
        "content-type: application/json",
        "ce-specversion: 1.0",
        "ce-id: 7",
        "ce-source: /a",
        "ce-type: t",
    ];
    let got = answer(send("[1]", &binary));
    assert_eq!(
        (&got["id"], &got["data"]),
        (&json!("7"), &json!([1])),
        "{got}"
    );
    let bad = send("{}", &structured);
    assert_eq!(bad.status, 400, "{bad:?}");
    let _out = server.cli(&["rm", "cloud"]).ok();
    let host = deploy(
        &server,
        "cloud-exits",
        "shell",
        &["--handler", "exits.always"],
    );
    let flags: Vec<&str> = binary.iter().flat_map(|h| ["-H", *h]).collect();
    let failed = invoke_with(&server, &host, "1", &flags);
    assert_eq!(failed.status, 500, "{failed:?}");
    assert_eq!(failed.header("x-amz-function-error"), Some("Unhandled"));
    let _out = server.cli(&["rm", "cloud-exits"]).ok();
}

fn wait_until_paused(server: &Server, name: &str) {
    wait_for("the idle instance is paused", 30, || {
        let service = server.json(&["describe", name]);
        (service["instances"][0]["state"] == "paused").then_some(())
    });
}

#[test]
fn idle_functions_are_frozen_and_thawed_by_the_next_event() {
    let server = server();
    let host = deploy(&server, "idle", "shell", &[]);
    assert_eq!(good(invoke(&server, &host, "1")), "1");
    wait_until_paused(&server, "idle");
    let before = server.instances("idle");
    assert_eq!(good(invoke(&server, &host, "2")), "2");
    assert_eq!(server.instances("idle"), before);
    let _out = server.cli(&["rm", "idle"]).ok();
}

#[test]
fn a_hundred_cold_starts_at_once_are_answered() {
    // Of its own: they take all the room that there is.
    let mut server = Server::start(ServerOptions::with(&["shell-function"]));
    let args =
        "deploy burst --function --image shell-function:1 --memory 64 --cpu 0.1 --timeout 300";
    let _out = server.cli(&args.split(' ').collect::<Vec<_>>()).ok();
    let host = server.host_of("burst");
    let answers = at_once(100, |index| {
        let reply = invoke(&server, &host, &index.to_string());
        (reply.status, reply.body)
    });
    for (index, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, (200, index.to_string()));
    }
    let starts = server.json(&["trace", "burst", "-n", "100"]);
    let starts = starts.as_array().unwrap();
    assert!(starts.len() > 1, "{starts:?}");
    assert!(
        most_at_once(starts) > starts.len().min(10) / 2,
        "{starts:?}"
    );
    server.stop_all();
    assert!(server.leaks().none(), "{:?}", server.leaks());
}

/// How many of these were being made at one time, whoever waited for them.
fn most_at_once(starts: &[Value]) -> usize {
    let span = |start: &Value| {
        let phases: Vec<(String, u64)> =
            serde_json::from_value(start["phases_us"].clone()).unwrap();
        let length = |name: &str| {
            let of = phases.iter().filter(|(phase, _)| phase == name);
            of.map(|(_, us)| us).sum::<u64>()
        };
        let came = start["unix_ms"].as_u64().unwrap() * 1000;
        let all: u64 = phases.iter().map(|(_, us)| us).sum();
        came + length("queue")..came + all - length("first_byte")
    };
    let spans: Vec<_> = starts.iter().map(span).collect();
    let during = |at: &u64| spans.iter().filter(|span| span.contains(at)).count();
    let most = spans.iter().map(|span| during(&span.start)).max();
    most.unwrap_or(0)
}

#[test]
fn a_dead_warm_instance_costs_its_callers_one_retry_at_most() {
    let server = server();
    let host = deploy(&server, "dead", "shell", &[]);
    assert_eq!(good(invoke(&server, &host, "1")), "1");
    wait_until_paused(&server, "dead");
    let runtimes = processes(&server, |pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|variable| variable == b"AWS_LAMBDA_FUNCTION_NAME=dead")
    });
    assert!(!runtimes.is_empty());
    for runtime in runtimes {
        kill_process(runtime, Signal::KILL).unwrap();
    }
    let tries = at_once(5, |_| {
        let is_answered = || {
            let reply = invoke(&server, &host, "2");
            reply.status == 200 && reply.header("x-amz-function-error").is_none()
        };
        (1..=5).find(|_| is_answered())
    });
    assert!(
        tries
            .iter()
            .all(|tries| tries.is_some_and(|tries| tries <= 2)),
        "{tries:?}"
    );
    let _out = server.cli(&["rm", "dead"]).ok();
}

#[test]
fn an_extension_takes_the_telemetry_of_its_instance() {
    let server = server();
    let flags = [
        "--timeout",
        "30",
        "--handler",
        "app.handler",
        "--env",
        "WATCH=1",
    ];
    let host = deploy(&server, "watched", "python", &flags);
    let said = answer(invoke(&server, &host, r#"{"say":"aloud"}"#));
    assert_eq!(said["say"], "aloud");
    let seen = wait_for("the telemetry of an invocation", 60, || {
        let seen = answer(invoke(&server, &host, r#""seen""#));
        let seen = seen.as_array().unwrap().clone();
        let ended = seen.iter().any(|event| event["type"] == "platform.report");
        ended.then_some(seen)
    });
    let of = |kind: &str| seen.iter().find(|event| event["type"] == kind);
    for kind in [
        "platform.initStart",
        "platform.telemetrySubscription",
        "platform.initRuntimeDone",
        "platform.extension",
        "platform.initReport",
        "platform.start",
        "platform.runtimeDone",
    ] {
        assert!(of(kind).is_some(), "{kind} is not in {seen:?}");
    }
    assert_eq!(of("function").unwrap()["record"], "aloud");
    let report = &of("platform.report").unwrap()["record"];
    assert_eq!(report["status"], "success");
    assert_eq!(
        report["requestId"],
        of("platform.start").unwrap()["record"]["requestId"]
    );
    assert_eq!(report["metrics"]["memorySizeMB"], 128);
    let used = report["metrics"]["maxMemoryUsedMB"].as_u64().unwrap();
    assert!((1..=128).contains(&used), "{report}");
    assert!(
        report["metrics"]["initDurationMs"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    let _out = server.cli(&["rm", "watched"]).ok();
}

#[test]
fn a_server_that_was_killed_serves_its_functions_again() {
    let mut server = Server::start(ServerOptions::with(&["shell-function", "python-function"]));
    let shell = deploy(&server, "shell", "shell", &["--keep-alive", "600"]);
    let python = deploy(
        &server,
        "python",
        "python",
        &["--keep-alive", "600", "--timeout", "30"],
    );
    for host in [&shell, &python] {
        assert_eq!(good(invoke(&server, host, "1")), "1");
    }
    server.kill();
    server.launch(&[]);
    // The runtimes' calls ended with the server: theirs end, and others serve.
    for host in [&shell, &python] {
        assert_eq!(good(invoke(&server, host, "2")), "2");
    }
    for name in ["shell", "python"] {
        let _out = server.cli(&["rm", name]).ok();
    }
    server.wait_for_instances_of_all(0);
    server.stop_all();
    assert!(server.leaks().none(), "{:?}", server.leaks());
}
