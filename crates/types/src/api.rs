//! Bodies of the admin API under `/v1`, shared by the server and its clients.
//!
//! Long operations (deploy, pull, import, follow logs) answer a stream of
//! JSON values, one a line (`application/x-ndjson`); the last line says how
//! it ended. Everything else answers one JSON value, or 204 and nothing.
//! A failed call answers [`ApiError`] with its kind's status.
//!
//! | call | body → answer |
//! |---|---|
//! | `GET /healthz`, `GET /metrics`, `GET /v1/openapi.json` | → text, text, document |
//! | `GET /v1/version` | → [`Version`] |
//! | `GET /v1/projects` | → list of [`Project`] |
//! | `POST /v1/projects` | [`CreateProject`] → [`Project`] |
//! | `GET`, `DELETE /v1/projects/{project}` | → [`Project`]; → 204 |
//! | `PUT /v1/projects/{project}/quota` | [`Quota`] → [`Project`] |
//! | `GET …/services?after=&limit=` | → list of [`Service`] by name, at most 1,000, each with only its newest revision and those with traffic |
//! | `PUT …/services/{service}` | [`Deploy`] → [`DeployEvent`]s |
//! | `GET`, `DELETE …/services/{service}` | → [`Service`]; → 204 |
//! | `PUT …/services/{service}/traffic` | [`SetTraffic`] → [`Service`] |
//! | `POST …/services/{service}/rollback` | [`Rollback`] → [`Service`] |
//! | `POST …/services/{service}/scale` | [`Scale`] → [`DeployEvent`]s |
//! | `GET …/services/{service}/logs?follow=&tail=&since_unix_ms=&revision=&instance=` | → [`LogLine`]s, one a line |
//! | `POST …/services/{service}/events?client_context=` | an event, JSON → [`SentEvent`] |
//! | `POST …/exec` with `Upgrade: skiff-exec` | [`Exec`] → 101, then the frames of `skiff_wire::exec` |
//! | `GET …/traces?service=&limit=` | → list of [`ColdStart`], newest first |
//! | `GET …/secrets`; `PUT`, `DELETE …/secrets/{name}` | → list of [`Secret`]; [`SetSecret`] → [`Secret`]; → 204 |
//! | `GET`, `POST …/keys`; `DELETE …/keys/{name}` | → list of [`AccessKey`]; [`CreateAccessKey`] → [`AccessKey`]; → 204 |
//! | `GET`, `POST …/schedules`; `GET`, `DELETE …/schedules/{name}` | → list of [`Schedule`]; [`CreateSchedule`] → [`Schedule`]; → [`Schedule`]; → 204 |
//! | `GET`, `POST …/hooks`; `DELETE …/hooks/{name}` | → list of [`Hook`]; [`CreateHook`] → [`Hook`]; → 204 |
//! | `POST /v1/secrets/rekey` | [`Rekey`], or nothing → [`Rekeyed`] |
//! | `GET /v1/tokens`, `POST /v1/tokens`, `DELETE /v1/tokens/{id}` | → list of [`Token`]; [`CreateToken`] → [`Token`]; → 204 |
//! | `GET /v1/images` | → list of [`Image`] |
//! | `DELETE /v1/images?image=REFERENCE` | → [`Pruned`] |
//! | `POST /v1/images/pull` | [`PullImage`] → [`ImageEvent`]s |
//! | `POST /v1/images/import?reference=` | a tar → [`ImageEvent`]s |
//! | `POST /v1/images/prune` | → [`Pruned`] |
//! | `GET /v1/usage?project=&service=&from_unix_ms=&to_unix_ms=` | → [`Usage`] |
//! | `POST /v1/usage/check?from_unix_ms=&to_unix_ms=` | → [`UsageCheck`] |
//!
//! `…` is `/v1/projects/{project}`. A deployment, pull or import that has
//! begun runs to its end also when its client goes away.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Digest, ErrorKind, HookName, InstanceId, IsolationClass, IsolationRequest, Probe, ProjectId,
    ProjectName, Protocol, Resources, RevisionSpec, Scaling, SecretName, ServiceName, Tag,
};

/// What every failed call answers, with the kind's HTTP status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What happened, to what, and what to do: one line with its causes.
    pub message: String,
}

/// `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The server's version.
    pub version: String,
    /// The data folder's id.
    pub server_id: String,
    /// Where the gateway listens.
    pub gateway: Vec<String>,
    /// Where AWS's clients are served, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lambda: Option<String>,
    /// The domain that services are under.
    pub domain: String,
}

