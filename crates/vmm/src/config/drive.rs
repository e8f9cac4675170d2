use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skiff_virtio::block::{MAX_SECTORS, SECTOR};

use super::{Lacking, RateLimits};

/// The largest disk of windows.
pub const MAX_CAPACITY_MIB: u64 = (MAX_SECTORS * SECTOR) >> 20;

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
    /// What its flushes are worth: they are done, whatever is said.
    #[serde(default)]
    pub cache_type: CacheType,
    /// How its file is used.
    #[serde(default)]
    pub io_engine: IoEngine,
    /// How much the guest may ask of it.
    #[serde(default)]
    pub rate_limiter: Option<RateLimits>,
    /// The partition that the root is on.
    #[serde(default, skip_serializing)]
    pub partuuid: Option<Lacking>,
    /// A program that serves it.
    #[serde(default, skip_serializing)]
    pub socket: Option<Lacking>,
}

/// What flushes are worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// They need not be done.
    #[default]
    Unsafe,
    /// They must be.
    Writeback,
}

/// How a file is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One request after the other.
    #[default]
    Sync,
}

/// A disk whose sectors are mapped to files while the guest runs, over the
/// control socket. Its sectors fail until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowDisk {
    /// Its name, which the guest sees as its serial number.
    pub disk_id: String,
    /// Whether the guest cannot write to it.
    #[serde(default)]
    pub is_read_only: bool,
    /// How large it is to the guest.
    #[serde(default = "default_capacity")]
    pub capacity_mib: u64,
    /// How much the guest may ask of it.
    #[serde(default)]
    pub rate_limiter: Option<RateLimits>,
}

/// 16 TiB.
const fn default_capacity() -> u64 {
    16 << 20
}

impl WindowDisk {
    /// Its capacity.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        (self.capacity_mib << 20) / SECTOR
    }
}
