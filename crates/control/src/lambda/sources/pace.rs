//! How many invocations of one mapping are under way: few at first, one more
//! with each that the function takes, half as many when it takes none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Invocations at once at first (AWS's).
const FIRST: u32 = 5;

#[derive(Debug)]
pub(super) struct Pace {
    counts: Mutex<Counts>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    under_way: u32,
    allowed: u32,
}

/// One invocation's place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Slot(Arc<Pace>);

impl Default for Pace {
    fn default() -> Self {
        Self {
            counts: Mutex::new(Counts {
                under_way: 0,
                allowed: FIRST,
            }),
            changed: Notify::new(),
        }
    }
}

impl Pace {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_begin(self: &Arc<Self>, most: u32) -> Option<Slot> {
        let mut counts = self.counts();
        if counts.under_way >= counts.allowed.min(most) {
            return None;
        }
        counts.under_way += 1;
        Some(Slot(Arc::clone(self)))
    }

    /// A place among at most so many, once there is one. One waits at a time.
    pub(super) async fn begin(self: &Arc<Self>, most: u32) -> Slot {
        loop {
            let changed = self.changed.notified();
            if let Some(slot) = self.try_begin(most) {
                return slot;
            }
            changed.await;
        }
    }

    /// Waits until none is under way.
    pub(super) async fn ended(&self) {
        loop {
            let changed = self.changed.notified();
            if self.counts().under_way == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Slot {
    /// The function took it: one more may be under way, up to so many.
    pub(super) fn taken(&self, most: u32) {
        let mut counts = self.0.counts();
        counts.allowed = counts.allowed.saturating_add(1).min(most.max(1));
    }

    /// The function took nothing.
    pub(super) fn throttled(&self) {
        let mut counts = self.0.counts();
        counts.allowed = (counts.allowed / 2).max(1);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.counts().under_way -= 1;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(pace: &Arc<Pace>, most: u32) -> Vec<Slot> {
        std::iter::from_fn(|| pace.try_begin(most)).collect()
    }

    #[test]
    fn a_function_that_takes_all_gets_more_at_once() {
        let pace = Arc::new(Pace::default());
        assert_eq!(fill(&pace, 100).len(), 5);
        assert_eq!(fill(&pace, 2).len(), 2);
        for slot in fill(&pace, 100) {
            slot.taken(8);
        }
        assert_eq!(fill(&pace, 100).len(), 8);
    }

    #[test]
    fn a_function_that_takes_none_gets_one_at_least() {
        let pace = Arc::new(Pace::default());
        for slot in fill(&pace, 100) {
            slot.throttled();
        }
        let slots = fill(&pace, 100);
        assert_eq!(slots.len(), 1);
        slots[0].taken(100);
        drop(slots);
        assert_eq!(fill(&pace, 100).len(), 2);
    }
}