/// A project as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Project {
    /// 12 digits.
    pub id: ProjectId,
    /// Its name.
    pub name: ProjectName,
    /// What it may use at once.
    pub quota: Quota,
}

/// What a project may use at once; absent means no bound of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Memory of all its instances, MiB.
    pub memory_mib: Option<u64>,
    /// Instances.
    pub instances: Option<u32>,
    /// Requests in flight, queued ones included.
    pub requests: Option<u32>,
}

/// `POST /v1/projects`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateProject {
    /// Its name.
    pub name: ProjectName,
    /// What it may use at once.
    #[serde(default)]
    pub quota: Quota,
}

/// `PUT /v1/projects/{project}/services/{service}`: makes a revision,
/// validates it and moves traffic to it. Answers [`DeployEvent`]s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// The containers; the CLI makes one.
    pub containers: Vec<DeployContainer>,
    /// What one instance gets.
    #[serde(default)]
    pub resources: Resources,
    /// How many instances.
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
    /// Its requests are Lambda events: `concurrency` must be 1 and `cpu_mode`
    /// `request` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<crate::FunctionSpec>,
    /// A host of its own for the new revision.
    #[serde(default)]
    pub tag: Option<Tag>,
    /// Leaves the traffic where it is.
    #[serde(default)]
    pub no_traffic: bool,
    /// Makes a revision even when the newest ready one is the same.
    #[serde(default)]
    pub force: bool,
    /// Credentials for the registry, as the client's Docker config has them.
    #[serde(default)]
    pub registry_auth: Option<RegistryAuth>,
}

/// One container of a [`Deploy`]: a [`crate::ContainerSpec`] before its image
/// is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployContainer {
    /// Unique in the revision.
    #[serde(default = "main_name")]
    pub name: String,
    /// A reference: pulled when it is not in the image store.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's arguments when not empty.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment.
    #[serde(default)]
    pub env: Vec<crate::EnvVar>,
    /// Where the application listens.
    #[serde(default = "default_port")]
    pub port: u16,
    /// What it speaks there.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// Readiness and liveness.
    #[serde(default)]
    pub probe: Probe,
    /// Its end ends the sandbox.
    #[serde(default = "yes")]
    pub essential: bool,
}

/// A user name and password, or a bearer token, for one registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryAuth {
    /// The user; empty with a bare token.
    pub username: String,
    /// The password or token.
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// One line of a deployment's progress; the last is `Done` or `Failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum DeployEvent {
    /// Bytes of image layers that have arrived.
    Pull {
        /// The reference.
        image: String,
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all, when known.
        total: Option<u64>,
    },
    /// The revision exists.
    Revision {
        /// `hello-00003`.
        name: String,
    },
    /// The newest ready revision is the same already: no new one is made.
    Unchanged {
        /// `hello-00003`.
        name: String,
    },
    /// One instance is being started and probed.
    Validating,
    /// It serves.
    Done {
        /// The service now.
        service: Box<Service>,
    },
    /// It does not serve; what served before still does.
    Failed {
        /// Why.
        error: ApiError,
        /// The instance's last log lines.
        log: Vec<String>,
    },
}

/// A service as described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its project.
    pub project: ProjectName,
    /// Where it is reached.
    pub url: String,
    /// Who gets what share of the requests; sums to 100.
    pub traffic: Vec<TrafficTarget>,
    /// Newest first.
    pub revisions: Vec<Revision>,
    /// What runs now.
    pub instances: Vec<Instance>,
}

/// One share of a service's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrafficTarget {
    /// `hello-00003`, or `latest`: the newest that was validated.
    pub revision: String,
    /// 0 to 100.
    pub percent: u8,
    /// A host of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
}

/// A revision as described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Revision {
    /// `hello-00003`.
    pub name: String,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Its state.
    pub state: RevisionState,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its configuration; values of secrets are never in it.
    pub spec: RevisionSpec,
}

/// Where a revision stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RevisionState {
    /// Being validated.
    Pending,
    /// One instance of it has answered its probe.
    Ready,
    /// Its first instance did not.
    Failed,
}

/// An instance as described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its revision.
    pub revision: String,
    /// `starting`, `ready`, `paused`, `stopping`.
    pub state: String,
    /// What isolates it.
    pub class: IsolationClass,
    /// Why it is this class.
    pub class_reason: String,
    /// When it was created, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Requests in it now.
    pub in_flight: u32,
    /// Memory in use now, MiB.
    pub memory_mib: Option<u64>,
}

