//! What workers have and projects may use.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use skiff_types::api::Quota;
use skiff_types::{InstanceId, ProjectId, WorkerId};

use crate::{Config, Shortage};

/// What one instance takes of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) memory_mib: u64,
    /// Of that, what it is promised and its project's quota counts.
    pub(crate) promised_mib: u64,
    pub(crate) cpu_millis: u64,
}

#[derive(Debug)]
struct Worker {
    memory_mib: u64,
    cpu_millis: u64,
    used: Size,
    instances: BTreeSet<InstanceId>,
}

impl Worker {
    fn free(&self) -> Size {
        let memory_mib = self.memory_mib.saturating_sub(self.used.memory_mib);
        Size {
            memory_mib,
            promised_mib: memory_mib,
            cpu_millis: self.cpu_millis.saturating_sub(self.used.cpu_millis),
        }
    }
}

#[derive(Debug, Default)]
struct Project {
    quota: Quota,
    memory_mib: u64,
    instances: u32,
}

/// The books of every worker and project.
#[derive(Debug, Default)]
pub(crate) struct Capacity {
    workers: BTreeMap<WorkerId, Worker>,
    /// Workers by free memory: the first one with enough is the best fit.
    by_free: BTreeSet<(u64, WorkerId)>,
    projects: HashMap<ProjectId, Project>,
}

impl Capacity {
    pub(crate) fn worker_up(&mut self, id: WorkerId, has: Size, config: &Config) {
        let of = |amount: u64, percent: u32| amount.saturating_mul(percent.into()) / 100;
        let memory_mib = of(has.memory_mib, config.memory_overcommit_percent);
        let cpu_millis = of(has.cpu_millis, config.cpu_overcommit_percent);
        let worker = self.workers.entry(id).or_insert(Worker {
            memory_mib: 0,
            cpu_millis: 0,
            used: Size {
                memory_mib: 0,
                promised_mib: 0,
                cpu_millis: 0,
            },
            instances: BTreeSet::new(),
        });
        self.by_free.remove(&(worker.free().memory_mib, id));
        worker.memory_mib = memory_mib;
        worker.cpu_millis = cpu_millis;
        self.by_free.insert((worker.free().memory_mib, id));
    }

    /// Forgets the worker; its instances are to be released by the caller.
    pub(crate) fn worker_down(&mut self, id: WorkerId) -> BTreeSet<InstanceId> {
        let Some(worker) = self.workers.remove(&id) else {
            return BTreeSet::new();
        };
        self.by_free.remove(&(worker.free().memory_mib, id));
        worker.instances
    }

    pub(crate) fn has_worker(&self, id: WorkerId) -> bool {
        self.workers.contains_key(&id)
    }

    pub(crate) fn set_quota(&mut self, id: ProjectId, quota: Quota) {
        self.projects.entry(id.clone()).or_default().quota = quota;
        self.forget_if_empty(&id);
    }

    /// The worker that an instance fits best, or what is short.
    pub(crate) fn place(&self, project: &ProjectId, need: Size) -> Result<WorkerId, Shortage> {
        self.check_quota(project, need)?;
        let Some((most_free, _)) = self.by_free.last() else {
            return Err(Shortage::NoWorker);
        };
        let least = WorkerId::from_parts(0, 0);
        let mut free_millis = None;
        for (_, id) in self.by_free.range((need.memory_mib, least)..) {
            let free = self.workers.get(id).map_or(0, |w| w.free().cpu_millis);
            if free >= need.cpu_millis {
                return Ok(*id);
            }
            free_millis = free_millis.max(Some(free));
        }
        Err(match free_millis {
            Some(free_millis) => Shortage::Cpu {
                needed_millis: need.cpu_millis,
                free_millis,
            },
            None => Shortage::Memory {
                needed_mib: need.memory_mib,
                free_mib: *most_free,
            },
        })
    }

    fn check_quota(&self, project: &ProjectId, need: Size) -> Result<(), Shortage> {
        let Some(project) = self.projects.get(project) else {
            return Ok(());
        };
        if let Some(limit) = project.quota.instances
            && project.instances >= limit
        {
            return Err(Shortage::QuotaInstances { limit });
        }
        if let Some(limit_mib) = project.quota.memory_mib
            && project.memory_mib.saturating_add(need.promised_mib) > limit_mib
        {
            return Err(Shortage::QuotaMemory {
                limit_mib,
                used_mib: project.memory_mib,
            });
        }
        Ok(())
    }

    pub(crate) fn take(
        &mut self,
        project: &ProjectId,
        worker: WorkerId,
        instance: InstanceId,
        size: Size,
    ) {
        let books = self.projects.entry(project.clone()).or_default();
        books.instances += 1;
        books.memory_mib += size.promised_mib;
        self.change(worker, |worker| {
            worker.instances.insert(instance);
            worker.used.memory_mib += size.memory_mib;
            worker.used.cpu_millis += size.cpu_millis;
        });
    }

