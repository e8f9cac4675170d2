//! Virtio devices: their models over guest memory, and the transport that a
//! driver reaches them by.
//!
//! It knows no KVM: an interrupt is a [`Line`] that somebody gives, and a
//! doorbell is a call of [`Core::notify`]. It opens no file: a disk is handed
//! in.
//!
//! Invariants: everything in guest memory is hostile, and read once; a driver
//! that breaks the protocol gets its device marked as needing a reset, and
//! nothing else happens; a call does at most one ring's worth of work; no
//! length of a driver's is allocated.
//!
//! Entry points: [`Core`] is a device with its queues, [`mmio::Window`] its
//! registers, [`block::Block`], [`entropy::Entropy`], [`net::Net`] and
//! [`vsock::Vsock`] are devices. Every device's folder has the same files:
//! `device`, `queue`, `state`.

pub mod block;
mod buffers;
mod chain;
mod core;
mod device;
pub mod entropy;
#[cfg(test)]
mod hostile_tests;
mod interrupt;
pub mod net;
mod queue;
mod rate;
mod state;
#[cfg(test)]
mod testing;
mod throttle;
mod transfer;
mod transport;
pub mod vsock;

pub use buffers::Buffers;
pub use chain::{Chain, ChainError};
pub use core::Core;
pub use device::{Device, DeviceError, Kind, Progress};
pub use interrupt::{Cause, Interrupt, Line};
pub use queue::{Queue, QueueError};
pub use rate::{Bucket, BucketChange, Limits, LimitsChange, RateLimiter, TokenBucket};
pub use state::{CoreState, DeviceState, QueueState, StateError};
pub use throttle::{Throttle, ThrottleHandle};
pub use transport::{Transport, mmio};
