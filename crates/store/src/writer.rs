//! The one thread that writes: transactions that wait together are committed
//! together, with one sync of the disk.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use crate::history::History;
use crate::{Commit, Event, KeyValue, Op, StoreError, Txn, TxnOutcome};

/// Transactions in one commit.
const GROUP_MAX: usize = 128;

pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// A transaction and who waits for it.
pub(crate) type Write = (Txn, Answer<TxnOutcome>);

pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    pub(crate) history: Arc<History>,
    pub(crate) queue: mpsc::Receiver<Write>,
}

type Done = (TxnOutcome, Option<Commit>);

impl Writer {
    /// Writes until the store is dropped.
    pub(crate) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                group.push(next);
            }
            self.write(group);
        }
    }

    fn write(&mut self, group: Vec<Write>) {
        let (txns, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let done = self.commit(&txns);
        match done {
            Ok(done) => {
                for (done, answer) in done.into_iter().zip(answers) {
                    self.tell(Ok(done), answer);
                }
            }
            Err(error) if txns.len() == 1 => {
                let mut error = Some(StoreError::sqlite("write", &self.path)(error));
                for answer in answers {
                    self.tell(Err(error.take().unwrap_or(StoreError::Closed)), answer);
                }
            }
            // One of them may be at fault: the others are not to suffer.
            Err(_) => {
                for write in txns.into_iter().zip(answers) {
                    self.write(vec![write]);
                }
            }
        }
    }

    fn tell(&self, done: Result<Done, StoreError>, answer: Answer<TxnOutcome>) {
        let outcome = done.map(|(outcome, commit)| {
            if let Some(commit) = commit {
                self.history.add(commit);
            }
            outcome
        });
        if answer.send(outcome).is_err() {
            tracing::debug!("who asked for a transaction has not waited for it");
        }
    }

    fn commit(&mut self, txns: &[Txn]) -> rusqlite::Result<Vec<Done>> {
        let behavior = TransactionBehavior::Immediate;
        let sql = self.connection.transaction_with_behavior(behavior)?;
        let before = read_revision(&sql)?;
        let mut revision = before;
        let mut done = Vec::with_capacity(txns.len());
        for txn in txns {
            done.push(apply(&sql, txn, &mut revision)?);
        }
        if revision != before {
            let mut set =
                sql.prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'revision'")?;
            set.execute([to_sql(revision)])?;
        }
        sql.commit()?;
        Ok(done)
    }
}

/// SQLite's numbers are signed; a revision never comes near the sign.
fn to_sql(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(crate) fn from_sql(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

pub(crate) fn read_revision(connection: &Connection) -> rusqlite::Result<u64> {
    let mut get = connection.prepare_cached("SELECT value FROM meta WHERE name = 'revision'")?;
    get.query_row([], |row| row.get(0).map(from_sql))
}

fn apply(sql: &Transaction<'_>, txn: &Txn, revision: &mut u64) -> rusqlite::Result<Done> {
    let mut get = sql.prepare_cached("SELECT mod_revision FROM items WHERE key = ?1")?;
    for compare in &txn.compares {
        let found = get.query_row([&compare.key], |row| row.get(0)).optional()?;
        let mod_revision = found.map_or(0, from_sql);
        if mod_revision != compare.mod_revision {
            let key = compare.key.clone();
            return Ok((TxnOutcome::Conflict { key, mod_revision }, None));
        }
    }
    let next = *revision + 1;
    let mut put = sql.prepare_cached("INSERT OR REPLACE INTO items VALUES (?1, ?2, ?3)")?;
    let mut delete = sql.prepare_cached("DELETE FROM items WHERE key = ?1")?;
    let mut events = Vec::with_capacity(txn.ops.len());
    for op in &txn.ops {
        match op {
            Op::Put(key, value) => {
                put.execute((key, value, to_sql(next)))?;
                events.push(Event::Put(KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    mod_revision: next,
                }));
            }
            Op::Delete(key) => {
                let existed = delete.execute([key])? > 0;
                events.extend(existed.then(|| Event::Delete(key.clone())));
            }
        }
    }
    if events.is_empty() {
        let revision = *revision;
        return Ok((TxnOutcome::Committed { revision }, None));
    }
    *revision = next;
    let revision = next;
    let commit = Commit { revision, events };
    Ok((TxnOutcome::Committed { revision }, Some(commit)))
}
