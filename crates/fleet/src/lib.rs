//! Carries the scheduler's decisions out: starts instances on workers, puts
//! them into the gateway's rotation, takes them out and ends them.
//!
//! It decides nothing: every fact goes into [`skiff_sched::Scheduler`], every
//! action that comes out is done here. It carries no request and keeps no
//! desired state.
//!
//! ```text
//!  Start ──▶ launch looked up ──▶ worker starts it ──▶ in rotation ─┬─▶ Stop: out of rotation,
//!             │                     │                    ▲          │   drained, worker ends it
//!             ▼                     ▼                    │          ├─▶ ended by itself or dead:
//!           InstanceFailed ◀────────┘        Pause ◀─▶ Resume       │   out of rotation at once
//!                                                                   ▼
//!                                                             InstanceGone
//! ```
//!
//! Invariants: each instance that was started is reported failed or gone
//! exactly once; pausing and waking one instance never overlap; no lock is
//! held while anything is waited for.
//!
//! Entry points: [`Fleet::new`], [`Fleet::run`].

mod fleet;
mod port;
mod steer;

pub use fleet::{Fleet, FleetConfig, Standing};
pub use port::{Adopted, Launches, Parts, Rotation, StartFailure, Started, WorkerPort};
