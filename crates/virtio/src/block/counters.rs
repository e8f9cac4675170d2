use std::sync::atomic::{AtomicU64, Ordering};

/// What a disk has done, for those who look at it from outside.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    failed: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// What a disk had done at some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that the driver made.
    pub requests: u64,
    /// Of these, those that failed or were unknown.
    pub failed: u64,
    /// Bytes that the driver read.
    pub read_bytes: u64,
    /// Bytes that the driver wrote.
    pub written_bytes: u64,
}

impl Counters {
    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            requests: self.requests.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }

    /// A request has ended.
    pub(super) fn add(&self, is_done: bool, read: usize, written: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.failed
            .fetch_add(u64::from(!is_done), Ordering::Relaxed);
        self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        self.written_bytes
            .fetch_add(written as u64, Ordering::Relaxed);
    }
}
