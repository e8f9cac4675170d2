//! What follows a try: another one, or the end.

use std::time::Duration;

use skiff_base::Backoff;

use crate::{Condition, State};

/// The longest wait after something that was not taken, as a multiple of the
/// first: 1 s grows to 5 min (AWS, "Asynchronous invocation").
const SETBACK_FACTOR_MAX: u32 = 300;
/// How often a destination is tried.
pub const DELIVERIES_MAX: u32 = 5;

/// How long events wait for their next try, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// After a function's first error; twice as long after the second.
    pub retry_ms: u64,
    /// After the first time that nothing took it; doubles from there.
    pub setback_ms: u64,
}

impl Delays {
    fn retry(self, tries: u32) -> u64 {
        self.retry_ms << tries.saturating_sub(1).min(8)
    }

    fn setback(self, setbacks: u32, random: u32) -> u64 {
        let first = Duration::from_millis(self.setback_ms);
        let mut waits = Backoff::new(first, first * SETBACK_FACTOR_MAX);
        let mut wait = waits.next(random);
        for _ in 1..setbacks.min(32) {
            wait = waits.next(random);
        }
        u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
    }
}

/// How often and how long an event is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Tries after the first.
    pub retries: u32,
    /// The oldest an event may get, milliseconds.
    pub age_ms_max: u64,
    /// Waits between tries.
    pub delays: Delays,
}

/// Whether a try may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It may; this is to be in the log before.
    Try(State),
    /// It may not.
    Over(Condition),
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The function answered.
    Succeeded,
    /// It failed, or may have.
    Failed,
    /// Nothing took the event: no byte of it was processed.
    NotTaken,
}

/// What follows a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Another one, when this says.
    Again(State),
    /// Nothing.
    Over(Condition),
}

impl Rules {
    const fn deadline(&self, accepted_unix_ms: u64) -> u64 {
        accepted_unix_ms.saturating_add(self.age_ms_max)
    }

    /// Whether an event that is due may be tried now.
    #[must_use]
    pub fn begin(&self, accepted_unix_ms: u64, state: State, now_unix_ms: u64) -> Begin {
        if state.tries > self.retries {
            return Begin::Over(Condition::RetriesExhausted);
        }
        if now_unix_ms >= self.deadline(accepted_unix_ms) {
            return Begin::Over(Condition::EventAgeExceeded);
        }
        Begin::Try(State {
            tries: state.tries + 1,
            ..state
        })
    }

    /// What follows the end of a try that began with `state`. `random` is any
    /// number; it spreads waits.
    #[must_use]
    pub fn after(
        &self,
        accepted_unix_ms: u64,
        state: State,
        ended: Ended,
        now_unix_ms: u64,
        random: u32,
    ) -> Then {
        let at = |wait_ms: u64| {
            let due = now_unix_ms.saturating_add(wait_ms);
            due.min(self.deadline(accepted_unix_ms))
        };
        match ended {
            Ended::Succeeded => Then::Over(Condition::Success),
            Ended::Failed if state.tries > self.retries => Then::Over(Condition::RetriesExhausted),
            Ended::Failed => Then::Again(State {
                setbacks: 0,
                due_unix_ms: at(self.delays.retry(state.tries)),
                ..state
            }),
            Ended::NotTaken => {
                let setbacks = state.setbacks.saturating_add(1);
                Then::Again(State {
                    tries: state.tries.saturating_sub(1),
                    setbacks,
                    due_unix_ms: at(self.delays.setback(setbacks, random)),
                    ..state
                })
            }
        }
    }
}

impl Delays {
    /// When a destination that failed is tried again; `None` once it has been
    /// tried often enough.
    #[must_use]
    pub fn delivery(self, state: State, now_unix_ms: u64, random: u32) -> Option<State> {
        (state.tries < DELIVERIES_MAX).then(|| State {
            due_unix_ms: now_unix_ms.saturating_add(self.setback(state.tries, random)),
            ..state
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Phase;

    const RULES: Rules = Rules {
        retries: 2,
        age_ms_max: 600_000,
        delays: Delays {
            retry_ms: 60_000,
            setback_ms: 1000,
        },
    };

    fn state(tries: u32, setbacks: u32, due_unix_ms: u64) -> State {
        State {
            phase: Phase::Invoke,
            tries,
            setbacks,
            due_unix_ms,
        }
    }

    #[test]
    fn an_error_is_followed_by_two_tries_a_minute_and_two_later() {
        let now = 1000;
        let Begin::Try(first) = RULES.begin(0, state(0, 0, 0), now) else {
            panic!("it may be tried");
        };
        assert_eq!(first, state(1, 0, 0));
        let then = RULES.after(0, first, Ended::Failed, now, 0);
        assert_eq!(then, Then::Again(state(1, 0, 61_000)));
        let then = RULES.after(0, state(2, 0, 61_000), Ended::Failed, 61_000, 0);
        assert_eq!(then, Then::Again(state(2, 0, 181_000)));
        let then = RULES.after(0, state(3, 0, 181_000), Ended::Failed, 181_000, 0);
        assert_eq!(then, Then::Over(Condition::RetriesExhausted));
    }

    #[test]
    fn what_nothing_took_waits_longer_each_time_and_does_not_count() {
        let mut seen = Vec::new();
        let mut now = 0;
        for setbacks in 0..12 {
            let then = RULES.after(0, state(1, setbacks, 0), Ended::NotTaken, 0, u32::MAX);
            let Then::Again(next) = then else {
                panic!("it is tried again");
            };
            assert_eq!((next.tries, next.setbacks), (0, setbacks + 1));
            seen.push(next.due_unix_ms);
            now = next.due_unix_ms;
        }
        assert_eq!(seen[..4], [1000, 2000, 4000, 8000]);
        assert_eq!(now, 300_000);
    }

    #[test]
    fn no_event_outlives_its_age() {
        let late = RULES.after(0, state(1, 0, 0), Ended::Failed, 590_000, 0);
        assert_eq!(late, Then::Again(state(1, 0, 600_000)));
        let over = Begin::Over(Condition::EventAgeExceeded);
        assert_eq!(RULES.begin(0, state(1, 0, 600_000), 600_000), over);
        // One that was cut off in its last try has had them all.
        let over = Begin::Over(Condition::RetriesExhausted);
        assert_eq!(RULES.begin(0, state(3, 0, 0), 1), over);
    }

    #[test]
    fn a_destination_is_tried_so_often_and_no_more() {
        let delays = RULES.delays;
        let mut state = State::begin(Phase::Deliver(0), 0);
        let mut tries = 0;
        loop {
            state.tries += 1;
            tries += 1;
            match delays.delivery(state, 0, 7) {
                Some(next) => state = next,
                None => break,
            }
        }
        assert_eq!(tries, DELIVERIES_MAX);
    }
}
