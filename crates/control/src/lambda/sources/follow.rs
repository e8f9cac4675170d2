//! A stream's poller: each shard in order, from where it is.
//!
//! ```text
//!  shards ─ parent read? ─▶ shard ─ records ─ for the function? ─▶ part ─▶ invoke ─▶ stored: up to here
//!     ▲                       ▲                                     │  ▲      │ failed
//!     └── it has ended        └── all parts are done                │  └──────┤ again, or in halves
//!                                                            too old└─────────┴▶ given up: OnFailure
//! ```
//! How far a shard is, is in the store before the next of its records are
//! tried: a crash repeats what was being tried, and leaves nothing out. So is
//! a try of what may be tried so often only.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use skiff_base::{Backoff, UtcTime};
use skiff_lambda::{batch_event, batch_failures};
use skiff_queue::Address;
use skiff_types::ProjectId;
use tokio::sync::watch;

use super::mapping::{StreamArn, StreamRules};
use super::part::{After, Part, StreamRecord, Tried};
use super::poll::{FAILED, OK, Outcome, PROBLEM_FIRST, PROBLEM_LONGEST, Problem, THROTTLED};
use super::stream::{StreamError, wrong};
use super::{Mapping, Poller, count};
use crate::db::{Change, Found};
use crate::error::ControlError;
use crate::key;
use crate::lambda::events::{CourierError, Message};
use crate::lambda::sign::EVENT_BYTES_MAX;
use crate::lambda::{Front, uuid};

/// Shards of one stream that are followed at once.
const SHARDS_AT_ONCE: usize = 64;
/// How often shards are looked for.
const SHARDS_EVERY: Duration = Duration::from_secs(10);
/// How often a shard that has given nothing is asked again.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// Records of one page (DynamoDB's limit).
const PAGE_MAX: usize = 1000;
/// From a try that failed to the next.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How often a destination is tried to be told.
const DELIVERIES: u32 = 5;
const EXHAUSTED: &str = "RetryAttemptsExhausted";
const EXPIRED: &str = "RecordAgeExceeded";

/// How far a shard is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ShardRecord {
    /// The last record that is done.
    sequence: Option<String>,
    /// Whether it has ended and all of it is done.
    is_read: bool,
    /// What comes next was tried so often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tried: Option<Tried>,
}

/// A shard that is followed.
struct Place<'a> {
    poller: &'a Poller,
    mapping: &'a Mapping,
    rules: &'a StreamRules,
    stream: &'a StreamArn,
    shard: String,
    watch: Watch,
}

/// When what is followed is over: the mapping has changed, or the server
/// stops.
#[derive(Clone)]
struct Watch {
    wanted: watch::Receiver<Option<Arc<Mapping>>>,
    stopping: watch::Receiver<bool>,
}

impl Watch {
    fn is_over(&self) -> bool {
        self.wanted.has_changed().unwrap_or(true) || *self.stopping.borrow()
    }

    /// Waits, or until it is over.
    async fn pause(&self, wait: Duration) {
        let (mut wanted, mut stopping) = (self.wanted.clone(), self.stopping.clone());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _changed = wanted.changed() => {}
            _stopping = stopping.wait_for(|stopping| *stopping) => {}
        }
    }
}

/// How far a shard's turns have come, in memory.
struct Standing {
    /// Where the next records are; without it, behind what is done.
    iterator: Option<String>,
    /// What failed and is tried again. Its records are not kept meanwhile: they
    /// would hold the room of others for as long as the function fails.
    again: Option<Tried>,
    backoff: Backoff,
}

/// What a turn of a shard came to.
enum Turn {
    Some,
    Nothing,
    /// It goes on after so long.
    Later(Duration),
    Ended,
}

/// What became of records.
enum Handed {
    All,
    /// Some are tried again after so long.
    Later(Duration),
    /// Nobody wants them handed over any more.
    Over,
}

/// What the function made of a part.
enum Answer {
    Took,
    /// From this record on.
    Failed(usize),
    Throttled,
}

