mod region;

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};
use vm_memory::GuestRegionCollection;

pub use region::RamRegion;

/// Guest memory as the devices see it.
pub type Ram = GuestRegionCollection<RamRegion>;

/// A piece of guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Region {
    /// The first address behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

/// What guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Anonymous and private: the quickest to fault in.
    #[default]
    Private,
    /// A memfd that can be neither shortened nor extended, for what shares
    /// it or writes it out.
    Sealed,
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd cannot be made.
    #[error("no file for {bytes} bytes of guest memory")]
    File {
        /// How large it was to be.
        bytes: u64,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The memory cannot be mapped.
    #[error("{bytes} bytes of guest memory cannot be mapped")]
    Map {
        /// How large it was to be.
        bytes: u64,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A guest's memory.
///
/// In a sealed file the regions follow each other without a gap, in the order
/// of their addresses: this is the layout of a snapshot's memory as well.
#[derive(Debug, Clone)]
pub struct GuestRam {
    memory: Arc<Ram>,
    regions: Arc<[Region]>,
    file: Option<Arc<File>>,
}

impl GuestRam {
    /// Maps memory for these regions, which are in the order of their
    /// addresses. Nothing is touched: pages come when they are first used.
    ///
    /// # Errors
    /// When there is not enough, or the regions overlap.
    pub fn allocate(regions: &[Region], backing: Backing) -> Result<Self, MemoryError> {
        let bytes = regions.iter().map(|region| region.bytes).sum();
        let file = match backing {
            Backing::Private => None,
            Backing::Sealed => Some(Arc::new(
                sealed(bytes).map_err(|source| MemoryError::File { bytes, source })?,
            )),
        };
        Self::map(regions, file)
    }

    /// Maps the memory that a sealed file of these regions holds.
    ///
    /// # Errors
    /// When it is shorter than the regions.
    pub fn from_file(regions: &[Region], file: Arc<File>) -> Result<Self, MemoryError> {
        Self::map(regions, Some(file))
    }

    fn map(regions: &[Region], file: Option<Arc<File>>) -> Result<Self, MemoryError> {
        let mut offset = 0;
        let mut mapped = Vec::with_capacity(regions.len());
        for region in regions {
            let place = file.as_deref().map(|file| (file, offset));
            let bytes = usize::try_from(region.bytes).unwrap_or(usize::MAX);
            let one = RamRegion::map(region.start, bytes, place);
            mapped.push(one.map_err(|source| MemoryError::Map {
                bytes: region.bytes,
                source,
            })?);
            offset = offset.saturating_add(region.bytes);
        }
        let memory = Ram::from_regions(mapped).map_err(|error| MemoryError::Map {
            bytes: offset,
            source: std::io::Error::other(error),
        })?;
        Ok(Self {
            memory: Arc::new(memory),
            regions: regions.into(),
            file,
        })
    }

    /// The memory, for whoever reads and writes it.
    #[must_use]
    pub const fn memory(&self) -> &Arc<Ram> {
        &self.memory
    }

    /// Its regions, in the order of their addresses.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The file behind it, when there is one.
    #[must_use]
    pub const fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }
}

fn sealed(bytes: u64) -> std::io::Result<File> {
    let descriptor = rustix::fs::memfd_create(
        c"guest-memory",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    rustix::fs::ftruncate(&descriptor, bytes)?;
    // A peer that shares the file could otherwise shorten it, and our next
    // access would end in SIGBUS.
    rustix::fs::fcntl_add_seals(
        &descriptor,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(File::from(descriptor))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const REGIONS: [Region; 2] = [
        Region {
            start: 0,
            bytes: 0x2000,
        },
        Region {
            start: 0x1_0000,
            bytes: 0x1000,
        },
    ];

    #[test]
    fn both_backings_hold_what_is_written() {
        for backing in [Backing::Private, Backing::Sealed] {
            let ram = GuestRam::allocate(&REGIONS, backing).unwrap();
            ram.memory()
                .write_obj(0x1234_u16, GuestAddress(0x1_0010))
                .unwrap();
            let read: u16 = ram.memory().read_obj(GuestAddress(0x1_0010)).unwrap();
            assert_eq!(read, 0x1234);
            let hole = ram.memory().write_obj(1_u8, GuestAddress(0x8000));
            assert!(hole.is_err(), "{backing:?} has memory in the hole");
        }
    }

    #[test]
    fn a_sealed_file_holds_the_regions_without_a_gap() {
        let ram = GuestRam::allocate(&REGIONS, Backing::Sealed).unwrap();
        ram.memory()
            .write_slice(b"there", GuestAddress(0x1_0000))
            .unwrap();
        let file = ram.file().unwrap();
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 0x2000).unwrap();
        assert_eq!(&bytes, b"there");
        assert_eq!(file.metadata().unwrap().len(), 0x3000);

        let again = GuestRam::from_file(&REGIONS, Arc::clone(file)).unwrap();
        let read: u8 = again.memory().read_obj(GuestAddress(0x1_0000)).unwrap();
        assert_eq!(read, b't');
    }

    #[test]
    fn a_sealed_file_keeps_its_length() {
        let ram = GuestRam::allocate(&REGIONS, Backing::Sealed).unwrap();
        let file = ram.file().unwrap();
        assert!(file.set_len(0x1000).is_err());
        assert!(file.set_len(0x9000).is_err());
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let overlapping = [
            REGIONS[0],
            Region {
                start: 0x1000,
                bytes: 0x1000,
            },
        ];
        assert!(GuestRam::allocate(&overlapping, Backing::Private).is_err());
    }
}
