//! What the ledger adds up to: totals by minute for the last hours and by
//! hour before, open lives, gaps. Derived: it can be thrown away and made
//! again, and `check` compares the one with the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use skiff_types::{InstanceId, IsolationClass, ProjectId, ServiceName};

use crate::counts::{load_whole, save_whole};
use crate::{CountsError, Entry, InstanceStart, Ledger, LedgerError, Record};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
/// Minutes are kept apart for this long.
const MINUTES_KEPT_MS: u64 = 2 * HOUR_MS;
/// A life longer than this is taken for damage beyond it.
const LIFE_US_MAX: u64 = 10 * 366 * 24 * 3_600_000_000;
/// Gaps that are remembered.
const GAPS_MAX: usize = 10_000;
/// Reasons of one payer that are kept of a period: the first in their order,
/// which does not depend on when each was noted.
const REASONS_MAX: usize = 8;
/// The form in which it is saved; another one is made again.
const FORMAT: u32 = 2;

/// What was used in a period.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests answered.
    pub requests: u64,
    /// Those that waited for an instance.
    pub cold_starts: u64,
    /// Sum of their durations.
    pub duration_us: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Memory times time of instances.
    pub memory_mib_us: u128,
    /// Processor time of instances.
    pub cpu_us: u64,
    /// Why instances were in a class that was not asked for and is not the
    /// best.
    pub fell_back: BTreeSet<String>,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.cold_starts += other.cold_starts;
        self.duration_us = self.duration_us.saturating_add(other.duration_us);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
        self.memory_mib_us = self.memory_mib_us.saturating_add(other.memory_mib_us);
        self.cpu_us = self.cpu_us.saturating_add(other.cpu_us);
        other.fell_back.iter().for_each(|why| self.note(why));
    }

    fn note(&mut self, why: &str) {
        if self.fell_back.contains(why) {
            return;
        }
        self.fell_back.insert(why.to_owned());
        if self.fell_back.len() > REASONS_MAX {
            self.fell_back.pop_last();
        }
    }
}

/// Who pays, for what class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Payer {
    pub(crate) project: ProjectId,
    pub(crate) service: ServiceName,
    class: u8,
}

impl Payer {
    fn new(project: &ProjectId, service: &ServiceName, class: IsolationClass) -> Self {
        let class = match class {
            IsolationClass::Microvm => 0,
            IsolationClass::Container => 1,
            IsolationClass::Null => 2,
        };
        Self {
            project: project.clone(),
            service: service.clone(),
            class,
        }
    }

    pub(crate) fn class(&self) -> IsolationClass {
        match self.class {
            0 => IsolationClass::Microvm,
            1 => IsolationClass::Container,
            _ => IsolationClass::Null,
        }
    }
}

/// A minute or an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Period {
    pub(crate) from_ms: u64,
    pub(crate) length_ms: u64,
}

impl Period {
    fn containing(time_ms: u64, length_ms: u64) -> Self {
        Self {
            from_ms: time_ms - time_ms % length_ms,
            length_ms,
        }
    }

    pub(crate) fn to_ms(self) -> u64 {
        self.from_ms.saturating_add(self.length_ms)
    }
}

/// Totals by period and payer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Periods(pub(crate) BTreeMap<Period, BTreeMap<Payer, Totals>>);

impl Periods {
    fn at(&mut self, period: Period, payer: &Payer) -> &mut Totals {
        let payers = self.0.entry(period).or_default();
        payers.entry(payer.clone()).or_default()
    }

    /// Brings the older minutes together in hours.
    fn compact(&mut self, before_ms: u64) {
        let before = before_ms - before_ms % HOUR_MS;
        let recent = self.0.split_off(&Period {
            from_ms: before,
            length_ms: 0,
        });
        let old = std::mem::replace(&mut self.0, recent);
        for (period, payers) in old {
            let hour = Period::containing(period.from_ms, HOUR_MS);
            for (payer, totals) in payers {
                self.at(hour, &payer).add(&totals);
            }
        }
    }

