//! What is known of one revision and of one instance.
//!
//! An instance's life:
//! ```text
//!            ready            in flight = 0 for a while, cpu per request
//!  Starting ───────▶ Ready ───────────────────────────────────▶ Paused
//!     │               │  ▲                                        │ │
//!     │               │  └──────────── in flight > 0 ─────────────┘ │
//!     │          stop │                                             │
//!     │ stop          ▼                                        stop │
//!     ├──────────▶ Stopping ◀────────────────────────────────────────┘
//!     │               │
//!     └── failed ──▶ (gone) ◀── gone, or its worker is lost, from any state
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skiff_base::Monotonic;
use skiff_types::{CpuMode, InstanceId, StartCause, WorkerId};

use crate::autoscale::Panic;
use crate::capacity::Size;
use crate::window::Window;
use crate::{Config, Counts, RevisionPlan, Shortage};

/// Where a revision lies in the scheduler's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(pub(crate) usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Ready,
    Paused,
    Stopping,
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) key: Key,
    pub(crate) worker: WorkerId,
    pub(crate) size: Size,
    pub(crate) state: State,
    pub(crate) cause: StartCause,
    pub(crate) in_flight: u32,
    /// Since when it has had no request; absent unless ready or paused.
    pub(crate) idle_since: Option<Monotonic>,
    pub(crate) ready_at: Monotonic,
    pub(crate) used: bool,
    /// The revision that this one was stopped to make room for.
    pub(crate) reclaimed_for: Option<Key>,
}

#[derive(Debug)]
pub(crate) struct Revision {
    pub(crate) plan: RevisionPlan,
    pub(crate) removed: bool,
    pub(crate) instances: BTreeSet<InstanceId>,
    /// Ready and paused instances without a request, longest idle first.
    pub(crate) idle: BTreeSet<(Monotonic, InstanceId)>,
    /// Those of the idle ones that are still awake and should not be.
    pub(crate) awake: BTreeSet<(Monotonic, InstanceId)>,
    pub(crate) starting: u32,
    pub(crate) ready: u32,
    pub(crate) stopping: u32,
    pub(crate) in_flight: u32,
    pub(crate) waiting: u32,
    pub(crate) window: Option<Box<Window>>,
    pub(crate) panic: Panic,
    pub(crate) next_tick: Option<Monotonic>,
    /// Since when there have been more instances than the averages need.
    pub(crate) surplus_since: Option<Monotonic>,
    /// Starts that have failed and are to be tried again for their events.
    pub(crate) again: u32,
    pub(crate) failures: u32,
    pub(crate) retry_at: Monotonic,
    pub(crate) shortage: Option<Shortage>,
    /// The shortage that was last told.
    pub(crate) refused: Option<Shortage>,
    /// What was last told of [`Revision::is_limited`].
    pub(crate) told_limited: bool,
    /// Instances of others that are stopping to make room for this one.
    pub(crate) reclaims: u32,
    /// The timer that is set for it.
    pub(crate) armed: Option<Monotonic>,
    /// Its place among those that wait for room.
    pub(crate) starved: Option<(u64, u64)>,
}

impl Revision {
    pub(crate) fn new(plan: RevisionPlan) -> Self {
        Self {
            plan,
            removed: false,
            instances: BTreeSet::new(),
            idle: BTreeSet::new(),
            awake: BTreeSet::new(),
            starting: 0,
            ready: 0,
            stopping: 0,
            in_flight: 0,
            waiting: 0,
            window: None,
            panic: Panic::default(),
            next_tick: None,
            surplus_since: None,
            again: 0,
            failures: 0,
            retry_at: Monotonic::default(),
            shortage: None,
            refused: None,
            told_limited: false,
            reclaims: 0,
            armed: None,
            starved: None,
        }
    }

