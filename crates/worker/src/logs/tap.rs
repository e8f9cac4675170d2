//! What a function says in one invocation, for whoever asks for the end of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::watch;

use super::line::Stream;
use super::split::Splitter;
use super::store::LogSink;

/// What an answer carries of it (AWS's 4 KiB).
const TAIL_BYTES: usize = 4 * 1024;
/// What is read at once of a further process.
const CARRIED_BYTES: usize = 4 * 1024;
/// How long what was written is waited for.
const DRAIN_WAIT: Duration = Duration::from_millis(500);

/// The end of an instance's output. Readers of both streams feed it.
#[derive(Debug)]
pub struct OutputTap {
    sink: LogSink,
    tail: Mutex<VecDeque<u8>>,
    /// Counts the times that somebody wants to know all that was written.
    asked: watch::Sender<u64>,
    /// Up to which of these each stream has been read.
    read: [AtomicU64; 2],
    heard: tokio::sync::Notify,
    lines: OnceLock<Listener>,
}

/// Told each line.
struct Listener(Box<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl OutputTap {
    pub(crate) fn new(sink: LogSink) -> Self {
        Self {
            sink,
            tail: Mutex::default(),
            asked: watch::Sender::new(0),
            read: [const { AtomicU64::new(0) }; 2],
            heard: tokio::sync::Notify::new(),
            lines: OnceLock::new(),
        }
    }

    /// Has each line that the instance writes told from now on, by who reads
    /// it. The first listener stays.
    pub fn hear(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        // A second one changes nothing.
        drop(self.lines.set(Listener(Box::new(listener))));
    }

    pub(crate) fn tell(&self, lines: &[String]) {
        if let Some(Listener(listener)) = self.lines.get() {
            for line in lines {
                listener(line);
            }
        }
    }

    /// Reads what a further process of the instance writes, until both ends
    /// are closed: to the log and to the tail, and each line is told.
    pub async fn carry(
        &self,
        stdout: impl AsyncRead + Unpin,
        stderr: Option<impl AsyncRead + Unpin>,
        tell: impl Fn(&str),
    ) {
        let errors = async {
            if let Some(stderr) = stderr {
                self.carry_one(Stream::Stderr, stderr, &tell).await;
            }
        };
        tokio::join!(self.carry_one(Stream::Stdout, stdout, &tell), errors);
    }

    async fn carry_one(
        &self,
        stream: Stream,
        mut from: impl AsyncRead + Unpin,
        tell: impl Fn(&str),
    ) {
        let mut buffer = vec![0; CARRIED_BYTES];
        let mut splitter = Splitter::default();
        loop {
            // What cannot be read has ended.
            let count = from.read(&mut buffer).await.unwrap_or(0);
            let mut lines = Vec::new();
            match count {
                0 => splitter.finish(&mut lines),
                count => {
                    self.put(&buffer[..count]);
                    splitter.feed(&buffer[..count], &mut lines);
                }
            }
            lines.iter().for_each(|line| tell(line));
            self.sink.append(stream, lines).await;
            if count == 0 {
                return;
            }
        }
    }

    /// Forgets what was said so far.
    pub async fn begin(&self) {
        self.catch_up().await;
        self.lock().clear();
    }

    /// Everything that was said up to now, at most its last 4 KiB.
    pub async fn tail(&self) -> Vec<u8> {
        self.catch_up().await;
        self.lock().iter().copied().collect()
    }

    /// A line of Skiff's own: to the log and to the tail.
    pub async fn note(&self, text: String) {
        self.put(text.as_bytes());
        self.put(b"\n");
        self.sink.note(text).await;
    }

    /// Waits until what is in the streams now has been read. Not for long: an
    /// instance may write without end.
    async fn catch_up(&self) {
        let mut wanted = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            wanted = *asked;
        });
        let caught_up = async {
            loop {
                let heard = self.heard.notified();
                if self
                    .read
                    .iter()
                    .all(|read| read.load(Ordering::Acquire) >= wanted)
                {
                    return;
                }
                heard.await;
            }
        };
        if tokio::time::timeout(DRAIN_WAIT, caught_up).await.is_err() {
            tracing::debug!("an instance's output was not read to its end in time");
        }
    }

    /// Told each time that somebody asks.
    pub(crate) fn asked(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    /// The stream has been read up to this asking; `u64::MAX` at its end.
    pub(crate) fn has_read(&self, stream: Stream, asked: u64) {
        let at = usize::from(stream == Stream::Stderr);
        self.read[at].store(asked, Ordering::Release);
        self.heard.notify_waiters();
    }

    pub(crate) fn put(&self, bytes: &[u8]) {
        let mut tail = self.lock();
        tail.extend(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        let over = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..over);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
