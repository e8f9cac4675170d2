//! Event invocations: taken in, dispatched, and told to their destinations.
//!
//! ```text
//!  Invoke (Event) ─▶ room? ─▶ log, synced ─▶ 202          dispatch ◀─ due ─┐
//!                     429                        │            │           │
//!                                                └─▶ queue ◀──┴─ work ────┘
//! ```
//! What decides is in `skiff-queue`; this only asks it, with the clock, the
//! functions and the network.

mod config;
mod courier;
mod deliver;
mod dispatch;
mod send;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_base::prometheus::metric;
use skiff_lambda::{Code, LambdaError, Secret};
use skiff_queue::{
    Condition, Delays, Event, EventId, EventLog, Full, FunctionKey, Limits, LogError,
    PAYLOAD_BYTES_MAX, Phase, Queue, State, Stored, Taken, Write,
};
use tokio::sync::{Notify, oneshot};

use super::Front;
use super::call::{Call, Reply};
use super::invoke::{CLIENT_CONTEXT, Invocation, TRACE_ID, Way, invocation};
pub(crate) use config::check_qualifier;
pub(in crate::lambda) use courier::{Courier, CourierError, Message};

/// Events of all functions that are not done: some 300 bytes of memory each.
const EVENTS_MAX: usize = 500_000;
/// Events under way of all functions.
const RUNNING_MAX: u32 = 1000;
/// What an event takes on the disk beside its payload, bytes, about.
const EVENT_BYTES: u64 = 1024;
/// How long an event waits when the log cannot be written or read.
const DISK_PAUSE_MS: u64 = 5000;

/// How events are kept, tried and told on.
#[derive(Clone, Debug)]
pub struct EventSettings {
    /// The log's folder.
    pub folder: PathBuf,
    /// From a function's first error to the next try, milliseconds; twice as
    /// long after the second.
    pub retry_ms: u64,
    /// From the first time that nothing takes an event to the next try,
    /// milliseconds; doubles up to 300 times as long.
    pub backoff_ms: u64,
    /// Events of one function that are not done.
    pub per_function: usize,
    /// Events under way of one function.
    pub at_once: u32,
    /// Payloads of events that are not done, bytes.
    pub bytes_max: u64,
    /// What URLs of destinations may begin with.
    pub destinations: Vec<String>,
    /// Where queues are; absent refuses them as destinations and as sources.
    pub sqs: Option<ServiceSettings>,
    /// Where streams of DynamoDB's kind are; absent refuses them as sources.
    pub streams: Option<ServiceSettings>,
}

/// Where a service of AWS's kind is.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// `https://sqs.example`.
    pub endpoint: String,
    /// Who asks there.
    pub access_key: String,
    /// The key's secret.
    pub secret: Secret,
}

/// Events that are not done.
#[derive(Debug)]
pub(crate) struct Events {
    log: EventLog,
    line: Arc<Line>,
    /// Events that are held back, by their keys.
    held: Arc<Held>,
    pub(in crate::lambda) courier: Courier,
    delays: Delays,
    counts: Counts,
    /// Events under way of one function.
    pub(in crate::lambda) at_once: u32,
    /// Of the functions' ARNs.
    region: String,
}

/// Events with a key are held back until their sender knows that they are in
/// the log, so that no end of the server makes it send one twice.
#[derive(Debug, Default)]
struct Held(Mutex<HashMap<String, EventId>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, EventId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When an event that is held back is due.
const HELD_BACK: u64 = u64::MAX;

/// The queue, and who is told when it changes.
#[derive(Debug)]
struct Line {
    queue: Mutex<Queue>,
    changed: Notify,
}

/// What has happened since the server's start.
#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    refused: AtomicU64,
    tries: AtomicU64,
    not_taken: AtomicU64,
    succeeded: AtomicU64,
    exhausted: AtomicU64,
    expired: AtomicU64,
    dropped: AtomicU64,
    delivered: AtomicU64,
    delivery_failed: AtomicU64,
    delivery_given_up: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// An event is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no room.
    #[error(transparent)]
    Full(Full),
    /// It cannot be made durable.
    #[error(transparent)]
    Log(LogError),
}

impl From<Refused> for LambdaError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full(full) => {
                let message = format!("Rate Exceeded: {full}: try again later");
                Self::throttled("CallerRateLimitExceeded", message)
            }
            Refused::Log(error) => {
                let error = skiff_base::chain(&error);
                let message = format!("the event cannot be made durable: {error}");
                Self::new(Code::Service, message)
            }
        }
    }
}

impl Line {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_running_max(&self, function: &FunctionKey, max: Option<u32>, now: u64) {
        self.queue().set_running_max(function, max, now);
    }
}

