//! Events whose turn has come: tried, tried again, and ended.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use skiff_lambda::{Code, FunctionRef, LambdaError, Qualifier};
use skiff_queue::{
    Begin, Condition, Ended, Outcome, Phase, Purpose, RESPONSE_BYTES_MAX, Rules, State, Stored,
    Target, Then, Write,
};
use skiff_types::invocation::FUNCTION_ERROR;

use super::{Turn, count};
use crate::key;
use crate::lambda::Front;
use crate::lambda::cache::View;
use crate::lambda::invoke::{CLIENT_CONTEXT, Invocation, Place, TRACE_ID, Way};
use crate::lambda::record::Configuration;

/// How long nothing is looked at when nothing is due, at most.
const IDLE: Duration = Duration::from_secs(60);

/// What a function answered in a try.
struct Answer {
    version: String,
    error: Option<String>,
    /// Absent when it is too large to keep.
    payload: Option<Vec<u8>>,
}

impl Front {
    /// Starts what is due, until the control plane stops.
    pub(crate) async fn dispatch(self: Arc<Self>) {
        let stopping = self.control.inner.stopping.subscribe();
        let mut stopped = std::pin::pin!(self.control.stopped());
        while !*stopping.borrow() {
            let changed = self.events.line.changed.notified();
            let now = self.now();
            let (taken, due) = {
                let mut queue = self.events.line.queue();
                (queue.take(now), queue.next_due())
            };
            if let Some(taken) = taken {
                let turn = Turn {
                    line: Arc::clone(&self.events.line),
                    taken,
                    now,
                    is_settled: false,
                };
                let front = Arc::clone(&self);
                let work = async move { front.work(turn).await };
                self.control.inner.tasks.spawn("event", work);
                continue;
            }
            let wait = due.map(|due| Duration::from_millis(due.saturating_sub(now)));
            let wait = wait.unwrap_or(IDLE).min(IDLE);
            tokio::select! {
                () = &mut stopped => return,
                () = changed => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn work(&self, turn: Turn) {
        match self.events.read(turn.id()).await {
            Ok(Some(stored)) => match turn.state().phase {
                Phase::Invoke => self.try_event(turn, stored).await,
                Phase::Deliver(number) => self.deliver(turn, stored, number).await,
            },
            Ok(None) => turn.done(self.now()),
            Err(error) => {
                let error = skiff_base::chain(&error);
                tracing::error!(event = %turn.id(), %error, "an event cannot be read");
                turn.pause(self.now());
            }
        }
    }

    async fn try_event(&self, turn: Turn, stored: Stored) {
        let event = &stored.event;
        let (function, now) = (&event.function, self.now());
        let view = self.control.service_view(&function.project, &function.name);
        let view = match view.await {
            Ok(Some(view)) => view,
            Ok(None) => {
                return self.drop_event(turn, &stored, "its function is gone").await;
            }
            Err(error) => {
                tracing::error!(event = %turn.id(), %error, "an event's function cannot be looked up");
                return turn.pause(now);
            }
        };
        let reserved = view.record.reserved_concurrency;
        self.events.line.set_running_max(function, reserved, now);
        let rules = self.rules(&view, &stored);
        let state = match rules.begin(event.accepted_unix_ms, turn.state(), now) {
            // AWS: with a reservation of none, events are not tried at all.
            Begin::Try(_) if reserved == Some(0) => {
                let over = (Condition::RetriesExhausted, turn.state().tries);
                return self.over(turn, &stored, &view, over, None).await;
            }
            Begin::Try(state) => state,
            Begin::Over(condition) => {
                let over = (condition, turn.state().tries);
                return self.over(turn, &stored, &view, over, None).await;
            }
        };
        let ready = self.ready(&stored, &view);
        let (way, place) = match ready {
            Ok(ready) => ready,
            Err(error) if error.code == Code::ResourceNotFound => {
                let why = "its version or alias is gone";
                return self.drop_event(turn, &stored, why).await;
            }
            Err(_) => {
                return self
                    .after(turn, &stored, &view, state, Ended::NotTaken, None)
                    .await;
            }
        };
        // It is on the disk before the function can know of it.
        let id = turn.id();
        if let Err(error) = self.events.write(Write::State { id, state }).await {
            let error = skiff_base::chain(&error);
            tracing::error!(event = %id, %error, "a try cannot be written, and is put off");
            return turn.pause(now);
        }
        count(&self.events.counts.tries);
        let (ended, answer) = self.attempt(&way, &stored).await;
        drop(place);
        self.after(turn, &stored, &view, state, ended, answer).await;
    }

    /// Where an event goes, and its place among those under way.
    fn ready(&self, stored: &Stored, view: &View) -> Result<(Way, Option<Place>), LambdaError> {
        let event = &stored.event;
        let qualifier = event.qualifier.as_deref().map(str::parse::<Qualifier>);
        let name = view.record.name_of(&event.function.name);
        let missing = |_| super::super::state::missing(&name);
        let target = FunctionRef {
            region: None,
            account: Some(event.function.project.clone()),
            qualifier: qualifier.transpose().map_err(missing)?,
            name,
        };
        let way = self.way_to(event.function.project.clone(), target, view)?;
        let place = Place::take(&self.running, &way)?;
        Ok((way, place))
    }

    async fn attempt(&self, way: &Way, stored: &Stored) -> (Ended, Option<Answer>) {
        let event = &stored.event;
        let told = [
            (CLIENT_CONTEXT, event.client_context.clone()),
            (TRACE_ID, event.trace_id.clone()),
        ];
        let told = told.into_iter();
        let invocation = Invocation {
            request_id: event.request_id.clone(),
            payload: stored.payload.clone().into(),
            told: told
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
        };
        let reply = match self.answered(way, invocation).await {
            Ok(reply) => reply,
            Err(unanswered) => {
                tracing::debug!(error = %unanswered.error, "an event was not answered");
                return match unanswered.is_untouched {
                    true => (Ended::NotTaken, None),
                    false => (Ended::Failed, None),
                };
            }
        };
        let error = reply.headers.get(FUNCTION_ERROR);
        let error = error.map(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        let ended = match error {
            Some(_) => Ended::Failed,
            None => Ended::Succeeded,
        };
        // It is in memory already.
        let payload = reply.body.collect().await.ok();
        let payload = payload.map(|payload| Vec::from(payload.to_bytes()));
        let answer = Answer {
            version: way.version.clone(),
            error,
            payload: payload.filter(|payload| payload.len() <= RESPONSE_BYTES_MAX),
        };
        (ended, Some(answer))
    }

    async fn after(
        &self,
        turn: Turn,
        stored: &Stored,
        view: &View,
        state: State,
        ended: Ended,
        answer: Option<Answer>,
    ) {
        if ended == Ended::NotTaken {
            count(&self.events.counts.not_taken);
        }
        let (now, random) = (self.now(), skiff_base::random::u32());
        let rules = self.rules(view, stored);
        match rules.after(stored.event.accepted_unix_ms, state, ended, now, random) {
            Then::Over(condition) => {
                let over = (condition, state.tries);
                self.over(turn, stored, view, over, answer).await;
            }
            Then::Again(state) => {
                let id = turn.id();
                self.events.note(Write::State { id, state }).await;
                turn.again(state, now);
            }
        }
    }

    fn rules(&self, view: &View, stored: &Stored) -> Rules {
        let config = view.record.event_config(stored.event.qualifier.as_deref());
        Rules {
            retries: config.retries(),
            age_ms_max: u64::from(config.age_s()) * 1000,
            delays: self.events.delays,
        }
    }

    /// The tries are over, after so many: the destinations begin, if there
    /// are any.
    async fn over(
        &self,
        turn: Turn,
        stored: &Stored,
        view: &View,
        (condition, tries): (Condition, u32),
        answer: Option<Answer>,
    ) {
        let (id, now) = (turn.id(), self.now());
        self.events.ended(condition);
        let targets = self.targets(stored, view, condition).await;
        if targets.is_empty() {
            if condition != Condition::Success {
                count(&self.events.counts.dropped);
                let (function, request) = (&stored.event.arn, &stored.event.request_id);
                tracing::warn!(%function, %request, condition = condition.name(), "an event is given up, and it has no destination");
            }
            self.events.note(Write::Done { id }).await;
            return turn.done(now);
        }
        let (version, error, response) = match answer {
            Some(answer) => (Some(answer.version), answer.error, answer.payload),
            None => (None, None, None),
        };
        let state = State::begin(Phase::Deliver(0), now);
        let outcome = Outcome {
            condition,
            unix_ms: now,
            tries,
            version,
            error,
            targets,
        };
        let kept = response.as_ref().map_or(0, Vec::len);
        let write = Write::Over {
            id,
            state,
            outcome: Box::new(outcome),
            response,
        };
        match self.events.write(write).await {
            Ok(()) => {
                turn.grow(kept);
                turn.again(state, now);
            }
            Err(error) => {
                let error = skiff_base::chain(&error);
                tracing::error!(event = %id, %error, "the end of an event's tries cannot be written");
                turn.pause(now);
            }
        }
    }

    /// Who is told how an event ended.
    async fn targets(&self, stored: &Stored, view: &View, condition: Condition) -> Vec<Target> {
        let qualifier = stored.event.qualifier.as_deref();
        let config = view.record.event_config(qualifier);
        if condition == Condition::Success {
            return config.on_success.map(to_record).into_iter().collect();
        }
        let dead_letter = self.dead_letter(stored, view).await;
        let dead_letter = dead_letter.map(|address| Target {
            purpose: Purpose::DeadLetter,
            address,
        });
        let on_failure = config.on_failure.map(to_record);
        on_failure.into_iter().chain(dead_letter).collect()
    }

    /// `DeadLetterConfig` of the version that an event was for.
    async fn dead_letter(&self, stored: &Stored, view: &View) -> Option<String> {
        let event = &stored.event;
        let qualifier = event.qualifier.as_deref().map(str::parse);
        let number = match qualifier {
            Some(Ok(Qualifier::Version(number))) => Some(number),
            Some(Ok(Qualifier::Alias(name))) => {
                view.record.aliases.get(&name)?.version.parse().ok()
            }
            _ => None,
        };
        let Some(number) = number else {
            return view.record.latest.dead_letter.clone();
        };
        let place = key::function_version(&event.function.project, &event.function.name, number);
        match self.control.db().get::<Configuration>(&place).await {
            Ok(found) => found?.record.dead_letter,
            Err(error) => {
                tracing::error!(%error, function = %event.arn, "the dead letters' place of a version cannot be looked up");
                None
            }
        }
    }

    /// Nobody can be told of it.
    async fn drop_event(&self, turn: Turn, stored: &Stored, why: &str) {
        let (function, request) = (&stored.event.arn, &stored.event.request_id);
        tracing::warn!(%function, %request, why, "an event is dropped");
        count(&self.events.counts.dropped);
        let id = turn.id();
        self.events.note(Write::Done { id }).await;
        turn.done(self.now());
    }
}

fn to_record(address: String) -> Target {
    Target {
        purpose: Purpose::Record,
        address,
    }
}
