//! Records in the store: typed reads, and changes that happen whole or not
//! at all.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use skiff_store::{Compare, KeyValue, Op, Range, Ranged, Store, Txn, TxnOutcome};

use crate::error::{ControlError, conflict, internal};
use crate::limit::RANGE_KEYS;
use crate::record::{decode, encode};

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
    store: Arc<dyn Store>,
}

/// Writes that happen together, if what was read is still so.
#[derive(Debug, Default)]
pub(crate) struct Change {
    txn: Txn,
}

impl Change {
    /// Only if `key` is as it was read.
    pub(crate) fn expect(mut self, key: impl Into<String>, version: u64) -> Self {
        self.txn.compares.push(Compare {
            key: key.into().into_bytes(),
            mod_revision: version,
        });
        self
    }

    /// Only if `key` does not exist.
    pub(crate) fn expect_absent(self, key: impl Into<String>) -> Self {
        self.expect(key, 0)
    }

    pub(crate) fn put(
        self,
        key: impl Into<String>,
        record: &impl Serialize,
    ) -> Result<Self, ControlError> {
        Ok(self.with(Op::Put(key.into().into_bytes(), encode(record)?)))
    }

    pub(crate) fn delete(self, key: impl Into<String>) -> Self {
        self.with(Op::Delete(key.into().into_bytes()))
    }

    /// The last word on a key holds: a transaction names each once.
    fn with(mut self, op: Op) -> Self {
        self.txn.ops.retain(|known| known.key() != op.key());
        self.txn.ops.push(op);
        self
    }
}

/// Some records, and whether there are more behind them.
#[derive(Debug)]
pub(crate) struct Page<T> {
    pub items: Vec<Found<T>>,
    pub more: bool,
}

impl Db {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<Found<T>>, ControlError> {
        let found = self.store.range(Range::key(key), 1).await?;
        found.items.into_iter().next().map(found_record).transpose()
    }

    pub(crate) async fn exists(&self, key: &str) -> Result<bool, ControlError> {
        let found = self.store.range(Range::key(key), 1).await?;
        Ok(!found.items.is_empty())
    }

    /// Whether any key begins with `prefix`.
    pub(crate) async fn any(&self, prefix: &str) -> Result<bool, ControlError> {
        let found = self.store.range(Range::prefix(prefix), 1).await?;
        Ok(!found.items.is_empty())
    }

    /// At most `limit` records whose keys begin with `prefix` and come after
    /// `after`; fewer when they are large.
    pub(crate) async fn page<T: DeserializeOwned>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<T>, ControlError> {
        let mut range = Range::prefix(prefix);
        if let Some(after) = after {
            range.from = format!("{after}\0").into_bytes();
        }
        let Ranged { items, more, .. } = self.store.range(range, limit).await?;
        let items = items
            .into_iter()
            .map(found_record)
            .collect::<Result<_, _>>()?;
        Ok(Page { items, more })
    }

    /// At most `limit` records, also when they are large.
    pub(crate) async fn first<T: DeserializeOwned>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Found<T>>, ControlError> {
        let mut found: Vec<Found<T>> = Vec::new();
        loop {
            let last = found.last().map(|found| found.key.clone());
            let last = last.as_deref().or(after);
            let part = (limit - found.len()).min(RANGE_KEYS);
            let page = self.page(prefix, last, part).await?;
            let ended = !page.more || page.items.is_empty();
            found.extend(page.items);
            if ended || found.len() >= limit {
                return Ok(found);
            }
        }
    }

    /// Every record whose key begins with `prefix`; for what is bounded.
    pub(crate) async fn all<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<Vec<Found<T>>, ControlError> {
        self.first(prefix, None, usize::MAX).await
    }

    /// Whether the change happened: not when something it expects has changed.
    pub(crate) async fn try_commit(&self, change: Change) -> Result<bool, ControlError> {
        let outcome = self.store.txn(change.txn).await?;
        Ok(matches!(outcome, TxnOutcome::Committed { .. }))
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

fn found_record<T: DeserializeOwned>(item: KeyValue) -> Result<Found<T>, ControlError> {
    let key = String::from_utf8(item.key);
    let key = key.map_err(|e| internal(format!("a stored key is no text: {e}")))?;
    Ok(Found {
        record: decode(&key, &item.value)?,
        key,
        version: item.mod_revision,
    })
}
