//! A revision: the immutable configuration of what runs in one sandbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::limits;
use crate::{Digest, FunctionSpec, SecretName};

/// What runs in one sandbox, and how many of it. Immutable once made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevisionSpec {
    /// Started in this order, sharing the sandbox's network; the first is the
    /// one that requests go to.
    pub containers: Vec<ContainerSpec>,
    /// What one instance gets.
    #[serde(default)]
    pub resources: Resources,
    /// How many instances there are.
    #[serde(default)]
    pub scaling: Scaling,
    /// A request's whole time, seconds.
    #[serde(default = "default_timeout")]
    pub timeout_s: u32,
    /// Whether instances reach the public internet.
    #[serde(default)]
    pub egress: bool,
    /// What isolates an instance.
    #[serde(default)]
    pub isolation: IsolationRequest,
    /// Its requests are Lambda events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionSpec>,
    /// A function's role: the ARN of one in the server's configuration, whose
    /// credentials its process gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// One container of a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Unique in its revision.
    #[serde(default = "default_container_name")]
    pub name: String,
    /// The reference as the user wrote it.
    pub image: String,
    /// The manifest it was pinned to.
    pub digest: Digest,
    /// Replaces the image's entrypoint when not empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's arguments when not empty, or when `command` is given.
    #[serde(default)]
    pub args: Vec<String>,
    /// Added to the image's environment, later names winning.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// Where the application listens; told to it as `PORT`.
    #[serde(default = "default_port")]
    pub port: u16,
    /// What it speaks there.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// When the application is ready, and when it is dead.
    #[serde(default)]
    pub probe: Probe,
    /// Its end ends the sandbox.
    #[serde(default = "yes")]
    pub essential: bool,
}

/// What an application speaks to whoever asks it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS and with prior knowledge, as gRPC wants it.
    H2c,
}

impl Protocol {
    /// Whether it is the one that nobody has to name.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvVar {
    /// `[A-Za-z_][A-Za-z0-9_]*`, and anything else without `=` and NUL.
    pub name: String,
    /// Where its value comes from.
    #[serde(flatten)]
    pub value: EnvValue,
}

/// Where the value of an environment variable comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EnvValue {
    /// Written in the revision.
    Value(String),
    /// Looked up in the project's secrets when an instance starts.
    Secret(SecretName),
}

/// How readiness and life are found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is asked.
    #[serde(default)]
    pub kind: ProbeKind,
    /// How long a starting instance may take, seconds.
    #[serde(default = "default_start_timeout")]
    pub start_timeout_s: u32,
    /// Seconds between two liveness probes of a running instance; 0 is never.
    #[serde(default)]
    pub liveness_period_s: u32,
}

/// What a probe asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// The port accepts a connection.
    #[default]
    Tcp,
    /// `GET` of this path answers 200 to 399.
    Http(String),
}

/// What one instance gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Memory of the application, tmpfs included, MiB.
    pub memory_mib: u32,
    /// Processor time, thousandths of a CPU.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Whether an idle instance has processor time.
    pub cpu_mode: CpuMode,
    /// Where writes go.
    pub writable: WritableLayer,
}

/// Whether an idle instance has processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CpuMode {
    /// It runs on between requests.
    #[default]
    Always,
    /// It is paused while no request or stream is open.
    Request,
}

/// Where an instance's writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WritableLayer {
    /// Memory, counted as the instance's, at most this many MiB; 0 means half
    /// of the instance's memory.
    Tmpfs(u32),
    /// A sparse ext4 file of this many MiB on the worker's disk.
    Disk(u32),
}

/// How many instances there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scaling {
    /// Requests at once in one instance; enforced.
    pub concurrency: u32,
    /// Always there.
    pub min: u32,
    /// At most.
    pub max: u32,
    /// How long an idle instance is kept, seconds.
    pub keep_alive_s: u32,
}

/// What the user asks to isolate an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IsolationRequest {
    /// The strongest class that this worker can serve: a microVM, otherwise a
    /// container with the reason.
    #[default]
    Auto,
    /// A namespaced container.
    Container,
    /// A microVM, and nothing else.
    Microvm,
    /// Nothing runs: every request is answered by the worker itself. For
    /// measuring the control plane; refused unless the configuration allows it.
    Null,
}

/// What isolates an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IsolationClass {
    /// A KVM virtual machine.
    Microvm,
    /// A namespaced container.
    Container,
    /// Nothing: see [`IsolationRequest::Null`].
    Null,
}

impl IsolationClass {
    /// The word that API, bill and logs use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Microvm => "microvm",
            Self::Container => "container",
            Self::Null => "null",
        }
    }
}

