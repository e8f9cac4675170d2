//! One revision's live state: its instances, its queue and its load, under
//! one short lock; and the slot, which gives itself back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skiff_base::Monotonic;
use skiff_types::{ErrorKind, InstanceId, IsolationClass};
use tokio::sync::oneshot;

use crate::load::LoadMeter;
use crate::metrics::Counter;
use crate::pool::{Acquired, Key, Pool, Released};
use crate::port::{ColdPhases, Load, Records, RevisionRoute, Upstream};
use crate::shared::{Project, ServiceTotals, Shared};

/// Why a request got no slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue is full.
    Full,
    /// In an overload: a slot would come, or has come, too late.
    Late {
        /// How long one would wait now.
        expected: Duration,
    },
    /// No slot came in time.
    Deadline,
    /// Nobody can start an instance, or the revision is gone.
    Refused { message: String, kind: ErrorKind },
}

#[derive(Debug)]
pub(crate) struct Revision {
    pub(crate) route: RevisionRoute,
    pub(crate) project: Arc<Project>,
    pub(crate) totals: Arc<ServiceTotals>,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pool: Pool<Waiter>,
    /// By key; beside the pool, which knows only keys.
    members: Vec<Option<Arc<Instance>>>,
    load: LoadMeter,
    /// Whether `Shared::active` lists this revision.
    active: bool,
    removed: bool,
}

impl State {
    /// A key that the pool has forgotten.
    fn forget(&mut self, key: usize) {
        self.members[key] = None;
        if self.pool.has_no_members() {
            self.members = Vec::new();
        }
    }
}

#[derive(Debug)]
struct Waiter(oneshot::Sender<Result<Slot, Refusal>>);

/// One instance as the gateway keeps it.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) class: IsolationClass,
    pub(crate) upstream: Arc<dyn Upstream>,
    /// Names it in the threads' connection caches; never used twice.
    pub(crate) serial: u64,
    pub(crate) phases: Option<ColdPhases>,
    key: AtomicU64,
    paused: AtomicBool,
    out: AtomicBool,
    first_cold: AtomicBool,
    drained: Mutex<Vec<oneshot::Sender<()>>>,
}

static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

impl Instance {
    pub(crate) fn new(upstream: Arc<dyn Upstream>, phases: Option<ColdPhases>) -> Self {
        Self {
            id: upstream.instance(),
            class: upstream.class(),
            upstream,
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            phases,
            key: AtomicU64::new(u64::MAX),
            paused: AtomicBool::new(false),
            out: AtomicBool::new(false),
            first_cold: AtomicBool::new(true),
            drained: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    pub(crate) fn woke(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    /// Out of rotation, for whatever reason.
    pub(crate) fn is_out(&self) -> bool {
        self.out.load(Ordering::Relaxed)
    }

    /// True once: for the cold start that is told.
    pub(crate) fn take_first_cold(&self) -> bool {
        self.first_cold.swap(false, Ordering::Relaxed)
    }

    fn key(&self) -> Key {
        Key::try_from(self.key.load(Ordering::Relaxed)).unwrap_or(Key::MAX)
    }

    fn tell_drained(&self) {
        let waiting = std::mem::take(&mut *lock(&self.drained));
        for sender in waiting {
            // Whoever has stopped listening needs no word.
            sender.send(()).ok();
        }
    }
}

/// Room for one request in an instance; dropping gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) revision: Arc<Revision>,
    pub(crate) instance: Arc<Instance>,
    /// The request waited for this instance to start.
    pub(crate) cold: bool,
    /// When its request ended, if somebody has looked at the clock.
    pub(crate) ended: Option<Monotonic>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = self
            .ended
            .unwrap_or_else(|| self.revision.shared.clock.now());
        self.revision.release(&self.instance, now);
    }
}

/// Refusals that are held back at once.
const HELD_MAX: u64 = 16 * 1024;

/// A refusal that is held back.
struct Held<'a>(&'a Counter);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.down();
    }
}

/// Leaves the queue when the request does.
struct Place<'a> {
    revision: &'a Arc<Revision>,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.revision.cancel(self.ticket);
        self.revision.shared.metrics.waiting.down();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those who made room for newer ones, and what they are told.
struct Passed {
    waiters: Vec<Waiter>,
    expected: Duration,
}

impl Passed {
    fn tell(self) {
        for waiter in self.waiters {
            let expected = self.expected;
            waiter.0.send(Err(Refusal::Late { expected })).ok();
        }
    }
}

fn late(state: &mut State) -> Passed {
    Passed {
        waiters: state.pool.take_late(),
        expected: state.pool.expected_wait().unwrap_or_default(),
    }
}

/// Requests in instances, when none waits any more.
fn emptied(state: &State) -> Option<u32> {
    (state.pool.waiting() == 0).then(|| state.pool.in_flight())
}

