//! Compares sources that were counted independently of each other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Display;

use skiff_types::api::{UsageCheck, UsageCheckRow};
use skiff_types::{InstanceId, ProjectId, ServiceName};

use crate::{
    Entry, Fold, GatewayCounts, InstanceStart, Ledger, LedgerError, Record, RequestCounts,
    RequestEntry,
};

/// Wall clocks may differ by this much from the monotonic one over a life.
const SLACK_MS: u64 = 5000;
/// The same for ages: a sample's may come from another clock than the end's.
const SLACK_US: u64 = SLACK_MS * 1000;
/// Differences that are told in one row; the rest are counted.
const TOLD_MAX: usize = 5;
/// Ended lives that are remembered, for requests that are noted after them.
const ENDED_KEPT: usize = 200_000;

/// An instance's life as its worker knows it, apart from the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifeReport {
    /// The instance.
    pub instance: InstanceId,
    /// When it started, milliseconds since 1970.
    pub start_unix_ms: u64,
    /// Its age when it ended and its cgroup's final processor time.
    pub end: Option<(u64, u64)>,
}

/// What the ledger is compared with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// The gateway's counts, one for each writer that it knows.
    pub gateway: &'a [GatewayCounts],
    /// Lives that workers know.
    pub lives: &'a [LifeReport],
    /// Since when they know all of them, milliseconds since 1970.
    pub lives_complete_since: Option<u64>,
    /// The sum that is used for bills.
    pub aggregates: Option<&'a Fold>,
}

/// Reads the whole ledger and compares. Counts that are still growing are to
/// be taken before, and are compared as the least that there must be.
///
/// # Errors
/// When a segment cannot be read at all.
pub fn check(ledger: &Ledger, sources: &Sources<'_>) -> Result<UsageCheck, LedgerError> {
    let mut audit = Audit::new(sources);
    let segments = ledger.segments()?;
    for (n, segment) in segments.iter().enumerate() {
        let header = &segment.header;
        audit.segment(header.writer, header.first_seq, segment.number);
        let report = ledger.read(segment, 0, |record| audit.record(header.writer, &record))?;
        for damage in &report.damage {
            audit.whole.say(format_args!(
                "segment {} is damaged from byte {} to {}",
                segment.number, damage.offset, damage.resumed_at
            ));
        }
        audit.again.finish();
        let later = segments[n + 1..].iter();
        let has_later = later.clone().any(|s| s.header.writer == header.writer);
        // Only where a writer was cut off may its last bytes be no record.
        if report.torn && (has_later || audit.has_stopped(header.writer)) {
            audit.whole.say(format_args!(
                "segment {} is damaged from byte {} on",
                segment.number, report.end
            ));
        }
    }
    Ok(audit.finish(sources))
}

/// The differences found by one comparison.
#[derive(Debug)]
struct Findings {
    name: &'static str,
    compared: u64,
    told: Vec<String>,
    count: usize,
}

impl Findings {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            compared: 0,
            told: Vec::new(),
            count: 0,
        }
    }

    fn say(&mut self, what: impl Display) {
        self.count += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(what.to_string());
        }
    }

    fn expect(&mut self, holds: bool, what: impl Display) {
        self.compared += 1;
        if !holds {
            self.say(what);
        }
    }

    fn row(self) -> UsageCheckRow {
        let more = self.count - self.told.len();
        let mut detail = self.told.join("; ");
        if more > 0 {
            detail.push_str(&format!("; and {more} more"));
        }
        if self.count == 0 {
            detail = format!("{} compared", self.compared);
        }
        UsageCheckRow {
            name: self.name.to_owned(),
            ok: self.count == 0,
            detail,
        }
    }
}

#[derive(Debug, Default)]
struct Writer {
    next_seq: u64,
    digest: u64,
    stopped: bool,
    services: BTreeMap<(ProjectId, ServiceName), RequestCounts>,
}

#[derive(Debug, Clone, Copy)]
struct Life {
    start_unix_ms: u64,
    age_us: u64,
    cpu_us: u64,
    end_unix_ms: Option<u64>,
}

#[derive(Debug)]
struct Audit<'a> {
    whole: Findings,
    numbers: Findings,
    lives_found: Findings,
    writers: BTreeMap<u64, Writer>,
    lives: HashMap<InstanceId, Life>,
    ended: VecDeque<InstanceId>,
    /// Lives that a worker has reported, as the ledger has them.
    reported: HashMap<InstanceId, Option<Life>>,
    /// Lives of the ledger that the worker should know and does not.
    unreported: Findings,
    lives_complete_since: Option<u64>,
    aggregates: Option<&'a Fold>,
    /// The same sum made again, up to where the other one has been read.
    again: Fold,
}

