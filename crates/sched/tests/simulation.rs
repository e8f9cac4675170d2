//! The scheduler against a small world, replayed from seeds: arrivals,
//! crashes, slow stops, lost workers, changed quotas and revisions.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use skiff_base::Monotonic;
use skiff_sched::{Action, Config, Input, RevisionPlan, Scheduler, Shortage};
use skiff_types::api::Quota;
use skiff_types::{CpuMode, InstanceId, ProjectId, RevisionId, Scaling, WorkerId};

const REVISIONS: u32 = 8;
const WORKERS: u32 = 3;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        u32::try_from(high % u64::from(n)).unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Starting,
    Ready,
    Paused,
    Stopping,
}

#[derive(Debug)]
struct Instance {
    revision: u32,
    worker: WorkerId,
    life: Life,
    in_flight: u32,
    memory_mib: u64,
}

struct World {
    random: Random,
    scheduler: Scheduler,
    now: Monotonic,
    plans: BTreeMap<u32, RevisionPlan>,
    waiting: BTreeMap<u32, u32>,
    workers: BTreeSet<WorkerId>,
    quota: Quota,
    instances: BTreeMap<InstanceId, Instance>,
    ever: BTreeSet<InstanceId>,
    log: Vec<Action>,
    /// Revisions of which it was last told that nothing can be added.
    told_limits: BTreeSet<RevisionId>,
    starts: usize,
}

fn revision(n: u32) -> RevisionId {
    RevisionId {
        project: ProjectId::default_project(),
        service: format!("s{n}").parse().unwrap(),
        number: 1,
    }
}

fn worker(n: u32) -> WorkerId {
    WorkerId::from_parts(1, n)
}

const WORKER_MIB: u64 = 1000;

impl World {
    fn new(seed: u64) -> Self {
        let config = Config {
            memory_overcommit_percent: 100,
            cpu_overcommit_percent: 1000,
            ..Config::default()
        };
        let mut count = 0;
        let ids = Box::new(move || {
            count += 1;
            InstanceId::from_parts(1, count)
        });
        Self {
            random: Random(seed | 1),
            scheduler: Scheduler::new(config, ids),
            now: Monotonic::from_nanos(1_000_000_000_000),
            plans: BTreeMap::new(),
            waiting: BTreeMap::new(),
            workers: BTreeSet::new(),
            quota: Quota::default(),
            instances: BTreeMap::new(),
            ever: BTreeSet::new(),
            log: vec![],
            told_limits: BTreeSet::new(),
            starts: 0,
        }
    }

    fn give(&mut self, input: Input) {
        let mut out = vec![];
        self.scheduler.handle(self.now, input, &mut out);
        for action in out {
            self.carry_out(&action);
            self.log.push(action);
        }
    }

    fn carry_out(&mut self, action: &Action) {
        match action {
            Action::Start {
                instance,
                revision: id,
                worker,
                ..
            } => {
                assert!(self.ever.insert(*instance), "an id is used twice");
                let n = (0..REVISIONS).find(|n| revision(*n) == *id).unwrap();
                self.starts += 1;
                let memory_mib = self.plans[&n].memory_mib.into();
                self.instances.insert(
                    *instance,
                    Instance {
                        revision: n,
                        worker: *worker,
                        life: Life::Starting,
                        in_flight: 0,
                        memory_mib,
                    },
                );
                self.check_bounds(n, *worker);
            }
            Action::Stop { instance, .. } => {
                let known = self.instances.get_mut(instance).unwrap();
                assert_ne!(known.life, Life::Stopping, "stopped twice");
                known.life = Life::Stopping;
            }
            Action::Pause(instance) => {
                let known = self.instances.get_mut(instance).unwrap();
                assert_eq!((known.life, known.in_flight), (Life::Ready, 0));
                assert_eq!(self.plans[&known.revision].cpu_mode, CpuMode::Request);
                known.life = Life::Paused;
            }
            Action::Resume(instance) => {
                let known = self.instances.get_mut(instance).unwrap();
                assert_eq!(known.life, Life::Paused);
                known.life = Life::Ready;
            }
            Action::Refuse {
                revision: id,
                shortage,
            } => {
                let n = (0..REVISIONS).find(|n| revision(*n) == *id).unwrap();
                self.check_refusal(n, *shortage);
            }
            Action::Limit(id) => {
                assert!(self.told_limits.insert(id.clone()) || self.told_limits.remove(id))
            }
        }
    }

    fn memory(&self, of: impl Fn(&Instance) -> bool) -> u64 {
        let of = self.instances.values().filter(|i| of(i));
        of.map(|i| i.memory_mib).sum()
    }

