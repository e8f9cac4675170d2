//! The slots of one revision's instances and the queue for them: a pure state
//! machine. It knows instances as keys and waiters as whatever the caller
//! gives, is told the time and wakes nobody.
//!
//! ```text
//! acquire ─▶ Slot(key) ──────────────▶ release(key) ─▶ the oldest waiter, or nobody
//!        ├─▶ Wait(ticket) ─▶ granted by release/add, cancel(ticket), or take_late
//!        ├─▶ Late(expected wait)
//!        └─▶ Full
//! ```
//! Invariants: no instance holds more requests than its concurrency; nobody
//! waits while a slot is free; waiters are served in the order they came.
//! Who is refused in an overload is [`crate::pressure`]'s matter.

use std::collections::VecDeque;
use std::time::Duration;

use skiff_base::Monotonic;

use crate::pressure::Pressure;

/// An instance within its pool, valid until it is out of rotation and empty.
pub(crate) type Key = usize;

/// Cancelled waiters that may stay in the queue before it is packed.
const HOLES_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Pool<W> {
    concurrency: u32,
    queue_max: usize,
    members: Vec<Option<Member>>,
    free_keys: Vec<Key>,
    /// Nothing in flight; the most recently used is last.
    idle: Vec<Key>,
    /// Something in flight and room for more, in no order.
    open: Vec<Key>,
    waiting: VecDeque<Place<W>>,
    live_waiters: usize,
    /// Passed over for newer ones, until they are taken.
    late: Vec<W>,
    pressure: Pressure,
    next_ticket: u64,
    in_flight: u32,
}

#[derive(Debug)]
struct Place<W> {
    ticket: u64,
    since: Monotonic,
    /// None when it has left.
    waiter: Option<W>,
}

#[derive(Debug)]
struct Member {
    in_flight: u32,
    in_rotation: bool,
    /// Where it stands in `open`.
    open_at: Option<usize>,
}

/// What `acquire` found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// A slot in this instance, which was idle or not.
    Slot { key: Key, was_idle: bool },
    /// A place in the queue.
    Wait { ticket: u64 },
    /// In an overload: a slot would come too late.
    Late { expected: Duration },
    /// The queue is full.
    Full,
}

/// What became of a slot that was given back.
#[derive(Debug)]
pub(crate) enum Released<W> {
    /// This waiter has it now.
    Granted(W),
    /// The instance has other requests still.
    Busy,
    /// It was the instance's last request.
    Idle,
    /// It was the last one, and the instance was out of rotation: its key is gone.
    Gone,
}

impl<W> Pool<W> {
    pub(crate) fn new(concurrency: u32, queue_max: u32, overload_wait: Duration) -> Self {
        Self {
            concurrency: concurrency.max(1),
            queue_max: usize::try_from(queue_max).unwrap_or(usize::MAX),
            members: Vec::new(),
            free_keys: Vec::new(),
            idle: Vec::new(),
            open: Vec::new(),
            waiting: VecDeque::new(),
            live_waiters: 0,
            late: Vec::new(),
            pressure: Pressure::new(overload_wait),
            next_ticket: 0,
            in_flight: 0,
        }
    }

