//! Whether more is offered to a revision than it can take, and how long a
//! newcomer would wait: a part of [`crate::pool::Pool`], pure, told the time.
//!
//! A queue that is first in, first out with a fixed bound turns a lasting
//! overload into lateness for all: it stands full, every answer is as old as
//! the queue is long, and when the capacity falls that is over any client's
//! patience. Two answers are known. Newest first (adaptive LIFO) serves the
//! patient last: whoever was let in is overtaken, and learns at the deadline
//! that it waited in vain. Controlled delay (CoDel) refuses by the time that
//! was waited, once the queue *stands*: it tells a burst, which passes, from an
//! overload, which stays. The rule here is controlled delay moved to the
//! door. Slots come at a rate that can be measured, so the wait is known at
//! the arrival, and a refusal then costs the client nothing and says when to
//! come again. Order stays first in, first out.
//!
//! - Only a revision to which no instance can be added is judged: while one
//!   may come, the queue is what makes it come.
//! - A long queue is no overload, for it may be a burst, or clients that wait
//!   for their answers before they ask again. It is one if it is worth more
//!   than the bound for a whole window and has grown since by a quarter; what
//!   was refused or left counts as growth.
//! - The bound is never under one round, the time in which every slot is given
//!   once: so as many may wait as are served, and who asks for what takes ten
//!   seconds may wait ten.
//! - In an overload, one that has waited for twice the bound all the same
//!   (the capacity fell, or it came before the overload was seen) makes room
//!   for a newer one.
//!
//! ```text
//!      a window above the bound        grown by a quarter since
//! Calm ────────────────────▶ Standing ─────────────────▶ Overloaded
//!  ▲ ▲                          │                            │
//!  │ └─ a window under the bound┘                            │
//!  └── nobody waited for a window's length, an instance ─────┘
//!      may be added, or no more was offered than granted
//! ```

use std::time::Duration;

use skiff_base::Monotonic;

/// A window is at least this long,
const WINDOW: Duration = Duration::from_millis(500);
/// and has at least so many grants, or their rate is chance.
const GRANTS_MIN: u32 = 10;
/// A standing queue that grew by its length divided by this is an overload,
const GROWTH: u32 = 4;
/// if that is at least so many.
const GROWTH_MIN: u32 = 8;

#[derive(Debug)]
pub(crate) struct Pressure {
    bound: Duration,
    /// No instance can be added for now.
    limited: bool,
    state: State,
    /// From the last whole window.
    per_grant: Option<Duration>,
    /// There while somebody waits.
    window: Option<Window>,
    /// Since when nobody does.
    empty_since: Monotonic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Calm,
    Standing {
        /// Grown by so many, it is an overload.
        most: u32,
        /// Offered and not granted since.
        grown: u32,
    },
    Overloaded,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    since: Monotonic,
    offered: u32,
    granted: u32,
}

impl Pressure {
    /// A bound of nothing is none.
    pub(crate) fn new(bound: Duration) -> Self {
        Self {
            bound,
            limited: false,
            state: State::Calm,
            per_grant: None,
            window: None,
            empty_since: Monotonic::default(),
        }
    }

    /// Whether instances can be added has changed.
    pub(crate) fn set_limited(&mut self, limited: bool) {
        let limited = limited && !self.bound.is_zero();
        if self.limited != limited {
            self.limited = limited;
            self.calm();
        }
    }

    /// A request has found no slot where `waiting` wait already. The wait that
    /// is expected of it if that is too long.
    pub(crate) fn arrives(
        &mut self,
        now: Monotonic,
        waiting: u32,
        in_flight: u32,
    ) -> Result<(), Duration> {
        if !self.limited {
            return Ok(());
        }
        self.look(now, waiting, in_flight);
        if self.window.is_none() && now.since(self.empty_since) >= WINDOW {
            self.calm();
        }
        let window = self.window.get_or_insert(Window {
            since: now,
            offered: 0,
            granted: 0,
        });
        window.offered = window.offered.saturating_add(1);
        let expected = self.expected(waiting);
        match expected.filter(|_| self.state == State::Overloaded) {
            Some(wait) if wait > self.patience(in_flight) => Err(wait),
            _ => Ok(()),
        }
    }

    /// One that waited has got a slot, and `waiting` are left.
    pub(crate) fn granted(&mut self, now: Monotonic, waiting: u32, in_flight: u32) {
        if let Some(window) = &mut self.window {
            window.granted = window.granted.saturating_add(1);
        }
        self.look(now, waiting, in_flight);
    }

    /// Nobody waits any more. An overload may go on after a moment of rest.
    pub(crate) fn emptied(&mut self, now: Monotonic) {
        self.empty_since = now;
        self.window = None;
        if self.state != State::Overloaded {
            self.calm();
        }
    }

    /// Whether one that waits since then makes room for a newer one.
    pub(crate) fn is_late(&self, since: Monotonic, now: Monotonic, in_flight: u32) -> bool {
        self.state == State::Overloaded && now.since(since) > self.patience(in_flight) * 2
    }

    /// How long one would wait behind so many; `None` before it was measured.
    pub(crate) fn expected(&self, waiting: u32) -> Option<Duration> {
        let per_grant = self.per_grant?;
        Some(per_grant.saturating_mul(waiting.saturating_add(1)))
    }

    fn patience(&self, in_flight: u32) -> Duration {
        let round = self.per_grant.unwrap_or_default().saturating_mul(in_flight);
        self.bound.max(round)
    }

    fn calm(&mut self) {
        self.state = State::Calm;
        self.per_grant = None;
        self.window = None;
    }

    /// Closes the window if it is whole.
    fn look(&mut self, now: Monotonic, waiting: u32, in_flight: u32) {
        let Some(window) = self.window else {
            return;
        };
        let length = now.since(window.since);
        if length < WINDOW || window.granted < GRANTS_MIN {
            return;
        }
        self.per_grant = Some(length / window.granted);
        self.window = Some(Window {
            since: now,
            offered: 0,
            granted: 0,
        });
        let is_above = self
            .expected(waiting)
            .is_some_and(|wait| wait > self.patience(in_flight));
        let excess = window.offered.saturating_sub(window.granted);
        self.state = match self.state {
            State::Overloaded if excess == 0 => State::Calm,
            State::Overloaded => State::Overloaded,
            _ if !is_above => State::Calm,
            State::Calm => State::Standing {
                most: (waiting / GROWTH).max(GROWTH_MIN),
                grown: 0,
            },
            State::Standing { most, grown } if grown.saturating_add(excess) > most => {
                State::Overloaded
            }
            State::Standing { most, grown } => State::Standing {
                most,
                // What shrank may grow again.
                grown: grown
                    .saturating_add(window.offered)
                    .saturating_sub(window.granted),
            },
        };
    }
}
