//! A disk of windows: runs of sectors that are mapped to files, and taken
//! away again, while a driver uses the disk.
//!
//! ```text
//! map ─▶ mapped ── unmap ─▶ leaving ── no request uses it ─▶ gone
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FileType, OFlags};
use serde::{Deserialize, Serialize};

use super::queue::SECTOR;

/// The most windows of a disk.
pub const MAX_WINDOWS: usize = 1024;
/// The most sectors of a disk: 1 PiB of them.
pub const MAX_SECTORS: u64 = (1 << 50) / SECTOR;

/// Why a window cannot be mapped or taken away.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// It has no sectors, or some are outside of the disk.
    #[error("{sectors} sectors from {first} on are no window of a disk of {disk}")]
    Outside {
        /// Its first sector.
        first: u64,
        /// How many it has.
        sectors: u64,
        /// How many the disk has.
        disk: u64,
    },
    /// A sector of it is another window's.
    #[error("sectors from {first} on are mapped already: unmap them first")]
    Overlap {
        /// The other's first sector.
        first: u64,
    },
    /// There are too many.
    #[error("a disk has {MAX_WINDOWS} windows at most: unmap one first")]
    Many,
    /// What was given is no file that a disk can be of.
    #[error("the descriptor is neither a file nor a block device")]
    Kind,
    /// It was opened in another way than the disk needs.
    #[error("the file must be open for {0}")]
    Access(&'static str),
    /// The file is not as long as the window.
    #[error("the file has {bytes} bytes, fewer than the window's {sectors} sectors of {SECTOR}")]
    Short {
        /// The file's length.
        bytes: u64,
        /// The window's.
        sectors: u64,
    },
    /// The file cannot be looked at.
    #[error("the file cannot be looked at")]
    File(#[source] std::io::Error),
    /// There is none.
    #[error("no window begins with sector {first}")]
    Absent {
        /// Where it was to be.
        first: u64,
    },
    /// A request takes longer than the caller waits. No other can begin.
    #[error("a request still uses the window at sector {first}: unmap it again later")]
    Busy {
        /// The window's first sector.
        first: u64,
    },
}

/// A run of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectorRange {
    /// The first of them.
    pub first_sector: u64,
    /// How many they are.
    pub sectors: u64,
}

/// A disk's windows, for those who map them and for the disk. A clone is the
/// same windows.
#[derive(Debug, Clone)]
pub struct Windows {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    read_only: bool,
    sectors: u64,
    /// By their first sectors. Held for look-ups and never during a request.
    table: Mutex<BTreeMap<u64, Window>>,
    /// A window is used by no request any more.
    idle: Condvar,
}

#[derive(Debug)]
struct Window {
    sectors: u64,
    file: Arc<File>,
    /// How many requests use it.
    users: usize,
    /// Nobody may begin to use it.
    leaving: bool,
    /// It was written to since the last flush.
    unsynced: bool,
}