impl Front {
    /// Follows a stream until nobody wants it followed.
    pub(super) async fn follow(self: &Arc<Self>, poller: &Poller, stream: &StreamArn) {
        let mut wanted = poller.wanted.subscribe();
        let stopping = self.control.inner.stopping.subscribe();
        while !*stopping.borrow() {
            let mapping = wanted.borrow_and_update().clone();
            let Some(mapping) = mapping else {
                self.forget_if_gone(&stream.account, &poller.id).await;
                if self.sources().end(poller) {
                    return;
                }
                continue;
            };
            let watch = Watch {
                wanted: wanted.clone(),
                stopping: stopping.clone(),
            };
            self.follow_shards(poller, &mapping, stream, &watch).await;
        }
    }

    async fn follow_shards(
        &self,
        poller: &Poller,
        mapping: &Mapping,
        stream: &StreamArn,
        watch: &Watch,
    ) {
        let Some(rules) = &mapping.record.stream else {
            return watch.pause(Duration::MAX).await;
        };
        let mut followed: HashSet<String> = HashSet::new();
        let mut running = FuturesUnordered::new();
        while !watch.is_over() {
            match self.open_shards(poller, stream).await {
                Ok(open) => {
                    let new = open.into_iter().filter(|shard| !followed.contains(shard));
                    let room = SHARDS_AT_ONCE.saturating_sub(followed.len());
                    for shard in new.take(room).collect::<Vec<_>>() {
                        followed.insert(shard.clone());
                        let place = Place {
                            poller,
                            mapping,
                            rules,
                            stream,
                            shard,
                            watch: watch.clone(),
                        };
                        running.push(self.follow_shard(place).boxed());
                    }
                }
                Err(error) => self.tell_problem(poller, &Problem::Stream(error)),
            }
            tokio::select! {
                Some(ended) = running.next() => {
                    followed.remove(&ended);
                }
                () = watch.pause(SHARDS_EVERY) => {}
            }
        }
        while running.next().await.is_some() {}
    }

    /// Shards that are not read and whose parents are. Those that are read and
    /// that the stream does not have any more are forgotten.
    async fn open_shards(
        &self,
        poller: &Poller,
        stream: &StreamArn,
    ) -> Result<Vec<String>, StreamError> {
        let shards = self.shards(stream).await?;
        let prefix = key::mapping_shards(&stream.account, &poller.id);
        let known = self.control.db().all::<ShardRecord>(&prefix).await?;
        let read: HashMap<&str, bool> = known
            .iter()
            .map(|found| (key::last_part(&found.key), found.record.is_read))
            .collect();
        let is_read = |id: &str| read.get(id).copied().unwrap_or(false);
        let ids: HashSet<&str> = shards.iter().map(|shard| shard.shard_id.as_str()).collect();
        let is_over = |found: &&Found<ShardRecord>| {
            found.record.is_read && !ids.contains(key::last_part(&found.key))
        };
        for gone in known.iter().filter(is_over) {
            let change = Change::default().delete(&gone.key);
            self.control.db().commit(change).await?;
        }
        let is_open = |shard: &&super::stream::Shard| {
            let parent = shard.parent_shard_id.as_deref();
            let waits = parent.is_some_and(|parent| ids.contains(parent) && !is_read(parent));
            !waits && !is_read(&shard.shard_id)
        };
        let open = shards.iter().filter(is_open);
        Ok(open.map(|shard| shard.shard_id.clone()).collect())
    }

    /// Takes turns until the shard has ended or all is over; its id.
    async fn follow_shard(&self, place: Place<'_>) -> String {
        let mut backoff = Backoff::new(PROBLEM_FIRST, PROBLEM_LONGEST);
        let mut standing = Standing {
            iterator: None,
            again: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
        };
        while !place.watch.is_over() {
            match self.shard_turn(&place, &mut standing).await {
                Ok(Turn::Some) => backoff.reset(),
                Ok(Turn::Later(wait)) => {
                    backoff.reset();
                    place.watch.pause(wait).await;
                }
                Ok(Turn::Nothing) => {
                    backoff.reset();
                    place.watch.pause(POLL_EVERY).await;
                }
                Ok(Turn::Ended) => break,
                Err(problem) => {
                    // Iterators end after a while: the next turn gets another.
                    standing.iterator = None;
                    self.tell_problem(place.poller, &problem);
                    let wait = backoff.next(skiff_base::random::u32());
                    place.watch.pause(wait).await;
                }
            }
        }
        place.shard
    }

