//! The folder that keeps events: append-only segments and one writer.
//!
//! ```text
//!  append ─▶ inbox ─▶ writer's thread: all that waits in one write and one
//!            sync ─▶ index ─▶ answers
//! ```
//! Segments go from the front, once nothing that lives is in the first one.
//! What is left in it is moved to the end when more than half of the log is
//! of events that are done, so that one that waits for hours holds nothing up.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use skiff_base::chain;

use crate::codec::{self, Entry, Frame, HEADER_BYTES};
use crate::{Event, EventId, FunctionKey, Outcome, State};

/// A segment is closed when it is this large.
const SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What is written and synced at once, bytes; the last entry may go beyond.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Writes that wait for the writer.
const INBOX_MAX: usize = 65_536;
/// Their payloads together, bytes.
const INBOX_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The log cannot be written or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A file or the folder failed.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// A file is no segment.
    #[error(
        "{path} is not a segment of events or its begin is damaged: move it away to start without what is in it",
        path = path.display()
    )]
    Segment {
        /// Which.
        path: PathBuf,
    },
    /// A frame that was written cannot be read any more.
    #[error("an event in {path} is damaged", path = path.display())]
    Damaged {
        /// Its segment.
        path: PathBuf,
    },
    /// A payload or a response is over its limit.
    #[error("an event of {0} bytes is not kept")]
    TooLarge(usize),
    /// More waits for the disk than may.
    #[error("too many writes wait for the disk")]
    Busy,
    /// It was closed.
    #[error("the log of events is closed")]
    Closed,
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        action,
        path,
        source: Arc::new(source),
    }
}

/// What is written of an event.
#[derive(Clone, Debug)]
pub enum Write {
    /// A new one; the log gives it its number.
    Accept {
        /// The event.
        event: Box<Event>,
        /// Its payload.
        payload: Vec<u8>,
        /// Where it begins.
        state: State,
    },
    /// How far it is.
    State {
        /// Which.
        id: EventId,
        /// How far.
        state: State,
    },
    /// Its tries are over, and its destinations begin.
    Over {
        /// Which.
        id: EventId,
        /// How far.
        state: State,
        /// How they ended.
        outcome: Box<Outcome>,
        /// The function's last answer, if there is one to keep.
        response: Option<Vec<u8>>,
    },
    /// Nothing is left to do.
    Done {
        /// Which.
        id: EventId,
    },
}

impl Write {
    /// What has a limit, bytes.
    fn bytes(&self) -> usize {
        match self {
            Self::Accept { payload, .. } => payload.len(),
            Self::Over { response, .. } => response.as_ref().map_or(0, Vec::len),
            Self::State { .. } | Self::Done { .. } => 0,
        }
    }
}

/// An event as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The event.
    pub event: Event,
    /// Its payload.
    pub payload: Vec<u8>,
    /// How its tries ended, once they have.
    pub outcome: Option<Outcome>,
    /// The function's last answer.
    pub response: Option<Vec<u8>>,
}

/// An event that a former process has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Which.
    pub id: EventId,
    /// Whose.
    pub function: FunctionKey,
    /// Its payload's size, and its function's answer's if that is kept.
    pub bytes: u64,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_unix_ms: u64,
    /// How far it is.
    pub state: State,
    /// What it is, to who sent it.
    pub key: Option<String>,
}

type Answer = Box<dyn FnOnce(Result<EventId, LogError>) + Send>;

/// Events on the disk.
#[derive(Debug)]
pub struct EventLog {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    inbox: Mutex<Inbox>,
    filled: Condvar,
    index: Mutex<Index>,
}

