use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use skiff_base::Clock;
use skiff_types::api::LogLine;
use skiff_types::{InstanceId, ProjectId, ServiceName};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::collect::collect;
use super::files::{self, LogFile};
use super::line::{Line, Stream};
use super::query::LogQuery;
use super::store::{LogLimits, Source};

/// Files kept open; further ones are opened again when they are written to.
const OPEN_MAX: usize = 256;
/// Lines that a follower may be behind.
const FOLLOWER_LINES: usize = 1024;
/// Instances whose files one query reads, the newest first.
const SNAPSHOT_INSTANCES: usize = 256;

/// What the thread is asked to do.
#[derive(Debug)]
pub enum Command {
    Append {
        source: Arc<Source>,
        lines: Vec<Line>,
    },
    Close(Arc<Source>),
    Snapshot {
        query: Box<LogQuery>,
        live: bool,
        reply: oneshot::Sender<Snapshot>,
    },
    Collect(oneshot::Sender<()>),
    Flush(oneshot::Sender<()>),
}

/// The files of a query as they are at one moment, and what comes after it.
#[derive(Debug)]
pub struct Snapshot {
    /// Each open, with its length, in the order of instances, what was
    /// rotated away first.
    pub files: Vec<(LogFile, File, u64)>,
    pub live: Option<broadcast::Receiver<Arc<LogLine>>>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    len: u64,
    used: u64,
}

/// The state of the thread.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    limits: LogLimits,
    clock: Arc<dyn Clock>,
    open: HashMap<InstanceId, OpenFile>,
    /// Instances that may still write: their current files are not collected.
    live: HashSet<InstanceId>,
    /// Lines lost since the last line that was written, by instance.
    lost: HashMap<InstanceId, u64>,
    followers: HashMap<(ProjectId, ServiceName), broadcast::Sender<Arc<LogLine>>>,
    dropped: Arc<AtomicU64>,
    turn: u64,
}

impl Writer {
    pub fn new(
        folder: PathBuf,
        limits: LogLimits,
        dropped: Arc<AtomicU64>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            folder,
            limits,
            clock,
            open: HashMap::new(),
            live: HashSet::new(),
            lost: HashMap::new(),
            followers: HashMap::new(),
            dropped,
            turn: 0,
        }
    }

    /// Works until every sender is gone.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            self.turn += 1;
            match command {
                Command::Append { source, lines } => self.append(&source, lines),
                Command::Close(source) => self.close(source.instance),
                Command::Snapshot { query, live, reply } => {
                    // Who has gone away does not need it.
                    let _gone = reply.send(self.snapshot(&query, live));
                }
                Command::Collect(reply) => {
                    self.collect();
                    let _gone = reply.send(());
                }
                Command::Flush(reply) => {
                    let _gone = reply.send(());
                }
            }
        }
    }

    fn append(&mut self, source: &Source, lines: Vec<Line>) {
        self.live.insert(source.instance);
        if let Err(error) = self.write(source, &lines) {
            let count = u64::try_from(lines.len()).unwrap_or(u64::MAX);
            let lost = self.lost.entry(source.instance).or_default();
            if *lost == 0 {
                tracing::warn!(instance = %source.instance, %error, "log lines are being dropped");
            }
            *lost += count;
            self.dropped.fetch_add(count, Ordering::Relaxed);
        }
        self.publish(source, lines);
    }

    fn write(&mut self, source: &Source, lines: &[Line]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let lost = self.lost.get(&source.instance).copied().unwrap_or(0);
        if lost > 0 {
            let text = format!("{lost} lines were dropped: the disk did not take them");
            let unix_ms = self.clock.unix_ms();
            let stream = Stream::Skiff;
            Line {
                unix_ms,
                stream,
                text,
            }
            .write(&mut bytes);
        }
        for line in lines {
            line.write(&mut bytes);
        }
        let limit = self.limits.file_bytes;
        let added = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let path = files::current(&self.folder, &source.revision, source.instance);
        let full = |open: &OpenFile| open.len > 0 && open.len.saturating_add(added) > limit;
        if full(self.opened(source.instance, &path)?) {
            std::fs::rename(&path, files::rotated(&path))?;
            self.open.remove(&source.instance);
        }
        let open = self.opened(source.instance, &path)?;
        if let Err(error) = open.file.write_all(&bytes) {
            // Part of it may be there: take it back, or start a new line
            // when the file is opened again.
            if open.file.set_len(open.len).is_err() {
                self.open.remove(&source.instance);
            }
            return Err(error);
        }
        open.len += added;
        self.lost.remove(&source.instance);
        Ok(())
    }

    fn opened(&mut self, id: InstanceId, path: &std::path::Path) -> io::Result<&mut OpenFile> {
        if !self.open.contains_key(&id) {
            if self.open.len() >= OPEN_MAX {
                let oldest = self.open.iter().min_by_key(|(_, open)| open.used);
                if let Some(oldest) = oldest.map(|(id, _)| *id) {
                    self.open.remove(&oldest);
                }
            }
            let (file, len) = files::open(path)?;
            let used = self.turn;
            self.open.insert(id, OpenFile { file, len, used });
        }
        let open = self.open.get_mut(&id);
        let open = open.ok_or(io::ErrorKind::NotFound)?;
        open.used = self.turn;
        Ok(open)
    }

    fn publish(&mut self, source: &Source, lines: Vec<Line>) {
        if self.followers.is_empty() {
            return;
        }
        let revision = &source.revision;
        let key = (revision.project.clone(), revision.service.clone());
        let Some(followers) = self.followers.get(&key) else {
            return;
        };
        for line in lines {
            let line = log_line(line, source.instance, revision.name());
            if followers.send(Arc::new(line)).is_err() {
                self.followers.remove(&key);
                return;
            }
        }
    }

    fn close(&mut self, instance: InstanceId) {
        self.open.remove(&instance);
        self.live.remove(&instance);
        self.lost.remove(&instance);
    }

    fn snapshot(&mut self, query: &LogQuery, live: bool) -> Snapshot {
        let live = live.then(|| {
            self.followers
                .retain(|_, sender| sender.receiver_count() > 0);
            let key = (query.project.clone(), query.service.clone());
            self.followers
                .entry(key)
                .or_insert_with(|| broadcast::Sender::new(FOLLOWER_LINES))
                .subscribe()
        });
        let folder = files::service_folder(&self.folder, &query.project, &query.service);
        let mut listed = files::list(&folder);
        listed.retain(|file| query.wants(file.instance, &file.revision));
        listed.sort_by_key(|file| (file.instance, !file.rotated));
        let mut newest: Vec<InstanceId> = listed.iter().map(|file| file.instance).collect();
        newest.dedup();
        if newest.len() > SNAPSHOT_INSTANCES {
            let first = newest[newest.len() - SNAPSHOT_INSTANCES];
            listed.retain(|file| file.instance >= first);
        }
        let files = listed.into_iter().filter_map(|listed| {
            let file = File::open(&listed.path).ok()?;
            let len = file.metadata().ok()?.len();
            Some((listed, file, len))
        });
        Snapshot {
            files: files.collect(),
            live,
        }
    }

    fn collect(&mut self) {
        collect(&self.folder, &self.limits, self.clock.unix_ms(), &self.live);
    }
}

/// The line as the API tells it.
pub fn log_line(line: Line, instance: InstanceId, revision: String) -> LogLine {
    LogLine {
        unix_ms: line.unix_ms,
        instance,
        revision,
        stream: line.stream.as_str().to_owned(),
        text: line.text,
    }
}
