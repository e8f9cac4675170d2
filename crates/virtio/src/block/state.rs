use serde::{Deserialize, Serialize};

use crate::StateError;
use crate::state::check_version;

/// A disk between two requests: all of it is in its file, and this says
/// which file would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The version of this struct.
    pub version: u32,
    /// How many sectors it has.
    pub sectors: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
}

impl BlockState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 1;

    /// Whether the disk that is there is the one that was.
    pub(super) fn check(&self, own: &Self) -> Result<(), StateError> {
        check_version("disk", self.version, Self::VERSION)?;
        if self == own {
            return Ok(());
        }
        Err(StateError::Configuration {
            what: "disk",
            saved: self.describe(),
            device: own.describe(),
        })
    }

    fn describe(&self) -> String {
        let access = if self.read_only {
            "read-only"
        } else {
            "read-write"
        };
        format!("{} sectors, {access}", self.sectors)
    }
}
