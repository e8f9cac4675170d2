//! What invocations need to know, kept in memory: no read of the store stands
//! between an event and its instance.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_lambda::Secret;

use super::record::FunctionRecord;
use crate::control::ServiceKey;
use crate::record::ProjectRecord;

/// Entries of one cache.
const KEPT_MAX: usize = 4096;

/// A function as it was when it was last looked at.
#[derive(Debug)]
pub(crate) struct View {
    pub record: FunctionRecord,
    /// The newest revision of its service that is ready.
    pub latest: Option<u32>,
}

/// Whose an access key is, and its secret.
#[derive(Debug)]
pub(crate) struct KnownKey {
    pub project: ProjectRecord,
    pub secret: Secret,
}

pub(crate) type Views = Cache<ServiceKey, View>;
pub(crate) type Keys = Cache<String, KnownKey>;

/// What was read, until something of it changes.
#[derive(Debug)]
pub(crate) struct Cache<K, V>(Mutex<Kept<K, V>>);

#[derive(Debug)]
struct Kept<K, V> {
    values: HashMap<K, Arc<V>>,
    /// Grows with every change: what was read before one is not kept.
    changes: u64,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Kept {
            values: HashMap::new(),
            changes: 0,
        }))
    }
}

impl<K: Clone + Eq + Hash, V> Cache<K, V> {
    fn kept(&self) -> MutexGuard<'_, Kept<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value.
    ///
    /// # Errors
    /// What [`Self::keep`] has to be told once it was read.
    pub(crate) fn get(&self, key: &K) -> Result<Arc<V>, u64> {
        let kept = self.kept();
        kept.values.get(key).cloned().ok_or(kept.changes)
    }

    /// Keeps what was read, unless something has changed since.
    pub(crate) fn keep(&self, key: K, value: &Arc<V>, changes: u64) {
        let mut kept = self.kept();
        if kept.changes != changes {
            return;
        }
        if kept.values.len() >= KEPT_MAX {
            // Which one goes hardly matters: it costs a few reads.
            let some = kept.values.keys().next().cloned();
            some.map(|some| kept.values.remove(&some));
        }
        kept.values.insert(key, Arc::clone(value));
    }

    /// Something of it has changed.
    pub(crate) fn forget(&self, key: &K) {
        let mut kept = self.kept();
        kept.changes += 1;
        kept.values.remove(key);
    }

    /// Something of many has changed.
    pub(crate) fn forget_all(&self) {
        let mut kept = self.kept();
        kept.changes += 1;
        kept.values.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_not_kept() {
        let cache: Cache<&str, u32> = Cache::default();
        let changes = cache.get(&"a").unwrap_err();
        cache.keep("a", &Arc::new(1), changes);
        assert_eq!(cache.get(&"a").as_deref(), Ok(&1));
        let changes = cache.get(&"b").unwrap_err();
        cache.forget(&"a");
        cache.keep("b", &Arc::new(2), changes);
        assert!(cache.get(&"a").is_err() && cache.get(&"b").is_err());
    }

    #[test]
    fn it_keeps_no_more_than_its_bound() {
        let cache: Cache<usize, ()> = Cache::default();
        for key in 0..KEPT_MAX + 10 {
            let changes = cache.get(&key).unwrap_err();
            cache.keep(key, &Arc::new(()), changes);
        }
        assert_eq!(cache.kept().values.len(), KEPT_MAX);
        cache.forget_all();
        assert!(cache.kept().values.is_empty());
    }
}
