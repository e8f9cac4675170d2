//! `skiff apply`: services as a TOML file.
//!
//! ```toml
//! [[services]]
//! name = "hello"
//! image = "docker.io/library/hello:1"
//! port = 8080
//! env = { GREETING = "hi", KEY = { secret = "api-key" } }
//! scaling = { min = 1, max = 10 }
//! ```
//! The fields are those of a [`Deploy`]. One container's fields stand beside
//! the service's; several are a list, `[[services.containers]]`.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use skiff_types::api::{Deploy, DeployContainer};
use skiff_types::{
    ContainerSpec, Digest, EnvValue, EnvVar, FunctionSpec, IsolationRequest, Probe, Protocol,
    Resources, RevisionSpec, Scaling, SecretName, ServiceName, Tag, limits,
};
use toml::Spanned;

/// Services that a file declares, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Each with what to deploy.
    pub services: Vec<(ServiceName, Deploy)>,
}

/// The file is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ManifestError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong, with the key.
    pub message: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    services: Vec<Spanned<Entry>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: ServiceName,
    #[serde(default)]
    containers: Vec<Container>,
    image: Option<String>,
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
    env: Option<Env>,
    port: Option<u16>,
    protocol: Option<Protocol>,
    probe: Option<Probe>,
    #[serde(default)]
    resources: Resources,
    #[serde(default)]
    scaling: Scaling,
    timeout_s: Option<u32>,
    #[serde(default)]
    egress: bool,
    #[serde(default)]
    isolation: IsolationRequest,
    function: Option<FunctionSpec>,
    tag: Option<Tag>,
    #[serde(default)]
    no_traffic: bool,
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Container {
    name: Option<String>,
    image: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Env,
    port: Option<u16>,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    probe: Probe,
    essential: Option<bool>,
}

type Env = BTreeMap<String, Value>;

/// `"text"`, or `{ secret = "name" }`.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or { secret = \"NAME\" } is expected")]
enum Value {
    Text(String),
    Secret(Secret),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    secret: SecretName,
}

impl Manifest {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The first mistake, with its line.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let file: File = toml::from_str(text).map_err(|error| ManifestError {
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', " "),
        })?;
        let mut seen = HashMap::new();
        let mut services = Vec::with_capacity(file.services.len());
        for entry in file.services {
            let span = entry.span();
            let line = line_of(text, span.start);
            let entry = entry.into_inner();
            let name = entry.name.clone();
            if let Some(first) = seen.insert(name.clone(), line) {
                let message = format!("the service {name} was declared on line {first} already");
                return Err(ManifestError { line, message });
            }
            let deploy = deploy(entry).and_then(|deploy| check(&deploy).map(|()| deploy));
            let deploy = deploy.map_err(|message| ManifestError {
                line: key_line(text, &span, &message).unwrap_or(line),
                message: format!("services.{name}: {message}"),
            })?;
            services.push((name, deploy));
        }
        Ok(Self { services })
    }
}

/// The line of this byte, counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// The line of the key that a message begins with, if the entry has it.
fn key_line(text: &str, span: &std::ops::Range<usize>, message: &str) -> Option<usize> {
    let key = message.split([' ', ':']).next()?;
    let rest = text.get(span.start..)?;
    let first = line_of(text, span.start);
    for (line, here) in (first..).zip(rest.lines()) {
        if line > first && here.trim_start().starts_with("[[services]]") {
            return None;
        }
        let mut words = here.split(|c: char| !c.is_alphanumeric() && c != '_');
        if words.any(|word| word == key) {
            return Some(line);
        }
    }
    None
}

fn deploy(entry: Entry) -> Result<Deploy, String> {
    let beside = entry.image.is_some()
        || entry.command.is_some()
        || entry.args.is_some()
        || entry.env.is_some()
        || entry.port.is_some()
        || entry.protocol.is_some()
        || entry.probe.is_some();
    let containers = match (entry.image, entry.containers.is_empty()) {
        (Some(image), true) => vec![Container {
            name: None,
            image,
            command: entry.command.unwrap_or_default(),
            args: entry.args.unwrap_or_default(),
            env: entry.env.unwrap_or_default(),
            port: entry.port,
            protocol: entry.protocol.unwrap_or_default(),
            probe: entry.probe.unwrap_or_default(),
            essential: None,
        }],
        (None, false) if !beside => entry.containers,
        (None, true) => return Err("image is missing".to_owned()),
        (_, false) => {
            return Err(
                "containers are given, so a container's fields may stand only in them".to_owned(),
            );
        }
    };
    Ok(Deploy {
        containers: containers.into_iter().map(container).collect(),
        resources: entry.resources,
        scaling: entry.scaling,
        timeout_s: entry.timeout_s.unwrap_or(limits::DEFAULT_TIMEOUT_S),
        egress: entry.egress,
        isolation: entry.isolation,
        function: entry.function,
        tag: entry.tag,
        no_traffic: entry.no_traffic,
        force: entry.force,
        registry_auth: None,
    })
}

