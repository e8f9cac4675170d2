use std::fs::File;
use std::io::{Seek, SeekFrom};

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
    sectors: u64,
    id: [u8; ID_BYTES],
}

#[derive(Debug)]
enum Media {
    /// All of them, from the file's beginning on.
    File(File),
    Windows(Windows),
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
        Ok(Self {
            media: Media::File(file),
            read_only,
            sectors: bytes / SECTOR,
            id: name(id),
        })
    }

    /// A disk of windows, known to the driver by the first 20 bytes of `id`.
    #[must_use]
    pub fn of_windows(windows: Windows, id: &str) -> Self {
        Self {
            read_only: windows.is_read_only(),
            sectors: windows.sectors(),
            media: Media::Windows(windows),
            id: name(id),
        }
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
        let file = match &self.media {
            Media::File(file) => file,
            Media::Windows(windows) => return windows.with(range, access, work),
        };
        if access == Access::Write && self.read_only {
            return Err(std::io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let end = range.first_sector.checked_add(range.sectors);
        if end.is_none_or(|end| end > self.sectors) {
            return Err(std::io::ErrorKind::AddrNotAvailable.into());
        }
        // The end is in the file, whose length is a number of 63 bits.
        work(file, range.first_sector * SECTOR)
    }

    /// Makes what was written last.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        match &self.media {
            Media::File(file) => Ok(rustix::fs::fdatasync(file)?),
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
