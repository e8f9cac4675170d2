//! What a schedule does when its time has come.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use skiff_base::{UtcTime, chain};
use skiff_lambda::Qualifier;
use skiff_queue::{Event, FunctionKey, PAYLOAD_BYTES_MAX};
use skiff_types::ProjectId;

use super::{ScheduleKey, ScheduleRecord};
use crate::db::Change;
use crate::error::ControlError;
use crate::key;
use crate::lambda::{Front, uuid};
use crate::record::ProjectRecord;

/// Schedules that fire at once.
const AT_ONCE: usize = 64;
/// How long nothing is looked at when nothing is due, at most.
const IDLE: Duration = Duration::from_secs(60);
/// Until a schedule is looked at again whose event found no room.
const PAUSE_MS: u64 = 1000;

impl Front {
    /// Takes up all schedules where a former server has left them.
    pub(crate) async fn load_schedules(&self) -> Result<(), ControlError> {
        let (control, now) = (&self.control, self.now());
        let mut firing = HashSet::new();
        for project in control.db().all::<ProjectRecord>(key::PROJECTS).await? {
            let id = project.record.id;
            for found in control
                .db()
                .all::<ScheduleRecord>(&key::schedules(&id))
                .await?
            {
                let key = (id.clone(), key::last_part(&found.key).to_owned());
                if let Some(time) = found.record.firing_unix_ms {
                    firing.insert(event_key(&key, time));
                }
                if let Err(error) = control.look_at(key, &found.record, now) {
                    tracing::error!(%error, key = %found.key, "a schedule cannot be read, and does not fire");
                }
            }
        }
        // Those that are not firing any more have fired.
        self.events.release_all_but(&firing, now);
        Ok(())
    }

