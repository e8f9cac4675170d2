//! A store that can stop in the middle, as a machine does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skiff_store::{
    KeyValue, MemoryStore, Op, Range, Ranged, Store, StoreError, Txn, TxnOutcome, Watch,
};

/// The stored state, which outlives each server that opens it.
#[derive(Clone, Debug)]
pub struct TestStore {
    disk: Arc<dyn Store>,
    crash: Arc<CrashPoint>,
    /// Calls, and records read.
    work: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct CrashPoint {
    /// Transactions that still happen.
    left: AtomicUsize,
    /// Whether the one after them happens although nobody hears of it.
    unheard: AtomicUsize,
    reached: AtomicUsize,
    /// Transactions that happen and are answered as too late.
    late: AtomicUsize,
}

impl Default for TestStore {
    fn default() -> Self {
        Self::on(Arc::new(MemoryStore::new()))
    }
}

impl TestStore {
    pub fn on(disk: Arc<dyn Store>) -> Self {
        let crash = CrashPoint {
            left: AtomicUsize::new(usize::MAX),
            unheard: AtomicUsize::new(0),
            reached: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
        };
        Self {
            disk,
            crash: Arc::new(crash),
            work: Arc::default(),
        }
    }

    pub fn open(&self) -> Arc<dyn Store> {
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

    /// After so many transactions from now one happens and is told as too late.
    pub fn late_after(&self, transactions: usize) {
        self.crash.late.store(transactions + 1, Ordering::SeqCst);
    }

    /// Calls and records read since it was last asked.
    pub fn work(&self) -> usize {
        self.work.swap(0, Ordering::SeqCst)
    }

    pub fn has_crashed(&self) -> bool {
        self.crash.reached.load(Ordering::SeqCst) > 0
    }

    /// Every key and value, to look for what must not be there.
    pub async fn dump(&self) -> Vec<KeyValue> {
        let all = self
            .disk
            .range(Range::prefix(""), usize::MAX)
            .await
            .unwrap();
        assert!(!all.more);
        all.items
    }

    /// Stores a record as a former server did.
    pub async fn put(&self, key: String, record: &Value) {
        let stored = json!({"v": 1, "record": record}).to_string();
        let ops = vec![Op::Put(key.into_bytes(), stored.into_bytes())];
        let txn = Txn {
            ops,
            compares: vec![],
        };
        self.disk.txn(txn).await.unwrap();
    }

    pub async fn keys(&self) -> Vec<String> {
        let key = |item: KeyValue| String::from_utf8(item.key).unwrap();
        self.dump().await.into_iter().map(key).collect()
    }

    async fn stop(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let first = self.crash.reached.fetch_add(1, Ordering::SeqCst) == 0;
        if first && self.crash.unheard.load(Ordering::SeqCst) > 0 {
            self.disk.txn(txn).await?;
        }
        std::future::pending().await
    }
}

impl Store for TestStore {
    fn range(&self, range: Range, limit: usize) -> BoxFuture<'_, Result<Ranged, StoreError>> {
        async move {
            let ranged = self.disk.range(range, limit).await?;
            self.work
                .fetch_add(1 + ranged.items.len(), Ordering::SeqCst);
            Ok(ranged)
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        async move {
            self.work.fetch_add(1, Ordering::SeqCst);
            match self.crash.left.load(Ordering::SeqCst) {
                usize::MAX => {}
                0 => return self.stop(txn).await,
                left => self.crash.left.store(left - 1, Ordering::SeqCst),
            }
            let outcome = self.disk.txn(txn).await;
            let late = self.crash.late.load(Ordering::SeqCst);
            self.crash
                .late
                .store(late.saturating_sub(1), Ordering::SeqCst);
            if late == 1 {
                Err(StoreError::Timeout)
            } else {
                outcome
            }
        }
        .boxed()
    }

    fn watch(&self, range: Range, since: u64) -> Watch {
        self.disk.watch(range, since)
    }
}
