//! Schedules: a function's events at their times.
//!
//! ```text
//!  waits ─▶ due ─▶ "fires for T" stored ─▶ event T in its log, held back
//!    ▲                                              │
//!    └── event T let go ◀── "has fired for T" stored ┘
//! ```
//! The event's key is its schedule and T. Whatever ends the server between
//! two of these, the next one goes on where they are: an event that is held
//! back is known by its key, and is not sent twice.
//!
//! Times that were missed, since no server ran or there was no room, are one:
//! the latest fires, if it is not older than the schedule lets it be.

mod expression;
mod fire;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use skiff_lambda::FunctionName;
use skiff_types::ProjectId;
use tokio::sync::Notify;

use crate::control::Control;
use crate::db::{Change, Found, Page};
use crate::error::{ControlError, conflict, exhausted, invalid, not_found, unsupported};
use crate::key;
use crate::lambda::FunctionRecord;
use crate::record::ProjectRecord;

pub(crate) use expression::Expression;
use expression::{START_BACK_MS_MAX, Window};

/// Schedules of one project.
const SCHEDULES_MAX: usize = 1000;
/// A schedule's name, bytes (botocore's model).
const NAME_BYTES_MAX: usize = 64;
const DESCRIPTION_CHARS_MAX: usize = 512;
/// What a schedule sends, bytes (EventBridge Scheduler's quota).
const INPUT_BYTES_MAX: usize = 256 * 1024;
/// The oldest a missed time may be, and unless told; seconds.
pub(crate) const AGE_S_MAX: u32 = 86_400;
const AGE_S_MIN: u32 = 60;

/// A schedule within a project.
pub(crate) type ScheduleKey = (ProjectId, String);

/// What a schedule is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScheduleSpec {
    pub expression: String,
    /// Empty is UTC.
    pub timezone: String,
    /// From then on, milliseconds since 1970.
    pub start_unix_ms: Option<u64>,
    /// Up to then.
    pub end_unix_ms: Option<u64>,
    pub description: String,
    pub is_enabled: bool,
    pub function: FunctionName,
    /// A version or an alias.
    pub qualifier: Option<String>,
    /// Kept and told; it gives nothing.
    pub role: String,
    /// JSON; absent is an event that says what fired.
    pub input: Option<String>,
    /// The oldest a missed time may be that still fires.
    pub age_s: u32,
    /// Kept and told.
    pub retries: u32,
    /// It goes once it will not fire again.
    pub delete_after: bool,
}

/// A schedule as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScheduleRecord {
    pub spec: ScheduleSpec,
    pub created_unix_ms: u64,
    /// Times before it are not caught up with.
    pub modified_unix_ms: u64,
    /// When its expression was given, from which rates count; absent was when
    /// it was last changed.
    #[serde(default)]
    pub begun_unix_ms: Option<u64>,
    /// The last time that it has fired for.
    pub fired_unix_ms: Option<u64>,
    /// The time that it is firing for.
    pub firing_unix_ms: Option<u64>,
    /// What who made it named the call: the same call once more changes
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl ScheduleRecord {
    const fn window(&self) -> Window {
        Window {
            made: self.modified_unix_ms,
            begun: match self.begun_unix_ms {
                Some(begun) => begun,
                None => self.modified_unix_ms,
            },
            start: self.spec.start_unix_ms,
            end: self.spec.end_unix_ms,
        }
    }

    /// Whether it is what a call of this token was to make.
    fn is_made_by(&self, token: &Option<String>, spec: &ScheduleSpec) -> bool {
        token.is_some() && self.token == *token && self.spec == *spec
    }

    /// It is to do something else from now on; a rate that stays what it is
    /// keeps its times.
    fn change(&mut self, spec: ScheduleSpec, now: u64) {
        let is_kept = self.spec.expression == spec.expression;
        self.begun_unix_ms = Some(if is_kept { self.window().begun } else { now });
        self.spec = spec;
        self.modified_unix_ms = now;
    }

    fn expression(&self) -> Result<Expression, ControlError> {
        Expression::parse(&self.spec.expression, &self.spec.timezone)
            .map_err(|error| invalid(error.to_string()))
    }

    /// The time that it should have fired for and has not.
    fn missed(&self, expression: &Expression, now: u64) -> Option<u64> {
        let latest = expression.latest(now, self.window())?;
        (Some(latest) > self.fired_unix_ms).then_some(latest)
    }

    /// When it is to be looked at again.
    fn due(&self, now: u64) -> Result<Option<u64>, ControlError> {
        let expression = self.expression()?;
        if self.firing_unix_ms.is_some() {
            return Ok(Some(now));
        }
        if !self.spec.is_enabled {
            return Ok(None);
        }
        match self.missed(&expression, now) {
            Some(_) => Ok(Some(now)),
            None => Ok(expression.next(now, self.window())),
        }
    }

    /// The next time that it fires, unless it does not.
    pub(crate) fn next(&self, now: u64) -> Option<u64> {
        let due = self.due(now).ok().flatten();
        due.filter(|_| self.spec.is_enabled)
    }
}

