//! Records of a shard that go to the function together, and what becomes of
//! them when it fails (Lambda, "Configuring partial batch response with
//! DynamoDB" and "error handling").

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::mapping::StreamRules;
use super::room::Room;
use crate::lambda::sign::EVENT_BYTES_MAX;

/// What an event has beside its records, bytes.
const AROUND_BYTES: usize = 16;

/// A record, as the event has it.
#[derive(Debug)]
pub(super) struct StreamRecord {
    pub sequence: String,
    /// Absent when it does not say.
    pub created_unix_ms: Option<u64>,
    pub json: String,
    /// Whether it is for the function.
    pub is_taken: bool,
    /// Of what was read together with it.
    pub room: Option<Arc<Room>>,
}

/// Records that are tried together, in order; never none.
#[derive(Debug)]
pub(super) struct Part {
    pub records: Vec<StreamRecord>,
    /// Tries that failed.
    pub failures: u32,
}

/// How often a part was tried, as it is stored before each try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tried {
    /// The part's first record.
    pub first: String,
    /// Its last.
    pub last: String,
    /// Tries that have begun: one that nobody saw the end of has failed.
    pub begun: u32,
}

/// What comes after a try that failed.
#[derive(Debug)]
pub(super) enum After {
    Again(Part),
    Halves(Part, Part),
    GivenUp(Part),
}

impl Part {
    /// Parts that are within what a function takes.
    pub(super) fn all_of(records: impl IntoIterator<Item = StreamRecord>) -> VecDeque<Self> {
        let mut parts: VecDeque<Self> = VecDeque::new();
        let mut bytes = 0;
        for record in records {
            let more = record.json.len() + 1;
            match parts.back_mut() {
                Some(part) if bytes + more <= EVENT_BYTES_MAX => {
                    bytes += more;
                    part.records.push(record);
                }
                _ => {
                    bytes = AROUND_BYTES + more;
                    parts.push_back(Self::new(vec![record], 0));
                }
            }
        }
        parts
    }

    /// The parts as they were before they were read again: what was tried is a
    /// part of its own, and its tries count.
    pub(super) fn resumed(mut parts: VecDeque<Self>, tried: &Tried) -> VecDeque<Self> {
        let Some(front) = parts.front_mut() else {
            return parts;
        };
        let first = front.records.first().map(|record| &record.sequence);
        if first != Some(&tried.first) {
            return parts;
        }
        let last = |record: &StreamRecord| record.sequence == tried.last;
        let end = front.records.iter().position(last);
        let end = end.map_or(front.records.len(), |last| last + 1);
        let rest = front.records.split_off(end);
        front.failures = tried.begun;
        if !rest.is_empty() {
            parts.insert(1, Self::new(rest, 0));
        }
        parts
    }

    /// What is stored when so many of its tries have begun; nothing where a
    /// try that fails counts for nothing.
    pub(super) fn tried(&self, rules: &StreamRules, begun: u32) -> Option<Tried> {
        let counts = rules.retries.is_some() && !self.is_halved(rules);
        self.begun(begun).filter(|_| counts)
    }

    /// What it is known by when it is read again, with so many tries.
    pub(super) fn begun(&self, begun: u32) -> Option<Tried> {
        Some(Tried {
            first: self.records.first()?.sequence.clone(),
            last: self.records.last()?.sequence.clone(),
            begun,
        })
    }

    /// Whether it was tried as often as it may be.
    pub(super) fn is_exhausted(&self, rules: &StreamRules) -> bool {
        rules.retries.is_some_and(|most| self.failures > most)
    }

    /// Whether it is halved when it fails.
    fn is_halved(&self, rules: &StreamRules) -> bool {
        rules.bisects && self.records.len() > 1
    }

    const fn new(records: Vec<StreamRecord>, failures: u32) -> Self {
        Self { records, failures }
    }