    async fn shard_turn(
        &self,
        place: &Place<'_>,
        standing: &mut Standing,
    ) -> Result<Turn, Problem> {
        self.check_open(place.mapping).await?;
        let from = match standing.iterator.take() {
            Some(from) => from,
            None => self.iterator_of(place).await?,
        };
        let again = standing.again.as_ref().map(|tried| tried.last.as_str());
        let read = self.gather_records(place, from, again).await;
        let (records, next) = match read {
            Err(error) if error.is_trimmed() => {
                tracing::warn!(mapping = %place.poller.id, shard = place.shard, "records of a stream were not kept until they were read: it goes on with the oldest that there are");
                let change = Change::default().delete(self.shard_key(place));
                self.control
                    .db()
                    .commit(change)
                    .await
                    .map_err(StreamError::from)?;
                return Ok(Turn::Some);
            }
            read => read?,
        };
        let is_empty = records.is_empty();
        if !is_empty {
            match self.hand_over_records(place, records, standing).await? {
                Handed::All => standing.backoff.reset(),
                Handed::Later(wait) => return Ok(Turn::Later(wait)),
                Handed::Over => return Ok(Turn::Some),
            }
        }
        if next.is_none() {
            self.store_shard(place, None, None).await?;
            return Ok(Turn::Ended);
        }
        standing.iterator = next;
        match is_empty {
            true => Ok(Turn::Nothing),
            false => Ok(Turn::Some),
        }
    }

    async fn iterator_of(&self, place: &Place<'_>) -> Result<String, StreamError> {
        let found = self.shard_record(place).await?;
        let after = found.sequence.as_deref();
        let asked = self.iterator(place.stream, &place.shard, after).await;
        match asked {
            Err(error) if error.is_trimmed() => {
                self.iterator(place.stream, &place.shard, None).await
            }
            asked => asked,
        }
    }

    /// What one page gives, or what comes within the mapping's window, and
    /// where the next are. What is tried again up to a record waits for that
    /// one only.
    async fn gather_records(
        &self,
        place: &Place<'_>,
        from: String,
        again: Option<&str>,
    ) -> Result<(Vec<StreamRecord>, Option<String>), StreamError> {
        let record = &place.mapping.record;
        let size = usize::try_from(record.batch_size).unwrap_or(PAGE_MAX);
        let (mut records, mut bytes) = (Vec::new(), 0);
        let (mut next, mut until) = (Some(from), None);
        while let Some(from) = &next {
            let most = (size - records.len()).min(PAGE_MAX);
            let page = self.records(from, most).await?;
            next = page.next_shard_iterator;
            let is_empty = page.records.is_empty();
            let new = page.records.into_iter().take(most);
            let mut new: Vec<StreamRecord> = new
                .map(|value| read_record(place, value))
                .collect::<Result<_, _>>()?;
            let more = new.iter().map(|record| record.json.len()).sum();
            let (rooms, project) = (&self.sources().rooms, &place.mapping.project);
            let room = rooms.take(project, more, records.is_empty()).await;
            for record in &mut new {
                record.room.clone_from(&room);
            }
            bytes += more;
            records.extend(new);
            let window_ms = u64::from(record.window_s) * 1000;
            let until = *until.get_or_insert(self.now() + window_ms);
            let is_full = records.len() >= size || bytes >= EVENT_BYTES_MAX;
            let is_due = match again {
                Some(last) => is_empty || records.iter().any(|record| record.sequence == last),
                None => self.now() >= until,
            };
            if records.is_empty() || is_full || is_due || place.watch.is_over() {
                break;
            }
            if is_empty {
                place.watch.pause(POLL_EVERY).await;
            }
        }
        Ok((records, next))
    }