/// When each schedule is to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    times: Mutex<Times>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Times {
    due: BTreeSet<(u64, ScheduleKey)>,
    of: HashMap<ScheduleKey, u64>,
}

impl Schedules {
    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, key: ScheduleKey, due: Option<u64>) {
        let mut times = self.times();
        if let Some(before) = times.of.remove(&key) {
            times.due.remove(&(before, key.clone()));
        }
        if let Some(due) = due {
            times.of.insert(key.clone(), due);
            times.due.insert((due, key));
        }
        drop(times);
        self.changed.notify_one();
    }

    /// Those that are due, at most so many, and when the next one is.
    fn take(&self, now: u64, most: usize) -> (Vec<ScheduleKey>, Option<u64>) {
        let mut times = self.times();
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((due, key)) = times.due.pop_first()
        {
            if due > now {
                times.due.insert((due, key));
                break;
            }
            times.of.remove(&key);
            taken.push(key);
        }
        let next = times.due.first().map(|(due, _)| *due);
        (taken, next)
    }
}

fn missing(name: &str) -> ControlError {
    let name: String = name.chars().take(NAME_BYTES_MAX).collect();
    not_found(format!("there is no schedule {name}"))
}

/// Only a name that parses can be part of a key.
fn check_name(name: &str) -> Result<(), ControlError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(invalid(format!(
        "a schedule's name is 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, -, _ and ."
    )))
}

impl Control {
    /// Makes a schedule, unless a call of this token has made it.
    pub(crate) async fn create_schedule(
        &self,
        project: &ProjectRecord,
        name: &str,
        spec: ScheduleSpec,
        token: Option<String>,
    ) -> Result<ScheduleRecord, ControlError> {
        if self.inner.events.get().is_none() {
            return Err(unsupported(
                "schedules need event invocations: set lambda.listen and start the server again",
            ));
        }
        check_name(name)?;
        let made = self.find_schedule(&project.id, name).await?;
        if let Some(made) = made.filter(|made| made.record.is_made_by(&token, &spec)) {
            return Ok(made.record);
        }
        let _projects = self.inner.projects.read().await;
        if !self.db().exists(&key::project(&project.id)).await? {
            return Err(not_found(format!("there is no project {}", project.name)));
        }
        let is_once = self.check(&project.id, &spec).await?.is_once();
        let now = self.inner.base.now();
        let start = spec.start_unix_ms.filter(|_| !is_once);
        if start.is_some_and(|start| now.saturating_sub(start) > START_BACK_MS_MAX) {
            return Err(invalid(
                "the schedule's start lies over 5 minutes back: leave it out, or give a later one",
            ));
        }
        let prefix = key::schedules(&project.id);
        let known = self
            .db()
            .first::<ScheduleRecord>(&prefix, None, SCHEDULES_MAX);
        if known.await?.len() >= SCHEDULES_MAX {
            return Err(exhausted(format!(
                "the project has {SCHEDULES_MAX} schedules already: delete one first"
            )));
        }
        let record = ScheduleRecord {
            spec,
            created_unix_ms: now,
            modified_unix_ms: now,
            begun_unix_ms: Some(now),
            fired_unix_ms: None,
            firing_unix_ms: None,
            token,
        };
        let place = key::schedule(&project.id, name);
        let change = Change::default()
            .expect_absent(&place)
            .put(&place, &record)?;
        if !self.db().try_commit(change).await? {
            return Err(conflict(format!("there is a schedule {name} already")));
        }
        self.look_at((project.id.clone(), name.to_owned()), &record, now)?;
        Ok(record)
    }