    /// Fires what is due, until the control plane stops.
    pub(crate) async fn run_schedules(self: Arc<Self>) {
        let stopping = self.control.inner.stopping.subscribe();
        let mut stopped = std::pin::pin!(self.control.stopped());
        let schedules = &self.control.inner.schedules;
        while !*stopping.borrow() {
            let changed = schedules.changed.notified();
            let now = self.now();
            let (due, next) = schedules.take(now, AT_ONCE);
            if !due.is_empty() {
                join_all(due.into_iter().map(|key| self.fire_and_wait(key))).await;
                continue;
            }
            let wait = next.map(|next| Duration::from_millis(next.saturating_sub(now)));
            let wait = wait.unwrap_or(IDLE).min(IDLE);
            tokio::select! {
                () = &mut stopped => return,
                () = changed => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn fire_and_wait(&self, key: ScheduleKey) {
        let due = match self.fire(&key).await {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(%error, project = %key.0, schedule = %key.1, "a schedule did not fire, and is tried again");
                Some(self.now() + PAUSE_MS)
            }
        };
        // One that was changed meanwhile has its time already, or none.
        let schedules = &self.control.inner.schedules;
        let is_known = schedules.times().of.contains_key(&key);
        if !is_known {
            schedules.set(key, due);
        }
    }

    /// Fires for the latest time that is not done; when to look again.
    async fn fire(&self, key: &ScheduleKey) -> Result<Option<u64>, ControlError> {
        let (control, now) = (&self.control, self.now());
        let Some(found) = control.find_schedule(&key.0, &key.1).await? else {
            return Ok(None);
        };
        let expression = found.record.expression()?;
        let age_ms = u64::from(found.record.spec.age_s) * 1000;
        let time = match (
            found.record.firing_unix_ms,
            found.record.missed(&expression, now),
        ) {
            (Some(time), _) => time,
            (None, Some(time)) if found.record.spec.is_enabled => time,
            (None, _) => return found.record.due(now),
        };
        // What was sent in time is not too old because the server was down.
        let event_key = event_key(key, time);
        let is_sent = self.events.holds(&event_key);
        if !is_sent && now.saturating_sub(time) > age_ms {
            tracing::warn!(project = %key.0, schedule = %key.1, time = UtcTime::of_unix_ms(time).to_string(), "a schedule's time was missed by too much");
            return self.fired(key, time).await;
        }
        if found.record.firing_unix_ms.is_none() {
            let mut record = found.record.clone();
            record.firing_unix_ms = Some(time);
            let write = Change::default()
                .expect(&found.key, found.version)
                .put(&found.key, &record)?;
            if !control.db().try_commit(write).await? {
                // It was changed at this moment.
                return Ok(Some(now));
            }
        }
        if !is_sent {
            let (event, payload) = self.scheduled(key, &found.record, time, &event_key);
            if let Err(refused) = self.events.accept(event, payload).await {
                let error = chain(&refused);
                tracing::warn!(%error, project = %key.0, schedule = %key.1, "a schedule's event found no room, and is tried again");
                return Ok(Some(now + PAUSE_MS));
            }
        }
        let due = self.fired(key, time).await?;
        self.events.release(&event_key, self.now());
        Ok(due)
    }

    /// The time is done with; when to look again.
    async fn fired(&self, key: &ScheduleKey, time: u64) -> Result<Option<u64>, ControlError> {
        let change = |record: &mut ScheduleRecord| {
            record.fired_unix_ms = record.fired_unix_ms.max(Some(time));
            record.firing_unix_ms = None;
        };
        let changed = self.control.change_schedule(&key.0, &key.1, change);
        let Some(record) = changed.await? else {
            return Ok(None);
        };
        let now = self.now();
        let due = record.due(now)?;
        let is_over = record.expression()?.is_once() || record.spec.end_unix_ms.is_some();
        if due.is_none() && is_over && record.spec.is_enabled && record.spec.delete_after {
            self.control.delete_schedule(&key.0, &key.1).await?;
        }
        Ok(due)
    }

    fn scheduled(
        &self,
        (project, name): &ScheduleKey,
        record: &ScheduleRecord,
        time: u64,
        event_key: &str,
    ) -> (Event, Vec<u8>) {
        let spec = &record.spec;
        let arns = self.arns(project);
        let qualifier: Option<Qualifier> = spec.qualifier.as_deref().and_then(|q| q.parse().ok());
        let arn = arns.named(&spec.function, qualifier.as_ref());
        let request_id = uuid();
        let schedule = self.schedule_arn(project, name);
        let payload = match &spec.input {
            Some(input) => {
                let filled = input
                    .replace("<aws.scheduler.schedule-arn>", &schedule)
                    .replace("<aws.scheduler.scheduled-time>", &seconds(time))
                    .replace("<aws.scheduler.execution-id>", &request_id)
                    .replace("<aws.scheduler.attempt-number>", "1");
                match filled.len() <= PAYLOAD_BYTES_MAX {
                    true => filled,
                    false => input.clone(),
                }
            }
            None => json!({
                "version": "0",
                "id": request_id,
                "detail-type": "Scheduled Event",
                "source": "aws.scheduler",
                "account": project.as_str(),
                "time": seconds(time),
                "region": self.region,
                "resources": [schedule],
                "detail": "{}",
            })
            .to_string(),
        };
        let event = Event {
            function: FunctionKey {
                project: project.clone(),
                name: spec.function.service().clone(),
            },
            qualifier: qualifier.map(|qualifier| qualifier.to_string()),
            arn,
            request_id,
            accepted_unix_ms: self.now(),
            client_context: None,
            trace_id: None,
            key: Some(event_key.to_owned()),
            hops: 0,
        };
        (event, payload.into_bytes())
    }

    pub(crate) fn schedule_arn(&self, project: &ProjectId, name: &str) -> String {
        format!(
            "arn:aws:scheduler:{}:{project}:schedule/default/{name}",
            self.region
        )
    }
}

/// An event's key: one for each schedule and time.
pub(super) fn event_key((project, name): &ScheduleKey, time: u64) -> String {
    format!("schedule/{project}/{name}/{time}")
}

/// `2026-11-26T19:00:00Z`.
fn seconds(unix_ms: u64) -> String {
    let text = UtcTime::of_unix_ms(unix_ms).to_string();
    format!("{}Z", text.get(..19).unwrap_or(&text))
}