fn container(given: Container) -> DeployContainer {
    let var = |(name, value)| EnvVar {
        name,
        value: match value {
            Value::Text(text) => EnvValue::Value(text),
            Value::Secret(Secret { secret }) => EnvValue::Secret(secret),
        },
    };
    DeployContainer {
        name: given.name.unwrap_or_else(|| "main".to_owned()),
        image: given.image,
        command: given.command,
        args: given.args,
        env: given.env.into_iter().map(var).collect(),
        port: given.port.unwrap_or(limits::DEFAULT_PORT),
        protocol: given.protocol,
        probe: given.probe,
        essential: given.essential.unwrap_or(true),
    }
}

fn check(deploy: &Deploy) -> Result<(), String> {
    open_spec(deploy)
        .validate()
        .map_err(|error| error.to_string())
}

/// The spec that a body asks for; its digests are filled in by the pull.
pub(crate) fn open_spec(deploy: &Deploy) -> RevisionSpec {
    let open = Digest::from_sha256([0; 32]);
    let container = |given: &DeployContainer| ContainerSpec {
        name: given.name.clone(),
        image: given.image.clone(),
        digest: open.clone(),
        command: given.command.clone(),
        args: given.args.clone(),
        env: given.env.clone(),
        port: given.port,
        protocol: given.protocol,
        probe: given.probe.clone(),
        essential: given.essential,
    };
    RevisionSpec {
        containers: deploy.containers.iter().map(container).collect(),
        resources: deploy.resources,
        scaling: deploy.scaling,
        timeout_s: deploy.timeout_s,
        egress: deploy.egress,
        isolation: deploy.isolation,
        function: deploy.function.clone(),
        role: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[services]]
name = "hello"
image = "hello:1"
port = 9000
env = { A = "b", KEY = { secret = "api" } }
scaling = { min = 1, max = 10 }
probe = { kind = { http = "/ready" } }

[[services]]
name = "two"
timeout_s = 5
[[services.containers]]
image = "two:1"
protocol = "h2c"
[services.resources]
memory_mib = 64
"#;

    #[test]
    fn a_file_says_what_the_api_takes() {
        let manifest = Manifest::parse(GOOD).unwrap();
        let (name, hello) = &manifest.services[0];
        assert_eq!(name.as_str(), "hello");
        let body = r#"{"containers": [{"image": "hello:1", "port": 9000,
            "env": [{"name": "A", "value": "b"}, {"name": "KEY", "secret": "api"}],
            "probe": {"kind": {"http": "/ready"}}}], "scaling": {"min": 1, "max": 10}}"#;
        assert_eq!(*hello, serde_json::from_str::<Deploy>(body).unwrap());
        let body = r#"{"containers": [{"image": "two:1", "protocol": "h2c"}], "timeout_s": 5, "resources": {"memory_mib": 64}}"#;
        assert_eq!(
            manifest.services[1].1,
            serde_json::from_str::<Deploy>(body).unwrap()
        );
    }

    #[test]
    fn a_mistake_is_told_with_its_key_and_line() {
        for (change, line, message) in [
            (("port = 9000", "prt = 9000"), 5, "prt"),
            (("port = 9000", "port = \"x\""), 5, "u16"),
            (("port = 9000", "port = 0"), 5, "port is 0"),
            (("min = 1,", "min = 11,"), 7, "min is 11 and max is 10"),
            (
                ("memory_mib = 64", "memory_mib = 1"),
                17,
                "services.two: memory_mib is 1",
            ),
            (
                ("name = \"two\"", "name = \"hello\""),
                10,
                "declared on line 2 already",
            ),
            (
                ("name = \"two\"", "name = \"TWO\""),
                11,
                "not a service name",
            ),
            (("image = \"hello:1\"", ""), 2, "image is missing"),
            (
                ("timeout_s = 5", "timeout_s = 5\nimage = \"x\""),
                14,
                "containers are given",
            ),
            (("A = \"b\"", "A = 5"), 6, "a text or"),
            (("\"h2c\"", "\"h3\""), 15, "h3"),
            (("port = 9000", "port = "), 5, ""),
        ] {
            let text = GOOD.replace(change.0, change.1);
            let error = Manifest::parse(&text).unwrap_err();
            assert!(error.message.contains(message), "{error}");
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().starts_with("line "), "{error}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        let mut state = 7u64;
        for _ in 0..2000 {
            let mut bytes = GOOD.as_bytes().to_vec();
            for _ in 0..3 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = usize::try_from(state >> 33).unwrap() % bytes.len();
                bytes[at] = state.to_le_bytes()[3] & 0x7f;
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Err(error) = Manifest::parse(&text) {
                assert!(error.line >= 1 && error.line <= text.lines().count() + 1);
            }
        }
    }
}
