//! A network interface (virtio 1.3, section 5.1): one queue for each
//! direction, over a tap. Packets go whole from one kernel to the other with
//! what is left to do about checksums and segments.
//!
//! A packet is copied on its way, so that what is looked at is what is sent.
//! One that the guest has no buffers for waits in the device; those behind it
//! wait, and are dropped, in the tap.

mod counters;
mod device;
mod link;
mod queue;
mod state;
mod tap;
#[cfg(test)]
mod tap_tests;
#[cfg(test)]
mod tests;

pub use counters::{Counters, Counts};
pub use device::{Net, Settings};
pub use link::{Link, Offloads};
pub use state::NetState;
pub use tap::{Tap, TapError};
