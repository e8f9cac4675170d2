use std::collections::{BTreeSet, HashMap};
use std::fmt;

use skiff_base::Monotonic;
use skiff_types::{InstanceId, RevisionId, StartCause, WorkerId};

use crate::capacity::{Capacity, Size};
use crate::revision::{Instance, Key, Revision, Starved, State, Table};
use crate::{Action, AdoptedState, Config, Counts, Input, RevisionPlan, Shortage, StopReason};

/// Where new instances' ids come from; a test gives a counted sequence.
pub type NextInstanceId = Box<dyn FnMut() -> InstanceId + Send>;

/// Timers that fire in one tick; the rest fire in the next one, at once.
const FIRED_PER_TICK: usize = 1024;
/// Idle instances of one revision that one event looks at.
const EXPIRED_PER_EVENT: usize = 256;

/// The state machine. See the crate's head.
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) next_id: NextInstanceId,
    pub(crate) now: Monotonic,
    pub(crate) revisions: Table,
    pub(crate) keys: HashMap<RevisionId, Key>,
    pub(crate) instances: HashMap<InstanceId, Instance>,
    pub(crate) capacity: Capacity,
    /// Idle instances of all revisions, longest idle first.
    pub(crate) idle: BTreeSet<(Monotonic, InstanceId)>,
    /// Instances that are stopping, and whose room nobody has been given.
    pub(crate) departing: BTreeSet<InstanceId>,
    /// At most one for each revision.
    pub(crate) timers: BTreeSet<(Monotonic, Key)>,
    pub(crate) starved: Starved,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("now", &self.now)
            .field("revisions", &self.keys.len())
            .field("instances", &self.instances.len())
            .field("timers", &self.timers.len())
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// A scheduler that knows nothing yet.
    #[must_use]
    pub fn new(config: Config, next_id: NextInstanceId) -> Self {
        Self {
            config,
            next_id,
            now: Monotonic::default(),
            revisions: Table::default(),
            keys: HashMap::new(),
            instances: HashMap::new(),
            capacity: Capacity::default(),
            idle: BTreeSet::new(),
            departing: BTreeSet::new(),
            timers: BTreeSet::new(),
            starved: Starved::default(),
        }
    }

    /// Takes a fact and adds the decisions that follow from it to `out`.
    pub fn handle(&mut self, now: Monotonic, input: Input, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        match input {
            Input::RevisionUpsert(plan) => self.revision_upsert(plan, out),
            Input::RevisionRemove(revision) => self.revision_remove(&revision, out),
            Input::WorkerUp {
                worker,
                memory_mib,
                cpu_millis,
            } => {
                let has = Size {
                    memory_mib,
                    promised_mib: memory_mib,
                    cpu_millis,
                };
                self.capacity.worker_up(worker, has, &self.config);
                self.starved.room_appeared();
            }
            Input::WorkerDown(worker) => self.worker_down(worker, out),
            Input::QuotaSet { project, quota } => {
                self.capacity.set_quota(project, quota);
                self.starved.room_appeared();
            }
            Input::Queued {
                revision,
                waiting,
                in_flight,
            } => self.queued(&revision, waiting, in_flight, out),
            Input::InFlight {
                instance,
                in_flight,
            } => self.in_flight(instance, in_flight, out),
            Input::InstanceReady(instance) => self.instance_ready(instance, out),
            Input::InstanceRetired(instance) => self.retire(instance, out),
            Input::InstanceFailed(instance) => self.instance_ended(instance, true, out),
            Input::InstanceGone(instance) => self.instance_ended(instance, false, out),
            Input::Adopted {
                instance,
                revision,
                worker,
                state,
            } => self.adopt(instance, &revision, worker, state, out),
            Input::Tick => self.fire(out),
        }
        self.retry_starved(out);
    }

    /// When [`Input::Tick`] is due; it may be in the past.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        if self.starved.untried().is_some() {
            return Some(self.now);
        }
        self.timers.first().map(|(at, _)| *at)
    }

    /// A revision's instances and requests.
    #[must_use]
    pub fn counts(&self, revision: &RevisionId) -> Option<Counts> {
        let key = self.keys.get(revision)?;
        self.revisions.get(*key).map(Revision::counts)
    }

    /// Why a revision has fewer instances than it needs.
    #[must_use]
    pub fn shortage(&self, revision: &RevisionId) -> Option<Shortage> {
        let key = self.keys.get(revision)?;
        self.revisions.get(*key)?.shortage
    }

    /// Whether no instance of a revision is coming and none can be added for
    /// now: it has as many as it may, or needs more and something is short.
    #[must_use]
    pub fn is_limited(&self, revision: &RevisionId) -> bool {
        let key = self.keys.get(revision);
        let found = key.and_then(|key| self.revisions.get(*key));
        found.is_some_and(Revision::is_limited)
    }

    /// Memory and processors that a worker has left to promise, MiB and
    /// thousandths.
    #[must_use]
    pub fn worker_free(&self, worker: WorkerId) -> Option<(u64, u64)> {
        let free = self.capacity.free(worker)?;
        Some((free.memory_mib, free.cpu_millis))
    }

    /// Instances that are not gone.
    #[must_use]
    pub fn instance_count(&self) -> usize {
        self.instances.len()
    }

    fn revision_upsert(&mut self, plan: RevisionPlan, out: &mut Vec<Action>) {
        let key = match self.keys.get(&plan.revision) {
            Some(key) => *key,
            None => {
                let id = plan.revision.clone();
                let key = self.revisions.insert(Revision::new(plan.clone()));
                self.keys.insert(id, key);
                key
            }
        };
        if let Some(revision) = self.revisions.get_mut(key) {
            revision.plan = plan;
            revision.removed = false;
        }
        self.settle(key, 0, out);
    }

    fn revision_remove(&mut self, id: &RevisionId, out: &mut Vec<Action>) {
        let Some(&key) = self.keys.get(id) else {
            return;
        };
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        revision.removed = true;
        revision.waiting = 0;
        revision.again = 0;
        revision.no_shortage();
        self.starved.remove(revision);
        let live: Vec<_> = revision.instances.iter().copied().collect();
        for instance in live {
            self.stop(instance, StopReason::Removed, out);
        }
        self.tell_limit(key, out);
        self.forget_if_done(key);
    }

    fn worker_down(&mut self, worker: WorkerId, out: &mut Vec<Action>) {
        let lost = self.capacity.worker_down(worker);
        let mut hit = BTreeSet::new();
        for instance in lost {
            hit.extend(self.forget(instance));
        }
        for key in hit {
            self.settle(key, 0, out);
            self.forget_if_done(key);
        }
    }

    fn queued(&mut self, id: &RevisionId, waiting: u32, in_flight: u32, out: &mut Vec<Action>) {
        let Some(&key) = self.keys.get(id) else {
            return;
        };
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        if revision.removed {
            return;
        }
        if revision.waiting == 0 {
            // Who was refused is gone; whoever comes now has heard nothing.
            revision.refused = None;
        }
        revision.waiting = waiting;
        revision.again = revision.again.min(waiting);
        revision.note_load(self.now, &self.config);
        self.settle(key, in_flight, out);
    }

    fn in_flight(&mut self, id: InstanceId, in_flight: u32, out: &mut Vec<Action>) {
        let early = |instance: &Instance| instance.state == State::Starting && in_flight > 0;
        if self.instances.get(&id).is_some_and(early) {
            self.instance_ready(id, out);
        }
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        if !matches!(instance.state, State::Ready | State::Paused) {
            // What is stopping has left rotation; what starts has no requests yet.
            return;
        }
        let key = instance.key;
        let before = std::mem::replace(&mut instance.in_flight, in_flight);
        instance.used |= in_flight > 0;
        let wake = in_flight > 0 && instance.state == State::Paused;
        if wake {
            instance.state = State::Ready;
            out.push(Action::Resume(id));
        }
        if let Some(revision) = self.revisions.get_mut(key) {
            revision.in_flight = (revision.in_flight - before).saturating_add(in_flight);
            revision.note_load(self.now, &self.config);
        }
        if in_flight > 0 {
            self.unmark_idle(id);
        } else if before > 0 {
            self.mark_idle(id);
        }
        if (before > 0) != (in_flight > 0) {
            self.expire(key, out);
            self.tell_limit(key, out);
        }
        self.arm(key);
    }

    fn instance_ready(&mut self, id: InstanceId, out: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        if instance.state != State::Starting {
            return;
        }
        let key = instance.key;
        instance.state = State::Ready;
        instance.ready_at = self.now;
        if let Some(revision) = self.revisions.get_mut(key) {
            revision.starting -= 1;
            revision.ready += 1;
        }
        self.mark_idle(id);
        self.settle(key, 0, out);
    }

    fn instance_ended(&mut self, id: InstanceId, failed: bool, out: &mut Vec<Action>) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let state = instance.state;
        let young = self.now.since(instance.ready_at) < self.config.crash_loop_within;
        let crashed = match state {
            State::Stopping => false,
            State::Starting => true,
            State::Ready | State::Paused => failed || young,
        };
        let used = instance.used;
        let first = state == State::Starting && instance.cause == StartCause::Demand;
        let Some(key) = self.forget(id) else {
            return;
        };
        if crashed
            && let Some(revision) = self.revisions.get_mut(key)
            && !(used && revision.plan.function)
            && !(first && revision.begins_again())
        {
            revision.failed(self.now, &self.config);
        }
        self.settle(key, 0, out);
        self.forget_if_done(key);
    }

    /// Somebody else ends it: there is nothing to carry out for it.
    fn retire(&mut self, id: InstanceId, out: &mut Vec<Action>) {
        let Some(key) = self.instances.get(&id).map(|instance| instance.key) else {
            return;
        };
        let mut carried_out_elsewhere = Vec::new();
        self.stop(id, StopReason::ScaleDown, &mut carried_out_elsewhere);
        self.settle(key, 0, out);
    }

    fn adopt(
        &mut self,
        id: InstanceId,
        revision: &RevisionId,
        worker: WorkerId,
        state: AdoptedState,
        out: &mut Vec<Action>,
    ) {
        if self.instances.contains_key(&id) {
            return;
        }
        let key = self.keys.get(revision).copied();
        let wanted = key.filter(|key| self.revisions.get(*key).is_some_and(|r| !r.removed));
        let Some(key) = wanted.filter(|_| self.capacity.has_worker(worker)) else {
            out.push(Action::Stop {
                instance: id,
                reason: StopReason::Orphan,
            });
            return;
        };
        self.insert(key, id, worker, StartCause::Demand);
        if state != AdoptedState::Starting {
            self.instance_ready(id, out);
            if state == AdoptedState::Paused {
                self.mark_paused(id);
            }
        }
        self.settle(key, 0, out);
    }

    /// Fires the timers that are due.
    fn fire(&mut self, out: &mut Vec<Action>) {
        for _ in 0..FIRED_PER_TICK {
            let Some(&(at, key)) = self.timers.first() else {
                return;
            };
            if at > self.now {
                return;
            }
            self.timers.remove(&(at, key));
            if let Some(revision) = self.revisions.get_mut(key) {
                revision.armed = None;
            }
            self.pause_idle(key, out);
            self.autoscale(key, out);
            self.settle(key, 0, out);
        }
    }

    /// Brings a revision to what its queue, floor and keep-alive ask for.
    pub(crate) fn settle(&mut self, key: Key, in_flight: u32, out: &mut Vec<Action>) {
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        let max = revision.plan.scaling.max;
        let excess = revision.live().saturating_sub(max);
        if excess > 0 {
            self.stop_some(key, excess, StopReason::ScaleDown, out);
        }
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        let wanted = revision.wanted(in_flight, &self.config);
        self.grow(key, wanted, out);
        self.expire(key, out);
        self.arm(key);
        self.tell_limit(key, out);
    }

    pub(crate) fn tell_limit(&mut self, key: Key, out: &mut Vec<Action>) {
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        let limited = revision.is_limited();
        if std::mem::replace(&mut revision.told_limited, limited) != limited {
            out.push(Action::Limit(revision.plan.revision.clone()));
        }
    }

    /// Starts instances until there are so many, or tells what is short.
    pub(crate) fn grow(&mut self, key: Key, wanted: u32, out: &mut Vec<Action>) {
        loop {
            let Some(revision) = self.revisions.get_mut(key) else {
                return;
            };
            if revision.live() >= wanted {
                revision.no_shortage();
                self.starved.remove(revision);
                return;
            }
            match self.start_one(key, out) {
                Ok(true) => {}
                Ok(false) => {
                    self.told_of_start(key);
                    return;
                }
                Err(shortage) => {
                    self.refuse(key, wanted, shortage, out);
                    return;
                }
            }
        }
    }

    /// Starts one; false when the one that is starting has to show first
    /// whether it fails.
    pub(crate) fn start_one(&mut self, key: Key, out: &mut Vec<Action>) -> Result<bool, Shortage> {
        let Some(revision) = self.revisions.get_mut(key) else {
            return Ok(false);
        };
        revision.forgive(self.now, &self.config);
        if revision.may_start(self.now)? == 0 {
            return Ok(false);
        }
        let cause = revision.next_cause();
        let size = revision.size();
        let worker = self.capacity.place(&revision.plan.revision.project, size)?;
        let id = revision.plan.revision.clone();
        let instance = (self.next_id)();
        if self.instances.contains_key(&instance) {
            // The source repeats itself; a later event draws again.
            return Ok(false);
        }
        if cause == StartCause::Again {
            revision.again -= 1;
        }
        self.insert(key, instance, worker, cause);
        self.told_of_start(key);
        out.push(Action::Start {
            instance,
            revision: id,
            worker,
            cause,
        });
        Ok(true)
    }

    /// Stops what has been idle for longer than the keep-alive.
    fn expire(&mut self, key: Key, out: &mut Vec<Action>) {
        let Some(revision) = self.revisions.get(key) else {
            return;
        };
        let surplus = revision.live().saturating_sub(revision.floor());
        if revision.waiting > 0 || surplus == 0 || revision.idle.is_empty() {
            return;
        }
        let is_due = |(since, id): &&(Monotonic, InstanceId)| {
            let used = self.instances.get(id).is_some_and(|i| i.used);
            revision.idle_until(*since, used, &self.config) <= self.now
        };
        let looked_at = revision.idle.iter().take(EXPIRED_PER_EVENT);
        let due: Vec<_> = looked_at
            .filter(is_due)
            .take(usize::try_from(surplus).unwrap_or(usize::MAX))
            .map(|(_, id)| *id)
            .collect();
        for id in due {
            self.stop(id, StopReason::Idle, out);
        }
    }

    fn pause_idle(&mut self, key: Key, out: &mut Vec<Action>) {
        loop {
            let Some(revision) = self.revisions.get_mut(key) else {
                return;
            };
            let Some(&(since, id)) = revision.awake.first() else {
                return;
            };
            if since.plus(self.config.pause_after) > self.now || revision.waiting > 0 {
                return;
            }
            self.mark_paused(id);
            out.push(Action::Pause(id));
        }
    }

    /// Stops so many: those that are starting for nobody, the longest idle
    /// ones, the least loaded ones.
    pub(crate) fn stop_some(
        &mut self,
        key: Key,
        count: u32,
        reason: StopReason,
        out: &mut Vec<Action>,
    ) {
        let Some(revision) = self.revisions.get(key) else {
            return;
        };
        let rank = |id: &InstanceId| {
            let instance = self.instances.get(id)?;
            let idle_since = instance.idle_since.map_or(u64::MAX, Monotonic::as_nanos);
            let class = match instance.state {
                State::Stopping => return None,
                State::Starting => 0,
                State::Ready | State::Paused => 1,
            };
            Some((class, idle_since, instance.in_flight, *id))
        };
        let mut ranked: Vec<_> = revision.instances.iter().filter_map(rank).collect();
        ranked.sort_unstable();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        for (_, _, _, id) in ranked.into_iter().take(count) {
            self.stop(id, reason, out);
        }
    }

    pub(crate) fn stop(&mut self, id: InstanceId, reason: StopReason, out: &mut Vec<Action>) {
        self.unmark_idle(id);
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let Some(revision) = self.revisions.get_mut(instance.key) else {
            return;
        };
        match std::mem::replace(&mut instance.state, State::Stopping) {
            State::Stopping => return,
            State::Starting => revision.starting -= 1,
            State::Ready | State::Paused => revision.ready -= 1,
        }
        revision.stopping += 1;
        self.departing.insert(id);
        revision.in_flight -= std::mem::take(&mut instance.in_flight);
        revision.note_load(self.now, &self.config);
        out.push(Action::Stop {
            instance: id,
            reason,
        });
    }

    /// Sets the revision's timer to the first of what it waits for. A timer
    /// that is set already and fires earlier is left: firing sets it again.
    /// What waits for nothing has none.
    fn arm(&mut self, key: Key) {
        let Some(revision) = self.revisions.get(key) else {
            return;
        };
        let idle = revision
            .idle
            .first()
            .filter(|_| revision.waiting == 0 && revision.live() > revision.floor());
        let idle = idle.map(|(since, id)| {
            let used = self.instances.get(id).is_some_and(|i| i.used);
            revision.idle_until(*since, used, &self.config)
        });
        let awake = revision.awake.first().filter(|_| revision.waiting == 0);
        let pause = awake.map(|(since, _)| since.plus(self.config.pause_after));
        let backs_off = matches!(revision.shortage, Some(Shortage::CrashLoop { .. }));
        let retry = backs_off.then_some(revision.retry_at);
        let due = [revision.next_tick, idle, pause, retry];
        let due = due.into_iter().flatten().min();
        let armed = revision.armed;
        if armed == due || armed.is_some_and(|armed| due.is_some_and(|due| armed < due)) {
            return;
        }
        if let Some(armed) = armed {
            self.timers.remove(&(armed, key));
        }
        if let Some(due) = due {
            self.timers.insert((due, key));
        }
        if let Some(revision) = self.revisions.get_mut(key) {
            revision.armed = due;
        }
    }
}
