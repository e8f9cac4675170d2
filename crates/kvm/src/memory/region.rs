//! A mapping of guest memory that large pages fit into.
//!
//! KVM maps 2 MiB at once into a guest only where guest and host addresses
//! agree in their last 21 bits, and the kernel aligns no mapping by itself
//! before Linux 6.7: otherwise a guest faults on each of its pages.

use std::fs::File;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Error as GuestMemoryError;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionMmap, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

/// A large page.
const ALIGNMENT: usize = 2 << 20;

/// Address space of ours, with nothing in it around the memory.
#[derive(Debug)]
struct Reservation {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to no thread.
unsafe impl Send for Reservation {}
// SAFETY: as above; nothing here reads or writes it.
unsafe impl Sync for Reservation {}

impl Reservation {
    fn new(bytes: usize) -> std::io::Result<Self> {
        // SAFETY: the kernel chooses the place: nothing is mapped over.
        let start = unsafe {
            mmap_anonymous(
                null_mut(),
                bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start = NonNull::new(start.cast())
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: all of it is ours, and whoever holds a reference into it
        // borrows the region that owns this.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "our own mapping is unmapped");
    }
}

/// A region of guest memory.
#[derive(Debug)]
pub struct RamRegion {
    // Before what it lies in.
    region: GuestRegionMmap,
    _reservation: Reservation,
}

impl RamRegion {
    /// Maps `bytes` at `start`, anonymous and private, or shared from a place
    /// in a file.
    pub(super) fn map(
        start: u64,
        bytes: usize,
        file: Option<(&File, u64)>,
    ) -> std::io::Result<Self> {
        let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let reserved = bytes.checked_add(ALIGNMENT).ok_or_else(invalid)?;
        let reservation = Reservation::new(reserved)?;
        let skip = reservation.start.as_ptr().align_offset(ALIGNMENT);
        let place = reservation.start.as_ptr().wrapping_add(skip);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: it replaces a part of the reservation, which is ours and
        // has nothing in it: `skip` is below the alignment.
        let mapped = unsafe {
            match file {
                Some((file, offset)) => mmap(
                    place.cast(),
                    bytes,
                    protection,
                    flags | MapFlags::SHARED,
                    file,
                    offset,
                ),
                None => mmap_anonymous(place.cast(), bytes, protection, flags | MapFlags::PRIVATE),
            }
        }?;
        // SAFETY: the range was just mapped, and stays so as long as the
        // reservation, which lies beside the region and is dropped after it.
        let mapping = unsafe {
            MmapRegion::build_raw(
                mapped.cast(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_NORESERVE,
            )
        }
        .map_err(std::io::Error::other)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(invalid)?;
        Ok(Self {
            region,
            _reservation: reservation,
        })
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.region.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        GuestMemoryRegion::bitmap(&self.region)
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.region.get_host_address(addr)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>, GuestMemoryError> {
        GuestMemoryRegion::get_slice(&self.region, offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_at_a_large_page_and_is_given_back() {
        for bytes in [0x1000, ALIGNMENT, ALIGNMENT + 0x1000] {
            let region = RamRegion::map(0, bytes, None).unwrap();
            let host = region.get_host_address(MemoryRegionAddress(0)).unwrap();
            assert_eq!(host as usize % ALIGNMENT, 0);
            let place = format!("{:x}-", host as usize);
            let is_mapped = || {
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                maps.lines()
                    .any(|line| line.starts_with(&place) && line.contains("rw-p"))
            };
            assert!(is_mapped());
            drop(region);
            assert!(!is_mapped());
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        assert!(RamRegion::map(0, usize::MAX, None).is_err());
        assert!(RamRegion::map(0, 1 << 60, None).is_err());
        assert!(RamRegion::map(u64::MAX, 0x1000, None).is_err());
    }
}
