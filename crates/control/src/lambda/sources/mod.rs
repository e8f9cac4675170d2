//! Event source mappings: functions that are invoked with what comes to a
//! queue or a stream. Of a queue:
//!
//! ```text
//!  stored, enabled ─▶ poller ─ a place? ─ receive ─ filter ─ gather ─▶ batch ─▶ invoke
//!                      ▲ │                    others: deleted │           took: deleted
//!                      └─┴── next turn ◀──────────────────────┘       failed: left to the
//!  disabled, deleted ─▶ poller ends once its batches have              queue's own timeout
//! ```
//! A message is deleted only after its function has taken it: what ends the
//! server leaves it where it is, and it is delivered again. Each mapping has
//! one poller; what is under way of it is bounded by its own concurrency, and
//! what all hold in memory by [`Rooms`]. A stream is followed shard by shard,
//! see [`follow`].

mod api;
mod follow;
mod gather;
mod mapping;
mod pace;
mod part;
mod poll;
mod queue;
mod room;
mod stream;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use skiff_base::prometheus::metric;
use skiff_lambda::{EventPattern, LambdaError, SqsMessage};
use skiff_types::ProjectId;
use tokio::sync::{Notify, watch};

use super::Front;
use crate::error::ControlError;
use crate::key;
use crate::record::ProjectRecord;
use mapping::{MappingRecord, Source};
use pace::Pace;
use queue::Visibility;
use room::Rooms;

const NOTHING_YET: &str = "No records processed";

/// The mappings that are polled.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pollers: Mutex<Pollers>,
    changed: Notify,
    /// Held from when a mapping is stored until its poller knows: the last
    /// word of one is that of the other.
    changes: tokio::sync::Mutex<()>,
    rooms: Rooms,
    counts: Counts,
}

/// Pollers by their mappings' ids.
#[derive(Debug, Default)]
struct Pollers {
    of: HashMap<String, Arc<Poller>>,
    /// Those that nobody has started yet.
    new: Vec<Arc<Poller>>,
}

/// Who polls for one mapping.
#[derive(Debug)]
struct Poller {
    id: String,
    source: Source,
    /// Absent once it shall end.
    wanted: watch::Sender<Option<Arc<Mapping>>>,
    pace: Arc<Pace>,
    result: Mutex<String>,
}

/// A mapping, ready to be polled.
#[derive(Debug)]
struct Mapping {
    project: ProjectId,
    record: MappingRecord,
    source: Source,
    patterns: Vec<EventPattern>,
    /// Whether a pattern looks into messages' bodies.
    into_body: bool,
    /// How long a message that was received is nobody else's, if it was asked.
    visibility: tokio::sync::Mutex<Option<Visibility>>,
}

/// What has happened since the server's start.
#[derive(Debug, Default)]
struct Counts {
    received: AtomicU64,
    filtered: AtomicU64,
    done: AtomicU64,
    left: AtomicU64,
    given_up: AtomicU64,
    taken: AtomicU64,
    failed: AtomicU64,
    throttled: AtomicU64,
    problems: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    let more = u64::try_from(more).unwrap_or(u64::MAX);
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Mapping {
    fn new(project: &ProjectId, record: MappingRecord) -> Result<Self, LambdaError> {
        let source = api::source_of(&record.source)?;
        let patterns = record.patterns()?;
        Ok(Self {
            project: project.clone(),
            into_body: patterns.iter().any(|pattern| pattern.looks_into("body")),
            patterns,
            source,
            record,
            visibility: tokio::sync::Mutex::default(),
        })
    }

    /// Whether a record is for the function.
    fn takes_record(&self, record: &Value) -> bool {
        let takes = |pattern: &EventPattern| pattern.takes(record);
        self.patterns.is_empty() || self.patterns.iter().any(takes)
    }

    /// Whether a message is for the function.
    fn takes(&self, message: &SqsMessage, record: &Value) -> bool {
        if self.patterns.is_empty() {
            return true;
        }
        let read = self.into_body.then(|| message.read_body(record.clone()));
        let of = |pattern: &EventPattern| match (&read, pattern.looks_into("body")) {
            (Some(read), true) => pattern.takes(read),
            _ => pattern.takes(record),
        };
        self.patterns.iter().any(of)
    }
}

impl Poller {
    fn tell(&self, result: &str) {
        let mut told = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        result.clone_into(&mut told);
    }

    fn told(&self) -> String {
        let told = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }
}

impl Sources {
    fn pollers(&self) -> MutexGuard<'_, Pollers> {
        self.pollers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mapping is polled from now on as it is; none is polled no more.
    fn set(&self, id: &str, mapping: Option<Mapping>) {
        let mapping = mapping.map(Arc::new);
        let mut pollers = self.pollers();
        if let Some(poller) = pollers.of.get(id) {
            poller.wanted.send_replace(mapping);
            return;
        }
        let Some(mapping) = mapping else {
            return;
        };
        let poller = Arc::new(Poller {
            id: id.to_owned(),
            source: mapping.source.clone(),
            wanted: watch::Sender::new(Some(mapping)),
            pace: Arc::default(),
            result: Mutex::new(NOTHING_YET.to_owned()),
        });
        pollers.of.insert(id.to_owned(), Arc::clone(&poller));
        pollers.new.push(poller);
        drop(pollers);
        self.changed.notify_one();
    }

