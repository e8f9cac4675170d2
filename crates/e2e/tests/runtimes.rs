//! Functions on the runtimes that AWS makes for each language: the same events
//! for all of them, through the gateway.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skiff_e2e::{answer, failure, invoke, invoke_with, timed};
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, deadline, lacking_for};

static SHARED: SharedServer = SharedServer::new();

/// What is of its own in a runtime.
#[derive(Clone, Copy, Debug)]
struct Runtime {
    name: &'static str,
    /// Where its errors have the calls that led to them.
    trace: Option<&'static str>,
}

/// One that is on the server.
#[derive(Debug)]
struct Function<'a> {
    server: &'a Server,
    runtime: Runtime,
    host: String,
}

impl Runtime {
    fn image(self) -> String {
        format!("{}-function", self.name)
    }

    /// Drives each case, where this machine has the runtime's tools.
    fn answers_its_events(self) {
        if let Some(tools) = lacking_for(&self.image()) {
            let name = self.name;
            let told = format!("runtimes: {name} has NOT RUN: this machine lacks {tools}\n");
            // The harness shows nothing of a test that passes but this.
            std::io::stderr().write_all(told.as_bytes()).unwrap();
            return;
        }
        let server = server();
        server.import(&self.image());
        let function = self.deploy(&server, self.name, "30");
        function.echoes();
        function.has_its_environment();
        function.is_told_its_context();
        function.has_a_log();
        function.tells_its_errors();
        function.is_replaced_when_it_exits();
        let _out = server.cli(&["rm", self.name]).ok();
        self.ends_at_its_timeout(&server);
    }

    fn deploy<'a>(self, server: &'a Server, name: &str, timeout_s: &str) -> Function<'a> {
        let image = format!("{}:1", self.image());
        let words = ["deploy", name, "--function", "--image", &image];
        let room = ["--memory", "256", "--cpu", "0.5", "--init-timeout", "120"];
        let own = ["--timeout", timeout_s, "--env", "EQUALS=a=b=c"];
        let _out = server.cli(&[&words[..], &room, &own].concat()).ok();
        Function {
            server,
            runtime: self,
            host: server.host_of(name),
        }
    }

    fn ends_at_its_timeout(self, server: &Server) {
        let name = format!("{}-slow", self.name);
        let function = self.deploy(server, &name, "2");
        let (error, took) = timed(|| function.fails(r#"{"sleep":600}"#));
        assert_eq!(error["errorType"], "Sandbox.Timedout", "{error}");
        let message = error["errorMessage"].as_str().unwrap();
        assert!(
            message.ends_with("Task timed out after 2.00 seconds"),
            "{error}"
        );
        assert!(took < deadline(30), "{took:?}");
        let _out = server.cli(&["rm", &name]).ok();
    }
}

impl Function<'_> {
    fn gets(&self, event: &str) -> Value {
        answer(invoke(self.server, &self.host, event))
    }

    fn fails(&self, event: &str) -> Value {
        failure(&invoke(self.server, &self.host, event))
    }

    fn echoes(&self) {
        let events = [
            json!({"a": [1, "ü"], "b": {"c": true}}),
            json!(5),
            json!(""),
        ];
        for event in events {
            assert_eq!(self.gets(&event.to_string()), event);
        }
    }

    fn has_its_environment(&self) {
        for (name, value) in [
            ("EQUALS", "a=b=c"),
            ("AWS_LAMBDA_FUNCTION_NAME", self.runtime.name),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
            ("LAMBDA_TASK_ROOT", "/var/task"),
        ] {
            let asked = json!({"env": name}).to_string();
            assert_eq!(self.gets(&asked), value, "{name}");
        }
    }

    fn is_told_its_context(&self) {
        let name = self.runtime.name;
        let plain = self.gets(r#""context""#);
        let arn = plain["arn"].as_str().unwrap();
        assert!(arn.ends_with(&format!(":function:{name}")), "{plain}");

        let id = "2f2b9c4e-52e3-4a0f-8f6a-1f0e7c1d2b3a";
        let qualified = format!("{arn}:live");
        let client = STANDARD.encode(r#"{"custom":{"k":"v"}}"#);
        let headers = [
            format!("x-amz-client-context: {client}"),
            format!("x-amz-request-id: {id}"),
            format!("x-amz-invoked-arn: {qualified}"),
        ];
        let flags: Vec<&str> = headers.iter().flat_map(|h| ["-H", h.as_str()]).collect();
        let mut told = answer(invoke_with(self.server, &self.host, r#""context""#, &flags));
        let remaining = told["remaining"].take();
        let remaining = remaining.as_u64().unwrap();
        assert!((1..=30_000).contains(&remaining), "{remaining}");
        // A number to some and text to others.
        let memory = told["memory"].take().to_string();
        assert_eq!(memory.trim_matches('"'), "256");
        let stream = told["stream"].take();
        assert!(!stream.as_str().unwrap().is_empty());
        assert_eq!(
            told,
            json!({
                "name": name,
                "version": "$LATEST",
                "arn": qualified,
                "memory": null,
                "request": id,
                "group": format!("/aws/lambda/{name}"),
                "stream": null,
                "remaining": null,
                "custom": {"k": "v"},
            })
        );
    }

    fn has_a_log(&self) {
        let flags = ["-H", "x-amz-log-type: Tail"];
        let said = invoke_with(self.server, &self.host, r#"{"say":"aloud"}"#, &flags);
        let log = STANDARD
            .decode(said.header("x-amz-log-result").unwrap())
            .unwrap();
        assert!(
            String::from_utf8_lossy(&log).contains("aloud\n"),
            "{said:?}"
        );
        assert_eq!(answer(said)["say"], "aloud");
    }

    fn tells_its_errors(&self) {
        let error = self.fails(r#"{"raise":"on purpose"}"#);
        assert_eq!(error["errorType"], "Broken", "{error}");
        assert_eq!(error["errorMessage"], "on purpose", "{error}");
        if let Some(trace) = self.runtime.trace {
            assert!(error[trace][0].is_string(), "{error}");
        }
        // It goes on in the same instance.
        let before = self.server.instances(self.runtime.name);
        assert_eq!(self.gets("6"), 6);
        assert_eq!(self.server.instances(self.runtime.name), before);
    }

    fn is_replaced_when_it_exits(&self) {
        let error = self.fails(r#"{"exit":3}"#);
        assert_eq!(error["errorType"], "Runtime.ExitError", "{error}");
        let message = error["errorMessage"].as_str().unwrap();
        assert!(message.ends_with("exit status 3"), "{error}");
        assert_eq!(self.gets("7"), 7);
    }
}

fn server() -> Held {
    SHARED.get(ServerOptions::default)
}

#[test]
fn python_with_awslambdaric_answers_its_events() {
    let runtime = Runtime {
        name: "python",
        trace: Some("stackTrace"),
    };
    runtime.answers_its_events();
}

#[test]
fn node_with_aws_lambda_ric_answers_its_events() {
    let runtime = Runtime {
        name: "node",
        trace: Some("trace"),
    };
    runtime.answers_its_events();
}

#[test]
fn java_with_its_runtime_interface_client_answers_its_events() {
    let runtime = Runtime {
        name: "java",
        trace: Some("stackTrace"),
    };
    runtime.answers_its_events();
}

#[test]
fn go_with_aws_lambda_go_answers_its_events() {
    let runtime = Runtime {
        name: "go",
        trace: None,
    };
    runtime.answers_its_events();
}

#[test]
fn rust_with_lambda_runtime_answers_its_events() {
    let runtime = Runtime {
        name: "rust",
        trace: None,
    };
    runtime.answers_its_events();
}
