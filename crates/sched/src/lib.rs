//! Decides which instances start, where, and which ones stop: placement,
//! scaling, concurrency and keep-alive as one state machine.
//!
//! It has no clock, does no I/O, and never fails: facts go in as [`Input`]s
//! with the time they happened at, decisions come out as [`Action`]s. It does
//! not choose the instance that a request goes to (the gateway does), enforce
//! the concurrency (the worker does), or count requests against quotas (the
//! gateway does).
//!
//! Invariants:
//! - the same inputs, times and ids give the same actions;
//! - a start never takes a revision above its `max`, a project above its
//!   quota, or a worker above its overcommitted memory and processors;
//!   instances that are stopping count until they are gone;
//! - an event's work does not grow with the number of revisions, and timers
//!   are bounded by the number of active ones;
//! - every instance that was started or adopted ends exactly once: by
//!   [`Input::InstanceGone`], [`Input::InstanceFailed`] or the loss of its
//!   worker.
//!
//! Entry points: [`Scheduler::handle`] and [`Scheduler::next_deadline`].

mod autoscale;
mod books;
mod capacity;
mod input;
mod revision;
mod room;
mod scheduler;
mod window;

pub use input::{Action, AdoptedState, Config, Counts, Input, RevisionPlan, Shortage, StopReason};
pub use scheduler::{NextInstanceId, Scheduler};