impl Revision {
    pub(crate) fn new(
        route: RevisionRoute,
        project: Arc<Project>,
        totals: Arc<ServiceTotals>,
        shared: Arc<Shared>,
    ) -> Self {
        let pool = Pool::new(
            route.concurrency,
            route.queue_requests,
            shared.config.overload_wait,
        );
        Self {
            route,
            project,
            totals,
            shared,
            state: Mutex::new(State {
                pool,
                members: Vec::new(),
                load: LoadMeter::default(),
                active: false,
                removed: false,
            }),
        }
    }

    /// Where its finished requests are recorded.
    pub(crate) fn records(&self) -> &dyn Records {
        &*self.shared.records
    }

    /// A slot at once or after waiting in the queue.
    pub(crate) async fn slot(self: &Arc<Self>, now: Monotonic) -> Result<Slot, Refusal> {
        match self.acquire(now) {
            Ok(Ok(slot)) => Ok(slot),
            // Boxed, for waiting is rare and would make every request's
            // future larger.
            Ok(Err((ticket, receiver))) => Box::pin(self.wait(ticket, receiver)).await,
            Err(refusal) => {
                Box::pin(self.hold_back(&refusal)).await;
                Err(refusal)
            }
        }
    }

    /// To refuse takes time, too: while this process is late with all that it
    /// does, a refusal that comes at once would only bring the next request.
    async fn hold_back(&self, refusal: &Refusal) {
        if matches!(refusal, Refusal::Refused { .. }) {
            return;
        }
        let pause = self.shared.lateness.pause();
        let held = &self.shared.metrics.held;
        if pause.is_zero() || held.get() >= HELD_MAX {
            return;
        }
        held.up();
        let _held = Held(held);
        tokio::time::sleep(pause).await;
    }

    async fn wait(
        self: &Arc<Self>,
        ticket: u64,
        receiver: oneshot::Receiver<Result<Slot, Refusal>>,
    ) -> Result<Slot, Refusal> {
        let place = Place {
            revision: self,
            ticket,
        };
        let patience = Duration::from_millis(self.route.queue_ms);
        let answer = tokio::time::timeout(patience, receiver).await;
        drop(place);
        match answer {
            Ok(Ok(granted)) => granted,
            Ok(Err(_)) | Err(_) => Err(Refusal::Deadline),
        }
    }

    #[allow(clippy::type_complexity, reason = "a slot, or the wait for one")]
    fn acquire(
        self: &Arc<Self>,
        now: Monotonic,
    ) -> Result<Result<Slot, (u64, oneshot::Receiver<Result<Slot, Refusal>>)>, Refusal> {
        let mut receiver = None;
        let mut state = lock(&self.state);
        if state.removed {
            return Err(removed());
        }
        let acquired = state.pool.acquire(now, crate::random::u64(), || {
            let (sender, r) = oneshot::channel();
            receiver = Some(r);
            Waiter(sender)
        });
        let ticket = match acquired {
            Acquired::Slot { key, was_idle } => {
                let Some(instance) = state.members[key].clone() else {
                    return Err(removed());
                };
                if was_idle {
                    self.shared.demand.busy(instance.id);
                }
                self.changed(&mut state, now);
                return Ok(Ok(Slot {
                    revision: self.clone(),
                    instance,
                    cold: false,
                    ended: None,
                }));
            }
            Acquired::Wait { ticket } => ticket,
            Acquired::Late { expected } => return Err(Refusal::Late { expected }),
            Acquired::Full => return Err(Refusal::Full),
        };
        self.shared.metrics.waiting.up();
        self.changed(&mut state, now);
        let (waiting, in_flight) = (state.pool.waiting(), state.pool.in_flight());
        drop(state);
        self.shared
            .demand
            .queued(&self.route.id, waiting, in_flight);
        receiver
            .map(|receiver| Err((ticket, receiver)))
            .ok_or(Refusal::Full)
    }

    fn release(self: &Arc<Self>, instance: &Arc<Instance>, now: Monotonic) {
        let mut state = lock(&self.state);
        let released = state.pool.release(instance.key(), now);
        match released {
            Released::Granted(waiter) => {
                self.changed(&mut state, now);
                let emptied = emptied(&state);
                let late = late(&mut state);
                drop(state);
                self.tell_emptied(emptied);
                self.grant(waiter, instance, false);
                late.tell();
            }
            Released::Busy => self.changed(&mut state, now),
            Released::Idle => {
                self.shared.demand.idle(instance.id);
                self.changed(&mut state, now);
            }
            Released::Gone => {
                state.forget(instance.key());
                self.changed(&mut state, now);
                drop(state);
                self.gone(instance);
            }
        }
    }

    /// A receiver that has gone drops the slot, which passes it on.
    fn grant(self: &Arc<Self>, waiter: Waiter, instance: &Arc<Instance>, cold: bool) {
        let slot = Slot {
            revision: self.clone(),
            instance: instance.clone(),
            cold,
            ended: None,
        };
        waiter.0.send(Ok(slot)).ok();
    }

    fn cancel(&self, ticket: u64) {
        let now = self.shared.clock.now();
        let mut state = lock(&self.state);
        if state.pool.cancel(ticket, now) {
            let level = state.pool.waiting() + state.pool.in_flight();
            state.load.set(now, level);
            let emptied = emptied(&state);
            drop(state);
            self.tell_emptied(emptied);
        }
    }

