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
}
