//! Requests: a header to read, data, and a byte of status to write.

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestMemory};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::device::Block;
use super::disk::Disk;
use super::erase::{Erase, erase};
use super::windows::{Access, SectorRange};
use crate::{Buffers, Chain, DeviceError, Progress, Queue, transfer};

/// The unit of a disk's addresses.
pub const SECTOR: u64 = 512;
const HEADER_BYTES: usize = 16;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Done,
    /// The disk cannot, or the request is outside of it.
    Failed,
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        let number = match self {
            Self::Done => VIRTIO_BLK_S_OK,
            Self::Failed => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        number.to_le_bytes()[0]
    }
}

/// Serves a ring's worth of requests at most.
pub(super) fn process<M: GuestMemory>(
    block: &mut Block,
    memory: &M,
    queue: &mut Queue,
    index: usize,
) -> Result<Progress, DeviceError> {
    let broken = DeviceError::queue(index);
    let mut left = queue.ring().state().size;
    loop {
        while let Some(chain) = queue.pop(memory).map_err(&broken)? {
            let data = data_bytes(&chain);
            let throttle = block.throttle.as_mut();
            if throttle.is_some_and(|throttle| !throttle.admit(data)) {
                // It goes on when the alarm rings.
                queue.undo_pop();
                return Ok(Progress::Done);
            }
            let (head, written) = serve(block, chain, index)?;
            queue.push(memory, head, written).map_err(&broken)?;
            left -= 1;
            if left == 0 {
                return Ok(Progress::More);
            }
        }
        if !queue.listen(memory).map_err(&broken)? {
            return Ok(Progress::Done);
        }
    }
}

/// What a request has beside its header and its status.
fn data_bytes<M: GuestMemory>(chain: &Chain<'_, M>) -> usize {
    let readable = chain.readable.len().saturating_sub(HEADER_BYTES);
    readable + chain.writable.len().saturating_sub(1)
}

/// Serves one request; tells its head and how much was written into it.
fn serve<M: GuestMemory>(
    block: &Block,
    mut chain: Chain<'_, M>,
    queue: usize,
) -> Result<(u16, usize), DeviceError> {
    let missing = |what| DeviceError::Request { queue, what };
    let mut header = [0; HEADER_BYTES];
    if chain.readable.read(&mut header) < HEADER_BYTES {
        return Err(missing("its header"));
    }
    let Some(status) = chain.writable.take_last() else {
        return Err(missing("its status"));
    };
    let (given, room) = (chain.readable.len(), chain.writable.len());
    let result = execute(
        &block.disk,
        &header,
        &mut chain.readable,
        &mut chain.writable,
    );
    let taken = given - chain.readable.len();
    let written = room - chain.writable.len();
    block.counters.add(result == Status::Done, written, taken);
    // The byte is in memory: the chain was checked.
    status
        .write_obj(result.byte(), 0)
        .map_err(|_| missing("its status"))?;
    Ok((chain.head, written + 1))
}

fn execute<B: BitmapSlice>(
    disk: &Disk,
    header: &[u8; HEADER_BYTES],
    readable: &mut Buffers<'_, B>,
    writable: &mut Buffers<'_, B>,
) -> Status {
    let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = *header;
    let kind = u32::from_le_bytes([k0, k1, k2, k3]);
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let done = match kind {
        VIRTIO_BLK_T_IN => run(sector, writable.len()).is_some_and(|run| {
            disk.with(run, Access::Read, |file, offset| {
                transfer::read_from(writable, file, offset)
            })
            .is_ok()
        }),
        VIRTIO_BLK_T_OUT => run(sector, readable.len()).is_some_and(|run| {
            disk.with(run, Access::Write, |file, offset| {
                transfer::write_to(readable, file, offset)
            })
            .is_ok()
        }),
        VIRTIO_BLK_T_FLUSH if !disk.is_read_only() => disk.flush().is_ok(),
        VIRTIO_BLK_T_DISCARD if !disk.is_read_only() => {
            return erase(disk, Erase::Discard, readable);
        }
        VIRTIO_BLK_T_WRITE_ZEROES if !disk.is_read_only() => {
            return erase(disk, Erase::Zero, readable);
        }
        VIRTIO_BLK_T_GET_ID => {
            writable.write(disk.id());
            true
        }
        _ => return Status::Unsupported,
    };
    if done { Status::Done } else { Status::Failed }
}

/// The sectors of a request's data, if it is a whole number of them.
fn run(first_sector: u64, bytes: usize) -> Option<SectorRange> {
    let bytes = u64::try_from(bytes).ok()?;
    (bytes % SECTOR == 0).then_some(SectorRange {
        first_sector,
        sectors: bytes / SECTOR,
    })
}