    fn check_bounds(&self, n: u32, worker: WorkerId) {
        assert!(self.workers.contains(&worker), "placed on a lost worker");
        assert!(self.memory(|i| i.worker == worker) <= WORKER_MIB);
        let of_revision = self.instances.values().filter(|i| i.revision == n);
        assert!(of_revision.count() <= self.plans[&n].scaling.max as usize);
        if let Some(limit) = self.quota.instances {
            assert!(self.instances.len() <= limit as usize);
        }
        if let Some(limit) = self.quota.memory_mib {
            assert!(self.memory(|_| true) <= limit);
        }
    }

    fn upsert(&mut self, n: u32) {
        let r = &mut self.random;
        let max = 1 + r.below(12);
        let plan = RevisionPlan {
            revision: revision(n),
            scaling: Scaling {
                concurrency: [1, 2, 10, 100][r.below(4) as usize],
                min: r.below(3).min(max) * (r.below(3) / 2),
                max,
                keep_alive_s: [0, 1, 30][r.below(3) as usize],
            },
            memory_mib: [50, 100, 250][r.below(3) as usize],
            overhead_mib: 0,
            cpu_millis: 100,
            cpu_mode: [CpuMode::Always, CpuMode::Request][r.below(2) as usize],
            serving: r.below(4) > 0,
            function: r.below(2) > 0,
        };
        // Sizes and modes are a revision's own; only scaling and traffic change.
        let kept = self.plans.entry(n).or_insert_with(|| plan.clone());
        kept.scaling = plan.scaling;
        kept.serving = plan.serving;
        let plan = kept.clone();
        self.give(Input::RevisionUpsert(plan));
        self.waiting.entry(n).or_insert(0);
    }

    fn remove(&mut self, n: u32) {
        // The plan is remembered: the same revision may come back.
        self.waiting.remove(&n);
        self.give(Input::RevisionRemove(revision(n)));
    }

    fn tell_queue(&mut self, n: u32) {
        let waiting = self.waiting[&n];
        let of_revision = self.instances.values().filter(|i| i.revision == n);
        let in_flight = of_revision.map(|i| i.in_flight).sum();
        self.give(Input::Queued {
            revision: revision(n),
            waiting,
            in_flight,
        });
    }

    /// What the gateway does: gives waiting requests to free slots.
    fn dispatch(&mut self, n: u32) {
        let concurrency = self.plans[&n].scaling.concurrency;
        let ids: Vec<_> = self.instances.keys().copied().collect();
        for id in ids {
            let waiting = self.waiting.get(&n).copied().unwrap_or(0);
            let known = &self.instances[&id];
            let takes = matches!(known.life, Life::Ready | Life::Paused);
            if known.revision != n || !takes || known.in_flight >= concurrency || waiting == 0 {
                continue;
            }
            let given = waiting.min(concurrency - known.in_flight);
            let in_flight = known.in_flight + given;
            self.instances.get_mut(&id).unwrap().in_flight = in_flight;
            self.waiting.insert(n, waiting - given);
            self.give(Input::InFlight {
                instance: id,
                in_flight,
            });
            assert_ne!(self.instances[&id].life, Life::Paused, "resumed first");
        }
        if self.waiting.contains_key(&n) {
            self.tell_queue(n);
        }
    }

    fn any(&mut self, of: impl Fn(&Instance) -> bool) -> Option<InstanceId> {
        let all: Vec<_> = self
            .instances
            .iter()
            .filter(|(_, i)| of(i))
            .map(|(id, _)| *id)
            .collect();
        if all.is_empty() {
            return None;
        }
        let n = u32::try_from(all.len()).unwrap();
        Some(all[self.random.below(n) as usize])
    }

    fn end(&mut self, id: InstanceId, failed: bool) {
        self.instances.remove(&id).unwrap();
        self.give(if failed {
            Input::InstanceFailed(id)
        } else {
            Input::InstanceGone(id)
        });
    }

    fn step(&mut self) {
        let n = self.random.below(REVISIONS);
        match self.random.below(100) {
            0..30 => {
                if self.waiting.contains_key(&n) {
                    let most = 1 + self.random.below(20);
                    let more = 1 + self.random.below(most);
                    *self.waiting.get_mut(&n).unwrap() += more;
                    self.dispatch(n);
                }
            }
            30..55 => self.advance_a_start(),
            55..75 => self.finish_a_request(),
            75..85 => {
                if let Some(id) = self.any(|i| i.life == Life::Stopping && i.in_flight == 0) {
                    self.end(id, false);
                }
            }
            85..88 => {
                if let Some(id) = self.any(|_| true) {
                    self.end(id, false);
                }
            }
            88..91 => self.upsert(n),
            91 => self.remove(n),
            92..94 => self.worker_changes(),
            94 => self.quota_changes(),
            95..97 => {
                if let Some(waiting) = self.waiting.get_mut(&n) {
                    *waiting = 0;
                    self.tell_queue(n);
                }
            }
            _ => {
                let seconds = [1, 2, 10, 70][self.random.below(4) as usize];
                self.pass(Duration::from_secs(seconds));
            }
        }
        let millis = self.random.below(50).into();
        self.pass(Duration::from_millis(millis));
    }

