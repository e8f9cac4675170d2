use std::os::fd::BorrowedFd;

use vm_memory::GuestMemory;

use crate::{DeviceState, Queue, QueueError, StateError};

/// A virtio device's number (virtio 1.3, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A network interface.
    Net,
    /// A disk.
    Block,
    /// A source of randomness.
    Entropy,
    /// Sockets between guest and host.
    Vsock,
}

impl Kind {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Entropy => 4,
            Self::Vsock => 19,
        }
    }
}

/// Whether a device is through with what it was called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// It waits for the driver.
    Done,
    /// There is more: call again when others had their turn.
    More,
}

/// Why a device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the protocol.
    #[error("queue {queue} is broken")]
    Queue {
        /// Which queue.
        queue: usize,
        /// How.
        #[source]
        source: QueueError,
    },
    /// A chain is not what this device's requests are.
    #[error("a request on queue {queue} has no place for {what}")]
    Request {
        /// Which queue.
        queue: usize,
        /// What is missing.
        what: &'static str,
    },
}

impl DeviceError {
    /// Says which queue it was, for `map_err`.
    pub(crate) fn queue(queue: usize) -> impl Fn(QueueError) -> Self {
        move |source| Self::Queue { queue, source }
    }
}

/// What a device does; all that devices have in common is in
/// [`Core`](crate::Core).
pub trait Device<M: GuestMemory>: Send + std::fmt::Debug {
    /// What it is.
    fn kind(&self) -> Kind;

    /// The features of its kind that it offers.
    fn features(&self) -> u64;

    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> &'static [u16];

    /// Its configuration, in which a driver reads.
    fn config(&self) -> Vec<u8>;

    /// The driver is ready and took these features.
    fn activate(&mut self, features: u64);

    /// Works on a queue.
    ///
    /// # Errors
    /// When the driver broke the protocol.
    fn process(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Progress, DeviceError>;

    /// What becomes readable when the host has something for the device.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Works on what the host has for it.
    ///
    /// # Errors
    /// When the driver broke the protocol.
    fn host_ready(&mut self, _memory: &M, _queues: &mut [Queue]) -> Result<Progress, DeviceError> {
        Ok(Progress::Done)
    }

    /// The driver starts anew.
    fn reset(&mut self);

    /// What it holds that is not its configuration.
    fn state(&self) -> DeviceState;

    /// Takes a saved state.
    ///
    /// # Errors
    /// When it is another kind's.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}