    pub(crate) fn size(&self) -> Size {
        let promised_mib = u64::from(self.plan.memory_mib);
        Size {
            memory_mib: promised_mib + u64::from(self.plan.overhead_mib),
            promised_mib,
            cpu_millis: self.plan.cpu_millis.into(),
        }
    }

    /// Instances that take requests or soon will.
    pub(crate) fn live(&self) -> u32 {
        self.starting + self.ready
    }

    /// It has what it needs, or will have.
    pub(crate) fn no_shortage(&mut self) {
        self.shortage = None;
        self.refused = None;
    }

    /// No instance is coming and none can be added for now: it has as many as
    /// it may, or more are needed and something is short.
    pub(crate) fn is_limited(&self) -> bool {
        if self.starting > 0 || self.removed {
            return false;
        }
        let full = self.ready + self.stopping >= self.plan.scaling.max;
        let room_comes = |shortage: Shortage| shortage.is_of_capacity() && self.reclaims > 0;
        full || self.shortage.is_some_and(|shortage| !room_comes(shortage))
    }

    /// Instances that are there whatever the demand.
    pub(crate) fn floor(&self) -> u32 {
        let scaling = &self.plan.scaling;
        if self.plan.serving && !self.removed {
            scaling.min.min(scaling.max)
        } else {
            0
        }
    }

    /// Why an instance that starts now does.
    pub(crate) fn next_cause(&self) -> StartCause {
        if self.live() < self.floor() && self.waiting <= self.starting {
            StartCause::Floor
        } else if self.again > 0 {
            StartCause::Again
        } else {
            StartCause::Demand
        }
    }

    /// A first try to start has failed: whether another one, within the time
    /// of the event that still waits, is to be the last word.
    pub(crate) fn begins_again(&mut self) -> bool {
        let awaited = self.plan.function && self.plan.serving && self.again < self.waiting;
        self.again += u32::from(awaited);
        awaited
    }

    pub(crate) fn keep_alive(&self) -> Duration {
        if self.plan.serving && !self.removed {
            Duration::from_secs(self.plan.scaling.keep_alive_s.into())
        } else {
            Duration::ZERO
        }
    }

    /// Thousandths of a request that one instance is planned for.
    pub(crate) fn target_milli(&self, config: &Config) -> u32 {
        match self.plan.scaling.concurrency {
            0 | 1 => 1000,
            n => n.saturating_mul(config.target_percent).saturating_mul(10),
        }
    }

    /// How many instances the queue and the floor ask for, before `max`.
    pub(crate) fn wanted(&self, in_flight: u32, config: &Config) -> u32 {
        if self.removed {
            return 0;
        }
        if self.waiting == 0 {
            return self.floor();
        }
        let load = u64::from(self.waiting) + u64::from(in_flight.max(self.in_flight));
        let target = u64::from(self.target_milli(config).max(1));
        let by_queue = u32::try_from((load * 1000).div_ceil(target)).unwrap_or(u32::MAX);
        by_queue.max(self.floor())
    }

    /// When an instance that has been idle since then is to stop.
    pub(crate) fn idle_until(
        &self,
        idle_since: Monotonic,
        used: bool,
        config: &Config,
    ) -> Monotonic {
        let keep = self.keep_alive();
        let first_use = !used && !self.removed;
        idle_since.plus(if first_use {
            keep.max(config.first_use_grace)
        } else {
            keep
        })
    }

    pub(crate) fn pauses(&self) -> bool {
        self.plan.cpu_mode == CpuMode::Request
    }

    /// From now on the load is what it is; the window exists from the first
    /// load on. What keeps no idle instance is not scaled by averages: it has
    /// no window, and no timer for one.
    pub(crate) fn note_load(&mut self, now: Monotonic, config: &Config) {
        if self.keep_alive().is_zero() {
            self.window = None;
            self.next_tick = None;
            return;
        }
        let load = self.in_flight.saturating_add(self.waiting);
        if self.window.is_none() {
            if load == 0 {
                return;
            }
            self.window = Some(Box::new(Window::new(now, config.stable_window)));
        }
        if self.next_tick.is_none() {
            self.next_tick = Some(now.plus(config.tick));
        }
        if let Some(window) = &mut self.window {
            window.set(now, load);
        }
    }