    fn advance_a_start(&mut self) {
        let Some(id) = self.any(|i| i.life == Life::Starting) else {
            return;
        };
        if self.random.below(20) == 0 {
            self.end(id, true);
            return;
        }
        let known = self.instances.get_mut(&id).unwrap();
        known.life = Life::Ready;
        let n = known.revision;
        // The gateway may be quicker than the one who tells of the readiness.
        let early = self.random.below(2) == 0;
        if early {
            self.dispatch(n);
        }
        self.give(Input::InstanceReady(id));
        if !early {
            self.dispatch(n);
        }
    }

    fn finish_a_request(&mut self) {
        let Some(id) = self.any(|i| i.in_flight > 0) else {
            return;
        };
        let known = self.instances.get_mut(&id).unwrap();
        known.in_flight -= 1;
        let (n, in_flight) = (known.revision, known.in_flight);
        if known.life != Life::Stopping {
            self.give(Input::InFlight {
                instance: id,
                in_flight,
            });
        }
        self.dispatch(n);
    }

    fn worker_changes(&mut self) {
        let id = worker(self.random.below(WORKERS));
        if self.workers.remove(&id) {
            self.instances.retain(|_, i| i.worker != id);
            self.give(Input::WorkerDown(id));
        } else {
            self.workers.insert(id);
            self.give(Input::WorkerUp {
                worker: id,
                memory_mib: WORKER_MIB,
                cpu_millis: 4000,
            });
        }
    }

    fn quota_changes(&mut self) {
        let instances = 3 + self.random.below(30);
        let memory = u64::from(500 + self.random.below(2500));
        self.quota = Quota {
            instances: (self.random.below(2) == 0).then_some(instances),
            memory_mib: (self.random.below(2) == 0).then_some(memory),
            requests: None,
        };
        self.give(Input::QuotaSet {
            project: ProjectId::default_project(),
            quota: self.quota,
        });
    }

