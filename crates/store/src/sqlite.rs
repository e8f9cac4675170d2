use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::history::History;
use crate::memory::add_item;
use crate::schema::{self, STEPS};
use crate::writer::{Answer, Write, Writer, from_sql, read_revision};
use crate::{KeyValue, Range, Ranged, Store, StoreError, Txn, TxnOutcome, Watch};

/// Transactions that wait for the writer.
const WRITES_QUEUED: usize = 256;
/// Questions that wait for the reader.
const READS_QUEUED: usize = 256;
/// Between a question and its answer at most.
const DEADLINE: Duration = Duration::from_secs(30);

const RANGE_SQL: &str =
    "SELECT key, value, mod_revision FROM items WHERE key >= ?1 AND key < ?2 ORDER BY key";
const FROM_SQL: &str = "SELECT key, value, mod_revision FROM items WHERE key >= ?1 ORDER BY key";

/// The store of one machine: a SQLite file, one thread that writes and one
/// that reads.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    history: Arc<History>,
    writes: Option<mpsc::Sender<Write>>,
    reads: Option<mpsc::Sender<Read>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
enum Read {
    Range(Range, usize, Answer<Ranged>),
    Backup(PathBuf, Answer<()>),
}

impl SqliteStore {
    /// Opens the file, makes it if there is none, checks it, and brings it to
    /// this program's version with a backup beside it. Blocks.
    ///
    /// # Errors
    /// When it is newer than this program, another's, damaged, or the disk refuses.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = schema::open(path, STEPS)?;
        let revision = read_revision(&connection).map_err(StoreError::sqlite("read", path))?;
        let history = Arc::new(History::new(revision));
        let (writes, queue) = mpsc::channel(WRITES_QUEUED);
        let writer = Writer {
            connection,
            path: path.to_owned(),
            history: Arc::clone(&history),
            queue,
        };
        let (reads, asked) = mpsc::channel(READS_QUEUED);
        let reader = Reader {
            connection: schema::connect(path)?,
            path: path.to_owned(),
        };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            thread.map_err(StoreError::io("start a thread for", path))
        };
        Ok(Self {
            path: path.to_owned(),
            history,
            writes: Some(writes),
            reads: Some(reads),
            threads: vec![
                spawn("store-write", Box::new(|| writer.run()))?,
                spawn("store-read", Box::new(|| reader.run(asked)))?,
            ],
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a copy, as it is at one moment, to a new file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_owned();
        ask(&self.reads, |answer| Read::Backup(to, answer)).await
    }
}

/// Puts a question into a queue and waits for the answer, each with a deadline.
async fn ask<Q, T>(
    queue: &Option<mpsc::Sender<Q>>,
    question: impl FnOnce(Answer<T>) -> Q,
) -> Result<T, StoreError> {
    let (answer, answered) = oneshot::channel();
    let queue = queue.as_ref().ok_or(StoreError::Closed)?;
    let sent = within(StoreError::Busy, queue.send(question(answer))).await?;
    sent.map_err(|_| StoreError::Closed)?;
    let answered = within(StoreError::Timeout, answered).await?;
    answered.map_err(|_| StoreError::Closed)?
}

async fn within<T>(error: StoreError, what: impl Future<Output = T>) -> Result<T, StoreError> {
    timeout(DEADLINE, what).await.map_err(|_| error)
}

impl Store for SqliteStore {
    fn range(&self, range: Range, limit: usize) -> BoxFuture<'_, Result<Ranged, StoreError>> {
        ask(&self.reads, move |answer| Read::Range(range, limit, answer)).boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        async move {
            txn.validate()?;
            ask(&self.writes, |answer| (txn, answer)).await
        }
        .boxed()
    }

    fn watch(&self, range: Range, since: u64) -> Watch {
        self.history.watch(range, since)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.writes = None;
        self.reads = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(path = %self.path.display(), "a thread of the store panicked");
            }
        }
    }
}

struct Reader {
    connection: Connection,
    path: PathBuf,
}

impl Reader {
    fn run(mut self, mut asked: mpsc::Receiver<Read>) {
        while let Some(read) = asked.blocking_recv() {
            let waited_for = match read {
                Read::Range(range, limit, answer) => {
                    let ranged = self.range(&range, limit);
                    let ranged = ranged.map_err(StoreError::sqlite("read", &self.path));
                    answer.send(ranged).is_ok()
                }
                Read::Backup(to, answer) => {
                    answer.send(schema::backup(&self.connection, &to)).is_ok()
                }
            };
            if !waited_for {
                tracing::debug!("who asked the store has not waited for the answer");
            }
        }
    }

    fn range(&mut self, range: &Range, limit: usize) -> rusqlite::Result<Ranged> {
        // One transaction, so that keys and revision are of the same moment.
        let sql = self.connection.transaction()?;
        let mut ranged = Ranged {
            revision: read_revision(&sql)?,
            items: Vec::new(),
            more: false,
        };
        // The end has to be a plain comparison: with an OR SQLite does not
        // stop there but reads on to the table's end.
        let mut get = sql.prepare_cached(match &range.to {
            Some(_) => RANGE_SQL,
            None => FROM_SQL,
        })?;
        let mut rows = match &range.to {
            Some(to) => get.query((&range.from, to))?,
            None => get.query((&range.from,))?,
        };
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let item = KeyValue {
                key: row.get(0)?,
                value: row.get(1)?,
                mod_revision: from_sql(row.get(2)?),
            };
            if !add_item(&mut ranged, &mut bytes, limit, item) {
                break;
            }
        }
        Ok(ranged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reading one key must cost the same however many come after it.
    #[test]
    fn a_range_is_bounded_by_the_index_at_both_ends() {
        let folder = tempfile::tempdir().unwrap();
        let connection = schema::open(&folder.path().join("state.db"), STEPS).unwrap();
        let plan = |sql: &str, params: &[&dyn rusqlite::ToSql]| -> String {
            connection
                .query_row(&format!("EXPLAIN QUERY PLAN {sql}"), params, |row| {
                    row.get(3)
                })
                .unwrap()
        };
        let bounded = plan(RANGE_SQL, &[b"a", b"b"]);
        assert!(bounded.contains("(key>? AND key<?)"), "{bounded}");
        let open = plan(FROM_SQL, &[b"a"]);
        assert!(open.contains("(key>?)"), "{open}");
    }
}
