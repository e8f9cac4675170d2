//! The parts that the fleet steers: where a network goes when there are many
//! machines.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use skiff_gateway::{ColdPhases, Load, Upstream};
use skiff_types::{ErrorKind, InstanceId, Launch, RevisionId, StartCause};

/// The parts.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The one worker.
    pub worker: Arc<dyn WorkerPort>,
    /// The gateway's rotation.
    pub rotation: Arc<dyn Rotation>,
    /// What instances are made of.
    pub launches: Arc<dyn Launches>,
}

/// Runs instances.
pub trait WorkerPort: Debug + Send + Sync + 'static {
    /// Starts an instance and waits until its probe succeeds. On a failure
    /// nothing of it is left. Bounded by the probe's start timeout.
    fn start(
        &self,
        instance: InstanceId,
        launch: Arc<Launch>,
    ) -> BoxFuture<'_, Result<Started, StartFailure>>;
    /// Ends an instance; nothing of it is left when it is done. `at_once`
    /// gives it no time.
    fn stop(&self, instance: InstanceId, reason: &str, at_once: bool) -> BoxFuture<'_, ()>;
    /// Lets nothing in it run.
    fn pause(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), String>>;
    /// Lets it run again; no error when it does.
    fn resume(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), String>>;
}

/// An instance that answers its probe.
#[derive(Clone, Debug)]
pub struct Started {
    /// How it is reached.
    pub upstream: Arc<dyn Upstream>,
    /// Making the layers ready, microseconds.
    pub image_us: u64,
    /// Making the sandbox, microseconds.
    pub sandbox_us: u64,
    /// From execve to the probe's first success, microseconds.
    pub app_us: u64,
}

/// An instance did not come to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// Why, on one line.
    pub message: String,
    /// Its last log lines.
    pub log: Vec<String>,
}

/// The gateway's rotation. Calls without a future return at once.
pub trait Rotation: Debug + Send + Sync + 'static {
    /// Requests may go to it.
    ///
    /// # Errors
    /// Why they may not: the gateway does not know the revision.
    fn add(
        &self,
        revision: &RevisionId,
        upstream: Arc<dyn Upstream>,
        cold: Option<ColdPhases>,
    ) -> Result<(), String>;
    /// No request goes to it any more; done when none is in it. The caller
    /// sets the deadline.
    fn drain(&self, instance: InstanceId) -> BoxFuture<'_, ()>;
    /// It has to be woken before a request goes to it, or no longer.
    fn set_paused(&self, instance: InstanceId, paused: bool);
    /// What waits for the revision is answered with this.
    fn refuse(&self, revision: &RevisionId, kind: ErrorKind, message: &str);
    /// Whether instances can be added to the revision has changed.
    fn set_limited(&self, revision: &RevisionId, limited: bool);
    /// Requests in it now.
    fn in_flight(&self, instance: InstanceId) -> u32;
    /// Of the revisions that carry requests.
    fn loads(&self) -> Vec<Load>;
}

/// Answers what instances are made of.
pub trait Launches: Debug + Send + Sync + 'static {
    /// Everything that is needed to start an instance of the revision, which
    /// may be told why it is.
    fn launch(
        &self,
        revision: &RevisionId,
        cause: StartCause,
    ) -> BoxFuture<'_, Result<Arc<Launch>, StartFailure>>;
}

/// An instance that was running before this server.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// What it runs.
    pub revision: RevisionId,
    /// How it is reached.
    pub upstream: Arc<dyn Upstream>,
    /// Whether it is paused.
    pub paused: bool,
}
