//! The control socket: whoever started the monitor maps files, pauses the
//! guest and asks what it has used, in frames of [`skiff_wire::monitor`].
//!
//! ```text
//! waiting ── a client comes ─▶ hearing ── its frame ─▶ answering ─▶ hearing
//!    ▲                            │ it ends, or sends a bad frame
//!    └────────────────────────────┘
//! ```
//!
//! There is one client at a time; the next waits to be accepted. A client
//! that does not take its answer is not heard meanwhile. Its end changes
//! nothing for the guest.

mod answer;
mod endpoint;
mod serve;
pub(crate) mod socket;
#[cfg(test)]
mod tests;

use std::fs::File;

use skiff_virtio::block::SectorRange;
use skiff_wire::monitor::Stats;

use crate::{Machine, MachineError};
pub use endpoint::{ControlError, Endpoint};
pub use serve::ControlThread;

/// What is controlled.
pub trait Controlled: Send + Sync + 'static {
    /// Maps a file to sectors of a disk.
    ///
    /// # Errors
    /// When it cannot be.
    fn map(&self, disk: &str, range: SectorRange, file: File) -> Result<(), MachineError>;
    /// Takes a window away.
    ///
    /// # Errors
    /// When there is none, or it is used for long.
    fn unmap(&self, disk: &str, first_sector: u64) -> Result<(), MachineError>;
    /// Stops the guest.
    ///
    /// # Errors
    /// When it does not stop, or has ended.
    fn pause(&self) -> Result<(), MachineError>;
    /// Lets it run.
    ///
    /// # Errors
    /// When it has ended.
    fn resume(&self) -> Result<(), MachineError>;
    /// Makes it another one than it was.
    ///
    /// # Errors
    /// When it cannot be told.
    fn renew_generation(&self) -> Result<(), MachineError>;
    /// What it has used.
    fn stats(&self) -> Stats;
    /// Ends it.
    fn stop(&self);
}

impl Controlled for Machine {
    fn map(&self, disk: &str, range: SectorRange, file: File) -> Result<(), MachineError> {
        self.map(disk, range, file)
    }

    fn unmap(&self, disk: &str, first_sector: u64) -> Result<(), MachineError> {
        self.unmap(disk, first_sector)
    }

    fn pause(&self) -> Result<(), MachineError> {
        self.pause()
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.resume()
    }

    fn renew_generation(&self) -> Result<(), MachineError> {
        self.renew_generation()
    }

    fn stats(&self) -> Stats {
        self.stats()
    }

    fn stop(&self) {
        self.stop();
    }
}
