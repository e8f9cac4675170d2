use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, FutureExt, ready};

use crate::history::History;
use crate::{
    Commit, Event, KeyValue, Op, RANGE_BYTES_MAX, RANGE_KEYS_MAX, Range, Ranged, Store, StoreError,
    Txn, TxnOutcome, Watch,
};

/// A store in memory: the model of the others, and a store for tests.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    history: History,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    items: BTreeMap<Vec<u8>, (Vec<u8>, u64)>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Mutex::default(),
            history: History::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.validate()?;
        let mut state = self.lock();
        for compare in &txn.compares {
            let found = state.items.get(&compare.key).map_or(0, |item| item.1);
            if found != compare.mod_revision {
                return Ok(TxnOutcome::Conflict {
                    key: compare.key.clone(),
                    mod_revision: found,
                });
            }
        }
        let revision = state.revision + 1;
        let mut events = Vec::new();
        for op in txn.ops {
            match op {
                Op::Put(key, value) => {
                    state.items.insert(key.clone(), (value.clone(), revision));
                    events.push(Event::Put(KeyValue {
                        key,
                        value,
                        mod_revision: revision,
                    }));
                }
                Op::Delete(key) => {
                    let existed = state.items.remove(&key).is_some();
                    events.extend(existed.then_some(Event::Delete(key)));
                }
            }
        }
        if !events.is_empty() {
            state.revision = revision;
            // Still under the lock, so that changes are told in order.
            self.history.add(Commit { revision, events });
        }
        Ok(TxnOutcome::Committed {
            revision: state.revision,
        })
    }
}

/// Adds to an answer, while there is room in it.
pub(crate) fn add_item(
    ranged: &mut Ranged,
    bytes: &mut usize,
    limit: usize,
    item: KeyValue,
) -> bool {
    *bytes += item.key.len() + item.value.len();
    let full = ranged.items.len() >= limit.min(RANGE_KEYS_MAX) || *bytes > RANGE_BYTES_MAX;
    if full {
        ranged.more = true;
    } else {
        ranged.items.push(item);
    }
    !full
}

impl Store for MemoryStore {
    fn range(&self, range: Range, limit: usize) -> BoxFuture<'_, Result<Ranged, StoreError>> {
        let state = self.lock();
        let mut ranged = Ranged {
            revision: state.revision,
            items: Vec::new(),
            more: false,
        };
        let mut bytes = 0;
        let from = state
            .items
            .range((Bound::Included(range.from.clone()), Bound::Unbounded));
        for (key, (value, mod_revision)) in from.take_while(|(key, _)| range.contains(key)) {
            let item = KeyValue {
                key: key.clone(),
                value: value.clone(),
                mod_revision: *mod_revision,
            };
            if !add_item(&mut ranged, &mut bytes, limit, item) {
                break;
            }
        }
        ready(Ok(ranged)).boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        ready(self.apply(txn)).boxed()
    }

    fn watch(&self, range: Range, since: u64) -> Watch {
        self.history.watch(range, since)
    }
}