    /// The scheduler keeps an instance while it believes that somebody waits.
    fn tell_emptied(&self, emptied: Option<u32>) {
        if let Some(in_flight) = emptied {
            self.shared.demand.queued(&self.route.id, 0, in_flight);
        }
    }

    /// Whether the revision still takes instances.
    pub(crate) fn add(self: &Arc<Self>, instance: &Arc<Instance>) -> bool {
        let now = self.shared.clock.now();
        let mut state = lock(&self.state);
        if state.removed {
            return false;
        }
        let (key, granted) = state.pool.add(now);
        instance
            .key
            .store(u64::try_from(key).unwrap_or(u64::MAX), Ordering::Relaxed);
        if key == state.members.len() {
            state.members.push(Some(instance.clone()));
        } else {
            state.members[key] = Some(instance.clone());
        }
        if granted.is_empty() {
            return true;
        }
        self.shared.demand.busy(instance.id);
        self.changed(&mut state, now);
        let emptied = emptied(&state);
        let late = late(&mut state);
        drop(state);
        self.tell_emptied(emptied);
        late.tell();
        let cold = instance.phases.is_some();
        for waiter in granted {
            self.grant(waiter, instance, cold);
        }
        true
    }

    /// Out of rotation. False when it already was.
    pub(crate) fn retire(self: &Arc<Self>, instance: &Arc<Instance>) -> bool {
        let mut state = lock(&self.state);
        if instance.out.swap(true, Ordering::SeqCst) {
            return false;
        }
        if state.pool.retire(instance.key()) {
            state.forget(instance.key());
            drop(state);
            self.gone(instance);
        }
        true
    }

    /// Resolves when nothing is in flight in the instance.
    pub(crate) fn drained(&self, instance: &Instance) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        // The lock orders this with the last request's end.
        let state = lock(&self.state);
        let is_member = state.members.get(instance.key()).and_then(Option::as_ref);
        if is_member.is_some_and(|member| member.serial == instance.serial) {
            lock(&instance.drained).push(sender);
        } else {
            sender.send(()).ok();
        }
        receiver
    }

    pub(crate) fn in_flight_of(&self, instance: &Instance) -> u32 {
        let state = lock(&self.state);
        let member = state.members.get(instance.key()).and_then(Option::as_ref);
        if member.is_some_and(|member| member.serial == instance.serial) {
            state.pool.in_flight_of(instance.key())
        } else {
            0
        }
    }

    /// Marks an instance paused unless a request is in it.
    pub(crate) fn set_paused(&self, instance: &Instance, paused: bool) -> bool {
        let state = lock(&self.state);
        if paused && state.pool.in_flight_of(instance.key()) > 0 {
            return false;
        }
        instance.paused.store(paused, Ordering::SeqCst);
        true
    }

    /// Fails everybody who waits.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        let mut state = lock(&self.state);
        let now = self.shared.clock.now();
        let waiters = state.pool.take_waiters(now);
        let level = state.pool.in_flight();
        state.load.set(now, level);
        let emptied = emptied(&state);
        drop(state);
        for waiter in waiters {
            waiter.0.send(Err(refusal.clone())).ok();
        }
        self.tell_emptied(emptied);
    }

    /// Whether instances can be added for now.
    pub(crate) fn set_limited(&self, limited: bool) {
        lock(&self.state).pool.set_limited(limited);
    }

    /// Takes all instances out of rotation and lets nobody in.
    pub(crate) fn remove(self: &Arc<Self>) {
        let members: Vec<_> = {
            let mut state = lock(&self.state);
            state.removed = true;
            state.members.iter().flatten().cloned().collect()
        };
        self.refuse(&removed());
        for instance in members {
            self.retire(&instance);
        }
    }

    /// What it carried since the last call; `None` when that and the present are nothing.
    pub(crate) fn take_load(&self, now: Monotonic) -> Option<Load> {
        let mut state = lock(&self.state);
        let average = state.load.take(now);
        let (waiting, in_flight) = (state.pool.waiting(), state.pool.in_flight());
        if average == 0.0 && waiting + in_flight == 0 {
            state.active = false;
            return None;
        }
        Some(Load {
            revision: self.route.id.clone(),
            average,
            waiting,
            in_flight,
        })
    }

    fn changed(self: &Arc<Self>, state: &mut State, now: Monotonic) {
        if !state.active {
            state.active = true;
            state.load.restart(now);
            self.shared.activate(self.clone());
        }
        let level = state.pool.waiting() + state.pool.in_flight();
        state.load.set(now, level);
    }

    fn gone(&self, instance: &Instance) {
        instance.out.store(true, Ordering::SeqCst);
        self.shared.forget(instance);
        instance.tell_drained();
    }
}

fn removed() -> Refusal {
    Refusal::Refused {
        message: "the revision was removed".to_owned(),
        kind: ErrorKind::Unavailable,
    }
}