    /// What its poller did last, if it has one.
    fn result(&self, id: &str) -> Option<String> {
        let poller = self.pollers().of.get(id).cloned();
        Some(poller?.told())
    }

    fn take_new(&self) -> Vec<Arc<Poller>> {
        std::mem::take(&mut self.pollers().new)
    }

    /// Whether the poller has ended: not when it is wanted again.
    fn end(&self, poller: &Poller) -> bool {
        let mut pollers = self.pollers();
        let ends = poller.wanted.borrow().is_none();
        if ends {
            pollers.of.remove(&poller.id);
        }
        ends
    }

    /// Metrics in Prometheus' text format.
    pub(crate) fn metrics(&self) -> String {
        let mut out = String::new();
        let c = &self.counts;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let pollers = u64::try_from(self.pollers().of.len()).unwrap_or(u64::MAX);
        metric(
            &mut out,
            "skiff_sources",
            "gauge",
            "Event source mappings that are polled.",
            &[("", pollers)],
        );
        metric(
            &mut out,
            "skiff_source_records_total",
            "counter",
            "Records of event sources: received, for no function, done, left to be delivered again, given up.",
            &[
                ("{result=\"received\"}", of(&c.received)),
                ("{result=\"filtered\"}", of(&c.filtered)),
                ("{result=\"done\"}", of(&c.done)),
                ("{result=\"left\"}", of(&c.left)),
                ("{result=\"given_up\"}", of(&c.given_up)),
            ],
        );
        metric(
            &mut out,
            "skiff_source_batches_total",
            "counter",
            "Batches of event sources: taken, failed, tries that nothing took.",
            &[
                ("{result=\"taken\"}", of(&c.taken)),
                ("{result=\"failed\"}", of(&c.failed)),
                ("{result=\"throttled\"}", of(&c.throttled)),
            ],
        );
        metric(
            &mut out,
            "skiff_source_problems_total",
            "counter",
            "Turns of event sources in which nothing could be received.",
            &[("", of(&c.problems))],
        );
        out
    }
}

impl Front {
    fn sources(&self) -> &Sources {
        &self.control.inner.sources
    }

    /// Polls for all mappings that are enabled.
    pub(crate) async fn load_sources(&self) -> Result<(), ControlError> {
        let db = self.control.db();
        for project in db.all::<ProjectRecord>(key::PROJECTS).await? {
            let project = project.record.id;
            let prefix = key::mappings(&project);
            for found in db.all::<MappingRecord>(&prefix).await? {
                let id = key::last_part(&found.key);
                if let Err(error) = self.look_at_mapping(&project, id, Some(found.record)) {
                    tracing::error!(%error, mapping = id, "an event source mapping cannot be read, and is not polled");
                }
            }
        }
        Ok(())
    }

    /// Its poller does what is stored of it.
    fn look_at_mapping(
        &self,
        project: &ProjectId,
        id: &str,
        record: Option<MappingRecord>,
    ) -> Result<(), LambdaError> {
        let record = record.filter(|record| record.is_enabled);
        let mapping = record.map(|record| Mapping::new(project, record));
        self.sources().set(id, mapping.transpose()?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapping(filters: &[&str]) -> Mapping {
        let source = "arn:aws:sqs:us-east-1:000000000001:jobs";
        let mut record = MappingRecord::new(source, "f".parse().unwrap(), None);
        record.filters = filters.iter().map(|text| (*text).to_owned()).collect();
        Mapping::new(&"000000000001".parse().unwrap(), record).unwrap()
    }

    #[test]
    fn a_message_is_taken_by_any_of_the_filters() {
        let takes = |filters: &[&str], body: &str| {
            let message = json!({"MessageId": "m", "ReceiptHandle": "r", "Body": body});
            let message: SqsMessage = serde_json::from_value(message).unwrap();
            let mapping = mapping(filters);
            mapping.takes(
                &message,
                &message.record(&mapping.record.source, "us-east-1"),
            )
        };
        let (json, plain) = (r#"{"body":{"a":[1]}}"#, r#"{"body":[{"prefix":"go"}]}"#);
        for (filters, body, expected) in [
            (&[][..], "anything", true),
            (&[json][..], r#"{"a":1}"#, true),
            (&[json][..], r#"{"a":2}"#, false),
            (&[json][..], "go", false),
            (&[plain][..], "go on", true),
            (&[plain][..], r#"{"a":1}"#, false),
            (&[json, plain][..], "go on", true),
            (&[json, plain][..], r#"{"a":1}"#, true),
            (&[r#"{"messageId":["m"]}"#][..], "x", true),
        ] {
            assert_eq!(takes(filters, body), expected, "{filters:?} {body}");
        }
    }

    #[test]
    fn a_poller_ends_only_while_nobody_wants_it() {
        let sources = Sources::default();
        sources.set("a", None);
        assert!(sources.take_new().is_empty());
        sources.set("a", Some(mapping(&[])));
        let poller = sources.take_new().pop().unwrap();
        sources.set("a", None);
        sources.set("a", Some(mapping(&[])));
        assert!(!sources.end(&poller) && sources.take_new().is_empty());
        sources.set("a", None);
        assert!(sources.end(&poller));
        assert_eq!(sources.result("a"), None);
        sources.set("a", Some(mapping(&[])));
        assert_eq!(sources.take_new().len(), 1);
    }
}
