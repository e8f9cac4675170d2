//! What the control plane asks of the other parts: small traits that the
//! wiring implements, where a network goes when there are many machines.

use std::collections::HashSet;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use skiff_gateway::{RevisionRoute, ServiceRoute};
use skiff_types::api::{
    ColdStart, ExecTerminal, Instance, LogLine, Pruned, Quota, RegistryAuth, Usage, UsageCheck,
};
use skiff_types::{
    Digest, ErrorKind, InstanceId, IsolationRequest, LogPage, LogRange, LogSpan, ProjectId,
    Resources, RevisionId, Scaling, ServiceName,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// A part could not do what it was asked; the message is for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What happened, to what, with its causes, on one line.
    pub message: String,
}

impl PortError {
    /// A failure of this kind.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// The parts that the control plane steers and asks.
#[derive(Clone)]
pub struct Ports {
    /// Scheduler and workers.
    pub fleet: Arc<dyn Fleet>,
    /// The gateway's table.
    pub router: Arc<dyn Router>,
    /// What instances wrote.
    pub logs: Arc<dyn Logs>,
    /// Cold starts.
    pub traces: Arc<dyn Traces>,
    /// The ledger.
    pub usage: Arc<dyn UsageSource>,
    /// `GET /metrics`: all metrics as Prometheus text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

/// What scheduler and workers need to know of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionPlan {
    /// Which.
    pub id: RevisionId,
    /// How many instances.
    pub scaling: Scaling,
    /// What each gets.
    pub resources: Resources,
    /// What isolates each.
    pub isolation: IsolationRequest,
    /// Whether they reach the public internet.
    pub egress: bool,
    /// Whether requests can reach it, by traffic or by tag: `scaling.min`
    /// holds only then.
    pub serving: bool,
    /// Whether its requests are events.
    pub function: bool,
}

/// The first instance of a revision did not come to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// What kind of failure: `Failed` for the application's, `Exhausted` when
    /// there is no room.
    pub kind: ErrorKind,
    /// Why, on one line.
    pub message: String,
    /// The instance's last log lines.
    pub log: Vec<String>,
}

/// A revision's instances, and why they are fewer than it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Those that take requests.
    pub ready: u32,
    /// Those that soon will.
    pub starting: u32,
    /// Why there are not more for now.
    pub shortage: Option<Shortage>,
}

/// Why no more instances of a revision are started for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The last ones have failed to start; otherwise room is short.
    pub is_of_starts: bool,
    /// On one line.
    pub message: String,
}

/// The scheduler and the workers behind it. What is put here is desired
/// state: the call returns at once, the fleet strives for it.
pub trait Fleet: Debug + Send + Sync + 'static {
    /// A revision that may have instances; put again when something changes.
    fn put_revision(&self, plan: RevisionPlan);
    /// It may have none any more: its instances are drained and end.
    fn remove_revision(&self, revision: &RevisionId);
    /// Starts one instance and waits until its probe succeeds. The instance
    /// stays as an idle one. Bounded by the probe's start timeout.
    fn start_one(&self, revision: &RevisionId) -> BoxFuture<'_, Result<InstanceId, StartFailure>>;
    /// How a revision stands now.
    fn standing(&self, revision: &RevisionId) -> Standing;
    /// What runs of a service now.
    fn instances(&self, project: &ProjectId, service: &ServiceName)
    -> BoxFuture<'_, Vec<Instance>>;
    /// Starts a process in an instance that runs.
    fn exec(&self, wish: ExecWish) -> BoxFuture<'_, Result<Executed, PortError>>;
    /// What a project may use at once. Told for each project before its
    /// first revision.
    fn set_quota(&self, project: &ProjectId, quota: Quota);
}

/// Where a process is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecPlace {
    /// In the newest instance of this service that serves.
    Service(ServiceName),
    /// In this instance of the project.
    Instance(InstanceId),
}

/// A process that is wanted in an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecWish {
    /// Whose instance.
    pub project: ProjectId,
    /// Which.
    pub place: ExecPlace,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `NAME=VALUE`, beside the instance's own.
    pub env: Vec<String>,
    /// Instead of the instance's own folder.
    pub workdir: Option<String>,
    /// It gets a terminal of this size.
    pub terminal: Option<ExecTerminal>,
}

/// A process that runs in an instance.
pub struct Executed {
    /// Where it runs.
    pub instance: InstanceId,
    /// It. Dropping this ends the process.
    pub process: Box<dyn ExecProcess>,
    /// To its standard input, which ends when this is dropped; a terminal is
    /// kept until the process has ended.
    pub input: Box<dyn AsyncWrite + Send + Unpin>,
    /// From its standard output, or its terminal; what it has started may hold
    /// it open beyond its end.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// From its standard error; a terminal has none of its own.
    pub errors: Option<Box<dyn AsyncRead + Send + Unpin>>,
}

