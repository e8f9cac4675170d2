//! Requests that free sectors or make them zero.

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use vm_memory::bitmap::BitmapSlice;

use super::disk::Disk;
use super::queue::{SECTOR, Status};
use super::windows::{Access, SectorRange};
use crate::Buffers;

/// The most sectors of one range: 128 MiB.
pub(super) const MAX_ERASED_SECTORS: u32 = 128 << 11;
/// The most ranges of one request.
pub(super) const MAX_ERASED_RANGES: u32 = 16;
/// Sectors that are freed together, if any: those of a page.
pub(super) const ERASED_ALIGNMENT: u32 = 8;

const RANGE_BYTES: usize = 16;
const MAX_BYTES: usize = RANGE_BYTES * MAX_ERASED_RANGES as usize;
/// The only flag: what is made zero may be freed.
const UNMAP: u32 = 1;

/// What is asked of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Erase {
    /// Their content is not needed any more.
    Discard,
    /// They are to read as zeros.
    Zero,
}

/// Erases all ranges that the driver names, or none when one of them is
/// wrong.
pub(super) fn erase<B: BitmapSlice>(
    disk: &Disk,
    erase: Erase,
    readable: &mut Buffers<'_, B>,
) -> Status {
    let mut bytes = [0; MAX_BYTES];
    let length = readable.read(&mut bytes);
    let (ranges, rest) = bytes.get(..length).unwrap_or_default().as_chunks();
    if !readable.is_empty() || !rest.is_empty() || ranges.is_empty() {
        return Status::Failed;
    }
    for range in ranges {
        match check(disk, erase, range) {
            Status::Done => {}
            wrong => return wrong,
        }
    }
    for range in ranges {
        let (range, flags) = parse(range);
        match erase_range(disk, erase, range, flags) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                return Status::Unsupported;
            }
            Err(_) => return Status::Failed,
        }
    }
    Status::Done
}

fn parse(bytes: &[u8; RANGE_BYTES]) -> (SectorRange, u32) {
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] = *bytes;
    let range = SectorRange {
        first_sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        sectors: u64::from(u32::from_le_bytes([n0, n1, n2, n3])),
    };
    (range, u32::from_le_bytes([f0, f1, f2, f3]))
}

/// Whether a range is one (virtio 1.3, 5.2.6.2).
fn check(disk: &Disk, erase: Erase, bytes: &[u8; RANGE_BYTES]) -> Status {
    let (range, flags) = parse(bytes);
    let known = match erase {
        Erase::Discard => 0,
        Erase::Zero => UNMAP,
    };
    if flags & !known != 0 {
        return Status::Unsupported;
    }
    let fits = range.sectors <= u64::from(MAX_ERASED_SECTORS);
    if fits && disk.with(range, Access::Write, |_, _| Ok(())).is_ok() {
        Status::Done
    } else {
        Status::Failed
    }
}

fn erase_range(disk: &Disk, erase: Erase, range: SectorRange, flags: u32) -> std::io::Result<()> {
    if range.sectors == 0 {
        return Ok(());
    }
    let how = if erase == Erase::Discard || flags & UNMAP != 0 {
        FallocateFlags::PUNCH_HOLE
    } else {
        FallocateFlags::ZERO_RANGE
    };
    disk.with(range, Access::Write, |file, offset| {
        let length = range.sectors * SECTOR;
        rustix::fs::fallocate(file, how | FallocateFlags::KEEP_SIZE, offset, length)?;
        Ok(())
    })
}