impl Events {
    /// Opens the log; what a former process has left is due again. Waits for
    /// the disk.
    pub(crate) fn open(settings: EventSettings, region: &str, now: u64) -> Result<Self, LogError> {
        let limits = Limits {
            function_events: settings.per_function,
            events: EVENTS_MAX,
            bytes: settings.bytes_max,
            function_running: settings.at_once,
            running: RUNNING_MAX,
        };
        let (log, left) = EventLog::open(&settings.folder)?;
        let mut queue = Queue::new(limits);
        if !left.is_empty() {
            tracing::info!(events = left.len(), "events of the former server go on");
        }
        let held = Held::default();
        for left in left {
            let bytes = left.bytes + EVENT_BYTES;
            let (id, accepted) = (left.id, left.accepted_unix_ms);
            let mut state = left.state;
            let is_new = state == State::begin(Phase::Invoke, state.due_unix_ms);
            if let Some(key) = left.key.filter(|_| is_new) {
                state.due_unix_ms = HELD_BACK;
                held.lock().insert(key, id);
            }
            queue.restore(id, &left.function, bytes, accepted, state, now);
        }
        Ok(Self {
            held: Arc::new(held),
            log,
            line: Arc::new(Line {
                queue: Mutex::new(queue),
                changed: Notify::new(),
            }),
            courier: Courier::new(
                settings.destinations,
                settings.sqs,
                settings.streams,
                region,
            ),
            at_once: settings.at_once,
            delays: Delays {
                retry_ms: settings.retry_ms,
                setback_ms: settings.backoff_ms,
            },
            counts: Counts::default(),
            region: region.to_owned(),
        })
    }

    /// Whether an event of this key is held back.
    pub(crate) fn holds(&self, key: &str) -> bool {
        self.held.lock().contains_key(key)
    }

    /// Lets the event of this key go.
    pub(crate) fn release(&self, key: &str, now: u64) {
        let id = self.held.lock().remove(key);
        if let Some(id) = id {
            self.line.queue().release(id, now);
            self.line.changed.notify_one();
        }
    }

    /// Lets all go that are held back, but those of these keys.
    pub(crate) fn release_all_but(&self, keys: &HashSet<String>, now: u64) {
        let held: Vec<String> = self.held.lock().keys().cloned().collect();
        for key in held.iter().filter(|key| !keys.contains(*key)) {
            self.release(key, now);
        }
    }

    /// Makes an event durable; it is tried from then on, also when nobody
    /// waits for this any more. One with a key is held back first.
    pub(crate) async fn accept(&self, event: Event, payload: Vec<u8>) -> Result<EventId, Refused> {
        let (function, now) = (event.function.clone(), event.accepted_unix_ms);
        let bytes = payload.len() as u64 + EVENT_BYTES;
        let admitted = self.line.queue().admit(&function, bytes);
        if let Err(full) = admitted {
            count(&self.counts.refused);
            return Err(Refused::Full(full));
        }
        let state = State::begin(Phase::Invoke, now);
        let (key, held) = (event.key.clone(), Arc::clone(&self.held));
        let write = Write::Accept {
            event: Box::new(event),
            payload,
            state,
        };
        let (done, written) = oneshot::channel();
        let line = Arc::clone(&self.line);
        self.log.append(write, move |result| {
            match (&result, key) {
                (Ok(id), Some(key)) => {
                    let state = State::begin(Phase::Invoke, HELD_BACK);
                    line.queue().put(*id, &function, bytes, now, state, now);
                    held.lock().insert(key, *id);
                }
                (Ok(id), None) => line.queue().put(*id, &function, bytes, now, state, now),
                (Err(_), _) => line.queue().refuse(&function, bytes),
            }
            line.changed.notify_one();
            // Who has gone away needs no answer.
            let _gone = done.send(result);
        });
        let written = written.await.unwrap_or(Err(LogError::Closed));
        let id = written.map_err(Refused::Log)?;
        count(&self.counts.accepted);
        Ok(id)
    }

    /// Brings something of an event to the disk.
    async fn write(&self, write: Write) -> Result<(), LogError> {
        let (done, written) = oneshot::channel();
        self.log.append(write, move |result| {
            let _gone = done.send(result);
        });
        let written = written.await.unwrap_or(Err(LogError::Closed));
        written.map(|_| ())
    }

    /// The same of what may be lost: then something is done once more.
    async fn note(&self, write: Write) {
        if let Err(error) = self.write(write).await {
            let error = skiff_base::chain(&error);
            tracing::error!(%error, "how far an event is was not written: a restart may repeat it");
        }
    }