    /// Gives records to the function in order.
    async fn hand_over_records(
        &self,
        place: &Place<'_>,
        records: Vec<StreamRecord>,
        standing: &mut Standing,
    ) -> Result<Handed, StreamError> {
        let counts = &self.sources().counts;
        count(&counts.received, records.len());
        let last = records.last().map(|record| record.sequence.clone());
        let others = records.iter().filter(|record| !record.is_taken).count();
        count(&counts.filtered, others);
        let mut parts = Part::all_of(records.into_iter().filter(|record| record.is_taken));
        let tried = match (standing.again.take(), place.rules.retries) {
            (None, Some(_)) => self.shard_record(place).await?.tried,
            (again, _) => again,
        };
        if let Some(tried) = tried {
            parts = Part::resumed(parts, &tried);
        }
        while let Some(part) = parts.pop_front() {
            if place.watch.is_over() {
                return Ok(Handed::Over);
            }
            let (old, part) = part.aged(place.rules.age_s, self.now());
            if let Some(old) = old
                && !self.give_up(place, old, EXPIRED).await?
            {
                return Ok(Handed::Over);
            }
            let Some(mut part) = part else {
                continue;
            };
            if part.is_exhausted(place.rules) {
                if !self.give_up(place, part, EXHAUSTED).await? {
                    return Ok(Handed::Over);
                }
                continue;
            }
            self.store_try(place, &part, part.failures + 1).await?;
            let failed = match self.try_part(place, &part).await {
                Answer::Took => {
                    standing.backoff.reset();
                    count(&counts.done, part.records.len());
                    self.store_part(place, &part).await?;
                    continue;
                }
                Answer::Throttled => {
                    self.store_try(place, &part, part.failures).await?;
                    After::Again(part)
                }
                Answer::Failed(from) => {
                    let done = part.done(from);
                    let is_rest = done.is_some();
                    if let Some(done) = done {
                        count(&counts.done, from);
                        let begun = u32::from(!place.rules.bisects);
                        let tried = part.tried(place.rules, begun);
                        self.store_shard(place, Some(done), tried).await?;
                    }
                    part.failed(place.rules, is_rest)
                }
            };
            match failed {
                After::Again(part) => {
                    standing.again = part.begun(part.failures);
                    let wait = standing.backoff.next(skiff_base::random::u32());
                    return Ok(Handed::Later(wait));
                }
                After::Halves(first, second) => {
                    parts.push_front(second);
                    parts.push_front(first);
                }
                After::GivenUp(part) => {
                    if !self.give_up(place, part, EXHAUSTED).await? {
                        return Ok(Handed::Over);
                    }
                }
            }
        }
        if let Some(last) = last {
            self.store_shard(place, Some(last), None).await?;
        }
        Ok(Handed::All)
    }

    /// One invocation with the part, and what it says of it.
    async fn try_part(&self, place: &Place<'_>, part: &Part) -> Answer {
        let counts = &self.sources().counts;
        let records = part.records.iter().map(|record| record.json.as_str());
        let payload = Bytes::from(batch_event(records));
        let answer = match self.invoke_once(place.mapping, payload).await {
            Ok(Outcome::Took(answer)) => answer,
            Err((unanswered, _)) if unanswered.is_untouched => {
                tracing::debug!(error = %unanswered.error, "a part of a shard was not taken");
                count(&counts.throttled, 1);
                place.poller.tell(THROTTLED);
                return Answer::Throttled;
            }
            Ok(Outcome::Failed | Outcome::Throttled) | Err(_) => {
                count(&counts.failed, 1);
                place.poller.tell(FAILED);
                return Answer::Failed(0);
            }
        };
        let first = match place.mapping.record.is_partial {
            true => first_failure(&answer, &part.records),
            false => None,
        };
        match first {
            Some(first) => {
                count(&counts.failed, 1);
                place.poller.tell(FAILED);
                Answer::Failed(first)
            }
            None => {
                count(&counts.taken, 1);
                place.poller.tell(OK);
                Answer::Took
            }
        }
    }

