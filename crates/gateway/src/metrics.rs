//! Counters of the hot path: plain atomics, read as a snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

/// Live counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// By the first digit of the status; index 0 is what has none.
    pub(crate) by_class: [Counter; 6],
    pub(crate) client_gone: Counter,
    pub(crate) queue_full: Counter,
    pub(crate) queue_deadline: Counter,
    pub(crate) overload: Counter,
    pub(crate) over_quota: Counter,
    pub(crate) no_route: Counter,
    pub(crate) bad_request: Counter,
    pub(crate) refused: Counter,
    pub(crate) over_connections: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) retries: Counter,
    pub(crate) dead_instances: Counter,
    pub(crate) cold_starts: Counter,
    pub(crate) upstream_connects: Counter,
    pub(crate) access_lines_dropped: Counter,
    pub(crate) connections: Counter,
    /// Turned away, and not closed yet.
    pub(crate) lingering: Counter,
    pub(crate) waiting: Counter,
    /// Refused, and not yet told.
    pub(crate) held: Counter,
    pub(crate) in_flight: Counter,
}

/// One number that goes up, or up and down.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the gateway has done and holds, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Answers by status class: 1xx at index 1 to 5xx at index 5. Upgrades are 1xx.
    pub answers_by_class: [u64; 6],
    /// Requests in an instance whose client left before the answer began.
    pub client_gone: u64,
    /// Rejected: the revision's queue was full.
    pub rejected_queue_full: u64,
    /// Rejected: no instance came within the queue's deadline.
    pub rejected_queue_deadline: u64,
    /// Rejected: in an overload a slot would have come too late.
    pub rejected_overload: u64,
    /// Rejected: the project has too many requests in flight.
    pub rejected_quota: u64,
    /// Rejected: no service answers to the host.
    pub rejected_no_route: u64,
    /// Rejected: malformed or ambiguous requests that the parser let through.
    pub rejected_bad_request: u64,
    /// Rejected: nobody can start an instance.
    pub rejected_refused: u64,
    /// Connections turned away at the bound.
    pub rejected_connections: u64,
    /// Requests that ran out of their time.
    pub timeouts: u64,
    /// Requests sent to another connection or instance, no byte of which was processed.
    pub retries: u64,
    /// Instances taken out of rotation because they do not answer.
    pub dead_instances: u64,
    /// Cold starts told to the records.
    pub cold_starts: u64,
    /// Connections made to instances.
    pub upstream_connects: u64,
    /// Lines of the access log that found its buffer full.
    pub access_lines_dropped: u64,
    /// Client connections now.
    pub connections: u64,
    /// Requests waiting for a slot now.
    pub waiting: u64,
    /// Requests in instances now.
    pub in_flight: u64,
}

impl Metrics {
    pub(crate) fn answered(&self, status: u16) {
        let class = usize::from(status / 100);
        self.by_class[if class < 6 { class } else { 0 }].up();
    }

    pub(crate) fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot {
            answers_by_class: std::array::from_fn(|class| self.by_class[class].get()),
            client_gone: self.client_gone.get(),
            rejected_queue_full: self.queue_full.get(),
            rejected_queue_deadline: self.queue_deadline.get(),
            rejected_overload: self.overload.get(),
            rejected_quota: self.over_quota.get(),
            rejected_no_route: self.no_route.get(),
            rejected_bad_request: self.bad_request.get(),
            rejected_refused: self.refused.get(),
            rejected_connections: self.over_connections.get(),
            timeouts: self.timeouts.get(),
            retries: self.retries.get(),
            dead_instances: self.dead_instances.get(),
            cold_starts: self.cold_starts.get(),
            upstream_connects: self.upstream_connects.get(),
            access_lines_dropped: self.access_lines_dropped.get(),
            connections: self.connections.get(),
            waiting: self.waiting.get(),
            in_flight: self.in_flight.get(),
        }
    }
}
