//! Runs the instances that are assigned to this worker: starts them, probes
//! them, reads their output, samples what they use, ends them and records it.
//!
//! It decides neither which instances there are nor who gets requests; the
//! scheduler and the gateway do. It pulls no image and keeps no desired
//! state: what it knows comes back from the sandboxes after a restart.
//!
//! Invariants: one task owns each instance's life, so that its end is
//! recorded exactly once; a record of the start is there before the sandbox
//! is; an instance that fails to start leaves nothing but its log; nothing an
//! instance writes can hold the worker up.
//!
//! Entry points: [`Worker::new`], [`Worker::adopt`], [`Worker::start`],
//! [`Worker::shutdown`].

mod adopt;
mod class;
mod config;
mod error;
mod exec;
mod functions;
mod instance;
mod label;
mod life;
mod logs;
mod probe;
mod records;
mod sample;
mod spec;
mod worker;

pub use adopt::Adopted;
pub use class::{Backends, Seat, Trial};
pub use config::{SandboxWatcher, WorkerConfig};
pub use error::{EndReason, StartError, StartFailure, WorkerError};
pub use exec::ExecWish;
pub use functions::FunctionHost;
pub use instance::{InstanceInfo, InstanceState};
pub use life::{Ended, Phases, Started};
pub use logs::{LogFollow, LogLimits, LogQuery, OutputTap};
pub use records::{InstanceEnd, InstanceStart, WorkerRecords};
pub use worker::{ShutdownMode, Worker};