    /// Tells the destination of records that are tried no more; whether it
    /// came to an end.
    async fn give_up(
        &self,
        place: &Place<'_>,
        part: Part,
        condition: &'static str,
    ) -> Result<bool, StreamError> {
        let records = part.records.len();
        count(&self.sources().counts.given_up, records);
        let (mapping, shard) = (&place.poller.id, &place.shard);
        tracing::warn!(%mapping, shard, records, condition, "records of a stream are given up");
        if let Some(address) = &place.rules.on_failure {
            let body = self.given_up(place, &part, condition);
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
            let mut tries = 0;
            while let Err(error) = self.tell_of(address, condition, &body).await {
                tries += 1;
                let error = skiff_base::chain(&error).to_string();
                if tries == DELIVERIES {
                    tracing::error!(%mapping, address, error, "a source's destination is given up");
                    break;
                }
                tracing::warn!(%mapping, address, error, "a source's destination was not told, and is tried again");
                place
                    .watch
                    .pause(backoff.next(skiff_base::random::u32()))
                    .await;
                if place.watch.is_over() {
                    return Ok(false);
                }
            }
        }
        self.store_part(place, &part).await?;
        Ok(true)
    }

    async fn store_part(&self, place: &Place<'_>, part: &Part) -> Result<(), StreamError> {
        match part.records.last() {
            Some(last) => {
                let sequence = Some(last.sequence.clone());
                self.store_shard(place, sequence, None).await
            }
            None => Ok(()),
        }
    }

    /// AWS's record of a batch that was given up.
    fn given_up(&self, place: &Place<'_>, part: &Part, condition: &str) -> Vec<u8> {
        let record = &place.mapping.record;
        let arn = self.arns(&place.mapping.project).function(&record.function);
        let arn = match &record.qualifier {
            Some(qualifier) => format!("{arn}:{qualifier}"),
            None => arn,
        };
        let (first, last) = (part.records.first(), part.records.last());
        let sequence = |record: Option<&StreamRecord>| record.map(|one| one.sequence.clone());
        let time = |record: Option<&StreamRecord>| {
            let created = record.and_then(|one| one.created_unix_ms);
            created.map(|created| UtcTime::of_unix_ms(created).to_string())
        };
        let mut told = json!({
            "version": "1.0",
            "timestamp": UtcTime::of_unix_ms(self.now()).to_string(),
            "requestContext": {
                "requestId": uuid(),
                "functionArn": arn,
                "condition": condition,
                "approximateInvokeCount": part.failures,
            },
            "DDBStreamBatchInfo": {
                "shardId": place.shard,
                "startSequenceNumber": sequence(first),
                "endSequenceNumber": sequence(last),
                "approximateArrivalOfFirstRecord": time(first),
                "approximateArrivalOfLastRecord": time(last),
                "batchSize": part.records.len(),
                "streamArn": place.stream.text,
            },
        });
        if let (true, Some(fields)) = (part.failures > 0, told.as_object_mut()) {
            let response = json!({"statusCode": 200, "functionError": "Unhandled"});
            fields.insert("responseContext".to_owned(), response);
        }
        told.to_string().into_bytes()
    }

    async fn tell_of(
        &self,
        address: &str,
        condition: &str,
        body: &[u8],
    ) -> Result<(), CourierError> {
        let courier = &self.events.courier;
        match address.parse() {
            Ok(Address::Queue { account, name }) => {
                let message = Message {
                    account,
                    queue: name,
                    body: body.to_vec(),
                    attributes: Vec::new(),
                };
                courier.enqueue(message, self.now() / 1000).await
            }
            Ok(Address::Web(url)) => {
                let headers = [
                    ("content-type", "application/json".to_owned()),
                    ("ce-specversion", "1.0".to_owned()),
                    ("ce-id", uuid()),
                    ("ce-source", "skiff".to_owned()),
                    ("ce-type", format!("skiff.source.{condition}")),
                ];
                courier.post(&url, &headers, body.to_vec()).await
            }
            // None that is stored is any other.
            Ok(Address::Function(_)) | Err(_) => Err(CourierError::Forbidden),
        }
    }

    fn shard_key(&self, place: &Place<'_>) -> String {
        key::mapping_shard(&place.mapping.project, &place.poller.id, &place.shard)
    }