    fn pass(&mut self, while_: Duration) {
        let until = self.now.plus(while_);
        let mut ticks = 0;
        while let Some(at) = self.scheduler.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.give(Input::Tick);
            ticks += 1;
            assert!(ticks < 10_000, "the timers spin");
        }
        self.now = until;
    }

    /// Whoever waits has an instance on its way, or is told the truth.
    fn check_nobody_starves(&self) {
        for (n, waiting) in &self.waiting {
            let of_revision = || self.instances.values().filter(|i| i.revision == *n);
            let live = of_revision().filter(|i| i.life != Life::Stopping).count();
            if *waiting == 0 || live > 0 {
                continue;
            }
            let plan = &self.plans[n];
            let free = |w: &WorkerId| WORKER_MIB.saturating_sub(self.memory(|i| i.worker == *w));
            match self.scheduler.shortage(&revision(*n)) {
                None => panic!("revision {n} waits and nobody says why"),
                Some(Shortage::NoWorker) => assert!(self.workers.is_empty()),
                Some(Shortage::Memory { needed_mib, .. }) => {
                    assert_eq!(needed_mib, u64::from(plan.memory_mib));
                    assert!(self.workers.iter().all(|w| free(w) < needed_mib));
                }
                Some(Shortage::QuotaInstances { limit }) => {
                    assert_eq!(Some(limit), self.quota.instances);
                    assert!(self.instances.len() >= limit as usize);
                }
                Some(Shortage::QuotaMemory { limit_mib, .. }) => {
                    assert_eq!(Some(limit_mib), self.quota.memory_mib);
                    assert!(self.memory(|_| true) + u64::from(plan.memory_mib) > limit_mib);
                }
                Some(Shortage::MaxInstances { max }) => {
                    assert!(of_revision().count() >= max as usize);
                }
                Some(Shortage::CrashLoop { .. }) => {
                    assert!(self.scheduler.next_deadline().is_some());
                }
                Some(Shortage::Cpu { .. }) => panic!("there is cpu enough"),
            }
        }
    }

    /// Memory of the idle instances of others that nobody has to keep, at
    /// most so much of each revision as is over its floor.
    fn evictable(&self, n: u32, of: impl Fn(&Instance) -> bool) -> u64 {
        let others = self.waiting.keys().filter(|other| **other != n);
        let of_one = |other: &u32| {
            let counts = self.scheduler.counts(&revision(*other)).unwrap();
            let plan = &self.plans[other];
            let min = if plan.serving { plan.scaling.min } else { 0 };
            let over = (counts.ready + counts.starting).saturating_sub(min.min(plan.scaling.max));
            let most = if counts.waiting > 0 { 0 } else { over };
            let idle = self.instances.values().filter(|i| {
                let takes = matches!(i.life, Life::Ready | Life::Paused);
                i.revision == *other && takes && i.in_flight == 0 && of(i)
            });
            let idle = u32::try_from(idle.count()).unwrap().min(counts.idle);
            u64::from(idle.min(most)) * u64::from(plan.memory_mib)
        };
        others.map(of_one).sum()
    }

    /// Only who has no instance is refused, and only where no idle one of
    /// another could have made room.
    fn check_refusal(&self, n: u32, shortage: Shortage) {
        let counts = self.scheduler.counts(&revision(n)).unwrap();
        assert_eq!(counts.starting + counts.ready, 0, "{shortage}");
        match shortage {
            Shortage::Memory { needed_mib, .. } => {
                for worker in &self.workers {
                    let of_worker = |i: &Instance| i.worker == *worker;
                    let used = self.memory(of_worker);
                    let room = WORKER_MIB - used + self.evictable(n, of_worker);
                    assert!(room < needed_mib, "{room} of {needed_mib} MiB");
                }
            }
            Shortage::QuotaInstances { .. } => assert_eq!(self.evictable(n, |_| true), 0),
            Shortage::QuotaMemory {
                limit_mib,
                used_mib,
            } => {
                let room = (limit_mib + self.evictable(n, |_| true)).saturating_sub(used_mib);
                assert!(room < self.plans[&n].memory_mib.into());
            }
            _ => {}
        }
    }

    fn check_counts(&self) {
        assert_eq!(self.scheduler.instance_count(), self.instances.len());
        for n in self.waiting.keys() {
            let of_revision = || self.instances.values().filter(|i| i.revision == *n);
            let count = |life: &[Life]| {
                u32::try_from(of_revision().filter(|i| life.contains(&i.life)).count()).unwrap()
            };
            let counts = self.scheduler.counts(&revision(*n)).unwrap();
            let limited = self.scheduler.is_limited(&revision(*n));
            assert_eq!(self.told_limits.contains(&revision(*n)), limited);
            assert!(!limited || counts.starting == 0);
            assert_eq!(counts.starting, count(&[Life::Starting]));
            assert_eq!(counts.ready, count(&[Life::Ready, Life::Paused]));
            assert_eq!(counts.stopping, count(&[Life::Stopping]));
            let live = of_revision().filter(|i| i.life != Life::Stopping);
            assert_eq!(counts.in_flight, live.map(|i| i.in_flight).sum::<u32>());
        }
        for worker in &self.workers {
            let used = self.memory(|i| i.worker == *worker);
            let (free, _) = self.scheduler.worker_free(*worker).unwrap();
            assert_eq!(free, WORKER_MIB - used);
        }
    }

    /// Everybody goes home.
    fn fall_silent(&mut self) {
        let known: Vec<_> = self.waiting.keys().copied().collect();
        for n in known {
            self.waiting.insert(n, 0);
            self.tell_queue(n);
            let plan = self.plans.get_mut(&n).unwrap();
            plan.scaling.min = 0;
            let plan = plan.clone();
            self.give(Input::RevisionUpsert(plan));
        }
        for _ in 0..20 {
            while let Some(id) = self.any(|i| i.life == Life::Starting) {
                self.instances.get_mut(&id).unwrap().life = Life::Ready;
                self.give(Input::InstanceReady(id));
            }
            while self.any(|i| i.in_flight > 0).is_some() {
                self.finish_a_request();
            }
            while let Some(id) = self.any(|i| i.life == Life::Stopping) {
                self.end(id, false);
            }
            self.pass(Duration::from_secs(30));
        }
        assert_eq!(self.scheduler.instance_count(), 0, "{:?}", self.instances);
        assert_eq!(self.scheduler.next_deadline(), None);
    }
}

fn run(seed: u64, steps: usize) -> World {
    let mut world = World::new(seed);
    world.worker_changes();
    for n in 0..REVISIONS {
        world.upsert(n);
    }
    for _ in 0..steps {
        world.step();
        world.check_nobody_starves();
        world.check_counts();
    }
    world.fall_silent();
    world
}

#[test]
fn a_long_run_keeps_every_promise() {
    for seed in [1, 0xDEAD_BEEF, 0x5EED_5EED_5EED] {
        let world = run(seed, 10_000);
        assert!(world.starts > 500, "{}", world.starts);
    }
}

#[test]
fn the_same_seed_gives_the_same_decisions() {
    assert_eq!(run(42, 2000).log, run(42, 2000).log);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_short_run_keeps_every_promise(seed: u64) {
        run(seed, 400);
    }
}