    pub(crate) fn failed(&mut self, now: Monotonic, config: &Config) {
        self.forgive(now, config);
        if now < self.retry_at {
            // Instances that were started together fail together: once is enough.
            return;
        }
        let doubled = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let wait = config.backoff_first.saturating_mul(doubled);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now.plus(wait.min(config.backoff_longest));
    }

    pub(crate) fn forgive(&mut self, now: Monotonic, config: &Config) {
        if self.failures > 0 && now >= self.retry_at.plus(config.forgive_after) {
            self.failures = 0;
        }
    }

    /// How many more instances it may have, or why none.
    pub(crate) fn may_start(&self, now: Monotonic) -> Result<u32, Shortage> {
        let max = self.plan.scaling.max;
        let left = max.saturating_sub(self.live() + self.stopping);
        if left == 0 {
            return Err(Shortage::MaxInstances { max });
        }
        if self.failures == 0 {
            return Ok(left);
        }
        if now < self.retry_at {
            return Err(Shortage::CrashLoop {
                failures: self.failures,
                retry_in: self.retry_at.since(now),
            });
        }
        // After a failure one start at a time shows whether it still fails.
        Ok(left.min(1u32.saturating_sub(self.starting)))
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            starting: self.starting,
            ready: self.ready,
            idle: u32::try_from(self.idle.len()).unwrap_or(u32::MAX),
            stopping: self.stopping,
            in_flight: self.in_flight,
            waiting: self.waiting,
        }
    }

    pub(crate) fn is_forgettable(&self) -> bool {
        self.removed && self.instances.is_empty() && self.reclaims == 0
    }
}

/// Revisions by key, with the keys of removed ones used again.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Boxed, since a list that grows holds room for twice as many.
    slots: Vec<Option<Box<Revision>>>,
    unused: Vec<usize>,
}

impl Table {
    pub(crate) fn insert(&mut self, revision: Revision) -> Key {
        let revision = Some(Box::new(revision));
        if let Some(slot) = self.unused.pop() {
            self.slots[slot] = revision;
            return Key(slot);
        }
        self.slots.push(revision);
        Key(self.slots.len() - 1)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Revision> {
        self.slots.get(key.0).and_then(Option::as_deref)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Revision> {
        self.slots.get_mut(key.0).and_then(Option::as_deref_mut)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<Revision>> {
        let removed = self.slots.get_mut(key.0).and_then(Option::take);
        if removed.is_some() {
            self.unused.push(key.0);
        }
        removed
    }
}

/// Revisions whose demand has found no room, and when each was last tried.
#[derive(Debug, Default)]
pub(crate) struct Starved {
    /// By the epoch of the last try, then by age.
    queue: BTreeMap<(u64, u64), Key>,
    /// Grows whenever room may have appeared.
    epoch: u64,
    next: u64,
}

impl Starved {
    pub(crate) fn room_appeared(&mut self) {
        self.epoch += 1;
    }

    pub(crate) fn add(&mut self, key: Key, revision: &mut Revision) {
        let age = match revision.starved.take() {
            Some(place) => {
                self.queue.remove(&place);
                place.1
            }
            None => {
                self.next += 1;
                self.next
            }
        };
        let place = (self.epoch, age);
        self.queue.insert(place, key);
        revision.starved = Some(place);
    }

    pub(crate) fn remove(&mut self, revision: &mut Revision) {
        if let Some(place) = revision.starved.take() {
            self.queue.remove(&place);
        }
    }

    /// The one that has not been tried since room appeared and waits longest.
    pub(crate) fn untried(&self) -> Option<Key> {
        let (place, key) = self.queue.first_key_value()?;
        (place.0 < self.epoch).then_some(*key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