impl<'a> Audit<'a> {
    fn new(sources: &Sources<'a>) -> Self {
        Self {
            whole: Findings::new("segments are whole"),
            numbers: Findings::new("entries are numbered without a gap"),
            lives_found: Findings::new("lives are consistent"),
            writers: BTreeMap::new(),
            lives: HashMap::new(),
            ended: VecDeque::new(),
            reported: sources.lives.iter().map(|l| (l.instance, None)).collect(),
            unreported: Findings::new("instance entries are known to the worker"),
            lives_complete_since: sources.lives_complete_since,
            aggregates: sources.aggregates,
            again: Fold::default(),
        }
    }

    fn has_stopped(&self, writer: u64) -> bool {
        self.writers.get(&writer).is_some_and(|w| w.stopped)
    }

    fn segment(&mut self, writer: u64, first_seq: u64, number: u32) {
        let expected = self.writers.entry(writer).or_default().next_seq;
        self.numbers.expect(
            first_seq == expected,
            format_args!("segment {number} begins with entry {first_seq}, not {expected}"),
        );
    }

    fn record(&mut self, id: u64, record: &Record) {
        self.whole.compared += 1;
        let writer = self.writers.entry(id).or_default();
        let expected = writer.next_seq;
        self.numbers.expect(
            record.seq == expected && !writer.stopped,
            format_args!(
                "writer {id:016x} has entry {} where {expected} is due",
                record.seq
            ),
        );
        writer.next_seq = record.seq.saturating_add(1);
        writer.digest = writer.digest.wrapping_add(record.crc.into());
        let known = self.aggregates.and_then(|fold| fold.writers.get(&id));
        if known.is_some_and(|state| record.seq < state.next_seq) {
            self.again.apply(id, record);
        }
        match &record.entry {
            Entry::Request(request) => {
                let key = (request.project.clone(), request.service.clone());
                writer.services.entry(key).or_default().add(request);
                self.request(request);
            }
            Entry::InstanceStart(start) | Entry::FellBack { start, .. } => self.start(start),
            Entry::InstanceSample(s) => {
                self.grow(s.instance, s.unix_ms, s.lifetime_us, s.cpu_us, false);
            }
            Entry::InstanceEnd(e) => {
                self.grow(e.instance, e.unix_ms, e.lifetime_us, e.cpu_us, true);
            }
            Entry::ServerStop { .. } => writer.stopped = true,
            Entry::ServerStart { .. } | Entry::Gap { .. } => {}
        }
    }

    fn start(&mut self, start: &InstanceStart) {
        let id = start.instance;
        let life = Life {
            start_unix_ms: start.unix_ms,
            age_us: 0,
            cpu_us: 0,
            end_unix_ms: None,
        };
        let known = self.lives.insert(id, life).is_some();
        self.lives_found
            .expect(!known, format_args!("{id} starts twice"));
        match self.reported.get_mut(&id) {
            Some(slot) => *slot = Some(life),
            None => {
                let due = self.lives_complete_since;
                let missing = due.is_some_and(|since| start.unix_ms >= since);
                self.unreported
                    .expect(!missing, format_args!("{id} is not"));
            }
        }
    }