struct Inbox {
    jobs: Vec<Job>,
    /// Of their payloads.
    bytes: usize,
    next: u64,
    is_closed: bool,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("jobs", &self.jobs.len())
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

struct Job {
    id: EventId,
    write: Write,
    answer: Answer,
}

/// Where everything that lives is.
#[derive(Debug, Default)]
struct Index {
    segments: BTreeMap<u32, Segment>,
    kept: HashMap<EventId, Kept>,
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    path: PathBuf,
    bytes: u64,
    /// Of frames that are still read.
    live_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    state: State,
    event: Spot,
    /// Where it was written how its tries ended.
    outcome: Option<Spot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spot {
    segment: u32,
    offset: u64,
    bytes: u64,
}

impl EventLog {
    /// Opens the folder, made when it is not there; cuts off what was not
    /// written whole. The events that are not done come along.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is no segment.
    pub fn open(folder: &Path) -> Result<(Self, Vec<Left>), LogError> {
        std::fs::create_dir_all(folder).map_err(io("make", folder))?;
        let mut found = Reading::default();
        let numbers = numbers(folder)?;
        for (place, number) in numbers.iter().enumerate() {
            let is_last = place + 1 == numbers.len();
            found.segment(folder, *number, is_last)?;
        }
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            inbox: Mutex::new(Inbox {
                jobs: Vec::new(),
                bytes: 0,
                next: found.next,
                is_closed: false,
            }),
            filled: Condvar::new(),
            index: Mutex::new(found.index),
        });
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            current: found.current,
        };
        writer.clean()?;
        let thread = std::thread::Builder::new()
            .name("event-log".into())
            .spawn(move || writer.run())
            .map_err(io("start the thread of", folder))?;
        let log = Self {
            shared,
            thread: Mutex::new(Some(thread)),
        };
        Ok((log, found.left.into_values().collect()))
    }

    /// Appends; `answer` is called from the writer's thread once it is on the
    /// disk, or could not be written.
    pub fn append(
        &self,
        write: Write,
        answer: impl FnOnce(Result<EventId, LogError>) + Send + 'static,
    ) {
        let limit = match &write {
            Write::Accept { .. } => codec::PAYLOAD_BYTES_MAX,
            _ => codec::RESPONSE_BYTES_MAX,
        };
        let refused = {
            let mut inbox = self.shared.inbox();
            if write.bytes() > limit {
                LogError::TooLarge(write.bytes())
            } else if inbox.is_closed {
                LogError::Closed
            } else if inbox.jobs.len() >= INBOX_MAX || inbox.bytes + write.bytes() > INBOX_BYTES_MAX
            {
                LogError::Busy
            } else {
                let id = match &write {
                    Write::Accept { .. } => {
                        inbox.next += 1;
                        EventId(inbox.next - 1)
                    }
                    Write::State { id, .. } | Write::Over { id, .. } | Write::Done { id } => *id,
                };
                let answer = Box::new(answer);
                inbox.bytes += write.bytes();
                inbox.jobs.push(Job { id, write, answer });
                self.shared.filled.notify_one();
                return;
            }
        };
        answer(Err(refused));
    }

    /// Reads an event, unless it is done. Waits for the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn read(&self, id: EventId) -> Result<Option<Stored>, LogError> {
        self.shared.read(id)
    }

    /// The log's size on the disk, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let index = self.shared.index();
        index.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Writes what waits, and takes nothing more.
    pub fn close(&self) {
        self.shared.inbox().is_closed = true;
        self.shared.filled.notify_all();
        let thread = self.thread.lock();
        let thread = thread.unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the event log's thread panicked");
        }
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What fits in one batch; `None` once it is closed and all is written.
    fn wait(&self) -> Option<Vec<Job>> {
        let idle = |inbox: &mut Inbox| inbox.jobs.is_empty() && !inbox.is_closed;
        let inbox = self.filled.wait_while(self.inbox(), idle);
        let mut inbox = inbox.unwrap_or_else(PoisonError::into_inner);
        let before = inbox.jobs.iter().scan(0, |bytes, job| {
            let before = *bytes;
            *bytes += job.write.bytes();
            Some(before)
        });
        let count = before.take_while(|bytes| *bytes < BATCH_BYTES_MAX).count();
        let rest = inbox.jobs.split_off(count);
        let jobs = std::mem::replace(&mut inbox.jobs, rest);
        inbox.bytes -= jobs.iter().map(|job| job.write.bytes()).sum::<usize>();
        (!jobs.is_empty()).then_some(jobs)
    }

    fn read(&self, id: EventId) -> Result<Option<Stored>, LogError> {
        let spots = {
            let index = self.index();
            index.kept.get(&id).and_then(|kept| {
                let event = index.found(kept.event)?;
                let outcome = kept.outcome.filter(|spot| *spot != kept.event);
                Some((event, outcome.map(|spot| index.found(spot))))
            })
        };
        let Some((event, outcome)) = spots else {
            return Ok(None);
        };
        let (frame, path) = event.read()?;
        let mut stored = frame.stored().ok_or(LogError::Damaged { path })?;
        if let Some(spot) = outcome.flatten() {
            let (frame, path) = spot.read()?;
            let (outcome, response) = frame.over().ok_or(LogError::Damaged { path })?;
            stored.outcome = Some(outcome);
            stored.response = response;
        }
        Ok(Some(stored))
    }
}

