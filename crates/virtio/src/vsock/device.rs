use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use vm_memory::GuestMemory;

use super::muxer::Muxer;
use super::queue::{self, EVENT, RECEIVE, TRANSMIT};
use super::state::VsockState;
use crate::state::check_version;
use crate::{Device, DeviceError, DeviceState, Kind, Progress, Queue, StateError};

const QUEUES: [u16; 3] = [256; 3];
/// What a guest's address can be: 0, 1 and 2 are everybody's, the loopback's
/// and the host's, and 2^32 - 1 is any.
pub const GUEST_CIDS: RangeInclusive<u64> = 3..=4_294_967_294;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The address belongs to somebody else.
    #[error("a guest's CID is {} to {}, not {cid}", GUEST_CIDS.start(), GUEST_CIDS.end())]
    Cid {
        /// What was asked for.
        cid: u64,
    },
    /// The host's socket cannot be made.
    #[error("{} cannot be listened on: remove what is there, or name another path", .path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    muxer: Muxer,
    /// The guest does not know yet that its connections are gone.
    tell_reset: bool,
}

impl Vsock {
    /// A device of this address, whose host's side is at this path.
    ///
    /// # Errors
    /// When the address or the path cannot be used.
    pub fn new(guest_cid: u64, path: &Path) -> Result<Self, VsockError> {
        if !GUEST_CIDS.contains(&guest_cid) {
            return Err(VsockError::Cid { cid: guest_cid });
        }
        let muxer = Muxer::new(guest_cid, path).map_err(|source| VsockError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            guest_cid,
            muxer,
            tell_reset: false,
        })
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.muxer.connections()
    }

    /// Hears the guest and answers it. Each may make room for the other.
    fn work<M: GuestMemory>(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
    ) -> Result<Progress, DeviceError> {
        if self.tell_reset
            && let Some(events) = queues.get_mut(EVENT)
        {
            self.tell_reset = !queue::tell_reset(memory, events)?;
        }
        let mut progress = Progress::Done;
        if let Some(transmit) = queues.get_mut(TRANSMIT) {
            progress = queue::hear(&mut self.muxer, memory, transmit)?;
        }
        let full = !self.muxer.has_room();
        if let Some(receive) = queues.get_mut(RECEIVE)
            && queue::give(&mut self.muxer, memory, receive)? == Progress::More
        {
            progress = Progress::More;
        }
        if full && self.muxer.has_room() {
            progress = Progress::More;
        }
        Ok(progress)
    }
}

impl<M: GuestMemory> Device<M> for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUES
    }

    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    fn activate(&mut self, _features: u64) {}

    fn process(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
        _index: usize,
    ) -> Result<Progress, DeviceError> {
        self.work(memory, queues)
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.muxer.source())
    }

    fn host_ready(&mut self, memory: &M, queues: &mut [Queue]) -> Result<Progress, DeviceError> {
        self.muxer.poll();
        self.work(memory, queues)
    }

    fn reset(&mut self) {
        self.muxer.clear();
        self.tell_reset = false;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {
            version: VsockState::VERSION,
            guest_cid: self.guest_cid,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Vsock(state) = state else {
            return Err(StateError::Kind("vsock"));
        };
        check_version("vsock", state.version, VsockState::VERSION)?;
        if state.guest_cid != self.guest_cid {
            return Err(StateError::Configuration {
                what: "vsock",
                saved: format!("CID {}", state.guest_cid),
                device: format!("CID {}", self.guest_cid),
            });
        }
        self.muxer.clear();
        self.tell_reset = true;
        Ok(())
    }
}
