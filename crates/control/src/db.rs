//! Records in the store: typed reads, and changes that happen whole or not
//! at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{ControlError, conflict};
use crate::limit::RANGE_KEYS;
use crate::record::{decode, encode};

/// One stored value and the revision of its last change.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub value: Vec<u8>,
    /// When it was last changed, in the store's own count.
    pub mod_revision: u64,
}

/// What a store does for the control plane.
pub trait Kv: std::fmt::Debug + Send + Sync + 'static {
    /// Keys from `from` (inclusive) to `to` (exclusive), sorted.
    fn range(
        &self,
        from: String,
        to: String,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Entry>, ControlError>>;
    /// All writes, if each checked key was last changed at that revision (0: is absent).
    fn txn(
        &self,
        checks: Vec<(String, u64)>,
        writes: Vec<(String, Option<Vec<u8>>)>,
    ) -> BoxFuture<'_, Result<bool, ControlError>>;
}

type Values = BTreeMap<String, (Vec<u8>, u64)>;

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryKv {
    state: Mutex<(u64, Values)>,
}

impl Kv for MemoryKv {
    fn range(
        &self,
        from: String,
        to: String,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Entry>, ControlError>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state
            .1
            .range(from..to)
            .take(limit)
            .map(|(key, (value, mod_revision))| Entry {
                key: key.clone(),
                value: value.clone(),
                mod_revision: *mod_revision,
            })
            .collect();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn txn(
        &self,
        checks: Vec<(String, u64)>,
        writes: Vec<(String, Option<Vec<u8>>)>,
    ) -> BoxFuture<'_, Result<bool, ControlError>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = checks
            .iter()
            .all(|(key, revision)| state.1.get(key).map_or(0, |(_, at)| *at) == *revision);
        if holds {
            state.0 += 1;
            let at = state.0;
            for (key, value) in writes {
                match value {
                    Some(value) => state.1.insert(key, (value, at)),
                    None => state.1.remove(&key),
                };
            }
        }
        Box::pin(std::future::ready(Ok(holds)))
    }
}

/// A record with the version its change is bound to.
#[derive(Clone, Debug)]
pub(crate) struct Found<T> {
    pub key: String,
    pub record: T,
    pub version: u64,
}

/// The store, with records instead of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Db {
    store: Arc<dyn Kv>,
}

/// Writes that happen together, if what was read is still so.
#[derive(Debug, Default)]
pub(crate) struct Change {
    checks: Vec<(String, u64)>,
    writes: Vec<(String, Option<Vec<u8>>)>,
}

impl Change {
    /// Only if `key` is as it was read.
    pub(crate) fn expect(mut self, key: impl Into<String>, version: u64) -> Self {
        self.checks.push((key.into(), version));
        self
    }

    /// Only if `key` does not exist.
    pub(crate) fn expect_absent(self, key: impl Into<String>) -> Self {
        self.expect(key, 0)
    }

    pub(crate) fn put(
        mut self,
        key: impl Into<String>,
        record: &impl Serialize,
    ) -> Result<Self, ControlError> {
        self.writes.push((key.into(), Some(encode(record)?)));
        Ok(self)
    }

    pub(crate) fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push((key.into(), None));
        self
    }
}

/// The first key behind all that begin with `prefix`, which ends in `/`.
fn end_of(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    end.pop();
    end.push('0');
    end
}

impl Db {
    pub(crate) fn new(store: Arc<dyn Kv>) -> Self {
        Self { store }
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<Found<T>>, ControlError> {
        let end = format!("{key}\0");
        let found = self.store.range(key.to_owned(), end, 1).await?;
        found.into_iter().next().map(found_record).transpose()
    }

    pub(crate) async fn exists(&self, key: &str) -> Result<bool, ControlError> {
        let end = format!("{key}\0");
        Ok(!self.store.range(key.to_owned(), end, 1).await?.is_empty())
    }

    /// At most `limit` records whose keys begin with `prefix` (which ends in
    /// `/`) and come after `after`.
    pub(crate) async fn page<T: DeserializeOwned>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Found<T>>, ControlError> {
        let from = after.map_or_else(|| prefix.to_owned(), |key| format!("{key}\0"));
        let entries = self.store.range(from, end_of(prefix), limit).await?;
        entries.into_iter().map(found_record).collect()
    }

    /// Every record whose key begins with `prefix`, read in pages; for what
    /// is bounded, and for the start.
    pub(crate) async fn all<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<Vec<Found<T>>, ControlError> {
        let mut all: Vec<Found<T>> = Vec::new();
        loop {
            let after = all.last().map(|found| found.key.clone());
            let page = self.page(prefix, after.as_deref(), RANGE_KEYS).await?;
            let whole = page.len() < RANGE_KEYS;
            all.extend(page);
            if whole {
                return Ok(all);
            }
        }
    }

    /// Whether the change happened: not when something it expects has changed.
    pub(crate) async fn try_commit(&self, change: Change) -> Result<bool, ControlError> {
        self.store.txn(change.checks, change.writes).await
    }

    /// As [`Self::try_commit`], where a lost race is the caller's to see.
    pub(crate) async fn commit(&self, change: Change) -> Result<(), ControlError> {
        if self.try_commit(change).await? {
            return Ok(());
        }
        Err(conflict(
            "something else changed it at the same time; look at it and try again",
        ))
    }
}

fn found_record<T: DeserializeOwned>(entry: Entry) -> Result<Found<T>, ControlError> {
    Ok(Found {
        record: decode(&entry.key, &entry.value)?,
        key: entry.key,
        version: entry.mod_revision,
    })
}
