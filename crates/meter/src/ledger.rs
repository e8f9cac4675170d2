//! The ledger's folder: the one writer of a process, and the reader of all.
//!
//! Each writer makes segments of its own, so that a server and the one that
//! replaces it can write side by side.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skiff_base::{Clock, chain, random};
use skiff_types::ServerId;

use crate::codec::{self, HEADER_BYTES, SegmentError};
use crate::{Entry, Record, SegmentHeader, SegmentReport, WriterSummary, encode_record};

/// A segment is closed when it is this large.
pub const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Between two syncs; what is appended is on the disk within a second.
pub const SYNC_PERIOD: Duration = Duration::from_millis(500);
/// Closed segments that wait for their sync.
const RETIRED_MAX: usize = 4;
/// Segments of one folder: four terabytes.
const SEGMENTS_MAX: u32 = 65_536;

/// The ledger cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or the folder failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A segment is none.
    #[error("the ledger segment {path} is unusable")]
    Segment {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: SegmentError,
    },
    /// A folder has as many segments as it may.
    #[error("{path} has {SEGMENTS_MAX} segments, which is the most")]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// An earlier write left bytes behind that could not be taken back.
    #[error("{path} could not be cut back after a failed write")]
    Stuck {
        /// The segment.
        path: PathBuf,
    },
    /// The thread that syncs cannot be started.
    #[error("the ledger's thread cannot be started")]
    Thread(#[source] std::io::Error),
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io {
        action,
        path,
        source,
    }
}

/// Appends entries; cheap enough to be called for each request, from any thread.
#[derive(Debug)]
pub struct LedgerWriter {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    server: ServerId,
    writer: u64,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    stop: Condvar,
    errors: AtomicU64,
}

#[derive(Debug)]
struct State {
    segment: Segment,
    /// Closed segments that are not yet synced.
    retired: Vec<Arc<File>>,
    seq: u64,
    digest: u64,
    buffer: Vec<u8>,
    dirty: bool,
    /// Since when appends fail.
    gap_since: Option<u64>,
    stopping: bool,
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    path: PathBuf,
    end: u64,
    /// A failed write's bytes are behind the end.
    stuck: bool,
}

impl LedgerWriter {
    /// Makes the folder and a first segment, and starts the thread that syncs.
    ///
    /// # Errors
    /// When either fails.
    pub fn open(
        directory: &Path,
        server: ServerId,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LedgerError> {
        std::fs::create_dir_all(directory).map_err(io("make", directory))?;
        let writer = random::u64();
        let header = SegmentHeader {
            server,
            writer,
            first_seq: 0,
            made_unix_ms: clock.unix_ms(),
        };
        let segment = Segment::make(directory, &header)?;
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            server,
            writer,
            clock,
            state: Mutex::new(State {
                segment,
                retired: Vec::new(),
                seq: 0,
                digest: 0,
                buffer: Vec::with_capacity(codec::RECORD_BYTES_MAX),
                dirty: true,
                gap_since: None,
                stopping: false,
            }),
            stop: Condvar::new(),
            errors: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("ledger-sync".into())
            .spawn(move || of_thread.sync_until_stopped())
            .map_err(LedgerError::Thread)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Appends an entry and returns its number. When this returns, the entry
    /// is with the kernel: the end of this process cannot lose it.
    ///
    /// After a failure the period is noted and written as a gap as soon as
    /// writing works again.
    ///
    /// # Errors
    /// When the entry has not been written, as on a full disk.
    pub fn append(&self, entry: &Entry) -> Result<u64, LedgerError> {
        let mut state = self.shared.lock();
        let appended = self.shared.append_after_gap(&mut state, entry);
        if appended.is_err() {
            self.shared.errors.fetch_add(1, Ordering::Relaxed);
            let now = self.shared.clock.unix_ms();
            state.gap_since.get_or_insert(now);
        }
        appended
    }

    /// Brings all that has been appended to the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<(), LedgerError> {
        self.shared.sync()
    }

    /// What has been appended, for the comparison with what is read later.
    #[must_use]
    pub fn summary(&self) -> WriterSummary {
        let state = self.shared.lock();
        WriterSummary {
            writer: self.shared.writer,
            entries: state.seq,
            digest: state.digest,
        }
    }

    /// Entries that could not be written, and syncs that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }
}

impl Drop for LedgerWriter {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the ledger's thread panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_after_gap(&self, state: &mut State, entry: &Entry) -> Result<u64, LedgerError> {
        if let Some(from_unix_ms) = state.gap_since {
            let to_unix_ms = self.clock.unix_ms();
            let gap = Entry::Gap {
                from_unix_ms,
                to_unix_ms,
            };
            self.append_one(state, &gap)?;
            state.gap_since = None;
        }
        self.append_one(state, entry)
    }