impl Debug for Executed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executed")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// How a process in an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// With this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Nobody knows.
    Unknown,
}

/// A process in an instance. Dropping it ends it.
pub trait ExecProcess: Debug + Send + Sync + 'static {
    /// Sets the size of its terminal.
    fn resize(&self, size: ExecTerminal) -> BoxFuture<'_, Result<(), PortError>>;
    /// Waits for its end.
    fn exited(&self) -> BoxFuture<'_, ExecEnd>;
}

/// The gateway's table. Every call returns at once.
pub trait Router: Debug + Send + Sync + 'static {
    /// A service and who gets its requests; its revisions were put before.
    fn put_service(&self, route: ServiceRoute);
    /// Its hosts answer 404 from now on.
    fn remove_service(&self, project: &ProjectId, service: &ServiceName);
    /// A revision that routes may name.
    fn put_revision(&self, route: RevisionRoute);
    /// No route names it any more; requests in it end by themselves.
    fn remove_revision(&self, revision: &RevisionId);
}

/// The way to revisions, by name.
pub trait Revisions: Debug + Send + Sync + 'static {
    /// A connection on which hosts are `NAME-00001.PROJECT`.
    ///
    /// # Errors
    /// When none can be made.
    fn connect(&self) -> io::Result<std::os::unix::net::UnixStream>;
}

/// Which lines of whose log.
#[derive(Clone, Debug)]
pub struct LogQuery {
    /// Whose.
    pub project: ProjectId,
    /// Whose.
    pub service: ServiceName,
    /// Only this revision's number.
    pub revision: Option<u32>,
    /// Only this instance's.
    pub instance: Option<InstanceId>,
    /// Only lines from then on, milliseconds since 1970.
    pub since_unix_ms: Option<u64>,
    /// At most this many of the past, the newest.
    pub tail: u32,
    /// Goes on with what is written from now on.
    pub follow: bool,
}

/// What instances wrote.
pub trait Logs: Debug + Send + Sync + 'static {
    /// The lines, oldest first. Ends by itself unless it follows; dropping it
    /// ends it.
    fn read(
        &self,
        query: LogQuery,
    ) -> BoxFuture<'_, Result<BoxStream<'static, LogLine>, PortError>>;
    /// A page of the past.
    fn page(&self, range: LogRange) -> BoxFuture<'_, Result<LogPage, PortError>>;
    /// From when to when each of a service's instances wrote, the oldest
    /// instance first.
    fn spans(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> BoxFuture<'_, Result<Vec<LogSpan>, PortError>>;
}

/// Cold starts, newest first.
pub trait Traces: Debug + Send + Sync + 'static {
    /// At most `limit` of a project or one of its services.
    fn cold_starts(
        &self,
        project: &ProjectId,
        service: Option<&ServiceName>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<ColdStart>, PortError>>;
}

/// What a bill is asked for.
#[derive(Clone, Debug)]
pub struct UsageQuery {
    /// Absent: all projects.
    pub project: Option<ProjectId>,
    /// Absent: all services.
    pub service: Option<ServiceName>,
    /// From, milliseconds since 1970.
    pub from_unix_ms: u64,
    /// Up to, milliseconds since 1970.
    pub to_unix_ms: u64,
}

/// The ledger. Names of projects are looked up with
/// [`crate::Resolver::project_name`].
pub trait UsageSource: Debug + Send + Sync + 'static {
    /// A bill.
    fn usage(&self, query: UsageQuery) -> BoxFuture<'_, Result<Usage, PortError>>;
    /// Compares the ledger with independent sources over all projects.
    fn check(
        &self,
        from_unix_ms: u64,
        to_unix_ms: u64,
    ) -> BoxFuture<'_, Result<UsageCheck, PortError>>;
}

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// As the user wrote it.
    pub reference: String,
    /// `os/arch[/variant]`; absent means the worker's.
    pub platform: Option<String>,
    /// Credentials for the registry.
    pub auth: Option<RegistryAuth>,
}

/// Takes `(bytes so far, bytes in all when known)`; never blocks.
pub type Progress = Arc<dyn Fn(u64, Option<u64>) + Send + Sync>;