/// A revision asks for what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A number is outside its range.
    #[error("{field} is {value}: between {least} and {most} is expected")]
    OutOfRange {
        /// The field's path.
        field: &'static str,
        /// What was given.
        value: u64,
        /// The least that is taken.
        least: u64,
        /// The most that is taken.
        most: u64,
    },
    /// `min` is above `max`.
    #[error("min is {min} and max is {max}: min may not be above max")]
    MinAboveMax {
        /// Instances always there.
        min: u32,
        /// Instances at most.
        max: u32,
    },
    /// The environment is too large or a name cannot be one.
    #[error("the environment variable `{name}` cannot be set: {reason}")]
    Env {
        /// The variable.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// Something cannot be as it is.
    #[error("{0} {1}")]
    OtherOf(&'static str, &'static str),
    /// Something else, told whole.
    #[error("{0}")]
    Other(&'static str),
}

impl RevisionSpec {
    /// Checks every bound of [`limits`].
    ///
    /// # Errors
    /// The first field that is out of its bounds.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.containers.is_empty() {
            return Err(SpecError::Other("a revision has at least one container"));
        }
        if self.containers.len() > limits::CONTAINERS_MAX {
            return Err(SpecError::Other("a revision has at most 10 containers"));
        }
        let s = &self.scaling;
        let r = &self.resources;
        in_range("concurrency", s.concurrency, limits::CONCURRENCY_RANGE)?;
        in_range("min", s.min, limits::INSTANCES_RANGE)?;
        in_range("max", s.max, (1, limits::INSTANCES_RANGE.1))?;
        in_range("keep_alive_s", s.keep_alive_s, limits::KEEP_ALIVE_S_RANGE)?;
        in_range("timeout_s", self.timeout_s, limits::TIMEOUT_S_RANGE)?;
        in_range("memory_mib", r.memory_mib, limits::MEMORY_MIB_RANGE)?;
        in_range("cpu_millis", r.cpu_millis, limits::CPU_MILLIS_RANGE)?;
        in_range("pids", r.pids, (1, 100_000))?;
        if s.min > s.max {
            return Err(SpecError::MinAboveMax {
                min: s.min,
                max: s.max,
            });
        }
        if let Some(function) = &self.function {
            function.validate(self)?;
        }
        if self.isolation == IsolationRequest::Null && self.speaks(Protocol::H2c) {
            return Err(SpecError::Other(
                "protocol is h2c: the null class answers in HTTP/1.1",
            ));
        }
        self.containers.iter().try_for_each(ContainerSpec::validate)
    }
}

impl RevisionSpec {
    /// Whether this is spoken where requests go.
    pub(crate) fn speaks(&self, protocol: Protocol) -> bool {
        let first = self.containers.first();
        first.is_some_and(|container| container.protocol == protocol)
    }
}

impl ContainerSpec {
    fn validate(&self) -> Result<(), SpecError> {
        if self.port == 0 {
            return Err(SpecError::Other(
                "port is 0: between 1 and 65535 is expected",
            ));
        }
        let words = self.command.iter().chain(&self.args);
        if words.clone().any(|word| word.contains('\0')) {
            return Err(SpecError::Other(
                "command and arguments may not contain NUL",
            ));
        }
        if words.map(String::len).sum::<usize>() > limits::ARGS_BYTES_MAX {
            return Err(SpecError::Other("command and arguments are over 64 KiB"));
        }
        if let ProbeKind::Http(path) = &self.probe.kind
            && (!path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f))
        {
            return Err(SpecError::Other(
                "the probe's path starts with / and has no blanks",
            ));
        }
        if self.env.len() > limits::ENV_VARS_MAX {
            return Err(SpecError::Other("there are over 512 environment variables"));
        }
        self.env.iter().try_fold(0, |sum, var| {
            let sum = sum + var.checked_len()?;
            if sum > limits::ENV_BYTES_MAX {
                return Err(var.refuse("the environment is over 64 KiB"));
            }
            Ok(sum)
        })?;
        Ok(())
    }
}

impl EnvVar {
    /// Whether its value is looked up in the project's secrets.
    #[must_use]
    pub const fn is_secret(&self) -> bool {
        matches!(self.value, EnvValue::Secret(_))
    }

    fn refuse(&self, reason: &'static str) -> SpecError {
        SpecError::Env {
            name: self.name.chars().take(80).collect(),
            reason,
        }
    }

    fn checked_len(&self) -> Result<usize, SpecError> {
        if self.name.is_empty() {
            return Err(self.refuse("its name is empty"));
        }
        if self.name.contains(['=', '\0']) {
            return Err(self.refuse("its name contains = or NUL"));
        }
        let value = match &self.value {
            EnvValue::Value(value) => value,
            EnvValue::Secret(_) => return Ok(self.name.len()),
        };
        if value.contains('\0') {
            return Err(self.refuse("its value contains NUL"));
        }
        Ok(self.name.len() + value.len())
    }
}

