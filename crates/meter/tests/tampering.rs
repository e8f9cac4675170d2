//! A ledger in which one entry is dropped, doubled or changed does not pass.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use skiff_base::ManualClock;
use skiff_meter::{
    Entry, Fold, GatewayCounts, HEADER_BYTES, InstanceEnd, InstanceSample, InstanceStart, Ledger,
    LedgerWriter, LifeReport, RequestEntry, Sources, check, encode_record, read_segment,
};
use skiff_types::{InstanceId, IsolationClass, ProjectId, ServerId};

const T0: u64 = 1_800_000_000_000;
const INSTANCES: u32 = 4;

struct Books {
    folder: tempfile::TempDir,
    counts: GatewayCounts,
    lives: Vec<LifeReport>,
    fold: Fold,
}

fn id(n: u32) -> InstanceId {
    InstanceId::from_parts(T0, n)
}

fn request(n: u32, at: u64) -> RequestEntry {
    RequestEntry {
        instance: Some(id(n)),
        project: ProjectId::default_project(),
        service: "hello".parse().unwrap(),
        revision: 1,
        class: IsolationClass::Container,
        start_unix_ms: T0 + at,
        duration_us: 12_345,
        bytes_in: 100,
        bytes_out: 1000,
        status: 200,
        cold: at.is_multiple_of(2),
    }
}

fn entries(n: u32) -> Vec<Entry> {
    let mut all = vec![Entry::InstanceStart(InstanceStart {
        instance: id(n),
        project: ProjectId::default_project(),
        service: "hello".parse().unwrap(),
        revision: 1,
        class: IsolationClass::Container,
        memory_mib: 256,
        unix_ms: T0,
    })];
    all.extend((1..=3).map(|at| Entry::Request(request(n, at * 1000))));
    all.push(Entry::InstanceSample(InstanceSample {
        instance: id(n),
        unix_ms: T0 + 5000,
        lifetime_us: 5_000_000,
        cpu_us: 100_000,
    }));
    all.push(Entry::InstanceEnd(InstanceEnd {
        instance: id(n),
        unix_ms: T0 + 10_000,
        lifetime_us: 10_000_000,
        cpu_us: 200_000,
        reason: "idle".into(),
    }));
    all
}

/// A valid ledger, with what was counted beside it.
fn books(stopped: bool) -> Books {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerId::from_parts(1, 1);
    let clock = Arc::new(ManualClock::default());
    let writer = LedgerWriter::open(folder.path(), server, clock).unwrap();
    let mut counts = GatewayCounts::default();
    let mut lives = vec![];
    writer
        .append(&Entry::ServerStart {
            unix_ms: T0,
            boot: 1,
        })
        .unwrap();
    for n in 0..INSTANCES {
        for entry in entries(n) {
            writer.append(&entry).unwrap();
            if let Entry::Request(request) = &entry {
                counts.add(request);
            }
        }
        lives.push(LifeReport {
            instance: id(n),
            start_unix_ms: T0,
            end: Some((10_000_000, 200_000)),
        });
    }
    if stopped {
        writer
            .append(&Entry::ServerStop {
                unix_ms: T0 + 20_000,
            })
            .unwrap();
    }
    counts.summary = writer.summary();
    counts.exact = true;
    drop(writer);
    let mut fold = Fold::default();
    fold.refresh(&Ledger::new(folder.path())).unwrap();
    Books {
        folder,
        counts,
        lives,
        fold,
    }
}

impl Books {
    fn segment(&self) -> PathBuf {
        self.folder.path().join("00000001.seg")
    }

    fn records(&self) -> Vec<(u64, Entry)> {
        let bytes = fs::read(self.segment()).unwrap();
        let mut records = vec![];
        read_segment(&bytes[HEADER_BYTES..], 0, |r| {
            records.push((r.seq, r.entry))
        })
        .unwrap();
        records
    }