    pub(crate) fn in_hours(&self) -> Self {
        let mut hours = self.clone();
        hours.compact(u64::MAX);
        hours
    }
}

/// An instance that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) payer: Payer,
    /// Why its class is not the best, if it was not asked for.
    fell_back: Option<String>,
    memory_mib: u32,
    start_unix_ms: u64,
    billed_us: u64,
    cpu_us: u64,
}

impl Life {
    fn new(start: &InstanceStart, fell_back: Option<&String>) -> Self {
        Self {
            payer: Payer::new(&start.project, &start.service, start.class),
            fell_back: fell_back.cloned(),
            memory_mib: start.memory_mib,
            start_unix_ms: start.unix_ms,
            billed_us: 0,
            cpu_us: 0,
        }
    }

    /// Bills it up to this age. What is billed once is never taken back.
    pub(crate) fn bill(&mut self, age_us: u64, cpu_us: u64, periods: &mut Periods) {
        let age_us = age_us.min(LIFE_US_MAX);
        let begin_us = self.start_unix_ms.saturating_mul(1000);
        let end = begin_us.saturating_add(age_us);
        let mut at = begin_us.saturating_add(self.billed_us);
        // A long stretch is not worth a row for each of its minutes.
        let long = end.saturating_sub(at) > MINUTES_KEPT_MS * 1000;
        let length_ms = if long { HOUR_MS } else { MINUTE_MS };
        while at < end {
            let period = Period::containing(at / 1000, length_ms);
            let upto = period.to_ms().saturating_mul(1000).min(end);
            if upto <= at {
                break;
            }
            let used = u128::from(upto - at) * u128::from(self.memory_mib);
            let totals = periods.at(period, &self.payer);
            totals.memory_mib_us += used;
            self.fell_back.iter().for_each(|why| totals.note(why));
            at = upto;
        }
        self.billed_us = self.billed_us.max(age_us);
        if cpu_us > self.cpu_us {
            let period = Period::containing(end / 1000, MINUTE_MS);
            periods.at(period, &self.payer).cpu_us += cpu_us - self.cpu_us;
            self.cpu_us = cpu_us;
        }
    }

    /// Its age at a time, if it lives then.
    pub(crate) fn age_us(&self, unix_ms: u64) -> u64 {
        let age_ms = unix_ms.saturating_sub(self.start_unix_ms);
        age_ms.saturating_mul(1000)
    }
}

/// What is known of one writer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WriterState {
    pub(crate) next_seq: u64,
    pub(crate) digest: u64,
    boot: Option<u64>,
    start_unix_ms: u64,
    last_unix_ms: u64,
    stopped: bool,
}

/// The ledger's sum, up to where it has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    format: u32,
    /// Up to where each segment has been read.
    segments: BTreeMap<u32, u64>,
    pub(crate) writers: BTreeMap<u64, WriterState>,
    pub(crate) lives: BTreeMap<InstanceId, Life>,
    pub(crate) periods: Periods,
    gaps: Vec<(u64, u64)>,
    latest_unix_ms: u64,
}

impl Fold {
    /// The sum that was saved, or an empty one when there is none, it is
    /// damaged, or it is of another form.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(path: &Path) -> Result<Self, CountsError> {
        let bytes = match load_whole(path) {
            Ok(bytes) => bytes,
            Err(CountsError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        let fold = bytes.and_then(|bytes| postcard::from_bytes::<Self>(&bytes).ok());
        Ok(fold
            .filter(|fold| fold.format == FORMAT)
            .unwrap_or_default())
    }

    /// Saves it whole, or leaves the old one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, path: &Path) -> Result<(), CountsError> {
        let bytes = postcard::to_stdvec(self).map_err(|_| CountsError::Damaged {
            path: path.to_owned(),
        })?;
        save_whole(path, &bytes)
    }

