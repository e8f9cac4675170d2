//! What happens when an instance finds no room: the refusal, the search for
//! idle instances that can give way, and the next try.

use std::collections::{BTreeMap, HashMap};

use skiff_types::{InstanceId, WorkerId};

use crate::capacity::Size;
use crate::revision::Key;
use crate::scheduler::Scheduler;
use crate::{Action, Shortage, StopReason};

/// Revisions that are tried again in one event when room appears.
const RETRIED_PER_EVENT: usize = 32;
/// Idle instances that one search for room looks at.
const RECLAIM_LOOKED_AT: usize = 256;

impl Scheduler {
    /// What starts, or is starting, takes an earlier refusal back.
    pub(crate) fn told_of_start(&mut self, key: Key) {
        if let Some(revision) = self.revisions.get_mut(key) {
            revision.no_shortage();
        }
    }

    pub(crate) fn refuse(
        &mut self,
        key: Key,
        wanted: u32,
        shortage: Shortage,
        out: &mut Vec<Action>,
    ) {
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        revision.shortage = Some(shortage);
        if shortage.is_of_capacity() {
            self.starved.add(key, revision);
            let missing = wanted - revision.live();
            for _ in revision.reclaims..missing {
                if !self.reclaim(key, shortage, out) {
                    break;
                }
            }
        } else {
            self.starved.remove(revision);
        }
        self.tell_refusal(key, shortage, out);
    }

    /// Tells each cause once, and only when what waits has nothing to wait
    /// for: no instance is there, and no room is being made for one.
    fn tell_refusal(&mut self, key: Key, shortage: Shortage, out: &mut Vec<Action>) {
        let Some(revision) = self.revisions.get_mut(key) else {
            return;
        };
        let same =
            |old: Shortage| std::mem::discriminant(&old) == std::mem::discriminant(&shortage);
        if revision.live() + revision.reclaims > 0 || revision.refused.is_some_and(same) {
            return;
        }
        revision.refused = Some(shortage);
        out.push(Action::Refuse {
            revision: revision.plan.revision.clone(),
            shortage,
        });
    }

    /// Stops idle instances of others so that one of this revision fits. Those
    /// that are stopping anyway, its own among them, come first.
    fn reclaim(&mut self, key: Key, shortage: Shortage, out: &mut Vec<Action>) -> bool {
        let Some(victims) = self.find_room(key, shortage) else {
            return false;
        };
        for id in &victims {
            self.stop(*id, StopReason::Reclaimed, out);
            self.departing.remove(id);
            let Some(instance) = self.instances.get_mut(id) else {
                continue;
            };
            instance.reclaimed_for = Some(key);
            let owner = instance.key;
            self.tell_limit(owner, out);
        }
        if let Some(revision) = self.revisions.get_mut(key) {
            revision.reclaims += u32::try_from(victims.len()).unwrap_or(u32::MAX);
        }
        true
    }

    /// The longest idle instances of one worker (or of the project, when its
    /// quota is short) that together make room for one more.
    fn find_room(&self, key: Key, shortage: Shortage) -> Option<Vec<InstanceId>> {
        let revision = self.revisions.get(key)?;
        let need = revision.size();
        // Of each place, for the victims are all of one.
        let mut spared: HashMap<(Option<WorkerId>, Key), u32> = HashMap::new();
        let mut found: BTreeMap<Option<WorkerId>, (Size, Vec<InstanceId>)> = BTreeMap::new();
        let departing = self.departing.iter().map(|id| (id, true));
        let idle = self.idle.iter().map(|(_, id)| (id, false));
        for (id, departs) in departing.chain(idle).take(RECLAIM_LOOKED_AT) {
            let instance = self.instances.get(id)?;
            let owner = self.revisions.get(instance.key)?;
            let by_quota = match shortage {
                Shortage::QuotaMemory {
                    limit_mib,
                    used_mib,
                } => Some(limit_mib.saturating_sub(used_mib)),
                Shortage::QuotaInstances { .. } => Some(need.promised_mib),
                _ => None,
            };
            let place = by_quota.is_none().then_some(instance.worker);
            let same_project = owner.plan.revision.project == revision.plan.revision.project;
            if by_quota.is_some() && !same_project {
                continue;
            }
            if !departs {
                let taken = spared.entry((place, instance.key)).or_default();
                let keeps = owner.waiting > 0 || owner.live() - *taken <= owner.floor();
                if instance.key == key || keeps {
                    continue;
                }
                *taken += 1;
            }
            let (room, victims) = found.entry(place).or_insert_with(|| {
                let free = by_quota.map(|promised_mib| Size {
                    memory_mib: need.memory_mib,
                    promised_mib,
                    cpu_millis: need.cpu_millis,
                });
                let none = Size {
                    memory_mib: 0,
                    promised_mib: need.promised_mib,
                    cpu_millis: 0,
                };
                let free = free.or_else(|| self.capacity.free(instance.worker));
                (free.unwrap_or(none), Vec::new())
            });
            room.memory_mib += instance.size.memory_mib;
            room.promised_mib += instance.size.promised_mib;
            room.cpu_millis += instance.size.cpu_millis;
            victims.push(*id);
            let fits = room.memory_mib >= need.memory_mib
                && room.promised_mib >= need.promised_mib
                && room.cpu_millis >= need.cpu_millis;
            if fits {
                return Some(std::mem::take(victims));
            }
        }
        None
    }

    /// Tries the revisions that wait for room, when there may be some.
    pub(crate) fn retry_starved(&mut self, out: &mut Vec<Action>) {
        for _ in 0..RETRIED_PER_EVENT {
            let Some(key) = self.starved.untried() else {
                return;
            };
            // Its new place is behind all that have not been tried.
            if let Some(revision) = self.revisions.get_mut(key) {
                self.starved.add(key, revision);
            }
            self.settle(key, 0, out);
        }
    }
}
