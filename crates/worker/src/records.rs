use std::fmt::Debug;

use skiff_types::{InstanceId, IsolationClass, RevisionId};

/// Where instances' lives are recorded. Each call costs at most one write to
/// the page cache and cannot fail for the caller.
pub trait WorkerRecords: Debug + Send + Sync + 'static {
    /// Before the sandbox is made: each sandbox that exists has its start
    /// recorded. An adopted instance's was recorded by the former server.
    fn instance_start(&self, start: &InstanceStart);
    /// Now and then while it runs: its age by the monotonic clock, and the
    /// processor time since its start.
    fn instance_sample(&self, instance: InstanceId, lifetime_us: u64, cpu_us: u64);
    /// Once for each start, also when the sandbox was then not made.
    fn instance_end(&self, end: &InstanceEnd);
}

/// An instance begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceStart {
    /// Which.
    pub instance: InstanceId,
    /// Of what.
    pub revision: RevisionId,
    /// What isolates it.
    pub class: IsolationClass,
    /// Why it is in a container, when no class was asked for.
    pub fell_back: Option<String>,
    /// What it may use and is billed for, MiB.
    pub memory_mib: u32,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// An instance has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceEnd {
    /// Which.
    pub instance: InstanceId,
    /// Of what.
    pub revision: RevisionId,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// From its start, microseconds; 0 when the sandbox was not made.
    pub lifetime_us: u64,
    /// The last reading, microseconds.
    pub cpu_us: u64,
    /// Why, in words.
    pub reason: String,
    /// The kernel killed a process in it for want of memory.
    pub out_of_memory: bool,
}