/// A frame that is to be read.
struct Place {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
    bytes: u64,
}

impl Place {
    fn read(self) -> Result<(Frame, PathBuf), LogError> {
        let length = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        let read = self.file.read_exact_at(&mut bytes, self.offset);
        read.map_err(io("read", &self.path))?;
        match codec::read_frame(&mut bytes.as_slice()) {
            Ok(Some(frame)) => Ok((frame, self.path)),
            _ => Err(LogError::Damaged { path: self.path }),
        }
    }
}

impl Frame {
    fn stored(self) -> Option<Stored> {
        let Entry::Event {
            event,
            outcome,
            payload_bytes,
            has_response,
            ..
        } = self.entry
        else {
            return None;
        };
        let mut payload = self.tail;
        let response = payload.split_off(payload_bytes as usize);
        Some(Stored {
            event,
            payload,
            outcome,
            response: has_response.then_some(response),
        })
    }

    fn over(self) -> Option<(Outcome, Option<Vec<u8>>)> {
        match self.entry {
            Entry::Over {
                outcome,
                has_response,
                ..
            } => Some((outcome, has_response.then_some(self.tail))),
            _ => None,
        }
    }
}

impl Index {
    fn found(&self, spot: Spot) -> Option<Place> {
        let segment = self.segments.get(&spot.segment)?;
        Some(Place {
            file: Arc::clone(&segment.file),
            path: segment.path.clone(),
            offset: spot.offset,
            bytes: spot.bytes,
        })
    }

    fn live(&mut self, spot: Spot) {
        if let Some(segment) = self.segments.get_mut(&spot.segment) {
            segment.live_bytes += spot.bytes;
        }
    }

    fn dead(&mut self, spot: Spot) {
        if let Some(segment) = self.segments.get_mut(&spot.segment) {
            segment.live_bytes -= spot.bytes;
        }
    }

    /// What a frame at that place means.
    fn apply(&mut self, entry: &Entry, spot: Spot) {
        match entry {
            Entry::Event {
                id, state, outcome, ..
            } => {
                self.forget(*id);
                let kept = Kept {
                    state: *state,
                    event: spot,
                    outcome: outcome.as_ref().map(|_| spot),
                };
                self.live(spot);
                self.kept.insert(*id, kept);
            }
            Entry::State { id, state } => {
                if let Some(kept) = self.kept.get_mut(id) {
                    kept.state = *state;
                }
            }
            Entry::Over { id, state, .. } => {
                let Some(kept) = self.kept.get_mut(id) else {
                    return;
                };
                kept.state = *state;
                let before = kept
                    .outcome
                    .replace(spot)
                    .filter(|spot| *spot != kept.event);
                if let Some(before) = before {
                    self.dead(before);
                }
                self.live(spot);
            }
            Entry::Done { id } => self.forget(*id),
        }
    }

    fn forget(&mut self, id: EventId) {
        let Some(kept) = self.kept.remove(&id) else {
            return;
        };
        self.dead(kept.event);
        if let Some(outcome) = kept.outcome.filter(|spot| *spot != kept.event) {
            self.dead(outcome);
        }
    }

