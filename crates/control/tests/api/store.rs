//! A store that can stop in the middle, as a machine does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use skiff_control::{ControlError, Entry, Kv, MemoryKv};

/// The stored state, which outlives each server that opens it.
#[derive(Clone, Debug, Default)]
pub struct TestStore {
    disk: Arc<MemoryKv>,
    crash: Arc<CrashPoint>,
}

#[derive(Debug)]
struct CrashPoint {
    /// Transactions that still happen.
    left: AtomicUsize,
    /// Whether the one after them happens although nobody hears of it.
    unheard: AtomicUsize,
    pub reached: AtomicUsize,
}

impl Default for CrashPoint {
    fn default() -> Self {
        Self {
            left: AtomicUsize::new(usize::MAX),
            unheard: AtomicUsize::new(0),
            reached: AtomicUsize::new(0),
        }
    }
}

impl TestStore {
    pub fn open(&self) -> Arc<dyn Kv> {
        self.crash.left.store(usize::MAX, Ordering::SeqCst);
        self.crash.reached.store(0, Ordering::SeqCst);
        Arc::new(self.clone())
    }

    /// After so many transactions from now the next one never answers; it
    /// happens all the same when `unheard`.
    pub fn crash_after(&self, transactions: usize, unheard: bool) {
        self.crash
            .unheard
            .store(usize::from(unheard), Ordering::SeqCst);
        self.crash.left.store(transactions, Ordering::SeqCst);
    }

    pub fn has_crashed(&self) -> bool {
        self.crash.reached.load(Ordering::SeqCst) > 0
    }

    /// Every key and value, to look for what must not be there.
    pub async fn dump(&self) -> Vec<Entry> {
        let all = self
            .disk
            .range(String::new(), "\u{10ffff}".into(), usize::MAX);
        all.await.unwrap()
    }

    pub async fn keys(&self) -> Vec<String> {
        self.dump()
            .await
            .into_iter()
            .map(|entry| entry.key)
            .collect()
    }
}

impl Kv for TestStore {
    fn range(
        &self,
        from: String,
        to: String,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Entry>, ControlError>> {
        self.disk.range(from, to, limit)
    }

    fn txn(
        &self,
        checks: Vec<(String, u64)>,
        writes: Vec<(String, Option<Vec<u8>>)>,
    ) -> BoxFuture<'_, Result<bool, ControlError>> {
        async move {
            let left = self.crash.left.load(Ordering::SeqCst);
            if left == usize::MAX {
                return self.disk.txn(checks, writes).await;
            }
            if left > 0 {
                self.crash.left.store(left - 1, Ordering::SeqCst);
                return self.disk.txn(checks, writes).await;
            }
            let first = self.crash.reached.fetch_add(1, Ordering::SeqCst) == 0;
            if first && self.crash.unheard.load(Ordering::SeqCst) > 0 {
                self.disk.txn(checks, writes).await?;
            }
            std::future::pending().await
        }
        .boxed()
    }
}
