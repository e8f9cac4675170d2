//! One request from its head to the end of its answer. If it reached an
//! instance it is recorded exactly once, before the end of the answer is
//! sent; however it ends, by dropping too.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skiff_base::Monotonic;

use crate::access::{AccessLine, Figures};
use crate::lane::{Lane, Watched};
use crate::port::RequestRecord;
use crate::revision::Slot;
use crate::shared::Admission;

/// The client went away before there was an answer.
const CLIENT_GONE: u16 = 499;

#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) lane: Arc<Lane>,
    pub(crate) watched: Arc<Watched>,
    pub(crate) arrival: Monotonic,
    pub(crate) arrival_unix_ms: u64,
    pub(crate) line: Option<AccessLine>,
    pub(crate) admission: Option<Admission>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// As sent; `None` before the head.
    pub(crate) status: Option<u16>,
    slot: Option<Slot>,
    reached: bool,
    ended: bool,
}

impl Visit {
    pub(crate) fn begin(lane: &Arc<Lane>, watched: &Arc<Watched>) -> Self {
        watched.begin();
        let arrival = lane.shared.clock.now();
        Self {
            lane: lane.clone(),
            watched: watched.clone(),
            arrival,
            arrival_unix_ms: lane.unix_ms(arrival),
            line: None,
            admission: None,
            bytes_in: 0,
            bytes_out: 0,
            status: None,
            slot: None,
            reached: false,
            ended: false,
        }
    }

    pub(crate) fn enter(&mut self, slot: Slot) {
        self.lane.shared.metrics.in_flight.up();
        self.slot = Some(slot);
    }

    pub(crate) fn slot(&self) -> Option<&Slot> {
        self.slot.as_ref()
    }

    pub(crate) fn add_in(&mut self, bytes: usize) {
        self.bytes_in += u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    pub(crate) fn add_out(&mut self, bytes: usize) {
        self.bytes_out += u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    /// From here on the instance may have seen some of the request.
    pub(crate) fn reach(&mut self) {
        self.reached = true;
    }

    /// No byte of the request was processed: it may enter elsewhere.
    pub(crate) fn leave(&mut self) {
        if self.slot.take().is_some() {
            self.lane.shared.metrics.in_flight.down();
        }
        self.reached = false;
    }

    /// Ends it; only the first call does anything.
    pub(crate) fn finish(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let now = self.lane.shared.clock.now();
        let duration = now.since(self.arrival).as_micros();
        let duration_us = u64::try_from(duration).unwrap_or(u64::MAX);
        let mut slot = self.slot.take();
        if let Some(slot) = &mut slot {
            slot.ended = Some(now);
            self.lane.shared.metrics.in_flight.down();
            if self.reached {
                self.record(slot, duration_us);
            }
        }
        let idle_timeout = self.lane.shared.config.idle_timeout;
        self.watched.end(now, idle_timeout);
        let metrics = &self.lane.shared.metrics;
        match self.status {
            Some(status) => metrics.answered(status),
            None => metrics.client_gone.up(),
        }
        if let Some(line) = &self.line {
            let figures = Figures {
                unix_ms: self.arrival_unix_ms,
                status: self.status.unwrap_or(CLIENT_GONE),
                bytes_in: self.bytes_in,
                bytes_out: self.bytes_out,
                duration_us,
                revision: slot.as_ref().map(|slot| &slot.revision.route.id),
            };
            self.lane.line(|out| line.append(out, figures));
        }
    }

    fn record(&self, slot: &Slot, duration_us: u64) {
        slot.revision.records().request(&RequestRecord {
            revision: slot.revision.route.id.clone(),
            instance: slot.instance.id,
            class: slot.instance.class,
            start_unix_ms: self.arrival_unix_ms,
            duration_us,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            status: self.status.unwrap_or(CLIENT_GONE),
            cold: slot.cold,
        });
        let totals = &slot.revision.totals;
        totals.requests.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.finish();
    }
}
