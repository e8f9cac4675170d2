//! The monitor: one process, one virtual machine.
//!
//! It builds a machine from a configuration, runs it with plain threads (one
//! for each vCPU, one for the devices) and says why it ended. It has no
//! runtime, no network and no store, and knows nothing of services.
//!
//! Invariants: a configuration is refused whole, with what is wrong and
//! where, before a guest's instruction runs; whatever a guest does ends at
//! most its own machine; every wait of the monitor's own has a deadline; what
//! a guest writes to the serial port is bounded.
//!
//! Entry points: [`Config`] is what to run, [`Machine`] what runs,
//! [`control::ControlThread`] and [`api::ApiThread`] who tells it what to do
//! meanwhile. The binary `skiff-vmm` is a thin shell around them.

pub mod api;
pub mod awaited;
pub mod config;
pub mod confine;
pub mod control;
pub mod inherited;
mod listener;
mod machine;
pub mod probe;
mod report;

pub use config::Config;
pub use machine::{Machine, MachineError, Options};
pub use skiff_guest::kernel;
