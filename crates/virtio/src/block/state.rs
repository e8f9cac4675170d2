use serde::{Deserialize, Serialize};

use super::windows::SectorRange;
use crate::StateError;
use crate::state::check_version;

/// A disk between two requests: all of it is in its files, and this says
/// which files would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The version of this struct.
    pub version: u32,
    /// How many sectors it has.
    pub sectors: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Which of its sectors are mapped, if it is a disk of windows. The files
    /// are mapped again before a state is taken.
    pub windows: Option<Vec<SectorRange>>,
}

impl BlockState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 2;

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
        let windows = match &self.windows {
            Some(windows) => format!(", {} windows", windows.len()),
            None => String::new(),
        };
        format!("{} sectors, {access}{windows}", self.sectors)
    }
}