    async fn shard_record(&self, place: &Place<'_>) -> Result<ShardRecord, StreamError> {
        let found = self.control.db().get(&self.shard_key(place)).await?;
        Ok(found.map(|found| found.record).unwrap_or_default())
    }

    /// Stores that so many tries of a part have begun, if they count.
    async fn store_try(
        &self,
        place: &Place<'_>,
        part: &Part,
        begun: u32,
    ) -> Result<(), StreamError> {
        let Some(tried) = part.tried(place.rules, begun) else {
            return Ok(());
        };
        let record = ShardRecord {
            tried: Some(tried),
            ..self.shard_record(place).await?
        };
        let change = Change::default().put(self.shard_key(place), &record)?;
        Ok(self.control.db().commit(change).await?)
    }

    /// Stores that a shard is done up to a record, or to its end, and how often
    /// what comes next was tried.
    async fn store_shard(
        &self,
        place: &Place<'_>,
        sequence: Option<String>,
        tried: Option<Tried>,
    ) -> Result<(), StreamError> {
        let record = ShardRecord {
            is_read: sequence.is_none(),
            sequence,
            tried,
        };
        let change = Change::default().put(self.shard_key(place), &record)?;
        Ok(self.control.db().commit(change).await?)
    }

    /// Forgets how far a mapping's shards are.
    pub(super) async fn forget_shards(
        &self,
        project: &ProjectId,
        id: &str,
    ) -> Result<(), ControlError> {
        let prefix = key::mapping_shards(project, id);
        for found in self.control.db().all::<ShardRecord>(&prefix).await? {
            let change = Change::default().delete(found.key);
            self.control.db().commit(change).await?;
        }
        Ok(())
    }

    /// The same once its poller stores no more; what fails leaves a few bytes.
    async fn forget_if_gone(&self, project: &ProjectId, id: &str) {
        let db = self.control.db();
        let forgotten = match db.exists(&key::mapping(project, id)).await {
            Ok(false) => self.forget_shards(project, id).await,
            Ok(true) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = forgotten {
            tracing::warn!(%error, mapping = id, "how far a deleted mapping was is left behind");
        }
    }
}

/// The first that failed, as the function's answer says; `None` when none did.
fn first_failure(answer: &[u8], records: &[StreamRecord]) -> Option<usize> {
    let ids = records.iter().map(|record| record.sequence.as_str());
    match batch_failures(answer, ids) {
        Some(failed) => records
            .iter()
            .position(|record| failed.contains(&record.sequence)),
        None => Some(0),
    }
}

/// The stream names who has deleted an item otherwise than Lambda's events do.
fn rename_identity(fields: &mut Map<String, Value>) {
    let identity = fields
        .get_mut("userIdentity")
        .and_then(Value::as_object_mut);
    let Some(identity) = identity else {
        return;
    };
    for (streams, own) in [("PrincipalId", "principalId"), ("Type", "type")] {
        if let Some(value) = identity.remove(streams) {
            identity.insert(own.to_owned(), value);
        }
    }
}

fn read_record(place: &Place<'_>, mut value: Value) -> Result<StreamRecord, StreamError> {
    let missing = |field| wrong("GetRecords", field);
    let change = value.get("dynamodb").ok_or_else(|| missing("dynamodb"))?;
    let sequence = change.get("SequenceNumber").and_then(Value::as_str);
    let sequence = sequence
        .ok_or_else(|| missing("SequenceNumber"))?
        .to_owned();
    let created = change.get("ApproximateCreationDateTime");
    let created = created.and_then(Value::as_f64);
    let created = created.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let created_unix_ms = created.and_then(|time| u64::try_from(time.as_millis()).ok());
    let fields = value.as_object_mut().ok_or_else(|| missing("dynamodb"))?;
    fields.insert("eventSourceARN".to_owned(), json!(place.stream.text));
    rename_identity(fields);
    let is_new = created_unix_ms.is_none_or(|created| created >= place.rules.from_unix_ms);
    Ok(StreamRecord {
        sequence,
        created_unix_ms,
        is_taken: is_new && place.mapping.takes_record(&value),
        json: value.to_string(),
        room: None,
    })
}
