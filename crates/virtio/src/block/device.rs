use std::fs::File;
use std::io::{Seek, SeekFrom};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use vm_memory::GuestMemory;

use super::queue::{self, SECTOR};
use super::state::BlockState;
use crate::{Device, DeviceError, DeviceState, Kind, Progress, Queue, StateError};

const QUEUES: [u16; 1] = [256];
/// How many pieces a request's data may have: with its header and its status
/// two such requests fill a queue. Without this Linux sends one piece a time.
const MAX_SEGMENTS: u32 = 126;
/// How long a disk's name is to its driver.
pub(super) const ID_BYTES: usize = 20;

/// Why a file is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its length cannot be found out.
    #[error("the disk's length cannot be read")]
    Length(#[source] std::io::Error),
    /// A piece of a sector would be lost.
    #[error("the disk has {bytes} bytes, which is not a multiple of {SECTOR}")]
    Sectors {
        /// Its length.
        bytes: u64,
    },
}

/// The file behind a disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    read_only: bool,
    sectors: u64,
    id: [u8; ID_BYTES],
}

impl Disk {
    /// A disk over a file or a block device, known to the driver by the first
    /// 20 bytes of `id`.
    ///
    /// # Errors
    /// When the file is no whole number of sectors.
    pub fn new(mut file: File, read_only: bool, id: &str) -> Result<Self, DiskError> {
        // The end, and not the length: a block device has none.
        let bytes = file.seek(SeekFrom::End(0)).map_err(DiskError::Length)?;
        if bytes % SECTOR != 0 {
            return Err(DiskError::Sectors { bytes });
        }
        let mut name = [0; ID_BYTES];
        for (to, from) in name.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Ok(Self {
            file,
            read_only,
            sectors: bytes / SECTOR,
            id: name,
        })
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    pub(super) const fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) const fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) const fn id(&self) -> &[u8] {
        &self.id
    }
}

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
}

impl Block {
    /// A device for this disk.
    #[must_use]
    pub const fn new(disk: Disk) -> Self {
        Self { disk }
    }

    fn saved(&self) -> BlockState {
        BlockState {
            version: BlockState::VERSION,
            sectors: self.disk.sectors,
            read_only: self.disk.read_only,
        }
    }
}

impl<M: GuestMemory> Device<M> for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let own = if self.disk.read_only {
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
            &self.disk.sectors.to_le_bytes()[..],
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
            Some(queue) => queue::process(&self.disk, memory, queue, index),
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