/// `POST …/exec`: a process in an instance that runs, with the instance's
/// image, environment, user and limits. It ends with its connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// In the newest instance of this service that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// In this instance. One of the two is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// The program and its arguments; a program without `/` is looked up in
    /// the instance's `PATH`.
    pub command: Vec<String>,
    /// `NAME=VALUE`, beside what the instance has.
    #[serde(default)]
    pub env: Vec<String>,
    /// An absolute path that is there; the instance's own folder unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// It gets a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<ExecTerminal>,
}

/// How large a terminal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecTerminal {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// `PUT …/services/{service}/traffic`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetTraffic {
    /// Sums to 100.
    pub targets: Vec<TrafficTarget>,
}

/// `POST …/services/{service}/rollback`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rollback {
    /// Where to; absent means the newest ready one before what serves now.
    pub to: Option<String>,
}

/// `POST …/services/{service}/scale`: a new revision that differs in this.
/// Answers [`DeployEvent`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scale {
    /// Always there.
    pub min: Option<u32>,
    /// At most.
    pub max: Option<u32>,
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// References that name it.
    pub references: Vec<String>,
    /// Its manifest.
    pub digest: Digest,
    /// `linux/amd64`.
    pub platform: String,
    /// Its EROFS layers on disk, bytes; shared ones count in each image.
    pub size_bytes: u64,
    /// How many layers.
    pub layers: usize,
    /// When it was pulled or imported, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Revisions that use it.
    pub used_by: Vec<String>,
}

/// `POST /v1/images/pull`. Answers [`ImageEvent`]s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// The reference.
    pub image: String,
    /// `os/arch[/variant]`; absent means the worker's.
    #[serde(default)]
    pub platform: Option<String>,
    /// Credentials for the registry.
    #[serde(default)]
    pub registry_auth: Option<RegistryAuth>,
}

/// One line of a pull's or an import's progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ImageEvent {
    /// Bytes that have arrived.
    Progress {
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all, when known.
        total: Option<u64>,
    },
    /// The image is in the store.
    Done {
        /// It.
        image: Image,
    },
    /// It is not.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Images.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes on disk.
    pub bytes: u64,
}

/// `PUT …/secrets/{name}`; a secret is never read back.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecret {
    /// Its value, base 64.
    pub value_base64: String,
}

impl std::fmt::Debug for SetSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SetSecret { .. }")
    }
}

/// A secret as listed: never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Secret {
    /// Its name.
    pub name: SecretName,
    /// When it was last set, milliseconds since 1970.
    pub updated_unix_ms: u64,
    /// Which key encrypts it: the first 8 hexadecimal digits of the key's SHA-256.
    pub key_id: String,
}

/// `POST /v1/secrets/rekey`: every secret is encrypted with a new key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rekey {
    /// The new key's file on the server, made when it is absent; the
    /// configuration has to name it from then on. Not given, a new key takes
    /// the old one's place in the configured file.
    pub key_file: Option<String>,
}

/// The answer to [`Rekey`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rekeyed {
    /// How many were encrypted anew.
    pub secrets: usize,
    /// The new key's id.
    pub key_id: String,
}

/// `POST /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for.
    pub name: String,
    /// The project it is bound to; absent makes an operator's token.
    #[serde(default)]
    pub project: Option<ProjectName>,
}

/// A token as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Names it in `DELETE /v1/tokens/{id}`.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// The project it is bound to; absent for the operator.
    pub project: Option<ProjectName>,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The token itself, only in the answer to its making.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// `POST …/keys`: a key for AWS's clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAccessKey {
    /// What it is for.
    pub name: String,
}

/// A key of a project that requests of AWS's clients are signed with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccessKey {
    /// The access key id; names it in `DELETE …/keys/{name}`.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The secret access key, only in the answer to its making.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// `POST …/hooks`: where a server of S3's kind tells a function of its objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateHook {
    /// Unique in the project.
    pub name: HookName,
    /// Who is told.
    pub function: ServiceName,
    /// A version or an alias of it.
    #[serde(default)]
    pub qualifier: Option<String>,
}

/// Where a server of S3's kind tells a function of its objects.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hook {
    /// Unique in the project.
    pub name: HookName,
    /// Who is told.
    pub function: ServiceName,
    /// A version or an alias of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qualifier: Option<String>,
    /// Where notifications are posted to; empty while the server has no
    /// `lambda.listen`.
    pub url: String,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What notifications come with, only in the answer to its making.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook")
            .field("name", &self.name)
            .field("function", &self.function)
            .field("qualifier", &self.qualifier)
            .finish_non_exhaustive()
    }
}

/// `POST …/services/{service}/events`: it is on the disk, and comes to an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SentEvent {
    /// A UUID, which its function and its destinations are told.
    pub request_id: String,
}

