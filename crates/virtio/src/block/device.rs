use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use vm_memory::GuestMemory;

use super::counters::Counters;
use super::disk::Disk;
use super::queue;
use super::state::BlockState;
use crate::{Device, DeviceError, DeviceState, Kind, Progress, Queue, StateError};

const QUEUES: [u16; 1] = [256];
/// How many pieces a request's data may have: with its header and its status
/// two such requests fill a queue. Without this Linux sends one piece a time.
const MAX_SEGMENTS: u32 = 126;
/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    counters: Arc<Counters>,
}

impl Block {
    /// A device for this disk.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self {
            disk,
            counters: Arc::default(),
        }
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
            VIRTIO_BLK_F_RO
        } else {
            VIRTIO_BLK_F_FLUSH
        };
        (1 << VIRTIO_BLK_F_SEG_MAX) | (1 << own)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUES
    }

    fn config(&self) -> Vec<u8> {
        let size_max = 0_u32;
        [
            &self.disk.sectors().to_le_bytes()[..],
            &size_max.to_le_bytes(),
            &MAX_SEGMENTS.to_le_bytes(),
        ]
        .concat()
    }

    fn activate(&mut self, _features: u64) {}

    fn process(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Progress, DeviceError> {
        match queues.get_mut(index) {
            Some(queue) => queue::process(&self.disk, &self.counters, memory, queue, index),
            None => Ok(Progress::Done),
        }
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
