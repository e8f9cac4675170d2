//! A disk (virtio 1.3, section 5.2), read-only or read-write with flush,
//! discard and zeros: a file, or windows that are mapped to files.

mod counters;
mod device;
mod disk;
mod erase;
mod queue;
mod state;
#[cfg(test)]
mod tests;
mod windows;

pub use counters::{Counters, Counts};
pub use device::Block;
pub use disk::{Backing, Disk, DiskError};
pub use queue::SECTOR;
pub use state::BlockState;
pub use windows::{MAX_SECTORS, MAX_WINDOWS, SectorRange, WindowError, Windows};
