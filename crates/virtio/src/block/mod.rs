//! A disk (virtio 1.3, section 5.2): a file, read-only or read-write with
//! flush.

mod device;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use device::{Block, Disk, DiskError};
pub use state::BlockState;