/// `POST …/schedules`: events of a function at their times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSchedule {
    /// 1 to 64 of a-z, A-Z, 0-9, `-`, `_` and `.`.
    pub name: String,
    /// `rate(5 minutes)`, `cron(0 12 * * ? *)` or `at(2026-11-26T19:00:00)`.
    pub expression: String,
    /// Where a cron expression and a time hold; UTC unless given.
    #[serde(default)]
    pub timezone: Option<String>,
    /// Whose events.
    pub function: ServiceName,
    /// A version or an alias of it.
    #[serde(default)]
    pub qualifier: Option<String>,
    /// What the event is, JSON; absent is one that says what fired.
    #[serde(default)]
    pub input: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
    /// The oldest a missed time may be that still fires, 60 to 86,400
    /// seconds; a day unless given.
    #[serde(default)]
    pub age_s: Option<u32>,
    /// It is deleted once it will not fire again.
    #[serde(default)]
    pub delete_after: bool,
}

/// Events of a function at their times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// Unique in the project.
    pub name: String,
    /// When it fires.
    pub expression: String,
    /// Where the expression holds.
    pub timezone: String,
    /// Whose events.
    pub function: ServiceName,
    /// A version or an alias of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qualifier: Option<String>,
    /// What it is for.
    pub description: String,
    /// Whether it fires at all.
    pub enabled: bool,
    /// What the event is, JSON; absent is one that says what fired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The oldest a missed time may be that still fires, seconds.
    pub age_s: u32,
    /// It is deleted once it will not fire again.
    pub delete_after: bool,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The last time that it has fired for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fired_unix_ms: Option<u64>,
    /// The next time that it fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_unix_ms: Option<u64>,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When the line's end was read, milliseconds since 1970.
    pub unix_ms: u64,
    /// Which instance wrote it.
    pub instance: InstanceId,
    /// Its revision.
    pub revision: String,
    /// `stdout`, `stderr` or `skiff`.
    pub stream: String,
    /// The line without its end; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// The phases of one cold start, microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ColdStart {
    /// When the request arrived, milliseconds since 1970.
    pub unix_ms: u64,
    /// The service.
    pub service: ServiceName,
    /// Its revision.
    pub revision: String,
    /// The instance that was started.
    pub instance: InstanceId,
    /// What isolates it.
    pub class: IsolationClass,
    /// Each phase's name and length, in order: `queue`, `placement`, `image`,
    /// `sandbox`, `app`, `first_byte`.
    pub phases_us: Vec<(String, u64)>,
    /// From the request's arrival to the first byte of its answer.
    pub total_us: u64,
}

/// One row of a bill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageRow {
    /// The project.
    pub project: ProjectName,
    /// The service.
    pub service: String,
    /// The class of its instances.
    pub class: IsolationClass,
    /// Requests answered.
    pub requests: u64,
    /// Requests that waited for an instance.
    pub cold_starts: u64,
    /// Sum of the requests' durations, milliseconds.
    pub request_ms: u64,
    /// Bytes received from clients.
    pub bytes_in: u64,
    /// Bytes sent to clients.
    pub bytes_out: u64,
    /// Instances' memory × time, MiB-seconds.
    pub memory_mib_s: f64,
    /// Processor time, seconds.
    pub cpu_s: f64,
    /// What it costs at the configured prices.
    pub cost: f64,
    /// Why instances for which no class was asked were in a container: empty
    /// when none was.
    #[serde(default)]
    pub fell_back: Vec<String>,
}

/// `GET /v1/usage`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// From, milliseconds since 1970.
    pub from_unix_ms: u64,
    /// Up to, milliseconds since 1970.
    pub to_unix_ms: u64,
    /// The unit of `cost`.
    pub currency: String,
    /// A row for each service and class.
    pub rows: Vec<UsageRow>,
    /// Periods of which the ledger knows nothing: `(from, to)`, milliseconds
    /// since 1970.
    pub gaps: Vec<(u64, u64)>,
}

/// `POST /v1/usage/check`: what was compared, and what differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageCheck {
    /// One line for each comparison.
    pub checks: Vec<UsageCheckRow>,
    /// Whether all hold.
    pub ok: bool,
}

/// One comparison of two independent sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageCheckRow {
    /// What was compared.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

fn default_timeout() -> u32 {
    crate::limits::DEFAULT_TIMEOUT_S
}

fn default_port() -> u16 {
    crate::limits::DEFAULT_PORT
}

fn main_name() -> String {
    "main".to_owned()
}

fn yes() -> bool {
    true
}