    /// What of a segment lives.
    fn living_in(&self, segment: u32) -> Vec<EventId> {
        let there = |spot: Spot| spot.segment == segment;
        let living = self
            .kept
            .iter()
            .filter(|(_, kept)| there(kept.event) || kept.outcome.is_some_and(there));
        let mut living: Vec<EventId> = living.map(|(id, _)| *id).collect();
        living.sort_unstable();
        living
    }

    /// Whether so little of the log lives that its first segment is emptied.
    fn is_mostly_dead(&self) -> bool {
        let bytes: u64 = self.segments.values().map(|segment| segment.bytes).sum();
        let live = self.segments.values().map(|segment| segment.live_bytes);
        bytes > 2 * live.sum::<u64>() + 4 * SEGMENT_BYTES_MAX
    }
}

/// The one that writes.
struct Writer {
    shared: Arc<Shared>,
    /// The segment that is written; none after a failure.
    current: Option<u32>,
}

impl Writer {
    fn run(mut self) {
        while let Some(jobs) = self.shared.wait() {
            self.commit(jobs);
            if let Err(error) = self.clean() {
                tracing::error!(error = %chain(&error), "the log of events is not cleaned");
            }
        }
    }

    /// One write and one sync for all; then they are told.
    fn commit(&mut self, jobs: Vec<Job>) {
        let mut buffer = Vec::new();
        let mut placed = Vec::with_capacity(jobs.len());
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let offset = buffer.len() as u64;
            let (entry, payload, response) = entry(job.id, job.write);
            let bytes = codec::push(&mut buffer, &entry, &payload, &response);
            placed.push((entry, offset, bytes));
            answers.push((job.id, job.answer));
        }
        let written = self.write(&buffer);
        if let Ok((segment, begin)) = written {
            let mut index = self.shared.index();
            for (entry, offset, bytes) in &placed {
                let spot = Spot {
                    segment,
                    offset: begin + offset,
                    bytes: *bytes,
                };
                index.apply(entry, spot);
            }
        }
        if let Err(error) = &written {
            tracing::error!(error = %chain(error), "events are not written");
        }
        for (id, answer) in answers {
            answer(written.as_ref().map(|_| id).map_err(Clone::clone));
        }
    }

    /// Brings bytes to the disk; into which segment, and where they begin.
    fn write(&mut self, bytes: &[u8]) -> Result<(u32, u64), LogError> {
        let number = self.segment()?;
        let (file, path, end) = {
            let index = self.shared.index();
            let segment = index.segments.get(&number).ok_or(LogError::Closed)?;
            (
                Arc::clone(&segment.file),
                segment.path.clone(),
                segment.bytes,
            )
        };
        let written = file
            .write_all_at(bytes, end)
            .map_err(io("append to", &path));
        let written = written.and_then(|()| file.sync_data().map_err(io("sync", &path)));
        if let Err(error) = written {
            // Whatever of it is there was not acknowledged. After a failed
            // sync nobody knows what the disk has: another file goes on.
            self.current = None;
            if let Err(error) = file.set_len(end) {
                tracing::error!(%error, path = %path.display(), "a failed write is not taken back");
            }
            return Err(error);
        }
        if let Some(segment) = self.shared.index().segments.get_mut(&number) {
            segment.bytes += bytes.len() as u64;
        }
        Ok((number, end))
    }

    /// The segment to write into, a new one when it is full.
    fn segment(&mut self) -> Result<u32, LogError> {
        if let Some(number) = self.current {
            let index = self.shared.index();
            let segment = index.segments.get(&number);
            if segment.is_some_and(|segment| segment.bytes < SEGMENT_BYTES_MAX) {
                return Ok(number);
            }
        }
        let last = self.shared.index().segments.keys().next_back().copied();
        let number = last.unwrap_or(0) + 1;
        let next = EventId(self.shared.inbox().next);
        let segment = Segment::make(&self.shared.folder, number, next)?;
        self.shared.index().segments.insert(number, segment);
        self.current = Some(number);
        Ok(number)
    }

    /// Removes segments from the front in which nothing lives.
    fn clean(&mut self) -> Result<(), LogError> {
        loop {
            let (first, is_empty) = {
                let index = self.shared.index();
                let Some((number, segment)) = index.segments.first_key_value() else {
                    return Ok(());
                };
                if Some(*number) == self.current {
                    return Ok(());
                }
                let is_empty = segment.live_bytes == 0;
                if !is_empty && !index.is_mostly_dead() {
                    return Ok(());
                }
                (*number, is_empty)
            };
            if !is_empty {
                self.move_from(first)?;
            }
            let removed = self.shared.index().segments.remove(&first);
            if let Some(segment) = removed {
                std::fs::remove_file(&segment.path).map_err(io("remove", &segment.path))?;
            }
        }
    }

    /// Writes what lives in a segment once more, at the end.
    fn move_from(&mut self, segment: u32) -> Result<(), LogError> {
        let living = self.shared.index().living_in(segment);
        let mut living = living.into_iter().peekable();
        while living.peek().is_some() {
            let (mut buffer, mut placed) = (Vec::new(), Vec::new());
            while buffer.len() < BATCH_BYTES_MAX
                && let Some(id) = living.next()
            {
                let state = self.shared.index().kept.get(&id).map(|kept| kept.state);
                let (Some(state), Some(stored)) = (state, self.shared.read(id)?) else {
                    continue;
                };
                let offset = buffer.len() as u64;
                let entry = Entry::Event {
                    id,
                    state,
                    event: stored.event,
                    outcome: stored.outcome,
                    payload_bytes: u32::try_from(stored.payload.len()).unwrap_or(u32::MAX),
                    has_response: stored.response.is_some(),
                };
                let response = stored.response.unwrap_or_default();
                let bytes = codec::push(&mut buffer, &entry, &stored.payload, &response);
                placed.push((entry, offset, bytes));
            }
            let (segment, begin) = self.write(&buffer)?;
            let mut index = self.shared.index();
            for (entry, offset, bytes) in placed {
                let offset = begin + offset;
                index.apply(
                    &entry,
                    Spot {
                        segment,
                        offset,
                        bytes,
                    },
                );
            }
        }
        Ok(())
    }
}