    /// A slot, or a place in the queue. `random` picks the two that are compared.
    pub(crate) fn acquire(
        &mut self,
        now: Monotonic,
        random: u64,
        waiter: impl FnOnce() -> W,
    ) -> Acquired {
        if let Some(key) = self.idle.pop() {
            self.take(key);
            return Acquired::Slot {
                key,
                was_idle: true,
            };
        }
        if let Some(key) = self.less_loaded(random) {
            self.take(key);
            return Acquired::Slot {
                key,
                was_idle: false,
            };
        }
        let (waiting, in_flight) = (self.waiting(), self.in_flight);
        if let Err(expected) = self.pressure.arrives(now, waiting, in_flight) {
            return Acquired::Late { expected };
        }
        if self.live_waiters >= self.queue_max {
            return Acquired::Full;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back(Place {
            ticket,
            since: now,
            waiter: Some(waiter()),
        });
        self.live_waiters += 1;
        Acquired::Wait { ticket }
    }

    /// Gives a slot back.
    pub(crate) fn release(&mut self, key: Key, now: Monotonic) -> Released<W> {
        let in_rotation = self.member(key).in_rotation;
        if in_rotation && let Some(waiter) = self.next_waiter(now) {
            return Released::Granted(waiter);
        }
        self.in_flight -= 1;
        let concurrency = self.concurrency;
        let member = self.member(key);
        member.in_flight -= 1;
        let left = member.in_flight;
        match (left, in_rotation) {
            (0, false) => {
                self.forget(key);
                Released::Gone
            }
            (0, true) => {
                self.close(key);
                self.idle.push(key);
                Released::Idle
            }
            (_, true) if left + 1 == concurrency => {
                self.open(key);
                Released::Busy
            }
            _ => Released::Busy,
        }
    }

    /// A new instance and the waiters that are served by it at once.
    pub(crate) fn add(&mut self, now: Monotonic) -> (Key, Vec<W>) {
        let mut granted = Vec::new();
        while granted.len() < usize::try_from(self.concurrency).unwrap_or(usize::MAX) {
            match self.next_waiter(now) {
                Some(waiter) => granted.push(waiter),
                None => break,
            }
        }
        let taken = u32::try_from(granted.len()).unwrap_or(u32::MAX);
        let member = Member {
            in_flight: taken,
            in_rotation: true,
            open_at: None,
        };
        self.in_flight += taken;
        let key = self.free_keys.pop().unwrap_or(self.members.len());
        if key == self.members.len() {
            self.members.push(Some(member));
        } else {
            self.members[key] = Some(member);
        }
        if taken == 0 {
            self.idle.push(key);
        } else if taken < self.concurrency {
            self.open(key);
        }
        (key, granted)
    }

    /// Out of rotation. Whether nothing is in flight, and the key is gone with it.
    pub(crate) fn retire(&mut self, key: Key) -> bool {
        let member = self.member(key);
        if !member.in_rotation {
            return false;
        }
        member.in_rotation = false;
        if member.in_flight > 0 {
            self.close(key);
            return false;
        }
        self.idle.retain(|&idle| idle != key);
        self.forget(key);
        true
    }

    /// Without members it holds no memory for them: most revisions are at zero.
    fn forget(&mut self, key: Key) {
        self.members[key] = None;
        self.free_keys.push(key);
        if self.has_no_members() {
            self.members = Vec::new();
            self.free_keys = Vec::new();
            self.idle = Vec::new();
            self.open = Vec::new();
        }
    }

    pub(crate) fn has_no_members(&self) -> bool {
        self.free_keys.len() == self.members.len()
    }

    /// A waiter went away. Whether it was still in the queue.
    pub(crate) fn cancel(&mut self, ticket: u64, now: Monotonic) -> bool {
        let found = self.waiting.binary_search_by_key(&ticket, |p| p.ticket);
        let Ok(at) = found else {
            return false;
        };
        let was_there = self.waiting[at].waiter.take().is_some();
        self.live_waiters -= usize::from(was_there);
        while self.waiting.back().is_some_and(|p| p.waiter.is_none()) {
            self.waiting.pop_back();
        }
        if self.waiting.len() > self.live_waiters * 2 + HOLES_MAX {
            self.waiting.retain(|place| place.waiter.is_some());
        }
        if was_there && self.live_waiters == 0 {
            self.pressure.emptied(now);
        }
        was_there
    }

    /// Those who were passed over since the last call: they get no slot.
    pub(crate) fn take_late(&mut self) -> Vec<W> {
        std::mem::take(&mut self.late)
    }

    /// Whether instances can be added has changed.
    pub(crate) fn set_limited(&mut self, limited: bool) {
        self.pressure.set_limited(limited);
    }

    /// How long a newcomer would wait, as far as it was measured.
    pub(crate) fn expected_wait(&self) -> Option<Duration> {
        self.pressure.expected(self.waiting())
    }

    /// Everybody who waits, in order; nobody waits afterwards.
    pub(crate) fn take_waiters(&mut self, now: Monotonic) -> Vec<W> {
        self.live_waiters = 0;
        self.pressure.emptied(now);
        let all = std::mem::take(&mut self.waiting);
        all.into_iter().filter_map(|place| place.waiter).collect()
    }

    pub(crate) fn waiting(&self) -> u32 {
        u32::try_from(self.live_waiters).unwrap_or(u32::MAX)
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(crate) fn in_flight_of(&self, key: Key) -> u32 {
        let member = self.members.get(key).and_then(Option::as_ref);
        member.map_or(0, |member| member.in_flight)
    }

    fn next_waiter(&mut self, now: Monotonic) -> Option<W> {
        while let Some(place) = self.waiting.pop_front() {
            let Some(waiter) = place.waiter else {
                continue;
            };
            self.live_waiters -= 1;
            let in_flight = self.in_flight;
            // The last one makes room for nobody.
            if self.live_waiters > 0 && self.pressure.is_late(place.since, now, in_flight) {
                self.late.push(waiter);
                continue;
            }
            let waiting = self.waiting();
            self.pressure.granted(now, waiting, in_flight);
            if waiting == 0 {
                self.pressure.emptied(now);
            }
            return Some(waiter);
        }
        None
    }

    fn less_loaded(&self, random: u64) -> Option<Key> {
        let count = u64::try_from(self.open.len()).unwrap_or(u64::MAX);
        if count == 0 {
            return None;
        }
        let at = |number: u64| self.open[usize::try_from(number % count).unwrap_or(0)];
        let (one, two) = (at(random & 0xffff_ffff), at(random >> 32));
        let lighter = self.in_flight_of(two) < self.in_flight_of(one);
        Some(if lighter { two } else { one })
    }

    fn take(&mut self, key: Key) {
        self.in_flight += 1;
        let concurrency = self.concurrency;
        let member = self.member(key);
        member.in_flight += 1;
        let (now, listed) = (member.in_flight, member.open_at.is_some());
        if now == concurrency {
            self.close(key);
        } else if !listed {
            self.open(key);
        }
    }

    fn open(&mut self, key: Key) {
        let at = self.open.len();
        self.open.push(key);
        self.member(key).open_at = Some(at);
    }

    fn close(&mut self, key: Key) {
        let Some(at) = self.member(key).open_at.take() else {
            return;
        };
        self.open.swap_remove(at);
        if let Some(&moved) = self.open.get(at) {
            self.member(moved).open_at = Some(at);
        }
    }

    /// # Panics
    /// When a slot is given back twice, which its owner's type rules out.
    fn member(&mut self, key: Key) -> &mut Member {
        match self.members.get_mut(key) {
            Some(Some(member)) => member,
            _ => panic!("instance {key} is not in this pool"),
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "overload_tests.rs"]
mod overload_tests;
