//! Which event is next: the oldest of the function that has waited longest
//! for its turn, within bounds.
//!
//! ```text
//!  admit ─▶ put ─▶ waiting ── take ─▶ running ─┬─ put_back ─▶ waiting
//!     └─ refuse                                └─ done
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{EventId, FunctionKey, State};

/// How much is kept and done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Events of one function that are not done.
    pub function_events: usize,
    /// Events of all functions that are not done.
    pub events: usize,
    /// Their payloads together, bytes.
    pub bytes: u64,
    /// Events under way of one function.
    pub function_running: u32,
    /// Events under way of all functions.
    pub running: u32,
}

/// There is no room for another event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Of this function.
    #[error("{0} events of the function wait already")]
    Function(usize),
    /// Of all functions.
    #[error("{0} events wait already")]
    Events(usize),
    /// On the disk.
    #[error("{0} bytes of events wait already")]
    Bytes(u64),
}

/// An event whose turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Which.
    pub id: EventId,
    /// How far it is.
    pub state: State,
}

/// Events that are not done, in memory.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    items: HashMap<EventId, Item>,
    lanes: BTreeMap<FunctionKey, Lane>,
    /// Lanes with an event that may start now, by their last turn.
    ready: BTreeSet<(u64, FunctionKey)>,
    /// Lanes whose first event is due later, by when.
    asleep: BTreeSet<(u64, FunctionKey)>,
    by_age: BTreeSet<(u64, EventId)>,
    turns: u64,
    admitted: usize,
    bytes: u64,
    running: u32,
}

#[derive(Debug)]
struct Item {
    function: FunctionKey,
    bytes: u64,
    accepted_unix_ms: u64,
    state: State,
    is_running: bool,
}

#[derive(Debug, Default)]
struct Lane {
    admitted: usize,
    running: u32,
    /// Fewer at once than others may have.
    running_max: Option<u32>,
    waiting: BTreeSet<(u64, EventId)>,
    /// Its last turn's number.
    served: u64,
    place: Place,
}

/// Where a lane stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Nothing of it can start.
    #[default]
    Nowhere,
    Ready(u64),
    Asleep(u64),
}

