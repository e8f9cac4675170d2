//! What the gateway is told, what it asks for, and what it tells: the seams
//! where a network goes when there are many machines.

use std::fmt::Debug;
use std::io;

use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, Monotonic};
use skiff_types::{InstanceId, IsolationClass, ProjectId, Protocol, RevisionId, ServiceName, Tag};

/// On connections from within this process, a header of the gateway's own
/// answers: no instance has said that.
pub const OWN_ANSWER: &str = "x-skiff-own-answer";

/// An instance as the gateway sees it: something to connect to.
pub trait Upstream: Debug + Send + Sync + 'static {
    /// Which instance.
    fn instance(&self) -> InstanceId;
    /// What isolates it.
    fn class(&self) -> IsolationClass;
    /// A new connection to the application, ready for HTTP, made on the
    /// calling task's runtime. The caller sets the deadline.
    fn connect(&self) -> BoxFuture<'_, io::Result<ByteStream>>;
}

/// The gateway's word to the scheduler. Every call returns at once.
///
/// `busy` and `idle` are said while the revision's lock is held, so that they
/// come in the order in which they happened; `queued` and `dead` on a
/// request's way. So no implementation calls the gateway back on the calling
/// thread, lest it waits for itself: it notes the word and acts on a task of
/// its own. That goes for what follows from a word, too, such as
/// `Gateway::refuse`.
pub trait Demand: Debug + Send + Sync + 'static {
    /// A request had to wait, or none waits any more: `waiting` are queued,
    /// `in_flight` are in instances.
    fn queued(&self, revision: &RevisionId, waiting: u32, in_flight: u32);
    /// An instance got its first request or stream.
    fn busy(&self, instance: InstanceId);
    /// An instance's last request or stream has ended.
    fn idle(&self, instance: InstanceId);
    /// The gateway has taken an instance out of rotation: it does not answer.
    fn dead(&self, instance: InstanceId, reason: &str);
    /// Lets a paused instance run; done when it does. The caller sets the deadline.
    fn wake(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), WakeError>>;
}

/// A paused instance could not be woken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WakeError(pub String);

/// Where finished requests are recorded.
pub trait Records: Debug + Send + Sync + 'static {
    /// Appends the record; called before the end of the response is sent.
    /// Costs at most one write to the page cache.
    fn request(&self, record: &RequestRecord);
    /// One cold start, after the first byte of its answer was sent.
    fn cold_start(
        &self,
        revision: &RevisionId,
        instance: InstanceId,
        class: IsolationClass,
        phases: &ColdPhases,
    );
}

/// One finished request.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// Who served it.
    pub revision: RevisionId,
    /// Who served it.
    pub instance: InstanceId,
    /// What isolates it.
    pub class: IsolationClass,
    /// When it arrived, milliseconds since 1970.
    pub start_unix_ms: u64,
    /// From its arrival to the end of the answer, microseconds.
    pub duration_us: u64,
    /// Of the body.
    pub bytes_in: u64,
    /// Of the body.
    pub bytes_out: u64,
    /// As sent; 499 when the client went away before there was one.
    pub status: u16,
    /// It waited for an instance to start.
    pub cold: bool,
}

/// The phases of one cold start, microseconds, each from the end of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColdPhases {
    /// When the request arrived, milliseconds since 1970; set by the gateway.
    pub unix_ms: u64,
    /// From arrival to the scheduler's decision to start this instance.
    pub queue_us: u64,
    /// Deciding, and reaching the worker.
    pub placement_us: u64,
    /// Making the image's layers ready.
    pub image_us: u64,
    /// Making the sandbox, to the application's execve.
    pub sandbox_us: u64,
    /// From execve to the probe's first success.
    pub app_us: u64,
    /// From there to the first byte of the answer; set by the gateway.
    pub first_byte_us: u64,
    /// When the scheduler decided: lets the gateway compute `queue_us`.
    pub decided: Monotonic,
    /// When the instance was ready.
    pub ready: Monotonic,
}

/// One service in the routing table.
#[derive(Clone, Debug)]
pub struct ServiceRoute {
    /// Its project.
    pub project: ProjectId,
    /// Its name.
    pub service: ServiceName,
    /// The hosts it answers to, lower case, without port; the tagged ones
    /// are made from `tags`.
    pub hosts: Vec<String>,
    /// Shares of requests; sum to 100. Each revision was put before.
    pub traffic: Vec<(RevisionId, u8)>,
    /// Hosts of single revisions: `TAG---HOST` for each host.
    pub tags: Vec<(Tag, RevisionId)>,
}

/// What the gateway needs to know of a revision.
#[derive(Clone, Debug)]
pub struct RevisionRoute {
    /// Which.
    pub id: RevisionId,
    /// What its application speaks.
    pub protocol: Protocol,
    /// Requests at once in one instance.
    pub concurrency: u32,
    /// A request's whole time, milliseconds.
    pub timeout_ms: u64,
    /// Its instances go on with a request whose client has gone, as functions do.
    pub outlives_client: bool,
    /// Requests that may wait.
    pub queue_requests: u32,
    /// How long one may wait, milliseconds.
    pub queue_ms: u64,
    /// Milliseconds between liveness probes; 0 is never.
    pub liveness_period_ms: u64,
    /// `GET` of this path instead of a bare connection.
    pub liveness_path: Option<String>,
}

/// What a revision has carried since the gateway was last asked.
#[derive(Clone, Debug)]
pub struct Load {
    /// Which.
    pub revision: RevisionId,
    /// Requests in instances and in the queue, averaged over the time since.
    pub average: f64,
    /// In the queue now.
    pub waiting: u32,
    /// In instances now.
    pub in_flight: u32,
}
