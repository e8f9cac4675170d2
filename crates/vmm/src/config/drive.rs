use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name, which the guest sees as its serial number.
    pub drive_id: String,
    /// A file or a block device.
    pub path_on_host: PathBuf,
    /// Whether the guest's root is on it: then it is the first disk, and the
    /// command line says so.
    #[serde(default)]
    pub is_root_device: bool,
    /// Whether the guest cannot write to it.
    #[serde(default)]
    pub is_read_only: bool,
}
