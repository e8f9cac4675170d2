//! What the scheduler is told, and what it decides.

use std::fmt;
use std::time::Duration;

use skiff_types::api::Quota;
use skiff_types::{
    CpuMode, ErrorKind, InstanceId, ProjectId, RevisionId, Scaling, StartCause, WorkerId,
};

/// The scheduler's own settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Memory that instances may be promised, percent of what a worker has.
    /// An instance's memory is a ceiling that few reach.
    pub memory_overcommit_percent: u32,
    /// Processors that instances may be promised, percent of what a worker has.
    pub cpu_overcommit_percent: u32,
    /// The window that steady scaling looks at.
    pub stable_window: Duration,
    /// The window that a burst is seen in.
    pub panic_window: Duration,
    /// Between two looks at an active revision's windows.
    pub tick: Duration,
    /// How full an instance is planned, percent of its concurrency; an
    /// instance for one request at once is always planned full.
    pub target_percent: u32,
    /// A burst is a demand of this many percent of the ready instances.
    pub panic_threshold_percent: u32,
    /// In one tick at most this many times the ready instances.
    pub scale_up_factor: u32,
    /// In one tick at least the ready instances divided by this.
    pub scale_down_divisor: u32,
    /// How long an instance that nobody has used yet is kept at least, so
    /// that the request it was started for can reach it.
    pub first_use_grace: Duration,
    /// How long an instance with processor time per request stays awake.
    pub pause_after: Duration,
    /// The first wait after a failed start; it doubles.
    pub backoff_first: Duration,
    /// The longest wait after failed starts.
    pub backoff_longest: Duration,
    /// An instance that dies this soon after it was ready has failed to start.
    pub crash_loop_within: Duration,
    /// Without a failure for so long, failures are forgotten.
    pub forgive_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_overcommit_percent: 200,
            cpu_overcommit_percent: 10_000,
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            tick: Duration::from_secs(2),
            target_percent: 70,
            panic_threshold_percent: 200,
            scale_up_factor: 1000,
            scale_down_divisor: 2,
            first_use_grace: Duration::from_secs(1),
            pause_after: Duration::from_millis(100),
            backoff_first: Duration::from_millis(500),
            backoff_longest: Duration::from_secs(60),
            crash_loop_within: Duration::from_secs(10),
            forgive_after: Duration::from_secs(60),
        }
    }
}

/// What the scheduler needs to know of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionPlan {
    /// It.
    pub revision: RevisionId,
    /// How many instances there are.
    pub scaling: Scaling,
    /// Memory that one instance is promised, MiB.
    pub memory_mib: u32,
    /// Memory that one takes beyond that, MiB: it is placed, and in no quota.
    pub overhead_mib: u32,
    /// Processors that one instance is promised, thousandths.
    pub cpu_millis: u32,
    /// Whether idle instances are paused.
    pub cpu_mode: CpuMode,
    /// Whether traffic goes to it. One that does not serve still answers what
    /// waits for it, and goes to zero: its `min` and keep-alive count as 0.
    pub serving: bool,
    /// Whether a request may end its instance, as a function's event that
    /// times out does: one that was used has not failed to start then. What an
    /// event waits for and does not come up is started again, once, and tells
    /// the event what becomes of it.
    pub function: bool,
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A revision exists or has changed.
    RevisionUpsert(RevisionPlan),
    /// A revision has been deleted: its instances stop.
    RevisionRemove(RevisionId),
    /// A worker is there with this much to give, or has changed.
    WorkerUp {
        /// It.
        worker: WorkerId,
        /// Its memory, MiB.
        memory_mib: u64,
        /// Its processors, thousandths.
        cpu_millis: u64,
    },
    /// A worker is lost, and all its instances with it.
    WorkerDown(WorkerId),
    /// What a project may use at once.
    QuotaSet {
        /// The project.
        project: ProjectId,
        /// Its bounds; those of requests are the gateway's.
        quota: Quota,
    },
    /// The length of a revision's queue has changed.
    Queued {
        /// The revision.
        revision: RevisionId,
        /// Requests that have no slot.
        waiting: u32,
        /// Requests that have one, as the gateway counts them now.
        in_flight: u32,
    },
    /// Requests in one instance. Needed at once when an instance becomes busy
    /// or idle; between those, as often as averages should be exact. An
    /// instance that has requests is ready, also if that is told later.
    InFlight {
        /// The instance.
        instance: InstanceId,
        /// How many there are.
        in_flight: u32,
    },
    /// A starting instance answers its probe.
    InstanceReady(InstanceId),
    /// A starting instance has ended without having answered.
    InstanceFailed(InstanceId),
    /// An instance has ended, as it was told to or by itself.
    InstanceGone(InstanceId),
    /// An instance is being ended for a cause that is not its start's: it takes
    /// no more requests, and counts until it is gone.
    InstanceRetired(InstanceId),
    /// An instance that was found running after a restart. Revisions and
    /// workers come before: what belongs to none is stopped.
    Adopted {
        /// The instance.
        instance: InstanceId,
        /// What it runs.
        revision: RevisionId,
        /// Where.
        worker: WorkerId,
        /// How it was found.
        state: AdoptedState,
    },
    /// Time has passed: [`crate::Scheduler::next_deadline`] has come.
    Tick,
}