    async fn read(self: &Arc<Self>, id: EventId) -> Result<Option<Stored>, LogError> {
        let events = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || events.log.read(id));
        read.await.unwrap_or(Err(LogError::Closed))
    }

    /// Takes nothing more; what waits is on the disk. Waits for the disk.
    pub(crate) fn close(&self) {
        self.log.close();
    }

    /// Metrics in Prometheus' text format.
    pub(crate) fn metrics(&self, now: u64) -> String {
        let (pending, running, oldest) = {
            let queue = self.line.queue();
            (queue.pending(), queue.running(), queue.oldest_unix_ms())
        };
        let age = oldest.map_or(0, |oldest| now.saturating_sub(oldest) / 1000);
        let mut out = String::new();
        let c = &self.counts;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let events = u64::try_from(pending).unwrap_or(u64::MAX);
        let gauge = "gauge";
        metric(
            &mut out,
            "skiff_events_pending",
            gauge,
            "Event invocations that are not done.",
            &[("", events)],
        );
        metric(
            &mut out,
            "skiff_events_running",
            gauge,
            "Event invocations under way.",
            &[("", running.into())],
        );
        metric(
            &mut out,
            "skiff_events_oldest_seconds",
            gauge,
            "Age of the oldest event that is not done.",
            &[("", age)],
        );
        metric(
            &mut out,
            "skiff_events_log_bytes",
            gauge,
            "Size of the events' log.",
            &[("", self.log.bytes())],
        );
        let counter = "counter";
        metric(
            &mut out,
            "skiff_events_total",
            counter,
            "Event invocations, accepted or refused for want of room.",
            &[
                ("{result=\"accepted\"}", of(&c.accepted)),
                ("{result=\"refused\"}", of(&c.refused)),
            ],
        );
        metric(
            &mut out,
            "skiff_event_tries_total",
            counter,
            "Tries of event invocations that began, and those that nothing took.",
            &[
                ("{result=\"begun\"}", of(&c.tries)),
                ("{result=\"not_taken\"}", of(&c.not_taken)),
            ],
        );
        metric(
            &mut out,
            "skiff_events_ended_total",
            counter,
            "Event invocations by how their tries ended.",
            &[
                ("{condition=\"Success\"}", of(&c.succeeded)),
                ("{condition=\"RetriesExhausted\"}", of(&c.exhausted)),
                ("{condition=\"EventAgeExceeded\"}", of(&c.expired)),
            ],
        );
        metric(
            &mut out,
            "skiff_events_dropped_total",
            counter,
            "Event invocations that did not succeed and that nobody was told of.",
            &[("", of(&c.dropped))],
        );
        metric(
            &mut out,
            "skiff_event_deliveries_total",
            counter,
            "Records for destinations: delivered, tries that failed, given up.",
            &[
                ("{result=\"delivered\"}", of(&c.delivered)),
                ("{result=\"failed\"}", of(&c.delivery_failed)),
                ("{result=\"given_up\"}", of(&c.delivery_given_up)),
            ],
        );
        out
    }

    fn ended(&self, condition: Condition) {
        count(match condition {
            Condition::Success => &self.counts.succeeded,
            Condition::RetriesExhausted => &self.counts.exhausted,
            Condition::EventAgeExceeded => &self.counts.expired,
        });
    }
}

impl Front {
    /// Milliseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        self.control.inner.base.now()
    }

    /// Takes an event in; it is answered once it is on the disk.
    pub(crate) async fn accept_event(
        &self,
        call: &mut Call,
        way: Way,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let qualifier = self.named(call, text)?.qualifier;
        // Held until the event is on the disk.
        let _room = call.room.take();
        let Invocation {
            request_id,
            payload,
            told,
        } = invocation(call, PAYLOAD_BYTES_MAX)?;
        let said = |name: &str| {
            let found = told.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.clone())
        };
        let event = Event {
            function: FunctionKey {
                project: way.key.0,
                name: way.key.1,
            },
            qualifier: qualifier.map(|qualifier| qualifier.to_string()),
            arn: way.arn,
            request_id,
            accepted_unix_ms: call.now_ms,
            client_context: said(CLIENT_CONTEXT),
            trace_id: said(TRACE_ID),
            key: None,
            hops: 0,
        };
        self.events.accept(event, payload.into()).await?;
        let mut reply = Reply::empty();
        reply.status = http::StatusCode::ACCEPTED;
        Ok(reply)
    }
}

/// An event under way; one that is dropped waits again.
#[derive(Debug)]
struct Turn {
    line: Arc<Line>,
    taken: Taken,
    now: u64,
    is_settled: bool,
}

impl Turn {
    fn id(&self) -> EventId {
        self.taken.id
    }

    fn state(&self) -> State {
        self.taken.state
    }

    /// It waits until its state says.
    fn again(mut self, state: State, now: u64) {
        self.put_back(state, now);
    }

    /// The same, for when the disk fails.
    fn pause(self, now: u64) {
        let state = State {
            due_unix_ms: now + DISK_PAUSE_MS,
            ..self.state()
        };
        self.again(state, now);
    }

    /// So many bytes are kept beside its payload.
    fn grow(&self, bytes: usize) {
        self.line.queue().grow(self.taken.id, bytes as u64);
    }

    fn done(mut self, now: u64) {
        self.is_settled = true;
        self.line.queue().done(self.taken.id, now);
        self.line.changed.notify_one();
    }

    fn put_back(&mut self, state: State, now: u64) {
        self.is_settled = true;
        self.line.queue().put_back(self.taken.id, state, now);
        self.line.changed.notify_one();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_settled {
            let state = State {
                due_unix_ms: self.now + DISK_PAUSE_MS,
                ..self.taken.state
            };
            self.put_back(state, self.now);
        }
    }
}