    fn grow(&mut self, id: InstanceId, unix_ms: u64, age_us: u64, cpu_us: u64, ends: bool) {
        let Some(life) = self.lives.get_mut(&id) else {
            self.lives_found.say(format_args!("{id} has no start"));
            return;
        };
        let ended = life.end_unix_ms.is_some();
        let grows = age_us.saturating_add(SLACK_US) >= life.age_us && cpu_us >= life.cpu_us;
        let found = &mut self.lives_found;
        found.expect(!(ended && ends), format_args!("{id} ends twice"));
        // A server that is being replaced may note its samples later.
        found.expect(
            grows || (ended && !ends),
            format_args!("{id} becomes younger or gives processor time back"),
        );
        found.expect(
            unix_ms.saturating_add(SLACK_MS) >= life.start_unix_ms,
            format_args!("{id} is noted before its start"),
        );
        if ended {
            found.expect(
                age_us <= life.age_us.saturating_add(SLACK_US),
                format_args!("{id} lives on after its end"),
            );
            return;
        }
        life.age_us = age_us;
        life.cpu_us = cpu_us;
        if ends {
            life.end_unix_ms = Some(life.start_unix_ms.saturating_add(age_us / 1000));
            self.ended.push_back(id);
        }
        if let Some(slot) = self.reported.get_mut(&id) {
            *slot = Some(*life);
        }
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            self.lives.remove(&oldest);
        }
    }

    fn request(&mut self, request: &RequestEntry) {
        let Some(id) = request.instance else {
            return;
        };
        let found = &mut self.lives_found;
        let Some(life) = self.lives.get(&id) else {
            found.say(format_args!(
                "a request was answered by {id}, which has no start"
            ));
            return;
        };
        let end = request
            .start_unix_ms
            .saturating_add(request.duration_us / 1000);
        let after_start = end.saturating_add(SLACK_MS) >= life.start_unix_ms;
        let before_end = life
            .end_unix_ms
            .is_none_or(|gone| request.start_unix_ms <= gone.saturating_add(SLACK_MS));
        found.expect(
            after_start && before_end,
            format_args!("a request was answered by {id} outside its life"),
        );
    }

    fn finish(mut self, sources: &Sources<'_>) -> UsageCheck {
        let mut rows = Vec::new();
        rows.push(self.compare_summaries(sources.gateway));
        rows.push(self.compare_requests(sources.gateway));
        rows.extend(self.compare_lives(sources.lives));
        rows.push(self.compare_aggregates());
        let own = [self.whole, self.numbers, self.lives_found, self.unreported];
        let checks: Vec<_> = own.into_iter().chain(rows).map(Findings::row).collect();
        let ok = checks.iter().all(|row| row.ok);
        UsageCheck { checks, ok }
    }

    /// What was appended against what is read.
    fn compare_summaries(&self, gateway: &[GatewayCounts]) -> Findings {
        let mut found = Findings::new("entries read are the entries appended");
        let none = Writer::default();
        for counts in gateway {
            let summary = &counts.summary;
            let writer = self.writers.get(&summary.writer).unwrap_or(&none);
            let name = format!("writer {:016x}", summary.writer);
            let holds = if counts.exact {
                (writer.next_seq, writer.digest) == (summary.entries, summary.digest)
            } else {
                writer.next_seq >= summary.entries
            };
            found.expect(
                holds,
                format_args!(
                    "{name} has appended {} entries and {} are read, or some were changed",
                    summary.entries, writer.next_seq
                ),
            );
        }
        found
    }

    fn compare_requests(&self, gateway: &[GatewayCounts]) -> Findings {
        let mut found = Findings::new("request entries are the gateway's requests");
        let none = BTreeMap::new();
        for counts in gateway {
            let writer = self.writers.get(&counts.summary.writer);
            let entries = writer.map_or(&none, |w| &w.services);
            let mut keys: Vec<_> = counts.services.keys().chain(entries.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                let counted = counts.services.get(key).copied().unwrap_or_default();
                let read = entries.get(key).copied().unwrap_or_default();
                let holds = if counts.exact {
                    counted == read
                } else {
                    at_least(&read, &counted)
                };
                found.expect(
                    holds,
                    format_args!("{}/{}: counted {counted:?}, entries {read:?}", key.0, key.1),
                );
            }
        }
        found
    }

    fn compare_lives(&self, reports: &[LifeReport]) -> [Findings; 2] {
        let mut lives = Findings::new("lives known to the worker have their entries");
        let mut cpu = Findings::new("processor time is the cgroups' final reading");
        for report in reports {
            let id = report.instance;
            let Some(Some(life)) = self.reported.get(&id) else {
                lives.say(format_args!("{id} has no entries"));
                continue;
            };
            lives.expect(
                life.start_unix_ms == report.start_unix_ms,
                format_args!("{id} started at another time"),
            );
            let Some((age_us, cpu_us)) = report.end else {
                continue;
            };
            lives.expect(
                life.end_unix_ms.is_some() && life.age_us == age_us,
                format_args!("{id} lived {age_us} µs and {} are billed", life.age_us),
            );
            cpu.expect(
                life.cpu_us == cpu_us,
                format_args!("{id} used {cpu_us} µs and {} are billed", life.cpu_us),
            );
        }
        [lives, cpu]
    }

    fn compare_aggregates(&mut self) -> Findings {
        let mut found = Findings::new("totals by hour are the sum of the entries");
        let Some(fold) = self.aggregates else {
            return found;
        };
        for (id, state) in &fold.writers {
            let same = self.again.writers.get(id) == Some(state);
            found.expect(same, format_args!("writer {id:016x} has other entries now"));
        }
        found.expect(fold.lives == self.again.lives, "other instances are open");
        let (theirs, ours) = (fold.periods.in_hours().0, self.again.periods.in_hours().0);
        let mut hours: Vec<_> = theirs.keys().chain(ours.keys()).collect();
        hours.sort_unstable();
        hours.dedup();
        for hour in hours {
            let from_ms = hour.from_ms;
            let same = theirs.get(hour) == ours.get(hour);
            found.expect(same, format_args!("the hour from {from_ms} ms differs"));
        }
        found
    }
}

fn at_least(a: &RequestCounts, b: &RequestCounts) -> bool {
    a.requests >= b.requests
        && a.cold_starts >= b.cold_starts
        && a.errors >= b.errors
        && a.duration_us >= b.duration_us
        && a.bytes_in >= b.bytes_in
        && a.bytes_out >= b.bytes_out
}
