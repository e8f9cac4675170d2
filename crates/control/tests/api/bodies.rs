//! Bodies and queries nobody would send: refused or taken, never a fault.

use serde_json::{Value, json};

use crate::support::*;

/// Rounds unless the variable says otherwise.
const ROUNDS: u64 = 300;

/// A generator that a seed replays.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(sides).unwrap()).unwrap()
    }

    fn value(&mut self, depth: usize) -> Value {
        let kinds = if depth > 3 { 9 } else { 11 };
        match self.roll(kinds) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(-1),
            3 => json!(u64::MAX),
            4 => json!(1.5e300),
            5 => json!(""),
            6 => json!("\u{0}\n\u{202e}../../%2e"),
            7 => json!("x".repeat(3000)),
            8 => json!("hello:1"),
            9 => Value::Array((0..self.roll(4)).map(|_| self.value(depth + 1)).collect()),
            _ => json!({"name": self.value(depth + 1), "value": self.value(depth + 1)}),
        }
    }

    /// Changes one place somewhere in a value.
    fn change(&mut self, value: &mut Value) {
        match value {
            Value::Object(map) if !map.is_empty() && self.roll(4) > 0 => {
                let keys: Vec<String> = map.keys().cloned().collect();
                let key = &keys[self.roll(keys.len())];
                match self.roll(8) {
                    0 => drop(map.remove(key)),
                    1 => drop(map.insert(format!("{key}x"), json!(1))),
                    _ => self.change(&mut map[key.as_str()]),
                }
            }
            Value::Array(list) if !list.is_empty() && self.roll(4) > 0 => {
                let at = self.roll(list.len());
                if self.roll(6) == 0 {
                    list.push(list[at].clone());
                } else {
                    self.change(&mut list[at]);
                }
            }
            other => *other = self.value(0),
        }
    }
}

fn calls() -> Vec<(&'static str, String, Value)> {
    let service = service_path("hello");
    let deploy = json!({"containers": [{"name": "main", "image": "hello:1", "command": ["/x"],
        "args": ["a"], "env": [{"name": "A", "value": "b"}, {"name": "S", "secret": "s"}],
        "port": 80, "probe": {"kind": {"http": "/"}, "start_timeout_s": 5, "liveness_period_s": 1},
        "essential": true}],
        "resources": {"memory_mib": 64, "cpu_millis": 100, "pids": 10, "cpu_mode": "request",
            "writable": {"tmpfs": 5}},
        "scaling": {"concurrency": 1, "min": 0, "max": 2, "keep_alive_s": 1},
        "timeout_s": 5, "egress": true, "isolation": "container", "tag": "t", "no_traffic": false,
        "force": true, "registry_auth": {"username": "u", "password": "p"}});
    let targets = json!({"targets": [{"revision": "latest", "percent": 50, "tag": "a"},
        {"revision": "hello-00001", "percent": 50}]});
    vec![
        ("PUT", service.clone(), deploy),
        ("PUT", format!("{service}/traffic"), targets),
        (
            "POST",
            format!("{service}/rollback"),
            json!({"to": "hello-00001"}),
        ),
        (
            "POST",
            format!("{service}/scale"),
            json!({"min": 1, "max": 3}),
        ),
        (
            "POST",
            "/v1/projects".into(),
            json!({"name": "p", "quota": {"memory_mib": 5}}),
        ),
        (
            "PUT",
            "/v1/projects/default/quota".into(),
            json!({"memory_mib": null, "requests": 5}),
        ),
        (
            "PUT",
            "/v1/projects/default/secrets/s".into(),
            json!({"value_base64": "eA=="}),
        ),
        (
            "POST",
            "/v1/tokens".into(),
            json!({"name": "t", "project": "default"}),
        ),
        (
            "POST",
            "/v1/images/pull".into(),
            json!({"image": "hello:1", "platform": "linux/amd64"}),
        ),
    ]
}

#[tokio::test]
async fn mutated_bodies_are_never_a_fault() {
    let rounds = std::env::var("SKIFF_TEST_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let calls = calls();
    for seed in 1..=rounds.unwrap_or(ROUNDS) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (method, path, body) = &calls[dice.roll(calls.len())];
        let mut body = body.clone();
        for _ in 0..=dice.roll(3) {
            dice.change(&mut body);
        }
        let mut bytes = body.to_string().into_bytes();
        if dice.roll(4) == 0 && !bytes.is_empty() {
            let at = dice.roll(bytes.len());
            bytes[at] ^= 1 << dice.roll(8);
        }
        let answer = server.raw(method, path, bytes.clone()).await;
        let told = String::from_utf8_lossy(&bytes);
        let fine = [200, 400, 403, 404, 409, 413, 422, 429, 501].contains(&answer.status);
        assert!(
            fine,
            "seed {seed}: {method} {path} {told}: {} {}",
            answer.status, answer.text
        );
        assert!(
            !answer.text.contains("\"internal\""),
            "seed {seed}: {told}: {}",
            answer.text
        );
        if answer.status != 200 {
            assert!(
                answer.body()["kind"].is_string(),
                "seed {seed}: {}",
                answer.text
            );
        }
    }
    assert!(!server.table.traffic("hello").is_empty(), "it serves still");
}

#[tokio::test]
async fn paths_and_queries_nobody_would_send_are_refused() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let deep = "[".repeat(100_000);
    server
        .raw("PUT", &service_path("hello"), deep)
        .await
        .is(400);
    for path in [
        "/v1/projects/%00/services",
        "/v1/projects/%ff/services",
        "/v1/projects/default%2Fservices",
        "/v1/projects/../tokens",
        "/v1/projects/default/services/%2e%2e",
        "/v1/projects/default/services?limit=-1",
        "/v1/projects/default/services?limit=99999999999",
        "/v1/projects/default/services?after=%ff",
        "/v1/projects/default/traces?limit=x",
        "/v1/usage?from_unix_ms=1e9",
        "/v1/projects/default/services/hello/logs?tail=-5",
        "//v1/version",
    ] {
        let answer = server.get(path).await;
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.status
        );
    }
}