pub(crate) fn in_range(
    field: &'static str,
    value: u32,
    (least, most): (u32, u32),
) -> Result<(), SpecError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(SpecError::OutOfRange {
        field,
        value: value.into(),
        least: least.into(),
        most: most.into(),
    })
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            memory_mib: limits::DEFAULT_MEMORY_MIB,
            cpu_millis: limits::DEFAULT_CPU_MILLIS,
            pids: limits::DEFAULT_PIDS,
            cpu_mode: CpuMode::default(),
            writable: WritableLayer::Tmpfs(0),
        }
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            concurrency: limits::DEFAULT_CONCURRENCY,
            min: limits::DEFAULT_MIN_INSTANCES,
            max: limits::DEFAULT_MAX_INSTANCES,
            keep_alive_s: limits::DEFAULT_KEEP_ALIVE_S,
        }
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            kind: ProbeKind::Tcp,
            start_timeout_s: limits::DEFAULT_START_TIMEOUT_S,
            liveness_period_s: 0,
        }
    }
}

fn default_timeout() -> u32 {
    limits::DEFAULT_TIMEOUT_S
}

fn default_start_timeout() -> u32 {
    limits::DEFAULT_START_TIMEOUT_S
}

fn default_port() -> u16 {
    limits::DEFAULT_PORT
}

fn default_container_name() -> String {
    "main".to_owned()
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RevisionSpec {
        RevisionSpec {
            containers: vec![ContainerSpec {
                name: default_container_name(),
                image: "hello:1".to_owned(),
                digest: Digest::from_sha256([1; 32]),
                command: vec![],
                args: vec![],
                env: vec![],
                port: 8080,
                protocol: Protocol::Http1,
                probe: Probe::default(),
                essential: true,
            }],
            resources: Resources::default(),
            scaling: Scaling::default(),
            timeout_s: 300,
            egress: false,
            isolation: IsolationRequest::Auto,
            function: None,
            role: None,
        }
    }

    fn refused(change: impl Fn(&mut RevisionSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        spec.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(spec().validate(), Ok(()));
    }

    #[test]
    fn a_function_takes_one_event_at_a_time() {
        let function = |s: &mut RevisionSpec| {
            s.function = Some(FunctionSpec::default());
            s.scaling.concurrency = 1;
            s.resources.cpu_mode = CpuMode::Request;
        };
        let mut good = spec();
        function(&mut good);
        assert_eq!(good.validate(), Ok(()));
        let refused = |change: &dyn Fn(&mut RevisionSpec)| {
            refused(|s| {
                function(s);
                change(s);
            })
        };
        assert!(refused(&|s| s.scaling.concurrency = 2).contains("one event"));
        assert!(refused(&|s| s.resources.cpu_mode = CpuMode::Always).contains("cpu_mode"));
        assert!(refused(&|s| s.timeout_s = 901).contains("timeout_s is 901"));
        assert!(refused(&|s| s.isolation = IsolationRequest::Null).contains("null"));
        assert!(refused(&|s| s.containers[0].protocol = Protocol::H2c).contains("h2c"));
        let name = "a\nb".to_owned();
        let bad = FunctionSpec {
            name,
            ..FunctionSpec::default()
        };
        assert!(refused(&|s| s.function = Some(bad.clone())).contains("visible ASCII"));
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        assert!(refused(|s| s.scaling.concurrency = 0).starts_with("concurrency is 0"));
        assert!(refused(|s| s.resources.memory_mib = 1).starts_with("memory_mib is 1"));
        assert!(refused(|s| s.scaling.min = 200).contains("min is 200 and max is 100"));
        assert!(refused(|s| s.containers.clear()).contains("at least one"));
        assert!(refused(|s| s.containers[0].port = 0).contains("port"));
        let null_in_http2 = |s: &mut RevisionSpec| {
            s.isolation = IsolationRequest::Null;
            s.containers[0].protocol = Protocol::H2c;
        };
        assert!(refused(null_in_http2).contains("h2c"));
        let env = |name: &str, value: &str| EnvVar {
            name: name.into(),
            value: EnvValue::Value(value.into()),
        };
        assert!(refused(|s| s.containers[0].env = vec![env("A=B", "")]).contains("`A=B`"));
        assert!(refused(|s| s.containers[0].env = vec![env("", "")]).contains("empty"));
        assert!(refused(|s| s.containers[0].env = vec![env("A", "\0")]).contains("NUL"));
        assert!(
            refused(|s| s.containers[0].env = vec![env("A", &"x".repeat(70_000))])
                .contains("64 KiB")
        );
    }
}
