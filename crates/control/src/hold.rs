//! One change of a service at a time, with few who wait.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedMutexGuard, watch};

type Slots<K> = Mutex<HashMap<K, Slot>>;

#[derive(Debug)]
struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    users: usize,
    /// Told when those who are in the line shall end.
    end: watch::Sender<()>,
}

/// A turn for each key, made when somebody wants it and gone when nobody does.
#[derive(Debug)]
pub(crate) struct Turns<K: Eq + Hash> {
    slots: Arc<Slots<K>>,
    users_max: usize,
}

/// A place in the line of one key.
#[derive(Debug)]
pub(crate) struct Ticket<K: Eq + Hash> {
    slots: Arc<Slots<K>>,
    key: K,
    turn: Arc<tokio::sync::Mutex<()>>,
    end: watch::Receiver<()>,
}

/// The turn itself; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Held<K: Eq + Hash> {
    // Before the ticket: the turn is given back first.
    _turn: OwnedMutexGuard<()>,
    _ticket: Ticket<K>,
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// One has the turn, `waiters_max` wait for it.
    pub(crate) fn new(waiters_max: usize) -> Self {
        Self {
            slots: Arc::default(),
            users_max: waiters_max + 1,
        }
    }

    /// A place in the line, unless the line is full.
    pub(crate) fn ticket(&self, key: K) -> Option<Ticket<K>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(key.clone()).or_insert_with(|| Slot {
            turn: Arc::default(),
            users: 0,
            end: watch::Sender::default(),
        });
        if slot.users >= self.users_max {
            return None;
        }
        slot.users += 1;
        Some(Ticket {
            slots: Arc::clone(&self.slots),
            key,
            turn: Arc::clone(&slot.turn),
            end: slot.end.subscribe(),
        })
    }

    /// Tells all who are in the line of this key now to end.
    pub(crate) fn end(&self, key: &K) {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(key) {
            slot.end.send_replace(());
        }
    }
}

impl<K: Eq + Hash> Ticket<K> {
    /// Changes when it shall end, whether it has its turn or waits for it.
    pub(crate) fn end(&self) -> watch::Receiver<()> {
        self.end.clone()
    }

    /// Waits for the turn; whoever has it has a deadline of its own.
    pub(crate) async fn wait(self) -> Held<K> {
        Held {
            _turn: Arc::clone(&self.turn).lock_owned().await,
            _ticket: self,
        }
    }
}

impl<K: Eq + Hash> Drop for Ticket<K> {
    fn drop(&mut self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get_mut(&self.key) {
            slot.users -= 1;
            if slot.users == 0 {
                slots.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_the_turn_some_wait_and_nothing_is_left() {
        let turns = Turns::new(1);
        let first = turns.ticket("a").unwrap().wait().await;
        let second = turns.ticket("a").unwrap();
        assert!(turns.ticket("a").is_none());
        assert!(turns.ticket("b").is_some());
        drop(first);
        drop(second.wait().await);
        assert!(turns.slots.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn those_in_the_line_are_told_to_end_and_nobody_else() {
        let turns = Turns::new(2);
        let tickets = ["a", "a", "b"].map(|key| turns.ticket(key).unwrap());
        turns.end(&"a");
        let later = turns.ticket("a").unwrap();
        let told = tickets.iter().chain([&later]);
        let told: Vec<_> = told
            .map(|ticket| ticket.end().has_changed().unwrap())
            .collect();
        assert_eq!(told, [true, true, false, false]);
    }
}