    pub(crate) fn release(
        &mut self,
        project: &ProjectId,
        worker: WorkerId,
        instance: InstanceId,
        size: Size,
    ) {
        if let Some(books) = self.projects.get_mut(project) {
            books.instances = books.instances.saturating_sub(1);
            books.memory_mib = books.memory_mib.saturating_sub(size.promised_mib);
        }
        self.forget_if_empty(project);
        self.change(worker, |worker| {
            worker.instances.remove(&instance);
            worker.used.memory_mib = worker.used.memory_mib.saturating_sub(size.memory_mib);
            worker.used.cpu_millis = worker.used.cpu_millis.saturating_sub(size.cpu_millis);
        });
    }

    fn change(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker)) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        self.by_free.remove(&(worker.free().memory_mib, id));
        change(worker);
        self.by_free.insert((worker.free().memory_mib, id));
    }

    fn forget_if_empty(&mut self, id: &ProjectId) {
        let empty = |p: &Project| p.instances == 0 && p.quota == Quota::default();
        if self.projects.get(id).is_some_and(empty) {
            self.projects.remove(id);
        }
    }

    /// What a worker has left.
    pub(crate) fn free(&self, id: WorkerId) -> Option<Size> {
        self.workers.get(&id).map(Worker::free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(n: u32) -> WorkerId {
        WorkerId::from_parts(1, n)
    }

    fn size(memory_mib: u64, cpu_millis: u64) -> Size {
        Size {
            memory_mib,
            promised_mib: memory_mib,
            cpu_millis,
        }
    }

    fn two_workers() -> Capacity {
        let config = Config {
            memory_overcommit_percent: 100,
            cpu_overcommit_percent: 100,
            ..Config::default()
        };
        let mut capacity = Capacity::default();
        capacity.worker_up(worker(1), size(1000, 1000), &config);
        capacity.worker_up(worker(2), size(500, 1000), &config);
        capacity
    }

    #[test]
    fn the_tightest_worker_that_fits_is_taken() {
        let mut capacity = two_workers();
        let project = ProjectId::default_project();
        assert_eq!(capacity.place(&project, size(400, 10)), Ok(worker(2)));
        assert_eq!(capacity.place(&project, size(600, 10)), Ok(worker(1)));
        let instance = InstanceId::from_parts(1, 1);
        capacity.take(&project, worker(2), instance, size(400, 990));
        assert_eq!(capacity.place(&project, size(50, 20)), Ok(worker(1)));
        capacity.release(&project, worker(2), instance, size(400, 990));
        assert_eq!(capacity.place(&project, size(50, 20)), Ok(worker(2)));
    }

    #[test]
    fn what_is_taken_beyond_the_promise_is_placed_and_in_no_quota() {
        let mut capacity = two_workers();
        let project = ProjectId::default_project();
        let quota = Quota {
            memory_mib: Some(400),
            instances: None,
            requests: None,
        };
        capacity.set_quota(project.clone(), quota);
        let machine = Size {
            promised_mib: 200,
            ..size(450, 10)
        };
        assert_eq!(capacity.place(&project, machine), Ok(worker(2)));
        capacity.take(&project, worker(2), InstanceId::from_parts(1, 1), machine);
        assert_eq!(capacity.place(&project, machine), Ok(worker(1)));
        capacity.take(&project, worker(1), InstanceId::from_parts(1, 2), machine);
        let refused = capacity.place(&project, machine).unwrap_err();
        assert!(matches!(
            refused,
            Shortage::QuotaMemory { used_mib: 400, .. }
        ));
        capacity.release(&project, worker(1), InstanceId::from_parts(1, 2), machine);
        assert_eq!(capacity.place(&project, machine), Ok(worker(1)));
    }

    #[test]
    fn a_refusal_names_what_is_short() {
        let mut capacity = two_workers();
        let project = ProjectId::default_project();
        let refused = |capacity: &Capacity, m, c| {
            capacity
                .place(&project, size(m, c))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused(&capacity, 2000, 10),
            "memory is short: 2000 MiB are needed and 1000 MiB are left"
        );
        assert_eq!(
            refused(&capacity, 10, 2000),
            "cpu is short: 2000 thousandths are needed and 1000 are left"
        );
        let quota = Quota {
            memory_mib: Some(100),
            instances: Some(1),
            requests: None,
        };
        capacity.set_quota(project.clone(), quota);
        assert!(refused(&capacity, 200, 10).contains("memory quota of 100 MiB"));
        let instance = InstanceId::from_parts(1, 1);
        capacity.take(&project, worker(1), instance, size(10, 10));
        assert!(refused(&capacity, 10, 10).contains("quota of 1 instances"));
        capacity.worker_down(worker(1));
        capacity.worker_down(worker(2));
        capacity.set_quota(project.clone(), Quota::default());
        assert_eq!(refused(&capacity, 10, 10), "no worker is there");
    }
}