    fn append_one(&self, state: &mut State, entry: &Entry) -> Result<u64, LedgerError> {
        if state.segment.end >= SEGMENT_BYTES_MAX {
            self.rotate(state)?;
        }
        let seq = state.seq;
        state.buffer.clear();
        let crc = encode_record(&mut state.buffer, seq, entry);
        state.segment.write(&state.buffer)?;
        state.seq += 1;
        state.digest = state.digest.wrapping_add(u64::from(crc));
        state.dirty = true;
        Ok(seq)
    }

    fn rotate(&self, state: &mut State) -> Result<(), LedgerError> {
        let header = SegmentHeader {
            server: self.server,
            writer: self.writer,
            first_seq: state.seq,
            made_unix_ms: self.clock.unix_ms(),
        };
        let next = Segment::make(&self.directory, &header)?;
        let old = std::mem::replace(&mut state.segment, next);
        if state.retired.len() < RETIRED_MAX {
            state.retired.push(old.file);
            return Ok(());
        }
        old.file.sync_data().map_err(io("sync", &old.path))
    }

    fn sync(&self) -> Result<(), LedgerError> {
        // The disk is waited for without the lock.
        let (retired, file, path) = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.dirty) {
                return Ok(());
            }
            let retired = std::mem::take(&mut state.retired);
            let path = state.segment.path.clone();
            (retired, Arc::clone(&state.segment.file), path)
        };
        for file in retired.iter().chain([&file]) {
            if let Err(source) = file.sync_data() {
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.lock().dirty = true;
                return Err(io("sync", &path)(source));
            }
        }
        Ok(())
    }

    fn sync_until_stopped(&self) {
        loop {
            let stopping = {
                let state = self.lock();
                let waited = self
                    .stop
                    .wait_timeout_while(state, SYNC_PERIOD, |state| !state.stopping);
                waited.unwrap_or_else(PoisonError::into_inner).0.stopping
            };
            if let Err(error) = self.sync() {
                tracing::error!(error = %chain(&error), "the ledger is not synced");
            }
            if stopping {
                return;
            }
        }
    }
}

