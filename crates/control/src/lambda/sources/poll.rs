//! A mapping's poller: turn after turn, a batch to the function.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use skiff_base::Backoff;
use skiff_lambda::{FunctionRef, LambdaError, Qualifier, batch_event, batch_failures};
use skiff_types::invocation::FUNCTION_ERROR;
use tokio::sync::watch;

use super::gather::{Batch, Record};
use super::mapping::{QueueArn, Source};
use super::pace::Slot;
use super::queue::QueueError;
use super::stream::StreamError;
use super::{Mapping, Poller, count};
use crate::lambda::invoke::{Invocation, Place, Unanswered, Way};
use crate::lambda::{Front, uuid};

/// From the first turn that receives nothing for a reason to the next.
pub(super) const PROBLEM_FIRST: Duration = Duration::from_secs(1);
pub(super) const PROBLEM_LONGEST: Duration = Duration::from_secs(30);
/// From the first time that nothing takes a batch to the next try.
const THROTTLED_FIRST: Duration = Duration::from_millis(100);
const THROTTLED_LONGEST: Duration = Duration::from_secs(5);

pub(super) const OK: &str = "OK";
pub(super) const FAILED: &str = "PROBLEM: Function call failed";
pub(super) const THROTTLED: &str = "PROBLEM: Function call throttled";