    /// The first that are older than they may be, and the others.
    pub(super) fn aged(mut self, age_s: Option<u32>, now_ms: u64) -> (Option<Self>, Option<Self>) {
        let Some(age_s) = age_s else {
            return (None, Some(self));
        };
        let limit = now_ms.saturating_sub(u64::from(age_s) * 1000);
        let is_old = |record: &StreamRecord| record.created_unix_ms.is_some_and(|at| at < limit);
        let young = self.records.iter().position(|record| !is_old(record));
        let rest = self.records.split_off(young.unwrap_or(self.records.len()));
        let some = |records: Vec<StreamRecord>, failures| {
            (!records.is_empty()).then(|| Self::new(records, failures))
        };
        // Others come first now: their tries begin anew.
        let failures = match self.records.is_empty() {
            true => self.failures,
            false => 0,
        };
        (some(self.records, self.failures), some(rest, failures))
    }

    /// The function took what comes before this record: the last of them.
    pub(super) fn done(&mut self, before: usize) -> Option<String> {
        let mut done = self.records.drain(..before.min(self.records.len()));
        let last = done.next_back().map(|record| record.sequence)?;
        drop(done);
        self.failures = 0;
        Some(last)
    }

    /// A try failed; `is_rest` when the function took what came before. Where
    /// parts are halved, that is where it is cut: neither is a try, as with AWS.
    pub(super) fn failed(mut self, rules: &StreamRules, is_rest: bool) -> After {
        if is_rest && rules.bisects {
            return After::Again(self);
        }
        if self.is_halved(rules) {
            let half = self.records.split_off(self.records.len().div_ceil(2));
            let failures = self.failures;
            return After::Halves(self, Self::new(half, failures));
        }
        self.failures += 1;
        match self.is_exhausted(rules) {
            true => After::GivenUp(self),
            false => After::Again(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(created: &[u64]) -> Part {
        let record = |(number, created): (usize, &u64)| StreamRecord {
            sequence: number.to_string(),
            created_unix_ms: Some(*created),
            json: String::new(),
            is_taken: true,
            room: None,
        };
        Part::new(created.iter().enumerate().map(record).collect(), 0)
    }

    fn names(part: &Part) -> String {
        let names = part.records.iter().map(|record| record.sequence.as_str());
        names.collect()
    }

    fn rules(retries: Option<u32>, bisects: bool) -> StreamRules {
        StreamRules {
            retries,
            bisects,
            ..StreamRules::default()
        }
    }

    #[test]
    fn a_part_is_tried_as_often_as_it_may_be() {
        let mut tried = part(&[0, 0]);
        for _ in 0..2 {
            let After::Again(again) = tried.failed(&rules(Some(2), false), false) else {
                panic!("it may be tried again");
            };
            tried = again;
        }
        let After::GivenUp(tried) = tried.failed(&rules(Some(2), false), false) else {
            panic!("it may not be tried again");
        };
        assert_eq!((names(&tried).as_str(), tried.failures), ("01", 3));
        let endless = part(&[0]).failed(&rules(None, false), false);
        assert!(matches!(endless, After::Again(_)));
        let never = part(&[0]).failed(&rules(Some(0), false), false);
        assert!(matches!(never, After::GivenUp(_)));
    }

    #[test]
    fn tries_count_across_a_restart() {
        let tried = |part: &Part, begun| part.tried(&rules(Some(2), false), begun);
        let stored = tried(&part(&[0; 2]), 2).unwrap();
        let resumed = |records: &[u64]| -> Vec<(String, u32)> {
            let parts = Part::resumed(VecDeque::from([part(records)]), &stored);
            parts
                .iter()
                .map(|part| (names(part), part.failures))
                .collect()
        };
        let part_of = |names: &str, failures| (names.to_owned(), failures);
        assert_eq!(resumed(&[0; 2]), [part_of("01", 2)]);
        assert_eq!(resumed(&[0; 4]), [part_of("01", 2), part_of("23", 0)]);
        assert_eq!(resumed(&[0]), [part_of("0", 2)]);
        let others = Tried {
            first: "7".to_owned(),
            ..stored
        };
        let parts = Part::resumed(VecDeque::from([part(&[0; 2])]), &others);
        assert_eq!((parts.len(), parts[0].failures), (1, 0));
        assert!(Part::resumed(VecDeque::new(), &others).is_empty());

        let mut last = part(&[0]);
        last.failures = 3;
        assert!(last.is_exhausted(&rules(Some(2), false)));
        assert!(!last.is_exhausted(&rules(Some(3), false)));
        assert!(!last.is_exhausted(&rules(None, false)));
    }

    #[test]
    fn only_tries_that_count_are_stored() {
        let stores = |records: &[u64], retries, bisects| {
            let tried = part(records).tried(&rules(retries, bisects), 1);
            tried.is_some()
        };
        assert!(stores(&[0; 2], Some(1), false) && stores(&[0], Some(1), true));
        assert!(!stores(&[0; 2], None, false) && !stores(&[0; 2], Some(1), true));
    }

    #[test]
    fn halves_keep_the_order_and_count_as_no_try() {
        let After::Halves(first, second) = part(&[0; 5]).failed(&rules(Some(0), true), false)
        else {
            panic!("it is halved");
        };
        assert_eq!(
            (names(&first), names(&second)),
            ("012".to_owned(), "34".to_owned())
        );
        assert_eq!((first.failures, second.failures), (0, 0));
        let single = part(&[0]).failed(&rules(Some(0), true), false);
        assert!(matches!(single, After::GivenUp(_)));
    }

    #[test]
    fn where_it_is_cut_it_is_not_halved() {
        let mut tried = part(&[0; 5]);
        assert!(tried.done(2).is_some());
        let After::Again(rest) = tried.failed(&rules(Some(0), true), true) else {
            panic!("the rest is tried again");
        };
        assert_eq!((names(&rest).as_str(), rest.failures), ("234", 0));
        let halved = rest.failed(&rules(Some(0), true), false);
        assert!(matches!(halved, After::Halves(..)));
        // Without halving, the rest has been tried.
        let given_up = part(&[0; 2]).failed(&rules(Some(0), false), true);
        assert!(matches!(given_up, After::GivenUp(_)));
    }

    #[test]
    fn what_the_function_took_is_not_tried_again() {
        let mut tried = part(&[0; 4]);
        tried.failures = 2;
        assert_eq!(tried.done(0), None);
        assert_eq!(tried.failures, 2);
        assert_eq!(tried.done(3).as_deref(), Some("2"));
        assert_eq!((names(&tried).as_str(), tried.failures), ("3", 0));
    }

    #[test]
    fn only_the_oldest_are_too_old() {
        let aged = |created: &[u64], age_s| {
            let (old, rest) = part(created).aged(age_s, 100_000);
            (old.as_ref().map(names), rest.as_ref().map(names))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(aged(&[1, 2], None), (None, some("01")));
        assert_eq!(aged(&[1, 50_000, 2], Some(60)), (some("0"), some("12")));
        assert_eq!(aged(&[1, 2], Some(60)), (some("01"), None));
        assert_eq!(aged(&[40_000], Some(60)), (None, some("0")));
    }

    #[test]
    fn a_part_is_within_what_a_function_takes() {
        let record = |size: usize| StreamRecord {
            json: "x".repeat(size),
            ..part(&[0]).records.remove(0)
        };
        let sizes = |sizes: &[usize]| -> Vec<usize> {
            let parts = Part::all_of(sizes.iter().map(|size| record(*size)));
            parts.iter().map(|part| part.records.len()).collect()
        };
        let mib = 1024 * 1024;
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1, 2]), [2]);
        assert_eq!(sizes(&[4 * mib, mib, 2 * mib]), [2, 1]);
    }
}
