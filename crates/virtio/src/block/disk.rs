use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use super::queue::SECTOR;
use super::windows::{Access, SectorRange, Windows};

/// How long a disk's name is to its driver.
const ID_BYTES: usize = 20;

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

/// What is behind a disk's sectors.
#[derive(Debug)]
pub struct Disk {
    media: Media,
    read_only: bool,
    id: [u8; ID_BYTES],
}

#[derive(Debug)]
enum Media {
    /// All of them, from the file's beginning on.
    File(Backing),
    Windows(Windows),
}

/// The file behind a disk, which another can follow while a driver uses the
/// disk. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Backing(Arc<Mutex<Whole>>);

/// A file whose sectors are all of a disk's.
#[derive(Debug, Clone)]
struct Whole {
    file: Arc<File>,
    sectors: u64,
}

impl Whole {
    fn of(mut file: File) -> Result<Self, DiskError> {
        // The end, and not the length: a block device has none.
        let bytes = file.seek(SeekFrom::End(0)).map_err(DiskError::Length)?;
        if bytes % SECTOR != 0 {
            return Err(DiskError::Sectors { bytes });
        }
        Ok(Self {
            file: Arc::new(file),
            sectors: bytes / SECTOR,
        })
    }
}

impl Backing {
    /// Puts a file or a block device in the place of the one that is there: it
    /// is open as that one was. Requests that have begun end with that one,
    /// and what they wrote is for the host to keep; the next ones find this.
    ///
    /// # Errors
    /// When it is no whole number of sectors; the disk is as it was then.
    pub fn replace(&self, file: File) -> Result<(), DiskError> {
        let whole = Whole::of(file)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = whole;
        Ok(())
    }

    fn now(&self) -> Whole {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Disk {
    /// A disk over a file or a block device, known to the driver by the first
    /// 20 bytes of `id`.
    ///
    /// # Errors
    /// When the file is no whole number of sectors.
    pub fn new(file: File, read_only: bool, id: &str) -> Result<Self, DiskError> {
        let whole = Arc::new(Mutex::new(Whole::of(file)?));
        Ok(Self {
            media: Media::File(Backing(whole)),
            read_only,
            id: name(id),
        })
    }

    /// The file behind it, if it is not a disk of windows.
    #[must_use]
    pub fn backing(&self) -> Option<Backing> {
        match &self.media {
            Media::File(backing) => Some(backing.clone()),
            Media::Windows(_) => None,
        }
    }

    /// A disk of windows, known to the driver by the first 20 bytes of `id`.
    #[must_use]
    pub fn of_windows(windows: Windows, id: &str) -> Self {
        Self {
            read_only: windows.is_read_only(),
            media: Media::Windows(windows),
            id: name(id),
        }
    }

    pub(super) const fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn sectors(&self) -> u64 {
        match &self.media {
            Media::File(backing) => backing.now().sectors,
            Media::Windows(windows) => windows.sectors(),
        }
    }

    pub(super) const fn id(&self) -> &[u8] {
        &self.id
    }

    /// What is mapped, if it is a disk of windows.
    pub(super) fn mapped(&self) -> Option<Vec<SectorRange>> {
        match &self.media {
            Media::File(_) => None,
            Media::Windows(windows) => Some(windows.mapped()),
        }
    }

    /// Does something with the file, and the place in it, of a run of
    /// sectors.
    ///
    /// # Errors
    /// When not all of it is there, or it is to be written and cannot be; what
    /// the work says.
    pub(super) fn with(
        &self,
        range: SectorRange,
        access: Access,
        work: impl FnOnce(&File, u64) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let whole = match &self.media {
            Media::File(backing) => backing.now(),
            Media::Windows(windows) => return windows.with(range, access, work),
        };
        if access == Access::Write && self.read_only {
            return Err(std::io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let end = range.first_sector.checked_add(range.sectors);
        if end.is_none_or(|end| end > whole.sectors) {
            return Err(std::io::ErrorKind::AddrNotAvailable.into());
        }
        // The end is in the file, whose length is a number of 63 bits.
        work(&whole.file, range.first_sector * SECTOR)
    }

    /// Makes what was written last.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        match &self.media {
            Media::File(backing) => Ok(rustix::fs::fdatasync(backing.now().file)?),
            Media::Windows(windows) => windows.flush(),
        }
    }
}

fn name(id: &str) -> [u8; ID_BYTES] {
    let mut name = [0; ID_BYTES];
    for (to, from) in name.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    name
}
