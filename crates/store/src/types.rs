//! What is asked of a store, and what it answers.

use std::collections::BTreeSet;
use std::fmt;

use futures_util::future::BoxFuture;

use crate::{StoreError, Watch};

/// A key, bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// A value, bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Comparisons and changes of one transaction.
pub const TXN_OPS_MAX: usize = 4096;
/// Keys and values of one transaction, bytes.
pub const TXN_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Keys in one answer; the answer says when there are more.
pub const RANGE_KEYS_MAX: usize = 10_000;
/// Keys and values in one answer, bytes; the answer says when there are more.
pub const RANGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Keys from one to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first key.
    pub from: Vec<u8>,
    /// The first key behind the range; absent means that it has no end.
    pub to: Option<Vec<u8>>,
}

impl Range {
    /// All keys from `from` up to, and without, `to`.
    #[must_use]
    pub fn new(from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) -> Self {
        Self {
            from: from.into(),
            to: Some(to.into()),
        }
    }

    /// All keys that begin so.
    #[must_use]
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let from = prefix.into();
        let mut to = from.clone();
        // The next key that does not begin so has its last byte one higher.
        while to.last() == Some(&u8::MAX) {
            to.pop();
        }
        let to = to.last_mut().map(|last| *last += 1).map(|()| to);
        Self { from, to }
    }

    /// One key.
    #[must_use]
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        let from = key.into();
        let mut to = from.clone();
        to.push(0);
        Self { from, to: Some(to) }
    }

    /// Whether a key is in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.from.as_slice() && self.to.as_ref().is_none_or(|to| key < to.as_slice())
    }
}

/// A key with its value.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// The store's revision when it was last changed.
    pub mod_revision: u64,
}

impl fmt::Debug for KeyValue {
    // Values may be secret, so they are never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.escape_ascii();
        let length = self.value.len();
        write!(f, "{key}@{}({length} bytes)", self.mod_revision)
    }
}

/// The answer to a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranged {
    /// The store's revision at which all of this was so.
    pub revision: u64,
    /// The keys, sorted.
    pub items: Vec<KeyValue>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// A key was last changed at this revision; 0 says that it does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Vec<u8>,
    /// The revision.
    pub mod_revision: u64,
}

/// One change.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Gives the key this value.
    Put(Vec<u8>, Vec<u8>),
    /// Removes the key, if it exists.
    Delete(Vec<u8>),
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(key, value) => {
                write!(f, "put {} ({} bytes)", key.escape_ascii(), value.len())
            }
            Self::Delete(key) => write!(f, "delete {}", key.escape_ascii()),
        }
    }
}

impl Op {
    /// The key that it changes.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// All of these changes, if all of these comparisons hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must be so.
    pub compares: Vec<Compare>,
    /// What is changed then.
    pub ops: Vec<Op>,
}

impl Txn {
    pub(crate) fn validate(&self) -> Result<(), StoreError> {
        let too_large = |what, value, most| {
            (value > most).then_some(StoreError::TooLarge { what, value, most })
        };
        let ops = self.compares.len() + self.ops.len();
        let mut bytes = 0;
        let mut error = too_large("a transaction's length", ops, TXN_OPS_MAX);
        let mut keys = BTreeSet::new();
        for op in &self.ops {
            let (key, value) = match op {
                Op::Put(key, value) => (key, value.len()),
                Op::Delete(key) => (key, 0),
            };
            bytes += key.len() + value;
            error = error.or_else(|| too_large("a value's length", value, VALUE_BYTES_MAX));
            if key.is_empty() || !keys.insert(key) {
                return Err(StoreError::Keys);
            }
        }
        let all = self.compares.iter().map(|c| c.key.as_slice());
        for key in all.chain(self.ops.iter().map(Op::key)) {
            error = error.or_else(|| too_large("a key's length", key.len(), KEY_BYTES_MAX));
        }
        error = error.or_else(|| too_large("a transaction's size", bytes, TXN_BYTES_MAX));
        error.map_or(Ok(()), Err)
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// It happened; this is the store's revision since.
    Committed {
        /// The revision.
        revision: u64,
    },
    /// A comparison did not hold, and nothing was changed.
    Conflict {
        /// The first key that was not as expected.
        key: Vec<u8>,
        /// The revision of its last change; 0 when it does not exist.
        mod_revision: u64,
    },
}

/// One change as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key has this value now.
    Put(KeyValue),
    /// The key has been removed.
    Delete(Vec<u8>),
}

impl Event {
    /// The key that has changed.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete(key) => key,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Put(item) => item.key.len() + item.value.len(),
            Self::Delete(key) => key.len(),
        }
    }
}

/// The changes of one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The store's revision since.
    pub revision: u64,
    /// What has changed.
    pub events: Vec<Event>,
}

/// Sorted keys with revisions.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The keys of a range, sorted, at most `limit` of them.
    fn range(&self, range: Range, limit: usize) -> BoxFuture<'_, Result<Ranged, StoreError>>;

    /// Carries a transaction out. When it is acknowledged, it is on the disk.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>>;

    /// All changes of a range since the revision (without those of the
    /// revision itself): read a range, then watch from the answer's revision.
    fn watch(&self, range: Range, since: u64) -> Watch;
}