/// How an instance was found after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdoptedState {
    /// It has not yet answered its probe.
    Starting,
    /// It runs.
    Ready,
    /// It is paused.
    Paused,
}

/// A decision, to be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start an instance there.
    Start {
        /// Its id.
        instance: InstanceId,
        /// What it runs.
        revision: RevisionId,
        /// Where.
        worker: WorkerId,
        /// Why.
        cause: StartCause,
    },
    /// Take the instance out of rotation, and end it when its last request
    /// has ended.
    Stop {
        /// The instance.
        instance: InstanceId,
        /// Why.
        reason: StopReason,
    },
    /// Take its processor time away.
    Pause(InstanceId),
    /// Give it back.
    Resume(InstanceId),
    /// Whether instances can be added to this revision has changed: see
    /// [`crate::Scheduler::is_limited`].
    Limit(RevisionId),
    /// What waits for this revision cannot be given an instance now: it has
    /// none, and no room can be made for one. Told once for each new cause
    /// and queue; a later [`Action::Start`] takes it back.
    Refuse {
        /// The revision.
        revision: RevisionId,
        /// What is short.
        shortage: Shortage,
    },
}

/// Why an instance stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its keep-alive is over.
    Idle,
    /// Fewer are needed.
    ScaleDown,
    /// Another revision needs its room.
    Reclaimed,
    /// Its revision has been deleted.
    Removed,
    /// It belongs to no known revision or worker.
    Orphan,
}

impl StopReason {
    /// The word that logs and the ledger use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::ScaleDown => "scale-down",
            Self::Reclaimed => "reclaimed",
            Self::Removed => "removed",
            Self::Orphan => "orphan",
        }
    }
}

/// Which resource is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// There is no worker at all.
    NoWorker,
    /// No worker has the memory.
    Memory {
        /// What one instance needs.
        needed_mib: u64,
        /// The most that one worker has left.
        free_mib: u64,
    },
    /// No worker that has the memory has the processors.
    Cpu {
        /// What one instance needs.
        needed_millis: u64,
        /// The most that a worker with memory enough has left.
        free_millis: u64,
    },
    /// The project's memory is used up.
    QuotaMemory {
        /// The bound.
        limit_mib: u64,
        /// What its instances hold.
        used_mib: u64,
    },
    /// The project's instances are used up.
    QuotaInstances {
        /// The bound.
        limit: u32,
    },
    /// The revision has as many instances as it may.
    MaxInstances {
        /// The bound.
        max: u32,
    },
    /// Its instances fail to start; the next one is tried later.
    CrashLoop {
        /// Failures in a row.
        failures: u32,
        /// Until the next try.
        retry_in: Duration,
    },
}

impl Shortage {
    /// How it is told to a client.
    #[must_use]
    pub const fn kind(self) -> ErrorKind {
        match self {
            Self::QuotaMemory { .. } | Self::QuotaInstances { .. } | Self::MaxInstances { .. } => {
                ErrorKind::Exhausted
            }
            Self::NoWorker | Self::Memory { .. } | Self::Cpu { .. } | Self::CrashLoop { .. } => {
                ErrorKind::Unavailable
            }
        }
    }

    /// Whether room elsewhere on the machine, or in the project, can end it.
    pub(crate) const fn is_of_capacity(self) -> bool {
        !matches!(self, Self::MaxInstances { .. } | Self::CrashLoop { .. })
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWorker => f.write_str("no worker is there"),
            Self::Memory {
                needed_mib,
                free_mib,
            } => write!(
                f,
                "memory is short: {needed_mib} MiB are needed and {free_mib} MiB are left"
            ),
            Self::Cpu {
                needed_millis,
                free_millis,
            } => write!(
                f,
                "cpu is short: {needed_millis} thousandths are needed and {free_millis} are left"
            ),
            Self::QuotaMemory {
                limit_mib,
                used_mib,
            } => write!(
                f,
                "the project's memory quota of {limit_mib} MiB is used up ({used_mib} MiB)"
            ),
            Self::QuotaInstances { limit } => {
                write!(f, "the project's quota of {limit} instances is used up")
            }
            Self::MaxInstances { max } => {
                write!(f, "the revision has its {max} instances at most")
            }
            Self::CrashLoop { failures, retry_in } => write!(
                f,
                "{failures} starts in a row have failed; the next try is in {} ms",
                retry_in.as_millis()
            ),
        }
    }
}

/// A revision's instances and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instances that have not yet answered.
    pub starting: u32,
    /// Instances that take requests, paused ones included.
    pub ready: u32,
    /// Those of the ready ones that have no request.
    pub idle: u32,
    /// Instances that take no more requests and are not yet gone.
    pub stopping: u32,
    /// Requests in instances that are not stopping.
    pub in_flight: u32,
    /// Requests without a slot.
    pub waiting: u32,
}