impl Segment {
    /// Makes the next file of the folder.
    fn make(directory: &Path, header: &SegmentHeader) -> Result<Self, LedgerError> {
        let last = numbers(directory)?.last().copied().unwrap_or(0);
        for number in last + 1..=SEGMENTS_MAX {
            let path = segment_path(directory, number);
            let made = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            let file = match made {
                Ok(file) => file,
                // Another writer was quicker.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(io("make", &path)(error)),
            };
            let written = file.write_all_at(&header.encode(), 0);
            if let Err(error) = written {
                // An empty file would be read as a damaged segment.
                std::fs::remove_file(&path).map_err(io("remove", &path))?;
                return Err(io("write", &path)(error));
            }
            let folder = File::open(directory).and_then(|folder| folder.sync_all());
            folder.map_err(io("sync", directory))?;
            return Ok(Self {
                file: Arc::new(file),
                path,
                end: HEADER_BYTES as u64,
                stuck: false,
            });
        }
        Err(LedgerError::Full {
            path: directory.to_owned(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LedgerError> {
        if self.stuck {
            let cut = self.file.set_len(self.end);
            cut.map_err(|_| LedgerError::Stuck {
                path: self.path.clone(),
            })?;
            self.stuck = false;
        }
        match self.file.write_all_at(bytes, self.end) {
            Ok(()) => {
                self.end += bytes.len() as u64;
                Ok(())
            }
            Err(source) => {
                // A part may have been written; a reader must not meet it.
                self.stuck = self.file.set_len(self.end).is_err();
                Err(io("append to", &self.path)(source))
            }
        }
    }
}

fn segment_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.seg"))
}

/// The segments' numbers, in order.
fn numbers(directory: &Path) -> Result<Vec<u32>, LedgerError> {
    let mut numbers = Vec::new();
    let listed = std::fs::read_dir(directory).map_err(io("list", directory))?;
    for file in listed {
        let name = file.map_err(io("list", directory))?.file_name();
        let name = name.to_string_lossy();
        let number: Option<u32> = name.strip_suffix(".seg").and_then(|n| n.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A ledger's folder, to be read, also while it is written.
#[derive(Debug, Clone)]
pub struct Ledger {
    directory: PathBuf,
}

/// One segment of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFile {
    /// Its number, in the order of making.
    pub number: u32,
    /// What it says of itself.
    pub header: SegmentHeader,
    path: PathBuf,
}

impl Ledger {
    /// The ledger in this folder, which need not exist yet.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Its segments in the order of their making.
    ///
    /// # Errors
    /// When the folder or a header cannot be read. A file that is shorter
    /// than a header is one whose maker was ended at that moment; it is empty.
    pub fn segments(&self) -> Result<Vec<SegmentFile>, LedgerError> {
        if !self.directory.exists() {
            return Ok(Vec::new());
        }
        let mut segments = Vec::new();
        for number in numbers(&self.directory)? {
            let path = segment_path(&self.directory, number);
            let mut file = File::open(&path).map_err(io("open", &path))?;
            let length = file.metadata().map_err(io("look at", &path))?.len();
            if length < HEADER_BYTES as u64 {
                continue;
            }
            let header = codec::read_header(&mut file).map_err(|source| LedgerError::Segment {
                path: path.clone(),
                source,
            })?;
            segments.push(SegmentFile {
                number,
                header,
                path,
            });
        }
        Ok(segments)
    }

    /// Gives each record of a segment from `offset` on to `visit`; 0 is its begin.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(
        &self,
        segment: &SegmentFile,
        offset: u64,
        visit: impl FnMut(Record),
    ) -> Result<SegmentReport, LedgerError> {
        let path = &segment.path;
        let offset = offset.max(HEADER_BYTES as u64);
        let mut file = File::open(path).map_err(io("open", path))?;
        file.seek(SeekFrom::Start(offset))
            .map_err(io("read", path))?;
        codec::read_segment(file, offset, visit).map_err(io("read", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_base::{ManualClock, SystemClock};

    fn stop(n: u64) -> Entry {
        Entry::ServerStop { unix_ms: n }
    }

    fn read(directory: &Path) -> Vec<Record> {
        let ledger = Ledger::new(directory);
        let mut records = vec![];
        for segment in ledger.segments().unwrap() {
            let report = ledger.read(&segment, 0, |r| records.push(r)).unwrap();
            assert!(!report.torn && report.damage.is_empty());
        }
        records
    }

    fn open(directory: &Path) -> LedgerWriter {
        let server = ServerId::from_parts(1, 2);
        LedgerWriter::open(directory, server, Arc::new(SystemClock)).unwrap()
    }

    #[test]
    fn two_writers_side_by_side_have_segments_and_numbers_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (open(folder.path()), open(folder.path()));
        for n in 0..10 {
            assert_eq!(one.append(&stop(n)).unwrap(), n);
            assert_eq!(two.append(&stop(n)).unwrap(), n);
        }
        assert_eq!(read(folder.path()).len(), 20);
        assert_eq!(Ledger::new(folder.path()).segments().unwrap().len(), 2);
    }

    #[test]
    fn a_full_segment_is_followed_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let writer = open(folder.path());
        writer.append(&stop(0)).unwrap();
        {
            // As if 64 MiB had been written.
            let mut state = writer.shared.lock();
            writer.shared.rotate(&mut state).unwrap();
        }
        writer.append(&stop(1)).unwrap();
        writer.sync().unwrap();
        let segments = Ledger::new(folder.path()).segments().unwrap();
        let first: Vec<_> = segments.iter().map(|s| s.header.first_seq).collect();
        assert_eq!(first, [0, 1]);
        assert_eq!(read(folder.path()).len(), 2);
    }

    #[test]
    fn a_failed_write_leaves_no_part_of_itself_and_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(5));
        let server = ServerId::from_parts(1, 2);
        let writer = LedgerWriter::open(folder.path(), server, Arc::new(clock.clone())).unwrap();
        writer.append(&stop(0)).unwrap();
        let whole = {
            // A file that cannot be written stands for a full disk.
            let mut state = writer.shared.lock();
            let unwritable = Arc::new(File::open(&state.segment.path).unwrap());
            std::mem::replace(&mut state.segment.file, unwritable)
        };
        assert!(writer.append(&stop(1)).is_err());
        assert!(writer.append(&stop(2)).is_err());
        assert_eq!(writer.errors(), 2);
        writer.shared.lock().segment.file = whole;
        clock.advance(Duration::from_secs(1));
        writer.append(&stop(3)).unwrap();
        let entries: Vec<_> = read(folder.path()).into_iter().map(|r| r.entry).collect();
        let gap = Entry::Gap {
            from_unix_ms: 5000,
            to_unix_ms: 6000,
        };
        assert_eq!(entries, [stop(0), gap, stop(3)]);
    }

    #[test]
    fn an_append_is_cheap() {
        let folder = tempfile::tempdir().unwrap();
        let writer = open(folder.path());
        let clock = SystemClock;
        let start = clock.now();
        const COUNT: u32 = 20_000;
        for n in 0..COUNT {
            writer.append(&stop(n.into())).unwrap();
        }
        let each = clock.now().since(start) / COUNT;
        println!("an append takes {each:?}");
        // A sync for each would take far longer than this.
        assert!(each < Duration::from_millis(1), "{each:?}");
    }
}