/// A write's frame: entry, payload and response.
fn entry(id: EventId, write: Write) -> (Entry, Vec<u8>, Vec<u8>) {
    match write {
        Write::Accept {
            event,
            payload,
            state,
        } => {
            let entry = Entry::Event {
                id,
                state,
                event: *event,
                outcome: None,
                payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                has_response: false,
            };
            (entry, payload, Vec::new())
        }
        Write::State { id, state } => (Entry::State { id, state }, Vec::new(), Vec::new()),
        Write::Over {
            id,
            state,
            outcome,
            response,
        } => {
            let entry = Entry::Over {
                id,
                state,
                outcome: *outcome,
                has_response: response.is_some(),
            };
            (entry, Vec::new(), response.unwrap_or_default())
        }
        Write::Done { id } => (Entry::Done { id }, Vec::new(), Vec::new()),
    }
}

impl Segment {
    /// Makes a file that is there after a power loss, too.
    fn make(folder: &Path, number: u32, next: EventId) -> Result<Self, LogError> {
        let path = segment_path(folder, number);
        // One that a failed attempt has left holds nothing.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("make", &path))?;
        file.write_all_at(&codec::header(next), 0)
            .and_then(|()| file.sync_all())
            .map_err(io("write", &path))?;
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(io("sync", folder))?;
        Ok(Self {
            file: Arc::new(file),
            path,
            bytes: HEADER_BYTES as u64,
            live_bytes: 0,
        })
    }
}

/// What a former process has left, segment by segment.
#[derive(Default)]
struct Reading {
    index: Index,
    left: BTreeMap<EventId, Left>,
    next: u64,
    current: Option<u32>,
}

