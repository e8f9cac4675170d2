use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use vm_memory::GuestMemory;

use super::counters::Counters;
use super::disk::Disk;
use super::erase::{ERASED_ALIGNMENT, MAX_ERASED_RANGES, MAX_ERASED_SECTORS};
use super::queue;
use super::state::BlockState;
use crate::{Device, DeviceError, DeviceState, Kind, Progress, Queue, StateError, Throttle};

const QUEUES: [u16; 1] = [256];
/// How many pieces a request's data may have: with its header and its status
/// two such requests fill a queue. Without this Linux sends one piece a time.
const MAX_SEGMENTS: u32 = 126;
/// The device.
#[derive(Debug)]
pub struct Block {
    pub(super) disk: Disk,
    pub(super) counters: Arc<Counters>,
    pub(super) throttle: Option<Throttle>,
}

impl Block {
    /// A device for this disk.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self {
            disk,
            counters: Arc::default(),
            throttle: None,
        }
    }

    /// Has its requests wait for a limit.
    #[must_use]
    pub fn limited(mut self, throttle: Throttle) -> Self {
        self.throttle = Some(throttle);
        self
    }

    /// What it does, while it does it.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn saved(&self) -> BlockState {
        BlockState {
            version: BlockState::VERSION,
            sectors: self.disk.sectors(),
            read_only: self.disk.is_read_only(),
            windows: self.disk.mapped(),
        }
    }
}

impl<M: GuestMemory> Device<M> for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let own = if self.disk.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            (1 << VIRTIO_BLK_F_FLUSH)
                | (1 << VIRTIO_BLK_F_DISCARD)
                | (1 << VIRTIO_BLK_F_WRITE_ZEROES)
        };
        (1 << VIRTIO_BLK_F_SEG_MAX) | own
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUES
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.disk.sectors().to_le_bytes().to_vec();
        let words = [
            // The largest segment, the geometry, the size of a block, the
            // topology: not offered.
            &[0][..],
            &[MAX_SEGMENTS],
            &[0; 5],
            &[MAX_ERASED_SECTORS, MAX_ERASED_RANGES, ERASED_ALIGNMENT],
            &[MAX_ERASED_SECTORS, MAX_ERASED_RANGES],
            // Zeros may be written by freeing what is there.
            &[1],
        ];
        for word in words.concat() {
            config.extend(word.to_le_bytes());
        }
        config
    }

    fn activate(&mut self, _features: u64) {}

    fn process(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Progress, DeviceError> {
        match queues.get_mut(index) {
            Some(queue) => queue::process(self, memory, queue, index),
            None => Ok(Progress::Done),
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.throttle.as_ref().map(Throttle::alarm)
    }

    /// What had to wait goes on.
    fn host_ready(&mut self, memory: &M, queues: &mut [Queue]) -> Result<Progress, DeviceError> {
        if let Some(throttle) = &self.throttle {
            throttle.heard();
        }
        self.process(memory, queues, 0)
    }

    fn reset(&mut self) {}

    fn state(&self) -> DeviceState {
        DeviceState::Block(self.saved())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Block(state) = state else {
            return Err(StateError::Kind("disk"));
        };
        state.check(&self.saved())
    }
}
