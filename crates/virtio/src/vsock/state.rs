use serde::{Deserialize, Serialize};

/// A vsock device between two packets. Its connections end with the host's
/// process: a guest that is restored is told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The version of this struct.
    pub version: u32,
    /// The guest's address.
    pub guest_cid: u64,
}

impl VsockState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 1;
}
