use serde::{Deserialize, Serialize};

use crate::StateError;
use crate::state::check_version;

/// An interface between two packets. What waits in it is lost, as packets
/// are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The version of this struct.
    pub version: u32,
    /// Its address, if it has one to tell.
    pub mac: Option<[u8; 6]>,
    /// The largest packet, if it has one to tell.
    pub mtu: Option<u16>,
}

impl NetState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 1;

    /// Whether the interface that is there is the one that was.
    pub(super) fn check(&self, own: &Self) -> Result<(), StateError> {
        check_version("network interface", self.version, Self::VERSION)?;
        if self == own {
            return Ok(());
        }
        Err(StateError::Configuration {
            what: "network interface",
            saved: format!("MAC {:x?}, MTU {:?}", self.mac, self.mtu),
            device: format!("MAC {:x?}, MTU {:?}", own.mac, own.mtu),
        })
    }
}