impl Reading {
    fn segment(&mut self, folder: &Path, number: u32, is_last: bool) -> Result<(), LogError> {
        let path = segment_path(folder, number);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let mut file = opened.map_err(io("open", &path))?;
        let length = file.metadata().map_err(io("look at", &path))?.len();
        if length < HEADER_BYTES as u64 && is_last {
            // Its maker was ended at that moment: nothing is in it.
            return std::fs::remove_file(&path).map_err(io("remove", &path));
        }
        let mut head = [0; HEADER_BYTES];
        let read = file.read_exact(&mut head);
        let next = read.ok().and_then(|()| codec::read_header(&head));
        let next = next.ok_or_else(|| LogError::Segment { path: path.clone() })?;
        self.next = self.next.max(next.0);
        let segment = Segment {
            file: Arc::new(file.try_clone().map_err(io("open", &path))?),
            path: path.clone(),
            bytes: length,
            live_bytes: 0,
        };
        self.index.segments.insert(number, segment);
        file.seek(SeekFrom::Start(HEADER_BYTES as u64))
            .map_err(io("read", &path))?;
        let end = self.frames(&file, number).map_err(io("read", &path))?;
        if end < length {
            self.cut(&file, &path, number, end, length, is_last)?;
        }
        if is_last {
            self.current = Some(number);
        }
        Ok(())
    }

    /// Takes in each whole frame; where the last one ends.
    fn frames(&mut self, file: &File, number: u32) -> io::Result<u64> {
        let mut file = BufReader::with_capacity(1 << 16, file);
        let mut end = HEADER_BYTES as u64;
        while let Some(frame) = codec::read_frame(&mut file)? {
            let spot = Spot {
                segment: number,
                offset: end,
                bytes: frame.bytes,
            };
            end += frame.bytes;
            self.index.apply(&frame.entry, spot);
            self.note(frame.entry, frame.tail.len() as u64);
        }
        Ok(end)
    }

    fn note(&mut self, entry: Entry, bytes: u64) {
        match entry {
            Entry::Event {
                id, state, event, ..
            } => {
                self.next = self.next.max(id.0 + 1);
                let left = Left {
                    id,
                    function: event.function,
                    bytes,
                    accepted_unix_ms: event.accepted_unix_ms,
                    state,
                    key: event.key,
                };
                self.left.insert(id, left);
            }
            Entry::State { id, state } | Entry::Over { id, state, .. } => {
                if let Some(left) = self.left.get_mut(&id) {
                    left.state = state;
                    left.bytes += bytes;
                }
            }
            Entry::Done { id } => {
                self.left.remove(&id);
            }
        }
    }

    /// What follows the last whole frame of the last segment was not
    /// acknowledged; in an earlier one the disk has lost it.
    fn cut(
        &mut self,
        file: &File,
        path: &Path,
        number: u32,
        end: u64,
        length: u64,
        is_last: bool,
    ) -> Result<(), LogError> {
        let lost = length - end;
        if !is_last {
            tracing::error!(path = %path.display(), lost_bytes = lost, "a segment of events is damaged: what follows in it is lost");
            return Ok(());
        }
        tracing::info!(path = %path.display(), cut_bytes = lost, "events that were not written whole are cut off");
        let cut = file.set_len(end).and_then(|()| file.sync_all());
        cut.map_err(io("cut", path))?;
        if let Some(segment) = self.index.segments.get_mut(&number) {
            segment.bytes = end;
        }
        Ok(())
    }
}

fn segment_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:08}.seg"))
}

/// The segments' numbers, in order.
fn numbers(folder: &Path) -> Result<Vec<u32>, LogError> {
    let mut numbers = Vec::new();
    for file in std::fs::read_dir(folder).map_err(io("list", folder))? {
        let name = file.map_err(io("list", folder))?.file_name();
        let name = name.to_string_lossy();
        let number: Option<u32> = name.strip_suffix(".seg").and_then(|n| n.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
