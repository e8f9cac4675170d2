use serde::{Deserialize, Serialize};

/// An entropy source between two requests: nothing of it is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyState {
    /// The version of this struct.
    pub version: u32,
}

impl EntropyState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 1;
}