/// An image that is stored whole.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// Its manifest.
    pub digest: Digest,
    /// References that name it.
    pub references: Vec<String>,
    /// `linux/amd64`.
    pub platform: String,
    /// Workers have the processor that it is made for.
    pub runs_here: bool,
    /// Its layers on disk, bytes.
    pub size_bytes: u64,
    /// Each layer's diff id and EROFS file, lowest first.
    pub layers: Vec<(Digest, PathBuf)>,
    /// When it arrived, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// How it wants to be run.
    pub config: ImageConfig,
}

/// How an image wants to be run (OCI image-spec, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, `NAME=VALUE`.
    pub env: Vec<String>,
    /// `WorkingDir`; empty means `/`.
    pub working_dir: String,
    /// `User`; empty means root.
    pub user: String,
    /// `StopSignal`; empty means SIGTERM.
    pub stop_signal: String,
}

/// A user looked up in an image's own `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// In the sandbox.
    pub uid: u32,
    /// In the sandbox.
    pub gid: u32,
    /// In the sandbox.
    pub additional_gids: Vec<u32>,
    /// Its home; empty when it has none.
    pub home: String,
}

/// Where code lies in its function's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeRoot {
    /// A function's own: `/var/task`.
    Task,
    /// What functions share: `/opt`.
    Opt,
}

/// A zip file of code that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCode {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its length.
    pub zip_bytes: u64,
    /// Its files' contents, bytes.
    pub unpacked_bytes: u64,
    /// It has a file `bootstrap` at its top.
    pub bootstrap: bool,
}

/// An image to be made of another one and code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composition {
    /// What lies below the code; nothing when it is absent.
    pub base: Option<Digest>,
    /// Zip files by their SHA-256, the lowest first.
    pub code: Vec<(Digest, CodeRoot)>,
    /// Variables to add to the base's, `NAME=VALUE`.
    pub env: Vec<String>,
    /// Where its process begins.
    pub working_dir: String,
}

/// The image store, and the code that images are made of.
pub trait Images: Debug + Send + Sync + 'static {
    /// Fetches and verifies an image; costs one question to the registry
    /// when it is there already.
    fn pull(
        &self,
        request: PullRequest,
        progress: Progress,
    ) -> BoxFuture<'_, Result<Digest, PortError>>;
    /// Takes an OCI layout or `docker save` tar.
    fn import(
        &self,
        reference: Option<String>,
        tar: BoxStream<'static, io::Result<Bytes>>,
        progress: Progress,
    ) -> BoxFuture<'_, Result<Digest, PortError>>;
    /// The stored image that a reference or digest names, if there is one.
    fn find(&self, reference: &str) -> BoxFuture<'_, Result<Option<StoredImage>, PortError>>;
    /// All of them.
    fn list(&self) -> BoxFuture<'_, Result<Vec<StoredImage>, PortError>>;
    /// Removes a reference, and the image when it was the last one or a
    /// digest is given. Nothing in `in_use` is removed.
    fn remove(
        &self,
        reference: &str,
        in_use: &HashSet<Digest>,
    ) -> BoxFuture<'_, Result<Pruned, PortError>>;
    /// Removes every image, and all code, that is not in use.
    fn prune(&self, in_use: &HashSet<Digest>) -> BoxFuture<'_, Result<Pruned, PortError>>;
    /// Looks a `User` up in the image's own files.
    fn resolve_user(
        &self,
        digest: &Digest,
        user: &str,
    ) -> BoxFuture<'_, Result<ImageUser, PortError>>;
    /// A file without a name, in which a zip file can be gathered.
    fn spool(&self) -> BoxFuture<'_, Result<File, PortError>>;
    /// Keeps a zip file of code; `Invalid` when it cannot be one.
    fn add_code(&self, zip: File, root: CodeRoot) -> BoxFuture<'_, Result<StoredCode, PortError>>;
    /// The zip file with this SHA-256, if it is stored.
    fn open_code(&self, digest: &Digest) -> BoxFuture<'_, Result<Option<File>, PortError>>;
    /// Makes an image without a name; the same of the same parts.
    fn compose(&self, parts: Composition) -> BoxFuture<'_, Result<StoredImage, PortError>>;
}

/// An object of an S3-compatible store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// One of its versions; the newest when it is absent.
    pub version: Option<String>,
}

/// An object cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ObjectError {
    /// S3's name for what went wrong: `NoSuchKey`, `AccessDenied`.
    pub code: &'static str,
    /// What happened, with its causes, on one line.
    pub message: String,
}

/// An object's content, a piece at a time.
pub type ObjectContent = BoxStream<'static, Result<Bytes, ObjectError>>;

/// An S3-compatible store of the operator's.
pub trait Objects: Debug + Send + Sync + 'static {
    /// Begins to read an object.
    fn read(&self, object: ObjectName) -> BoxFuture<'_, Result<ObjectContent, ObjectError>>;
}
