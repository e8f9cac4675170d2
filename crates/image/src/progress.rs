use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::layer::Chunks;

/// Told how far a pull or an import is. Called from several threads, for
/// every chunk that arrives: it must be cheap and never wait.
pub trait Progress: Send + Sync {
    /// Bytes that have arrived, and bytes in all once that is known.
    fn report(&self, bytes: u64, total: Option<u64>);
}

/// Nobody is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _bytes: u64, _total: Option<u64>) {}
}

impl<F: Fn(u64, Option<u64>) + Send + Sync> Progress for F {
    fn report(&self, bytes: u64, total: Option<u64>) {
        self(bytes, total);
    }
}

/// Adds up what the layers' workers see.
pub(crate) struct Counter {
    progress: Arc<dyn Progress>,
    bytes: AtomicU64,
    total: AtomicU64,
}

impl Counter {
    pub fn new(progress: Arc<dyn Progress>) -> Self {
        Self {
            progress,
            bytes: AtomicU64::new(0),
            total: AtomicU64::new(0),
        }
    }

    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.add(0);
    }

    pub fn add(&self, bytes: u64) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total.load(Ordering::Relaxed);
        self.progress
            .report(bytes, (total > 0).then_some(total.max(bytes)));
    }
}

/// Tells of the pieces that pass.
pub(crate) struct Counted<C> {
    pub chunks: C,
    pub counter: Arc<Counter>,
}

impl<C: Chunks> Chunks for Counted<C> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.chunks.next()?;
        if let Some(chunk) = &chunk {
            self.counter.add(chunk.len() as u64);
        }
        Ok(chunk)
    }
}