impl Queue {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            items: HashMap::new(),
            lanes: BTreeMap::new(),
            ready: BTreeSet::new(),
            asleep: BTreeSet::new(),
            by_age: BTreeSet::new(),
            turns: 0,
            admitted: 0,
            bytes: 0,
            running: 0,
        }
    }

    /// Makes room for an event that is being written.
    ///
    /// # Errors
    /// Which bound is reached.
    pub fn admit(&mut self, function: &FunctionKey, bytes: u64) -> Result<(), Full> {
        let of_function = self.lanes.get(function).map_or(0, |lane| lane.admitted);
        if of_function >= self.limits.function_events {
            return Err(Full::Function(of_function));
        }
        if self.admitted >= self.limits.events {
            return Err(Full::Events(self.admitted));
        }
        if self.bytes.saturating_add(bytes) > self.limits.bytes {
            return Err(Full::Bytes(self.bytes));
        }
        self.enter(function, bytes);
        Ok(())
    }

    fn enter(&mut self, function: &FunctionKey, bytes: u64) {
        self.admitted += 1;
        self.bytes += bytes;
        self.lanes.entry(function.clone()).or_default().admitted += 1;
    }

    /// Gives back the room of an event that was not written.
    pub fn refuse(&mut self, function: &FunctionKey, bytes: u64) {
        self.admitted -= 1;
        self.bytes -= bytes;
        if let Some(lane) = self.lanes.get_mut(function) {
            lane.admitted -= 1;
        }
        self.forget_if_empty(function);
    }

    /// An admitted event is written.
    pub fn put(
        &mut self,
        id: EventId,
        function: &FunctionKey,
        bytes: u64,
        accepted_unix_ms: u64,
        state: State,
        now_unix_ms: u64,
    ) {
        let item = Item {
            function: function.clone(),
            bytes,
            accepted_unix_ms,
            state,
            is_running: false,
        };
        self.items.insert(id, item);
        self.by_age.insert((accepted_unix_ms, id));
        self.wait(id, function, state.due_unix_ms, now_unix_ms);
    }

    /// From now on the event waits in its function's lane.
    fn wait(&mut self, id: EventId, function: &FunctionKey, due_unix_ms: u64, now_unix_ms: u64) {
        if let Some(lane) = self.lanes.get_mut(function) {
            lane.waiting.insert((due_unix_ms, id));
        }
        self.settle(function, now_unix_ms);
    }

    /// An event of the log; it was admitted once, whatever the bounds are now.
    pub fn restore(
        &mut self,
        id: EventId,
        function: &FunctionKey,
        bytes: u64,
        accepted_unix_ms: u64,
        state: State,
        now_unix_ms: u64,
    ) {
        self.enter(function, bytes);
        self.put(id, function, bytes, accepted_unix_ms, state, now_unix_ms);
    }

    /// The next event that is due, if one may start.
    pub fn take(&mut self, now_unix_ms: u64) -> Option<Taken> {
        if self.running >= self.limits.running {
            return None;
        }
        self.rouse(now_unix_ms);
        let function = self.ready.first()?.1.clone();
        let lane = self.lanes.get_mut(&function)?;
        let (_, id) = lane.waiting.pop_first()?;
        self.turns += 1;
        lane.served = self.turns;
        lane.running += 1;
        self.running += 1;
        self.settle(&function, now_unix_ms);
        let item = self.items.get_mut(&id)?;
        item.is_running = true;
        Some(Taken {
            id,
            state: item.state,
        })
    }

    /// An event that was taken waits again, until its state says.
    pub fn put_back(&mut self, id: EventId, state: State, now_unix_ms: u64) {
        let Some(function) = self.stopped(id) else {
            return;
        };
        if let Some(item) = self.items.get_mut(&id) {
            item.state = state;
        }
        self.wait(id, &function, state.due_unix_ms, now_unix_ms);
    }

    /// Lets an event go that waits for later; it is due now.
    pub fn release(&mut self, id: EventId, now_unix_ms: u64) {
        let Some(item) = self.items.get_mut(&id).filter(|item| !item.is_running) else {
            return;
        };
        let before = std::mem::replace(&mut item.state.due_unix_ms, now_unix_ms);
        let function = item.function.clone();
        if let Some(lane) = self.lanes.get_mut(&function) {
            lane.waiting.remove(&(before, id));
        }
        self.wait(id, &function, now_unix_ms, now_unix_ms);
    }

    /// An event takes more room than it was admitted with; nothing is refused
    /// for it but what comes next.
    pub fn grow(&mut self, id: EventId, bytes: u64) {
        if let Some(item) = self.items.get_mut(&id) {
            item.bytes += bytes;
            self.bytes += bytes;
        }
    }

    /// An event that was taken is done.
    pub fn done(&mut self, id: EventId, now_unix_ms: u64) {
        let Some(function) = self.stopped(id) else {
            return;
        };
        if let Some(item) = self.items.remove(&id) {
            self.by_age.remove(&(item.accepted_unix_ms, id));
            self.refuse(&function, item.bytes);
        }
        self.settle(&function, now_unix_ms);
    }

    /// Lets fewer events of a function be under way than others may have, at
    /// least one.
    pub fn set_running_max(&mut self, function: &FunctionKey, max: Option<u32>, now_unix_ms: u64) {
        if let Some(lane) = self.lanes.get_mut(function) {
            lane.running_max = max.map(|max| max.max(1));
            self.settle(function, now_unix_ms);
        }
    }

    /// When [`Self::take`] may have something: 0 is now, `None` once
    /// something has changed.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        if self.running >= self.limits.running {
            return None;
        }
        if !self.ready.is_empty() {
            return Some(0);
        }
        self.asleep.first().map(|(due, _)| *due)
    }

    /// Events that are not done, those being written too.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.admitted
    }

    /// Events under way.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.running
    }

    /// When the oldest event that is not done was accepted.
    #[must_use]
    pub fn oldest_unix_ms(&self) -> Option<u64> {
        self.by_age.first().map(|(accepted, _)| *accepted)
    }

    /// Takes an event out of those under way; whose it is.
    fn stopped(&mut self, id: EventId) -> Option<FunctionKey> {
        let item = self.items.get_mut(&id)?;
        if !std::mem::take(&mut item.is_running) {
            return None;
        }
        let function = item.function.clone();
        self.running -= 1;
        if let Some(lane) = self.lanes.get_mut(&function) {
            lane.running -= 1;
        }
        Some(function)
    }

    /// Lanes whose time has come are ready.
    fn rouse(&mut self, now_unix_ms: u64) {
        while let Some((due, function)) = self.asleep.first().cloned()
            && due <= now_unix_ms
        {
            self.settle(&function, now_unix_ms);
        }
    }

    /// Puts a lane where it belongs now.
    fn settle(&mut self, function: &FunctionKey, now_unix_ms: u64) {
        let Some(lane) = self.lanes.get_mut(function) else {
            return;
        };
        match lane.place {
            Place::Nowhere => false,
            Place::Ready(turn) => self.ready.remove(&(turn, function.clone())),
            Place::Asleep(due) => self.asleep.remove(&(due, function.clone())),
        };
        let most = self.limits.function_running;
        let most = lane.running_max.map_or(most, |max| max.min(most));
        lane.place = match lane.waiting.first() {
            Some((due, _)) if lane.running < most && *due <= now_unix_ms => {
                Place::Ready(lane.served)
            }
            Some((due, _)) if lane.running < most => Place::Asleep(*due),
            _ => Place::Nowhere,
        };
        match lane.place {
            Place::Nowhere => false,
            Place::Ready(turn) => self.ready.insert((turn, function.clone())),
            Place::Asleep(due) => self.asleep.insert((due, function.clone())),
        };
        self.forget_if_empty(function);
    }

    fn forget_if_empty(&mut self, function: &FunctionKey) {
        if self
            .lanes
            .get(function)
            .is_some_and(|lane| lane.admitted == 0 && lane.place == Place::Nowhere)
        {
            self.lanes.remove(function);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Phase;

    const LIMITS: Limits = Limits {
        function_events: 3,
        events: 5,
        bytes: 100,
        function_running: 2,
        running: 3,
    };

    fn function(name: &str) -> FunctionKey {
        FunctionKey {
            project: "000000000001".parse().unwrap(),
            name: name.parse().unwrap(),
        }
    }

    fn due(due_unix_ms: u64) -> State {
        State::begin(Phase::Invoke, due_unix_ms)
    }

    fn add(queue: &mut Queue, id: u64, name: &str, due_unix_ms: u64) {
        queue.admit(&function(name), 10).unwrap();
        let (id, function) = (EventId(id), function(name));
        queue.put(id, &function, 10, due_unix_ms, due(due_unix_ms), 0);
    }

    fn take(queue: &mut Queue, now: u64) -> Option<u64> {
        queue.take(now).map(|taken| taken.id.0)
    }

    #[test]
    fn functions_take_turns_and_their_events_come_in_order() {
        let mut queue = Queue::new(Limits {
            running: 100,
            function_running: 100,
            ..LIMITS
        });
        for (id, name) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c")] {
            add(&mut queue, id, name, 0);
        }
        let order: Vec<u64> = std::iter::from_fn(|| take(&mut queue, 0)).collect();
        assert_eq!(order, [1, 4, 5, 2, 3]);
    }

    #[test]
    fn no_more_run_at_once_than_may() {
        let mut queue = Queue::new(LIMITS);
        for (id, name) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b")] {
            add(&mut queue, id, name, 0);
        }
        queue.set_running_max(&function("b"), Some(0), 0);
        let taken: Vec<_> = std::iter::from_fn(|| take(&mut queue, 0)).collect();
        assert_eq!(taken, [1, 4, 2], "two of a, one of b, three in all");
        assert_eq!(queue.next_due(), None);
        queue.done(EventId(1), 0);
        assert_eq!(take(&mut queue, 0), Some(3), "b has one under way");
        queue.put_back(EventId(4), due(7), 0);
        assert_eq!(take(&mut queue, 0), Some(5));
        queue.done(EventId(5), 0);
        assert_eq!(queue.next_due(), Some(7));
        assert_eq!(take(&mut queue, 6), None);
        assert_eq!(take(&mut queue, 7), Some(4));
        assert_eq!((queue.pending(), queue.running()), (3, 3));
    }

    #[test]
    fn what_is_held_back_waits_until_it_is_released() {
        let mut queue = Queue::new(LIMITS);
        add(&mut queue, 1, "a", u64::MAX);
        assert_eq!(take(&mut queue, 1 << 60), None);
        queue.release(EventId(1), 5);
        assert_eq!(queue.next_due(), Some(0));
        assert_eq!(take(&mut queue, 5), Some(1));
        queue.release(EventId(1), 6);
        assert_eq!(take(&mut queue, 6), None, "it is under way once");
    }

    #[test]
    fn what_finds_no_room_is_refused() {
        let mut queue = Queue::new(LIMITS);
        for id in 1..=3 {
            add(&mut queue, id, "a", 5);
        }
        assert_eq!(queue.admit(&function("a"), 1), Err(Full::Function(3)));
        assert_eq!(queue.admit(&function("b"), 71), Err(Full::Bytes(30)));
        add(&mut queue, 4, "b", 5);
        queue.admit(&function("c"), 1).unwrap();
        assert_eq!(queue.admit(&function("d"), 1), Err(Full::Events(5)));
        queue.refuse(&function("c"), 1);
        queue.admit(&function("d"), 1).unwrap();
        assert_eq!(queue.oldest_unix_ms(), Some(5));
        queue.grow(EventId(1), 59);
        assert_eq!(queue.admit(&function("b"), 1), Err(Full::Events(5)));
        queue.refuse(&function("d"), 1);
        assert_eq!(queue.admit(&function("d"), 2), Err(Full::Bytes(99)));
        queue.admit(&function("d"), 1).unwrap();
        assert_eq!(take(&mut queue, 9), Some(1));
        queue.done(EventId(1), 9);
        queue.done(EventId(1), 9);
        assert_eq!((queue.pending(), queue.bytes), (4, 31), "it is done once");
    }
}