    /// Takes in what the ledger has more than at the last reading.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn refresh(&mut self, ledger: &Ledger) -> Result<(), LedgerError> {
        self.format = FORMAT;
        for segment in ledger.segments()? {
            let offset = self.segments.get(&segment.number).copied().unwrap_or(0);
            let writer = segment.header.writer;
            let report = ledger.read(&segment, offset, |record| self.apply(writer, &record))?;
            self.segments.insert(segment.number, report.end);
            self.finish();
        }
        Ok(())
    }

    /// Brings older minutes together, so that memory grows by hours only.
    pub(crate) fn finish(&mut self) {
        let horizon = self.latest_unix_ms.saturating_sub(MINUTES_KEPT_MS);
        self.periods.compact(horizon);
    }

    pub(crate) fn apply(&mut self, writer: u64, record: &Record) {
        let entry = &record.entry;
        let now = entry.unix_ms();
        let state = self.writers.entry(writer).or_default();
        if record.seq > state.next_seq && self.gaps.len() < GAPS_MAX {
            self.gaps.push((state.last_unix_ms, now));
        }
        if record.seq < state.next_seq {
            // A doubled entry is not billed twice.
            return;
        }
        state.next_seq = record.seq + 1;
        state.digest = state.digest.wrapping_add(record.crc.into());
        state.last_unix_ms = state.last_unix_ms.max(now);
        self.latest_unix_ms = self.latest_unix_ms.max(now);
        match entry {
            Entry::ServerStart { unix_ms, boot } => {
                state.boot = Some(*boot);
                state.start_unix_ms = *unix_ms;
            }
            Entry::ServerStop { .. } => state.stopped = true,
            Entry::Gap {
                from_unix_ms,
                to_unix_ms,
            } => {
                if self.gaps.len() < GAPS_MAX {
                    self.gaps.push((*from_unix_ms, *to_unix_ms));
                }
            }
            other => self.apply_use(other),
        }
    }

    fn apply_use(&mut self, entry: &Entry) {
        match entry {
            Entry::Request(request) => {
                let payer = Payer::new(&request.project, &request.service, request.class);
                let period = Period::containing(entry.unix_ms(), MINUTE_MS);
                self.periods.at(period, &payer).add(&Totals {
                    requests: 1,
                    cold_starts: request.cold.into(),
                    duration_us: request.duration_us,
                    bytes_in: request.bytes_in,
                    bytes_out: request.bytes_out,
                    ..Totals::default()
                });
            }
            Entry::InstanceStart(start) => self.begin(start, None),
            Entry::FellBack { start, why } => self.begin(start, Some(why)),
            Entry::InstanceSample(sample) => {
                if let Some(life) = self.lives.get_mut(&sample.instance) {
                    life.bill(sample.lifetime_us, sample.cpu_us, &mut self.periods);
                }
            }
            Entry::InstanceEnd(end) => {
                if let Some(mut life) = self.lives.remove(&end.instance) {
                    life.bill(end.lifetime_us, end.cpu_us, &mut self.periods);
                }
            }
            Entry::ServerStart { .. } | Entry::ServerStop { .. } | Entry::Gap { .. } => {}
        }
    }

    fn begin(&mut self, start: &InstanceStart, fell_back: Option<&String>) {
        let life = self.lives.entry(start.instance);
        life.or_insert_with(|| Life::new(start, fell_back));
    }

    /// Instances that have a start and no end, with what is billed of each:
    /// its age and processor time. A server that starts writes an end for
    /// those that do not run any more.
    pub fn open_lives(&self) -> impl Iterator<Item = (InstanceId, u64, u64)> {
        let known = |(id, life): (&InstanceId, &Life)| (*id, life.billed_us, life.cpu_us);
        self.lives.iter().map(known)
    }

    /// Periods of which the ledger knows nothing, in order.
    #[must_use]
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let mut gaps = self.gaps.clone();
        for writer in self.writers.values().filter(|w| !w.stopped) {
            // The machine went down under this writer: its last second may be
            // missing, and nothing ran until the next one started.
            let next = self.writers.values().filter(|other| {
                other.start_unix_ms >= writer.last_unix_ms && other.boot != writer.boot
            });
            let next = next.map(|other| other.start_unix_ms).min();
            gaps.extend(next.map(|start| (writer.last_unix_ms, start)));
        }
        gaps.sort_unstable();
        gaps.dedup();
        gaps
    }
}
