//! A map in shards, each under its own lock: looking up is a short shared
//! lock, and a change touches one entry.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Enough that threads rarely meet in one.
const SHARDS: usize = 64;

#[derive(Debug)]
pub(crate) struct Shards<K, V> {
    hasher: RandomState,
    shards: Vec<RwLock<HashMap<K, V>>>,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
        }
    }
}

impl<K: Hash + Eq, V: Clone> Shards<K, V> {
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.read(key).get(key).cloned()
    }

    pub(crate) fn insert(&self, key: K, value: V) -> Option<V> {
        self.write(&key).insert(key, value)
    }

    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.write(key).remove(key)
    }

    pub(crate) fn remove_if<Q: Hash + Eq + ?Sized>(&self, key: &Q, is: impl FnOnce(&V) -> bool)
    where
        K: Borrow<Q>,
    {
        let mut shard = self.write(key);
        if shard.get(key).is_some_and(is) {
            shard.remove(key);
        }
    }

    /// The value, made when there is none; `make` runs under the shard's lock.
    pub(crate) fn get_or_insert(&self, key: K, make: impl FnOnce() -> V) -> V {
        self.write(&key).entry(key).or_insert_with(make).clone()
    }

    /// A copy of everything, shard by shard.
    pub(crate) fn all(&self) -> Vec<(K, V)>
    where
        K: Clone,
    {
        let copy = |shard: &RwLock<HashMap<K, V>>| {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let entries = shard.iter().map(|(k, v)| (k.clone(), v.clone()));
            entries.collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(copy).collect()
    }

    fn read<Q: Hash + ?Sized>(&self, key: &Q) -> RwLockReadGuard<'_, HashMap<K, V>> {
        let shard = self.shard(key).read();
        shard.unwrap_or_else(PoisonError::into_inner)
    }

    fn write<Q: Hash + ?Sized>(&self, key: &Q) -> RwLockWriteGuard<'_, HashMap<K, V>> {
        let shard = self.shard(key).write();
        shard.unwrap_or_else(PoisonError::into_inner)
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &RwLock<HashMap<K, V>> {
        let hash = self.hasher.hash_one(key);
        &self.shards[usize::try_from(hash >> 32).unwrap_or(0) % SHARDS]
    }
}