/// What a request does to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Windows {
    /// A disk's worth of sectors, at most [`MAX_SECTORS`], without a window.
    #[must_use]
    pub fn new(sectors: u64, read_only: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                read_only,
                sectors: sectors.min(MAX_SECTORS),
                table: Mutex::default(),
                idle: Condvar::new(),
            }),
        }
    }

    /// How many sectors the disk has, mapped or not.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.shared.sectors
    }

    /// Whether no window can be written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.shared.read_only
    }

    /// Maps the beginning of a file or a block device.
    ///
    /// # Errors
    /// When there is no room for it, or the file is not one for this disk.
    pub fn map(&self, range: SectorRange, mut file: File) -> Result<(), WindowError> {
        let SectorRange {
            first_sector: first,
            sectors,
        } = range;
        let end = first.checked_add(sectors);
        let disk = self.shared.sectors;
        let Some(end) = end.filter(|end| sectors > 0 && *end <= disk) else {
            return Err(WindowError::Outside {
                first,
                sectors,
                disk,
            });
        };
        check(&mut file, sectors, self.shared.read_only)?;
        let mut table = self.shared.lock();
        // They do not overlap: only the last that begins before the end can.
        if let Some((&other, window)) = table.range(..end).next_back()
            && other + window.sectors > first
        {
            return Err(WindowError::Overlap { first: other });
        }
        if table.len() >= MAX_WINDOWS {
            return Err(WindowError::Many);
        }
        let window = Window {
            sectors,
            file: Arc::new(file),
            users: 0,
            leaving: false,
            unsynced: false,
        };
        table.insert(first, window);
        Ok(())
    }

    /// Takes the window away that begins with this sector, once no request
    /// uses it. From the call on, requests to it fail.
    ///
    /// # Errors
    /// When there is none, or it is still used after `within`.
    pub fn unmap(&self, first: u64, within: Duration) -> Result<(), WindowError> {
        let mut table = self.shared.lock();
        let window = table.get_mut(&first);
        window.ok_or(WindowError::Absent { first })?.leaving = true;
        let is_used = |table: &mut BTreeMap<u64, Window>| {
            table.get(&first).is_some_and(|window| window.users > 0)
        };
        let (mut table, _) = self
            .shared
            .idle
            .wait_timeout_while(table, within, is_used)
            .unwrap_or_else(PoisonError::into_inner);
        if is_used(&mut table) {
            return Err(WindowError::Busy { first });
        }
        let window = table.remove(&first);
        drop(table);
        // The file is closed without the lock.
        drop(window);
        Ok(())
    }

    /// What is mapped, in order.
    #[must_use]
    pub fn mapped(&self) -> Vec<SectorRange> {
        let table = self.shared.lock();
        let range = |(&first_sector, window): (&u64, &Window)| SectorRange {
            first_sector,
            sectors: window.sectors,
        };
        table.iter().map(range).collect()
    }

    /// Does something with the file, and the place in it, of a run of sectors
    /// that is in one window.
    pub(super) fn with(
        &self,
        range: SectorRange,
        access: Access,
        work: impl FnOnce(&File, u64) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let lease = self.lease(range, access);
        let lease = lease.ok_or(std::io::ErrorKind::AddrNotAvailable)?;
        work(
            &lease.file,
            (range.first_sector - lease.first).saturating_mul(SECTOR),
        )
    }

    fn lease(&self, range: SectorRange, access: Access) -> Option<Lease<'_>> {
        if access == Access::Write && self.shared.read_only {
            return None;
        }
        let end = range.first_sector.checked_add(range.sectors)?;
        let mut table = self.shared.lock();
        let (&first, window) = table.range_mut(..=range.first_sector).next_back()?;
        let is_inside =
            range.first_sector < first + window.sectors && end <= first + window.sectors;
        if window.leaving || !is_inside {
            return None;
        }
        window.unsynced |= access == Access::Write;
        Some(self.shared.lend(first, window))
    }

    /// Makes what was written last.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        while let Some(lease) = self.lease_unsynced() {
            if let Err(errno) = rustix::fs::fdatasync(&lease.file) {
                if let Some(window) = self.shared.lock().get_mut(&lease.first) {
                    window.unsynced = true;
                }
                return Err(errno.into());
            }
        }
        Ok(())
    }

    fn lease_unsynced(&self) -> Option<Lease<'_>> {
        let mut table = self.shared.lock();
        let (&first, window) = table.iter_mut().find(|(_, window)| window.unsynced)?;
        window.unsynced = false;
        Some(self.shared.lend(first, window))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Window>> {
        // Nothing under this lock can leave it half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lend(&self, first: u64, window: &mut Window) -> Lease<'_> {
        window.users += 1;
        Lease {
            shared: self,
            first,
            file: Arc::clone(&window.file),
        }
    }
}

/// A window that a request uses: it stays until this is dropped.
#[derive(Debug)]
struct Lease<'a> {
    shared: &'a Shared,
    first: u64,
    file: Arc<File>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(window) = self.shared.lock().get_mut(&self.first) {
            window.users = window.users.saturating_sub(1);
        }
        self.shared.idle.notify_all();
    }
}

