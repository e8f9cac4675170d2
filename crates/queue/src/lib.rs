//! Event invocations: acknowledged at once, tried later.
//!
//! ```text
//!  accepted ─▶ waiting ─▶ trying ─┬─ succeeded ──────────────────┐
//!                 ▲               ├─ too often or too old ───────┤
//!                 │               ├─ failed: again, a minute on ─┤
//!                 └───────────────┴─ not taken: again, seconds on│
//!                                                                ▼
//!                        done ◀── delivered, or given up ◀── to its destinations
//! ```
//! [`Rules`] decides what follows a try, [`Queue`] which event is next,
//! [`record`] writes what a destination gets; they know no clock and no file.
//! [`EventLog`] keeps events on the disk. Who invokes and delivers is not here.
//!
//! Invariants:
//! - an event whose append has been answered is in the log until it is done,
//!   whatever ends the process or the machine;
//! - a try is in the log before it begins: one that is cut off counts;
//! - the log's size is bounded by what it holds of events that are not done;
//! - no bytes in a segment make the reader panic or allocate without bound.

mod codec;
mod event;
pub mod log;
mod queue;
pub mod record;
mod rules;
mod target;

pub use codec::{PAYLOAD_BYTES_MAX, RESPONSE_BYTES_MAX};
pub use event::{Condition, Event, EventId, FunctionKey, Outcome, Phase, State};
pub use log::{EventLog, Left, LogError, Stored, Write};
pub use queue::{Full, Limits, Queue, Taken};
pub use rules::{Begin, Delays, Ended, Rules, Then};
pub use target::{Address, Purpose, Target, TargetError};
