//! A source of randomness (virtio 1.3, section 5.4): the host kernel's.

mod device;
mod queue;
mod state;

pub use device::Entropy;
pub use state::EntropyState;
