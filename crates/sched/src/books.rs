//! The books of instances: every place that one is written in changes here.

use std::collections::BTreeSet;

use skiff_types::{InstanceId, StartCause, WorkerId};

use crate::revision::{Instance, Key, Revision, State};
use crate::scheduler::Scheduler;

impl Scheduler {
    pub(crate) fn insert(&mut self, key: Key, id: InstanceId, worker: WorkerId, cause: StartCause) {
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        let size = revision.size();
        revision.starting += 1;
        revision.instances.insert(id);
        self.capacity
            .take(&revision.plan.revision.project, worker, id, size);
        self.instances.insert(
            id,
            Instance {
                key,
                worker,
                size,
                state: State::Starting,
                cause,
                in_flight: 0,
                idle_since: None,
                ready_at: self.now,
                used: false,
                reclaimed_for: None,
            },
        );
    }

    /// Removes an instance from all books.
    pub(crate) fn forget(&mut self, id: InstanceId) -> Option<Key> {
        self.unmark_idle(id);
        let instance = self.instances.remove(&id)?;
        self.departing.remove(&id);
        let key = instance.key;
        if let Some(revision) = self.revisions.get_mut(key) {
            take_out(&mut revision.instances, &id);
            revision.in_flight -= instance.in_flight;
            match instance.state {
                State::Starting => revision.starting -= 1,
                State::Ready | State::Paused => revision.ready -= 1,
                State::Stopping => revision.stopping -= 1,
            }
            revision.note_load(self.now, &self.config);
            let project = &revision.plan.revision.project;
            self.capacity
                .release(project, instance.worker, id, instance.size);
        }
        if let Some(other) = instance.reclaimed_for
            && let Some(revision) = self.revisions.get_mut(other)
        {
            revision.reclaims = revision.reclaims.saturating_sub(1);
            self.forget_if_done(other);
        }
        self.starved.room_appeared();
        Some(key)
    }

    pub(crate) fn forget_if_done(&mut self, key: Key) {
        if !self
            .revisions
            .get(key)
            .is_some_and(Revision::is_forgettable)
        {
            return;
        }
        if let Some(mut revision) = self.revisions.remove(key) {
            self.starved.remove(&mut revision);
            self.keys.remove(&revision.plan.revision);
            if let Some(at) = revision.armed {
                self.timers.remove(&(at, key));
            }
        }
    }

    pub(crate) fn mark_idle(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let entry = (self.now, id);
        instance.idle_since = Some(self.now);
        self.idle.insert(entry);
        if let Some(revision) = self.revisions.get_mut(instance.key) {
            revision.idle.insert(entry);
            if revision.pauses() && instance.state == State::Ready {
                revision.awake.insert(entry);
            }
        }
        if !self.starved.is_empty() {
            // An idle instance can be reclaimed.
            self.starved.room_appeared();
        }
    }

    pub(crate) fn unmark_idle(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let Some(since) = instance.idle_since.take() else {
            return;
        };
        self.idle.remove(&(since, id));
        if let Some(revision) = self.revisions.get_mut(instance.key) {
            take_out(&mut revision.idle, &(since, id));
            take_out(&mut revision.awake, &(since, id));
        }
    }

    pub(crate) fn mark_paused(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        instance.state = State::Paused;
        if let Some(revision) = self.revisions.get_mut(instance.key)
            && let Some(since) = instance.idle_since
        {
            take_out(&mut revision.awake, &(since, id));
        }
    }
}

/// Removes an entry; an empty set would keep its memory, and most revisions
/// have no instance.
fn take_out<T: Ord>(set: &mut BTreeSet<T>, entry: &T) {
    set.remove(entry);
    if set.is_empty() {
        *set = BTreeSet::new();
    }
}