/// A turn received nothing, for this reason.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("the function cannot be invoked")]
    Function(#[source] LambdaError),
    #[error("the function is reserved no invocations")]
    Closed,
    #[error("the queue cannot be polled")]
    Queue(#[from] QueueError),
    #[error("the stream cannot be followed")]
    Stream(#[from] StreamError),
}

/// What the function made of an event.
pub(super) enum Outcome {
    Took(Bytes),
    Failed,
    /// Nothing took it for as long as its messages are ours.
    Throttled,
}

impl Front {
    /// Starts pollers until the control plane stops.
    pub(crate) async fn run_sources(self: Arc<Self>) {
        let mut stopped = std::pin::pin!(self.control.stopped());
        loop {
            let changed = self.sources().changed.notified();
            for poller in self.sources().take_new() {
                let front = Arc::clone(&self);
                self.control.inner.tasks.spawn("event source", async move {
                    front.run_source(&poller).await;
                });
            }
            tokio::select! {
                () = &mut stopped => return,
                () = changed => {}
            }
        }
    }

    async fn run_source(self: &Arc<Self>, poller: &Arc<Poller>) {
        match &poller.source {
            Source::Queue(queue) => {
                tokio::select! {
                    () = self.control.stopped() => {}
                    () = self.poll(poller, queue) => {}
                }
            }
            Source::Stream(stream) => self.follow(poller, stream).await,
        }
    }

    /// Takes turns until nobody wants the mapping polled.
    async fn poll(self: &Arc<Self>, poller: &Arc<Poller>, queue: &QueueArn) {
        let mut wanted = poller.wanted.subscribe();
        let mut backoff = Backoff::new(PROBLEM_FIRST, PROBLEM_LONGEST);
        loop {
            let mapping = wanted.borrow_and_update().clone();
            let Some(mapping) = mapping else {
                poller.pace.ended().await;
                if self.sources().end(poller) {
                    return;
                }
                continue;
            };
            let slot = poller.pace.begin(self.most(&mapping)).await;
            if wanted.has_changed().unwrap_or(true) {
                continue;
            }
            let Err(problem) = self.turn(poller, &mapping, queue, slot, &wanted).await else {
                backoff.reset();
                continue;
            };
            self.tell_problem(poller, &problem);
            let wait = backoff.next(skiff_base::random::u32());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _changed = wanted.changed() => {}
            }
        }
    }

    /// Says why a source gives nothing.
    pub(super) fn tell_problem(&self, poller: &Poller, problem: &Problem) {
        let problem = skiff_base::chain(problem).to_string();
        count(&self.sources().counts.problems, 1);
        tracing::warn!(mapping = %poller.id, problem, "an event source gives nothing, and is asked again");
        poller.tell(&format!("PROBLEM: {problem}"));
    }

    /// Invocations at once.
    fn most(&self, mapping: &Mapping) -> u32 {
        mapping.record.concurrency.unwrap_or(self.events.at_once)
    }

    async fn turn(
        self: &Arc<Self>,
        poller: &Arc<Poller>,
        mapping: &Arc<Mapping>,
        queue: &QueueArn,
        slot: Slot,
        wanted: &watch::Receiver<Option<Arc<Mapping>>>,
    ) -> Result<(), Problem> {
        // What nobody could take is not received: receives are counted.
        self.check_open(mapping).await?;
        let known = &mapping.visibility;
        let visibility_s = self.recent_visibility_s(queue, known).await?;
        let batch = self.gather(mapping, queue, wanted).await?;
        if batch.records.is_empty() {
            return Ok(());
        }
        let until = batch.received_unix_ms + visibility_s * 1000;
        let (front, poller) = (Arc::clone(self), Arc::clone(poller));
        let (mapping, queue) = (Arc::clone(mapping), queue.clone());
        self.control.inner.tasks.spawn("batch", async move {
            let to = (&*poller, &*mapping, &queue);
            front.hand_over(to, batch, until, &slot).await;
        });
        Ok(())
    }

    /// Whether the function could be invoked now.
    pub(super) async fn check_open(&self, mapping: &Mapping) -> Result<(), Problem> {
        let way = self.way_of(mapping).await.map_err(Problem::Function)?;
        match way.reserved {
            Some(0) => Err(Problem::Closed),
            _ => Ok(()),
        }
    }

    /// Where an invocation goes now.
    async fn way_of(&self, mapping: &Mapping) -> Result<Way, LambdaError> {
        let name = &mapping.record.function;
        let view = self.control.function_view(&mapping.project, name).await?;
        let qualifier = mapping.record.qualifier.as_deref();
        let qualifier = qualifier.map(str::parse::<Qualifier>).transpose();
        let target = FunctionRef {
            region: None,
            account: Some(mapping.project.clone()),
            name: name.clone(),
            qualifier: qualifier.map_err(crate::lambda::call::invalid)?,
        };
        self.way_to(mapping.project.clone(), target, &view)
    }

    /// Gives a batch to the function, and deletes what it took.
    async fn hand_over(
        &self,
        (poller, mapping, queue): (&Poller, &Mapping, &QueueArn),
        batch: Batch,
        until: u64,
        slot: &Slot,
    ) {
        for event in batch.events() {
            let all = event.len();
            let done = self.take(poller, mapping, event, until, slot).await;
            let taken = done.len();
            let left = self.delete(queue, done).await;
            let counts = &self.sources().counts;
            count(&counts.done, taken - left);
            count(&counts.left, all - taken + left);
            // What comes after a failure waits for its turn.
            if taken < all && queue.is_fifo() {
                return;
            }
        }
    }

    /// The handles of what the function took of an event.
    async fn take(
        &self,
        poller: &Poller,
        mapping: &Mapping,
        event: Vec<Record>,
        until: u64,
        slot: &Slot,
    ) -> Vec<String> {
        let records = event.iter().map(|record| record.json.as_str());
        let payload = Bytes::from(batch_event(records));
        let counts = &self.sources().counts;
        let answer = match self.outcome(mapping, payload, until, slot).await {
            Outcome::Took(answer) => answer,
            Outcome::Failed => {
                count(&counts.failed, 1);
                poller.tell(FAILED);
                return Vec::new();
            }
            Outcome::Throttled => {
                poller.tell(THROTTLED);
                return Vec::new();
            }
        };
        slot.taken(self.most(mapping));
        let ids = event.iter().map(|record| record.id.as_str());
        let failed = match mapping.record.is_partial {
            true => batch_failures(&answer, ids),
            false => Some(std::collections::BTreeSet::new()),
        };
        let Some(failed) = failed else {
            count(&counts.failed, 1);
            poller.tell(FAILED);
            return Vec::new();
        };
        count(&counts.taken, 1);
        poller.tell(OK);
        let done = event.into_iter();
        let done = done.filter(|record| !failed.contains(&record.id));
        done.map(|record| record.handle).collect()
    }

    /// Invokes the function, again while nothing takes the event and its
    /// messages are ours for long enough.
    async fn outcome(&self, mapping: &Mapping, payload: Bytes, until: u64, slot: &Slot) -> Outcome {
        let stopping = self.control.inner.stopping.subscribe();
        let mut backoff = Backoff::new(THROTTLED_FIRST, THROTTLED_LONGEST);
        loop {
            let (error, timeout_s) = match self.invoke_once(mapping, payload.clone()).await {
                Ok(outcome) => return outcome,
                Err((
                    Unanswered {
                        error,
                        is_untouched: false,
                    },
                    _,
                )) => {
                    tracing::debug!(%error, "a batch was not answered");
                    return Outcome::Failed;
                }
                Err((unanswered, timeout_s)) => (unanswered.error, timeout_s),
            };
            tracing::debug!(%error, "a batch was not taken");
            count(&self.sources().counts.throttled, 1);
            slot.throttled();
            let wait = backoff.next(skiff_base::random::u32());
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let ends = self.now().saturating_add(wait_ms) + u64::from(timeout_s) * 1000;
            if ends > until || *stopping.borrow() {
                return Outcome::Throttled;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// One invocation; what is not answered with the function's timeout.
    pub(super) async fn invoke_once(
        &self,
        mapping: &Mapping,
        payload: Bytes,
    ) -> Result<Outcome, (Unanswered, u32)> {
        let untouched = |error| Unanswered {
            error,
            is_untouched: true,
        };
        let way = self.way_of(mapping).await;
        let way = way.map_err(|error| (untouched(error), 0))?;
        let place = Place::take(&self.running, &way);
        let _place = place.map_err(|error| (untouched(error), way.timeout_s))?;
        let invocation = Invocation {
            request_id: uuid(),
            payload,
            told: Vec::new(),
        };
        let reply = self.answered(&way, invocation).await;
        let reply = reply.map_err(|unanswered| (unanswered, way.timeout_s))?;
        if reply.headers.contains_key(FUNCTION_ERROR) {
            return Ok(Outcome::Failed);
        }
        // It is in memory already.
        let answer = reply.body.collect().await;
        Ok(answer.map_or(Outcome::Failed, |answer| Outcome::Took(answer.to_bytes())))
    }
}