/// Whether a file is one that a window of so many sectors can be of.
fn check(file: &mut File, sectors: u64, read_only: bool) -> Result<(), WindowError> {
    let failed = |errno: rustix::io::Errno| WindowError::File(errno.into());
    let status = rustix::fs::fstat(&*file).map_err(failed)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
        return Err(WindowError::Kind);
    }
    let flags = rustix::fs::fcntl_getfl(&*file).map_err(failed)?;
    let mode = flags & OFlags::RWMODE;
    if flags.contains(OFlags::PATH) || mode == OFlags::WRONLY {
        return Err(WindowError::Access("reading"));
    }
    // What is written to a file open for appending goes to its end, wherever
    // it was to go.
    if !read_only && (mode != OFlags::RDWR || flags.contains(OFlags::APPEND)) {
        return Err(WindowError::Access("reading and writing, at any place"));
    }
    // The end, and not the length: a block device has none.
    let bytes = file.seek(SeekFrom::End(0)).map_err(WindowError::File)?;
    // It is in the disk, which has fewer than 2^64 bytes.
    if bytes < sectors * SECTOR {
        return Err(WindowError::Short { bytes, sectors });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn file(sectors: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(sectors * SECTOR).unwrap();
        file
    }

    fn range(first_sector: u64, sectors: u64) -> SectorRange {
        SectorRange {
            first_sector,
            sectors,
        }
    }

    fn place(windows: &Windows, first: u64, sectors: u64) -> Option<u64> {
        let mut found = None;
        let work = |_: &File, offset| {
            found = Some(offset);
            Ok(())
        };
        windows
            .with(range(first, sectors), Access::Read, work)
            .ok()?;
        found
    }

    #[test]
    fn a_run_of_sectors_is_in_one_window_or_in_none() {
        let windows = Windows::new(1000, true);
        windows.map(range(10, 10), file(10)).unwrap();
        windows.map(range(20, 5), file(5)).unwrap();
        windows.map(range(999, 1), file(1)).unwrap();
        for (first, sectors, offset) in [
            (10, 1, Some(0)),
            (19, 1, Some(9 * SECTOR)),
            (20, 5, Some(0)),
            (10, 10, Some(0)),
            (10, 0, Some(0)),
            (9, 1, None),
            (9, 2, None),
            (19, 2, None),
            (24, 2, None),
            (25, 1, None),
            (25, 0, None),
            (999, 1, Some(0)),
            (999, 2, None),
            (999, u64::MAX, None),
            (u64::MAX, 1, None),
            (0, 1, None),
        ] {
            assert_eq!(
                place(&windows, first, sectors),
                offset,
                "{first}, {sectors}"
            );
        }
        assert_eq!(
            windows.mapped(),
            [range(10, 10), range(20, 5), range(999, 1)]
        );
    }

    #[test]
    fn windows_are_in_the_disk_and_do_not_overlap() {
        let windows = Windows::new(1000, true);
        windows.map(range(100, 100), file(100)).unwrap();
        for (first, sectors) in [
            (0, 0),
            (1000, 1),
            (999, 2),
            (0, 1001),
            (1, u64::MAX),
            (u64::MAX, 1),
        ] {
            let error = windows.map(range(first, sectors), file(1)).unwrap_err();
            assert!(
                matches!(error, WindowError::Outside { .. }),
                "{first}, {sectors}: {error}"
            );
        }
        for (first, sectors) in [(100, 100), (99, 2), (0, 101), (199, 1), (50, 500), (150, 1)] {
            let error = windows.map(range(first, sectors), file(500)).unwrap_err();
            assert!(
                matches!(error, WindowError::Overlap { first: 100 }),
                "{first}, {sectors}: {error}"
            );
        }
        windows.map(range(99, 1), file(1)).unwrap();
        windows.map(range(200, 1), file(1)).unwrap();
    }

    const SMALL: u64 = 32;

    #[derive(Debug, Clone)]
    enum Act {
        Map(u64, u64),
        Unmap(u64),
        Look(u64, u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        let run = || (0..SMALL + 2, 0..12_u64);
        prop_oneof![
            2 => run().prop_map(|(first, sectors)| Act::Map(first, sectors)),
            1 => (0..SMALL).prop_map(Act::Unmap),
            3 => run().prop_map(|(first, sectors)| Act::Look(first, sectors)),
        ]
    }

    proptest! {
        /// Against a disk that has the owner of each sector written down.
        #[test]
        fn windows_are_as_written_down(acts in prop::collection::vec(act(), 1..80)) {
            let windows = Windows::new(SMALL, true);
            let one = file(12);
            let mut owners = vec![None; usize::try_from(SMALL).unwrap()];
            for act in acts {
                let run = |first: u64, sectors: u64| {
                    let from = usize::try_from(first).unwrap();
                    from..from + usize::try_from(sectors).unwrap()
                };
                match act {
                    Act::Map(first, sectors) => {
                        let free = owners.get(run(first, sectors));
                        let free = free.is_some_and(|part| part.iter().all(Option::is_none));
                        let mapped = windows.map(range(first, sectors), one.try_clone().unwrap());
                        prop_assert_eq!(mapped.is_ok(), free && sectors > 0);
                        if mapped.is_ok() {
                            owners[run(first, sectors)].fill(Some(first));
                        }
                    }
                    Act::Unmap(first) => {
                        let there = owners[run(first, 1)][0] == Some(first);
                        let unmapped = windows.unmap(first, Duration::ZERO);
                        prop_assert_eq!(unmapped.is_ok(), there);
                        let gone = owners.iter_mut().filter(|owner| **owner == Some(first));
                        gone.for_each(|owner| *owner = None);
                    }
                    Act::Look(first, sectors) => {
                        // No sectors are where the first of them would be.
                        let owner = owners.get(run(first, sectors.max(1)));
                        let owner = owner.and_then(|part| {
                            let first = part[0]?;
                            part.iter().all(|owner| *owner == Some(first)).then_some(first)
                        });
                        let expected = owner.map(|owner| (first - owner) * SECTOR);
                        prop_assert_eq!(place(&windows, first, sectors), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_disk_has_so_many_windows_and_no_more() {
        let windows = Windows::new(MAX_SECTORS, true);
        let one = file(1);
        for first in 0..MAX_WINDOWS as u64 {
            windows
                .map(range(first, 1), one.try_clone().unwrap())
                .unwrap();
        }
        let first = MAX_WINDOWS as u64;
        let error = windows.map(range(first, 1), one.try_clone().unwrap());
        assert!(matches!(error, Err(WindowError::Many)));
        windows.unmap(0, LONG).unwrap();
        windows.map(range(first, 1), one).unwrap();
    }

    #[test]
    fn a_file_must_do_for_its_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [0; 1024]).unwrap();
        let reader = || File::open(&path).unwrap();
        let mut options = File::options();
        let appender = options.read(true).append(true).open(&path).unwrap();
        let (pipe, _end) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));

        let layers = Windows::new(100, true);
        let scratch = Windows::new(100, false);
        let said = |result: Result<(), WindowError>| result.unwrap_err().to_string();
        assert!(said(layers.map(range(0, 3), reader())).contains("has 1024 bytes"));
        assert!(said(layers.map(range(0, 1), pipe)).contains("neither a file"));
        let open = File::open(folder.path()).unwrap();
        assert!(said(layers.map(range(0, 1), open)).contains("neither a file"));
        let writer = File::options().write(true).open(&path).unwrap();
        assert!(said(layers.map(range(0, 1), writer)).contains("open for reading"));
        assert!(said(scratch.map(range(0, 1), reader())).contains("and writing"));
        assert!(said(scratch.map(range(0, 1), appender)).contains("and writing"));
        layers.map(range(0, 2), reader()).unwrap();
    }

    #[test]
    fn a_window_leaves_when_no_request_uses_it() {
        let windows = Windows::new(100, true);
        windows.map(range(0, 10), file(10)).unwrap();
        let (began, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let theirs = windows.clone();
        let request = std::thread::spawn(move || {
            theirs.with(range(0, 1), Access::Read, |_, _| {
                began.send(()).unwrap();
                ends.recv().unwrap();
                Ok(())
            })
        });
        begins.recv().unwrap();
        let busy = windows.unmap(0, Duration::ZERO);
        assert!(matches!(busy, Err(WindowError::Busy { first: 0 })));
        // No other begins, and nothing takes its place.
        assert_eq!(place(&windows, 0, 1), None);
        let taken = windows.map(range(0, 10), file(10));
        assert!(matches!(taken, Err(WindowError::Overlap { first: 0 })));

        let waits = windows.clone();
        let unmap = std::thread::spawn(move || waits.unmap(0, LONG));
        end.send(()).unwrap();
        unmap.join().unwrap().unwrap();
        request.join().unwrap().unwrap();
        assert_eq!(windows.mapped(), []);
        let absent = windows.unmap(0, Duration::ZERO);
        assert!(matches!(absent, Err(WindowError::Absent { first: 0 })));
        windows.map(range(0, 10), file(10)).unwrap();
    }

    #[test]
    fn what_was_written_is_flushed_once() {
        let windows = Windows::new(100, false);
        windows.map(range(0, 1), file(1)).unwrap();
        windows.map(range(1, 1), file(1)).unwrap();
        let touch = |first, access| windows.with(range(first, 1), access, |_, _| Ok(()));
        touch(0, Access::Write).unwrap();
        touch(1, Access::Read).unwrap();
        let unsynced = || {
            let table = windows.shared.lock();
            table.values().filter(|window| window.unsynced).count()
        };
        assert_eq!(unsynced(), 1);
        windows.flush().unwrap();
        assert_eq!(unsynced(), 0);
        let layers = Windows::new(100, true);
        layers.map(range(0, 1), file(1)).unwrap();
        let denied = layers.with(range(0, 1), Access::Write, |_, _| Ok(()));
        assert!(denied.is_err());
    }
}
