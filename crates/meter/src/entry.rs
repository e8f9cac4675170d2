//! What the ledger records. New fields and variants go to the end: the
//! encoding has no names.

use serde::{Deserialize, Serialize};
use skiff_types::{InstanceId, IsolationClass, ProjectId, ServiceName};

/// One fact that was paid for, or that proves one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A request has been answered.
    Request(RequestEntry),
    /// An instance exists from now on.
    InstanceStart(InstanceStart),
    /// What a living instance has used so far.
    InstanceSample(InstanceSample),
    /// An instance is gone.
    InstanceEnd(InstanceEnd),
    /// The first entry of a writer.
    ServerStart {
        /// When, milliseconds since 1970.
        unix_ms: u64,
        /// Which boot of the machine: a crash of the server alone loses
        /// nothing, a crash of the machine at most the last second.
        boot: u64,
    },
    /// The last entry of a writer that ended in order.
    ServerStop {
        /// When, milliseconds since 1970.
        unix_ms: u64,
    },
    /// Entries of this period could not be written.
    Gap {
        /// From, milliseconds since 1970.
        from_unix_ms: u64,
        /// Up to, milliseconds since 1970.
        to_unix_ms: u64,
    },
    /// An instance exists from now on, in a class that was not asked for and
    /// is not the best.
    FellBack {
        /// It.
        start: InstanceStart,
        /// Why.
        why: String,
    },
}

/// A request that has been answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestEntry {
    /// Who answered; absent when no instance did.
    pub instance: Option<InstanceId>,
    /// The project that pays.
    pub project: ProjectId,
    /// The service.
    pub service: ServiceName,
    /// The number of its revision.
    pub revision: u32,
    /// What isolates its instances.
    pub class: IsolationClass,
    /// When it arrived, milliseconds since 1970.
    pub start_unix_ms: u64,
    /// Up to the end of the response, by the monotonic clock.
    pub duration_us: u64,
    /// Bytes received from the client.
    pub bytes_in: u64,
    /// Bytes sent to the client.
    pub bytes_out: u64,
    /// The response's status.
    pub status: u16,
    /// Whether it waited for an instance.
    pub cold: bool,
}

/// The first fact of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStart {
    /// The instance.
    pub instance: InstanceId,
    /// The project that pays.
    pub project: ProjectId,
    /// The service.
    pub service: ServiceName,
    /// The number of its revision.
    pub revision: u32,
    /// What isolates it.
    pub class: IsolationClass,
    /// What it was promised, MiB.
    pub memory_mib: u32,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
}

/// What a living instance has used since its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSample {
    /// The instance.
    pub instance: InstanceId,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Its age by the monotonic clock.
    pub lifetime_us: u64,
    /// Processor time since its start.
    pub cpu_us: u64,
}

/// The last fact of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceEnd {
    /// The instance.
    pub instance: InstanceId,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Its age by the monotonic clock.
    pub lifetime_us: u64,
    /// Processor time since its start, the final reading of its cgroup.
    pub cpu_us: u64,
    /// Why it ended.
    pub reason: String,
}

impl Entry {
    /// When it happened, milliseconds since 1970.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        match self {
            Self::Request(r) => r.start_unix_ms.saturating_add(r.duration_us / 1000),
            Self::InstanceStart(start) | Self::FellBack { start, .. } => start.unix_ms,
            Self::InstanceSample(s) => s.unix_ms,
            Self::InstanceEnd(e) => e.unix_ms,
            Self::ServerStart { unix_ms, .. } | Self::ServerStop { unix_ms } => *unix_ms,
            Self::Gap { to_unix_ms, .. } => *to_unix_ms,
        }
    }
}
