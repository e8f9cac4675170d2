use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use skiff_base::Clock;
use skiff_types::api::LogLine;
use skiff_types::{InstanceId, ProjectId, RevisionId, ServiceName};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::files::LogFile;
use super::line::{Line, Stream};
use super::writer::log_line;

/// Lines that one query answers.
const TAIL_MAX: usize = 10_000;

/// Which lines are wanted.
#[derive(Clone, Debug)]
pub struct LogQuery {
    /// Of this project.
    pub project: ProjectId,
    /// Of this service.
    pub service: ServiceName,
    /// Of this revision only.
    pub revision: Option<RevisionId>,
    /// Of this instance only.
    pub instance: Option<InstanceId>,
    /// At most so many, the newest; absent means as many as are answered at all.
    pub tail: Option<usize>,
    /// Not from before, milliseconds since 1970.
    pub since_unix_ms: u64,
}

impl LogQuery {
    /// Everything of a service.
    #[must_use]
    pub const fn service(project: ProjectId, service: ServiceName) -> Self {
        Self {
            project,
            service,
            revision: None,
            instance: None,
            tail: None,
            since_unix_ms: 0,
        }
    }

    pub(super) fn wants(&self, instance: InstanceId, revision: &str) -> bool {
        self.instance.is_none_or(|wanted| wanted == instance)
            && self
                .revision
                .as_ref()
                .is_none_or(|wanted| wanted.name() == revision)
    }

    fn tail(&self) -> usize {
        self.tail.unwrap_or(TAIL_MAX).min(TAIL_MAX)
    }
}

/// The newest lines of these files, merged by time, oldest first.
pub fn read(query: &LogQuery, files: Vec<(LogFile, File, u64)>) -> Vec<LogLine> {
    let tail = query.tail();
    let mut all: VecDeque<LogLine> = VecDeque::new();
    for (listed, file, len) in files {
        let text = text_of(&listed, file, len);
        let lines = text.lines().rev().filter_map(Line::parse);
        let recent = lines
            .filter(|line| line.unix_ms >= query.since_unix_ms)
            .take(tail)
            .map(|line| log_line(line, listed.instance, listed.revision.clone()));
        // Within a file the order is that of writing, also when the clock
        // was set back: the sort is stable.
        let mut newest: Vec<LogLine> = recent.collect();
        newest.reverse();
        all.extend(newest);
        all.make_contiguous().sort_by_key(|line| line.unix_ms);
        all.drain(..all.len().saturating_sub(tail));
    }
    all.into()
}

/// What a file has up to this length, as far as it can be read.
pub fn text_of(listed: &LogFile, file: File, len: u64) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = file.take(len).read_to_end(&mut bytes) {
        tracing::warn!(path = %listed.path.display(), %error, "a log cannot be read");
    }
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

/// Lines as they come.
#[derive(Debug)]
pub struct LogFollow {
    query: LogQuery,
    backlog: VecDeque<LogLine>,
    live: Option<broadcast::Receiver<Arc<LogLine>>>,
    clock: Arc<dyn Clock>,
    last: InstanceId,
}

impl LogFollow {
    pub(super) fn new(
        query: LogQuery,
        backlog: Vec<LogLine>,
        live: Option<broadcast::Receiver<Arc<LogLine>>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            query,
            backlog: backlog.into(),
            live,
            clock,
            last: InstanceId::from_parts(0, 0),
        }
    }

    /// The next line; waits for it as long as the caller does. `None` when
    /// the worker has ended. Who reads too slowly misses lines and is told
    /// how many, on the stream `skiff`.
    pub async fn next(&mut self) -> Option<LogLine> {
        if let Some(line) = self.backlog.pop_front() {
            self.last = line.instance;
            return Some(line);
        }
        let live = self.live.as_mut()?;
        loop {
            match live.recv().await {
                Ok(line) if self.query.wants(line.instance, &line.revision) => {
                    self.last = line.instance;
                    return Some((*line).clone());
                }
                Ok(_other) => {}
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(count)) => return Some(self.missed(count)),
            }
        }
    }

    fn missed(&self, count: u64) -> LogLine {
        LogLine {
            unix_ms: self.clock.unix_ms(),
            instance: self.last,
            revision: String::new(),
            stream: Stream::Skiff.as_str().to_owned(),
            text: format!("{count} lines were not shown: they came faster than they were read"),
        }
    }
}