    /// Gives a schedule other things to do, all of them.
    pub(crate) async fn update_schedule(
        &self,
        project: &ProjectId,
        name: &str,
        spec: ScheduleSpec,
    ) -> Result<ScheduleRecord, ControlError> {
        self.check(project, &spec).await?;
        let now = self.inner.base.now();
        let change = |record: &mut ScheduleRecord| record.change(spec.clone(), now);
        let record = self.change_schedule(project, name, change).await?;
        let record = record.ok_or_else(|| missing(name))?;
        self.look_at((project.clone(), name.to_owned()), &record, now)?;
        Ok(record)
    }

    /// Changes what is stored of a schedule; `None` when it is gone.
    async fn change_schedule(
        &self,
        project: &ProjectId,
        name: &str,
        change: impl Fn(&mut ScheduleRecord),
    ) -> Result<Option<ScheduleRecord>, ControlError> {
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            let Some(found) = self.find_schedule(project, name).await? else {
                return Ok(None);
            };
            let mut record = found.record;
            change(&mut record);
            let write = Change::default()
                .expect(&found.key, found.version)
                .put(&found.key, &record)?;
            if self.db().try_commit(write).await? {
                return Ok(Some(record));
            }
        }
        Err(conflict(format!(
            "the schedule {name} is being changed by others: try again"
        )))
    }

    fn look_at(
        &self,
        key: ScheduleKey,
        record: &ScheduleRecord,
        now: u64,
    ) -> Result<(), ControlError> {
        self.inner.schedules.set(key, record.due(now)?);
        Ok(())
    }

    async fn find_schedule(
        &self,
        project: &ProjectId,
        name: &str,
    ) -> Result<Option<Found<ScheduleRecord>>, ControlError> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        self.db().get(&key::schedule(project, name)).await
    }

    pub(crate) async fn schedule(
        &self,
        project: &ProjectId,
        name: &str,
    ) -> Result<ScheduleRecord, ControlError> {
        let found = self.find_schedule(project, name).await?;
        Ok(found.ok_or_else(|| missing(name))?.record)
    }

    /// A page of a project's schedules, by name.
    pub(crate) async fn schedules(
        &self,
        project: &ProjectId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ScheduleRecord>, ControlError> {
        let prefix = key::schedules(project);
        let after = after.map(|name| key::schedule(project, name));
        self.db().page(&prefix, after.as_deref(), limit).await
    }

    /// Ends a schedule; what it has sent goes on.
    pub(crate) async fn delete_schedule(
        &self,
        project: &ProjectId,
        name: &str,
    ) -> Result<(), ControlError> {
        let found = self.find_schedule(project, name).await?;
        let found = found.ok_or_else(|| missing(name))?;
        self.db()
            .commit(Change::default().delete(&found.key))
            .await?;
        let key = (project.clone(), name.to_owned());
        let firing = found.record.firing_unix_ms;
        if let (Some(time), Some(events)) = (firing, self.inner.events.get()) {
            // Nobody else knows of it any more.
            events.release(&fire::event_key(&key, time), self.inner.base.now());
        }
        self.inner.schedules.set(key, None);
        Ok(())
    }

    async fn check(
        &self,
        project: &ProjectId,
        spec: &ScheduleSpec,
    ) -> Result<Expression, ControlError> {
        let expression = Expression::parse(&spec.expression, &spec.timezone);
        let expression = expression.map_err(|error| invalid(error.to_string()))?;
        if spec.description.chars().count() > DESCRIPTION_CHARS_MAX {
            return Err(invalid(format!(
                "the description is over {DESCRIPTION_CHARS_MAX} characters"
            )));
        }
        if spec
            .start_unix_ms
            .zip(spec.end_unix_ms)
            .is_some_and(|(start, end)| start >= end)
        {
            return Err(invalid("the schedule's end is not after its start"));
        }
        if !(AGE_S_MIN..=AGE_S_MAX).contains(&spec.age_s) {
            return Err(invalid(format!(
                "the oldest a missed time may be is {AGE_S_MIN} to {AGE_S_MAX} seconds"
            )));
        }
        if let Some(input) = &spec.input {
            if input.len() > INPUT_BYTES_MAX {
                return Err(invalid(format!(
                    "the input is over {INPUT_BYTES_MAX} bytes"
                )));
            }
            let read = serde_json::from_str::<serde::de::IgnoredAny>(input);
            read.map_err(|error| invalid(format!("the input is not JSON: {error}")))?;
        }
        let place = key::function(project, spec.function.service());
        let found = self.db().get::<FunctionRecord>(&place).await?;
        if !found.is_some_and(|found| found.record.is_named(&spec.function)) {
            return Err(invalid(format!("there is no function {}", spec.function)));
        }
        Ok(expression)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const MADE: u64 = 1_700_000_000_000;

    fn record(expression: &str) -> ScheduleRecord {
        ScheduleRecord {
            spec: ScheduleSpec {
                expression: expression.to_owned(),
                timezone: String::new(),
                start_unix_ms: None,
                end_unix_ms: None,
                description: String::new(),
                is_enabled: true,
                function: "f".parse().unwrap(),
                qualifier: None,
                role: String::new(),
                input: None,
                age_s: AGE_S_MAX,
                retries: 0,
                delete_after: false,
            },
            created_unix_ms: MADE,
            modified_unix_ms: MADE,
            begun_unix_ms: Some(MADE),
            fired_unix_ms: None,
            firing_unix_ms: None,
            token: Some("call".to_owned()),
        }
    }

    #[test]
    fn a_rate_fires_at_once_and_keeps_its_times_until_it_is_another() {
        let mut rate = record("rate(1 hour)");
        assert_eq!(rate.due(MADE).unwrap(), Some(MADE));
        assert_eq!(rate.next(MADE), Some(MADE));
        rate.fired_unix_ms = Some(MADE);
        assert_eq!(rate.due(MADE).unwrap(), Some(MADE + HOUR));
        let now = MADE + HOUR / 2;
        let described = ScheduleSpec {
            description: "hourly".to_owned(),
            ..rate.spec.clone()
        };
        rate.change(described, now);
        assert_eq!(rate.due(now).unwrap(), Some(MADE + HOUR));
        rate.change(record("rate(2 hours)").spec, now);
        assert_eq!(rate.due(now).unwrap(), Some(now));
        rate.fired_unix_ms = Some(now);
        assert_eq!(rate.due(now).unwrap(), Some(now + 2 * HOUR));
    }

    #[test]
    fn a_schedule_that_was_off_catches_up_with_nothing() {
        let mut daily = record("cron(0 6 * * ? *)");
        daily.spec.start_unix_ms = Some(MADE - 24 * 30 * HOUR);
        let off = ScheduleSpec {
            is_enabled: false,
            ..daily.spec.clone()
        };
        let on = daily.spec.clone();
        daily.change(off, MADE);
        let now = MADE + 24 * HOUR;
        assert_eq!(daily.due(now).unwrap(), None);
        daily.change(on, now);
        let due = daily.due(now).unwrap().unwrap();
        assert!(due > now && due <= now + 24 * HOUR, "{due}");
    }
}