    /// The ledger with these records in the place of its own, every checksum right.
    fn rewrite(&self, records: &[(u64, Entry)]) {
        let mut bytes = fs::read(self.segment()).unwrap();
        bytes.truncate(HEADER_BYTES);
        for (seq, entry) in records {
            encode_record(&mut bytes, *seq, entry);
        }
        fs::write(self.segment(), bytes).unwrap();
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            gateway: std::slice::from_ref(&self.counts),
            lives: &self.lives,
            lives_complete_since: Some(0),
            aggregates: Some(&self.fold),
        }
    }

    fn failing(&self, sources: &Sources<'_>) -> Vec<String> {
        match check(&Ledger::new(self.folder.path()), sources) {
            Ok(check) => {
                let failing: Vec<_> = check.checks.into_iter().filter(|c| !c.ok).collect();
                assert_eq!(check.ok, failing.is_empty());
                failing.into_iter().map(|c| c.name).collect()
            }
            Err(error) => vec![error.to_string()],
        }
    }

    fn passes(&self) -> bool {
        self.failing(&self.sources()).is_empty()
    }
}

fn numbered(entries: Vec<(u64, Entry)>) -> Vec<(u64, Entry)> {
    (0..)
        .zip(entries.into_iter().map(|(_, entry)| entry))
        .collect()
}

#[test]
fn a_valid_ledger_passes() {
    for stopped in [true, false] {
        let books = books(stopped);
        assert_eq!(books.failing(&books.sources()), [""; 0]);
    }
}

#[test]
fn any_dropped_entry_fails_also_when_the_rest_is_numbered_anew() {
    for stopped in [true, false] {
        let books = books(stopped);
        let records = books.records();
        for n in 0..records.len() {
            let mut dropped = records.clone();
            dropped.remove(n);
            books.rewrite(&dropped);
            assert!(!books.passes(), "entry {n} is dropped");
            books.rewrite(&numbered(dropped));
            assert!(
                !books.passes(),
                "entry {n} is dropped and the rest numbered anew"
            );
        }
        books.rewrite(&records);
        assert!(books.passes());
    }
}

#[test]
fn any_doubled_entry_fails() {
    let books = books(true);
    let records = books.records();
    for n in 0..records.len() {
        let mut doubled = records.clone();
        doubled.insert(n, records[n].clone());
        books.rewrite(&doubled);
        assert!(!books.passes(), "entry {n} is doubled");
        books.rewrite(&numbered(doubled));
        assert!(
            !books.passes(),
            "entry {n} is doubled and the rest numbered anew"
        );
    }
}

fn edited(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    match &mut entry {
        Entry::Request(request) => request.bytes_out += 1,
        Entry::InstanceStart(start) | Entry::FellBack { start, .. } => start.memory_mib -= 1,
        Entry::InstanceSample(sample) => sample.cpu_us -= 1,
        Entry::InstanceEnd(end) => end.lifetime_us -= 1,
        Entry::ServerStart { unix_ms, .. } | Entry::ServerStop { unix_ms } => *unix_ms += 1,
        Entry::Gap { to_unix_ms, .. } => *to_unix_ms += 1,
    }
    entry
}

#[test]
fn any_edited_entry_fails_also_with_a_right_checksum() {
    let books = books(true);
    let records = books.records();
    for n in 0..records.len() {
        let mut changed = records.clone();
        changed[n].1 = edited(&records[n].1);
        books.rewrite(&changed);
        assert!(!books.passes(), "entry {n} is edited");
    }
}

