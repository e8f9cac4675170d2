use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skiff_base::Clock;
use skiff_types::api::LogLine;
use skiff_types::{InstanceId, LogPage, LogRange, LogSpan, ProjectId, RevisionId, ServiceName};
use tokio::sync::{mpsc, oneshot};

use super::line::{Line, Stream};
use super::page::{page, spans};
use super::query::{LogFollow, LogQuery, read};
use super::writer::{Command, Snapshot, Writer};

/// Batches of lines that wait for the disk; each holds what one read brought.
const COMMANDS_MAX: usize = 256;
/// How long lines wait for a slow disk before they are dropped.
const APPEND_WAIT: Duration = Duration::from_secs(1);
/// How long a query waits for the thread.
const QUERY_WAIT: Duration = Duration::from_secs(30);
/// Lines kept in memory for the report of a failed start.
const RECENT_LINES: usize = 20;
/// Characters kept of each of them.
const RECENT_LINE_CHARS: usize = 1000;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// An instance's file is rotated at this length; one rotated file is kept.
    pub file_bytes: u64,
    /// All files of a service; the oldest of ended instances go first.
    pub service_bytes: u64,
    /// A file not written to for so long goes.
    pub age: Duration,
    /// Between two collections.
    pub collect_period: Duration,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            file_bytes: 1024 * 1024,
            service_bytes: 64 * 1024 * 1024,
            age: Duration::from_secs(7 * 24 * 60 * 60),
            collect_period: Duration::from_secs(60),
        }
    }
}

/// All logs of a worker. Clones share them.
#[derive(Clone, Debug)]
pub struct LogStore {
    commands: mpsc::Sender<Command>,
    dropped: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
}

impl LogStore {
    /// Starts the thread that writes. It ends with the last clone.
    ///
    /// # Errors
    /// When the folder cannot be made or the thread cannot be started.
    pub fn new(folder: PathBuf, limits: LogLimits, clock: Arc<dyn Clock>) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer::new(folder, limits, dropped.clone(), clock.clone());
        std::thread::Builder::new()
            .name("skiff-logs".to_owned())
            .spawn(move || writer.run(received))?;
        Ok(Self {
            commands,
            dropped,
            clock,
        })
    }

    /// Lines lost to a full or slow disk since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Where an instance's lines go.
    #[must_use]
    pub fn sink(&self, instance: InstanceId, revision: RevisionId) -> LogSink {
        LogSink {
            store: self.clone(),
            source: Arc::new(Source { instance, revision }),
            recent: Arc::new(Mutex::new(Some(VecDeque::new()))),
        }
    }

    /// The newest lines that the query asks for, oldest first.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn logs(&self, query: LogQuery) -> io::Result<Vec<LogLine>> {
        let snapshot = self.snapshot(&query, false).await?;
        read_blocking(query, snapshot).await
    }

    /// As [`LogStore::logs`], and then every new line.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn follow(&self, query: LogQuery) -> io::Result<LogFollow> {
        let mut snapshot = self.snapshot(&query, true).await?;
        let live = snapshot.live.take();
        let backlog = read_blocking(query.clone(), snapshot).await?;
        Ok(LogFollow::new(query, backlog, live, self.clock.clone()))
    }

    /// A page of a service's log, of its newest instances' or of those that
    /// the range names.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn page(&self, range: LogRange) -> io::Result<LogPage> {
        let mut query = LogQuery::service(range.project.clone(), range.service.clone());
        if let Some(instances) = range.instances.as_ref().filter(|named| named.len() == 1) {
            query.instance = instances.first().copied();
        }
        let snapshot = self.snapshot(&query, false).await?;
        blocking(move || page(&range, snapshot.files)).await
    }

    /// What is kept of a service's newest instances, the oldest first.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn spans(
        &self,
        project: ProjectId,
        service: ServiceName,
    ) -> io::Result<Vec<LogSpan>> {
        let query = LogQuery::service(project, service);
        let snapshot = self.snapshot(&query, false).await?;
        blocking(move || spans(snapshot.files)).await
    }

    /// Removes what is over the limits, now.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn collect(&self) -> io::Result<()> {
        self.ask(Command::Collect).await
    }

    /// Waits until everything appended before is written.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn flush(&self) -> io::Result<()> {
        self.ask(Command::Flush).await
    }

    async fn snapshot(&self, query: &LogQuery, live: bool) -> io::Result<Snapshot> {
        let query = Box::new(query.clone());
        self.ask(|reply| Command::Snapshot { query, live, reply })
            .await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> io::Result<T> {
        let (reply, replied) = oneshot::channel();
        let asked = async {
            self.commands.send(command(reply)).await.ok()?;
            replied.await.ok()
        };
        tokio::time::timeout(QUERY_WAIT, asked)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .ok_or_else(|| io::Error::other("the log's thread has ended"))
    }
}

async fn read_blocking(query: LogQuery, snapshot: Snapshot) -> io::Result<Vec<LogLine>> {
    blocking(move || read(&query, snapshot.files)).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

/// Who writes a log.
#[derive(Debug)]
pub struct Source {
    pub instance: InstanceId,
    pub revision: RevisionId,
}

/// Where one instance's lines go. Clones write the same log.
#[derive(Clone, Debug)]
pub struct LogSink {
    store: LogStore,
    source: Arc<Source>,
    recent: Arc<Mutex<Option<VecDeque<String>>>>,
}

impl LogSink {
    /// Appends lines that have just been read. Waits for a slow disk for a
    /// while, then drops and counts: the instance must not be held up.
    pub async fn append(&self, stream: Stream, texts: Vec<String>) {
        if texts.is_empty() {
            return;
        }
        let unix_ms = self.store.clock.unix_ms();
        self.remember(&texts);
        let count = texts.len();
        let line = |text| Line {
            unix_ms,
            stream,
            text,
        };
        let command = Command::Append {
            source: self.source.clone(),
            lines: texts.into_iter().map(line).collect(),
        };
        let sent = self.store.commands.send_timeout(command, APPEND_WAIT).await;
        if sent.is_err() {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.store.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Appends one line of Skiff's own.
    pub async fn note(&self, text: String) {
        self.append(Stream::Skiff, vec![text]).await;
    }

    /// The newest lines, for the report of a failed start.
    #[must_use]
    pub fn recent(&self) -> Vec<String> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().flatten().cloned().collect()
    }

    /// Stops keeping lines in memory: the start has succeeded.
    pub fn forget_recent(&self) {
        *self.recent.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The instance writes no more.
    pub async fn close(&self) {
        let command = Command::Close(self.source.clone());
        if let Err(error) = self.store.commands.send_timeout(command, APPEND_WAIT).await {
            // The file is then closed when another one needs its place.
            tracing::debug!(instance = %self.source.instance, %error, "a log was not closed");
        }
    }

    fn remember(&self, texts: &[String]) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(recent) = recent.as_mut() else {
            return;
        };
        for text in texts.iter().rev().take(RECENT_LINES).rev() {
            if recent.len() == RECENT_LINES {
                recent.pop_front();
            }
            recent.push_back(text.chars().take(RECENT_LINE_CHARS).collect());
        }
    }
}
