use std::fs::File;
use std::path::Path;

use skiff_virtio::LimitsChange;
use skiff_wire::monitor::Stats;

use crate::{Machine, MachineError};

/// What the API does with a machine that runs.
pub trait Guest: Send + Sync + 'static {
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
    /// Whether it was stopped.
    fn is_paused(&self) -> bool;
    /// Changes the limits of a disk.
    ///
    /// # Errors
    /// When there is none of that name.
    fn limit_disk(&self, id: &str, change: LimitsChange) -> Result<(), MachineError>;
    /// Puts another file behind a disk.
    ///
    /// # Errors
    /// When there is no disk of that name, or the file is none.
    fn replace_disk(&self, id: &str, path: &Path, file: File) -> Result<(), MachineError>;
    /// Changes the limits of an interface: of what the guest receives, and
    /// of what it sends.
    ///
    /// # Errors
    /// When there is none of that name.
    fn limit_interface(
        &self,
        id: &str,
        receive: LimitsChange,
        transmit: LimitsChange,
    ) -> Result<(), MachineError>;
    /// What it has used.
    fn stats(&self) -> Stats;
}

impl Guest for Machine {
    fn pause(&self) -> Result<(), MachineError> {
        self.pause()
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.resume()
    }

    fn is_paused(&self) -> bool {
        self.is_paused()
    }

    fn limit_disk(&self, id: &str, change: LimitsChange) -> Result<(), MachineError> {
        self.limit_disk(id, change)
    }

    fn replace_disk(&self, id: &str, path: &Path, file: File) -> Result<(), MachineError> {
        self.replace_disk(id, path, file)
    }

    fn limit_interface(
        &self,
        id: &str,
        receive: LimitsChange,
        transmit: LimitsChange,
    ) -> Result<(), MachineError> {
        self.limit_interface(id, receive, transmit)
    }

    fn stats(&self) -> Stats {
        self.stats()
    }
}