#[test]
fn each_source_finds_its_own_difference() {
    let books = books(true);
    let records = books.records();
    let edit = |of: fn(&Entry) -> bool| {
        let mut changed = records.clone();
        let hit = changed.iter_mut().find(|(_, entry)| of(entry)).unwrap();
        hit.1 = edited(&hit.1);
        books.rewrite(&changed);
    };
    // Without the digest of what was appended, each kind is still found.
    let mut exact = books.counts.clone();
    edit(|e| matches!(e, Entry::Request(_)));
    exact.summary = Default::default();
    exact.summary.writer = books.counts.summary.writer;
    let found = books.failing(&Sources {
        gateway: &[exact],
        ..Sources::default()
    });
    assert!(
        found.iter().any(|name| name.contains("gateway's requests")),
        "{found:?}"
    );
    edit(|e| matches!(e, Entry::InstanceEnd(_)));
    let found = books.failing(&Sources {
        lives: &books.lives,
        ..Sources::default()
    });
    assert!(
        found.iter().any(|name| name.contains("lives known")),
        "{found:?}"
    );
    edit(|e| matches!(e, Entry::InstanceStart(_)));
    let found = books.failing(&Sources {
        aggregates: Some(&books.fold),
        ..Sources::default()
    });
    assert!(
        found.iter().any(|name| name.contains("totals by hour")),
        "{found:?}"
    );
    let mut lives = books.lives.clone();
    lives[0].end = Some((10_000_000, 1));
    let found = books.failing(&Sources {
        lives: &lives,
        ..Sources::default()
    });
    assert!(
        found.iter().any(|name| name.contains("processor time")),
        "{found:?}"
    );
}

#[test]
fn lives_that_contradict_themselves_are_found_without_any_other_source() {
    type Contradiction = fn(Vec<Entry>) -> Vec<Entry>;
    let contradictions: &[(&str, Contradiction)] = &[
        ("no start", |mut e| {
            e.remove(0);
            e
        }),
        ("two ends", |mut e| {
            e.push(e[5].clone());
            e
        }),
        ("two starts", |mut e| {
            e.push(e[0].clone());
            e
        }),
        ("a request after the end", |mut e| {
            e.push(Entry::Request(request(0, 60_000)));
            e
        }),
        ("a request before the start", |mut e| {
            let mut early = request(0, 0);
            early.start_unix_ms -= 60_000;
            e.push(Entry::Request(early));
            e
        }),
        ("an age that goes back", |mut e| {
            if let Entry::InstanceSample(sample) = &mut e[4] {
                sample.lifetime_us = 60_000_000;
            }
            e
        }),
        ("processor time given back", |mut e| {
            if let Entry::InstanceEnd(end) = &mut e[5] {
                end.cpu_us = 1;
            }
            e
        }),
    ];
    for (name, contradiction) in contradictions {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::default());
        let server = ServerId::from_parts(1, 1);
        let writer = LedgerWriter::open(folder.path(), server, clock).unwrap();
        for entry in contradiction(entries(0)) {
            writer.append(&entry).unwrap();
        }
        let check = check(&Ledger::new(folder.path()), &Sources::default()).unwrap();
        assert!(!check.ok, "{name}");
    }
}

#[test]
fn a_saved_sum_is_the_same_as_one_made_at_once() {
    let books = books(true);
    let path = books.folder.path().join("totals");
    books.fold.save(&path).unwrap();
    let mut loaded = Fold::load(&path).unwrap();
    assert_eq!(loaded, books.fold);
    loaded.refresh(&Ledger::new(books.folder.path())).unwrap();
    assert_eq!(loaded, books.fold, "nothing is taken in twice");
    fs::write(&path, b"rubbish").unwrap();
    assert_eq!(Fold::load(&path).unwrap(), Fold::default());
}

fn mutated(path: &Path, cuts: &[(prop::sample::Index, u8)]) {
    let mut bytes = fs::read(path).unwrap();
    for (at, to) in cuts {
        let at = at.index(bytes.len());
        bytes[at] = *to;
    }
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_mutated_segment_never_panics_and_never_passes(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let books = books(true);
        let before = fs::read(books.segment()).unwrap();
        mutated(&books.segment(), &changes);
        let changed = fs::read(books.segment()).unwrap() != before;
        prop_assert_eq!(books.passes(), !changed);
        let mut fold = Fold::default();
        prop_assert!(fold.refresh(&Ledger::new(books.folder.path())).is_ok() || changed);
    }
}
