//! Keeps desired state: sorted keys with values, each with the revision of
//! its last change, changed by transactions with preconditions and watched
//! from a revision on, with the meaning that etcd gives to these words.
//!
//! It knows nothing of what the values mean, and holds neither the ledger nor
//! events. [`SqliteStore`] is the store of one machine, [`MemoryStore`] the
//! model that it is compared with.
//!
//! Invariants:
//! - a transaction that has been acknowledged survives kill -9 and the loss
//!   of power; one that has not happens whole or not at all;
//! - the store's revision grows by one with each transaction that changes
//!   something;
//! - a watch gives every change of its range once and in order, or says that
//!   it has lost some;
//! - an older program never touches a newer store, and a migration makes a
//!   backup first.
//!
//! Entry points: [`Store`], [`SqliteStore::open`], [`MemoryStore::new`].

mod error;
mod history;
mod memory;
mod schema;
mod sqlite;
mod types;
mod writer;

pub use error::StoreError;
pub use history::{Watch, WatchLost};
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;
pub use types::{
    Commit, Compare, Event, KEY_BYTES_MAX, KeyValue, Op, RANGE_BYTES_MAX, RANGE_KEYS_MAX, Range,
    Ranged, Store, TXN_BYTES_MAX, TXN_OPS_MAX, Txn, TxnOutcome, VALUE_BYTES_MAX,
};
