//! What is saved of a device, apart from the live one.

use serde::{Deserialize, Serialize};

use crate::block::BlockState;
use crate::entropy::EntropyState;
use crate::net::NetState;
use crate::vsock::VsockState;

/// Why a saved state cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another build wrote it.
    #[error("the state of a {what} has version {found}, and this build reads {known}")]
    Version {
        /// What it is of.
        what: &'static str,
        /// What it has.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// It is another device's.
    #[error("the state is not that of a {0}")]
    Kind(&'static str),
    /// It has other queues.
    #[error("the state has {saved} queues, and the device {device}")]
    Queues {
        /// In the state.
        saved: usize,
        /// In the device.
        device: usize,
    },
    /// A queue cannot be so.
    #[error("the state's queue {index} is wrong: {reason}")]
    Queue {
        /// Which.
        index: usize,
        /// How.
        reason: String,
    },
    /// The device is configured otherwise.
    #[error("the state is of a {what} of {saved}, and this one has {device}")]
    Configuration {
        /// What it is of.
        what: &'static str,
        /// In the state.
        saved: String,
        /// In the device.
        device: String,
    },
}

pub(crate) const fn check_version(
    what: &'static str,
    found: u32,
    known: u32,
) -> Result<(), StateError> {
    if found == known {
        Ok(())
    } else {
        Err(StateError::Version { what, found, known })
    }
}

/// A queue between two requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The largest size.
    pub max_size: u16,
    /// The size that the driver chose.
    pub size: u16,
    /// Whether the driver set it up.
    pub ready: bool,
    /// Whether the rings have event indices.
    pub event_index: bool,
    /// The next request to take.
    pub next_available: u16,
    /// The next place to give one back.
    pub next_used: u16,
    /// Where the descriptors are.
    pub descriptors: u64,
    /// Where the driver's ring is.
    pub available: u64,
    /// Where the device's ring is.
    pub used: u64,
}

impl From<virtio_queue::QueueState> for QueueState {
    fn from(state: virtio_queue::QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_index: state.event_idx_enabled,
            next_available: state.next_avail,
            next_used: state.next_used,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }
}

impl From<QueueState> for virtio_queue::QueueState {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx_enabled: state.event_index,
            next_avail: state.next_available,
            next_used: state.next_used,
            desc_table: state.descriptors,
            avail_ring: state.available,
            used_ring: state.used,
        }
    }
}

/// What a device of each kind holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A network interface.
    Net(NetState),
    /// A disk.
    Block(BlockState),
    /// A source of randomness.
    Entropy(EntropyState),
    /// Sockets between guest and host.
    Vsock(VsockState),
}

/// A device with its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    /// The version of this struct.
    pub version: u32,
    /// The driver's progress.
    pub status: u32,
    /// The features that the driver took.
    pub features: u64,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// The device.
    pub device: DeviceState,
}

impl CoreState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 1;
}
