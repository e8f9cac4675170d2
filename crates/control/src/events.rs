//! Lines of progress on their way to a client who may be slow, or gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::limit::{EVENTS_KEPT, EVENTS_MAX, PROGRESS_STEP_BYTES};
use crate::port::Progress;

/// Where an operation tells how it goes. Telling never waits: an operation
/// does not depend on who listens.
#[derive(Debug)]
pub(crate) struct Events<T> {
    lines: mpsc::Sender<T>,
}

impl<T> Clone for Events<T> {
    fn clone(&self) -> Self {
        Self {
            lines: self.lines.clone(),
        }
    }
}

/// The two ends of a stream of progress.
pub(crate) fn events<T>() -> (Events<T>, mpsc::Receiver<T>) {
    let (lines, listener) = mpsc::channel(EVENTS_MAX);
    (Events { lines }, listener)
}

impl<T: Send + 'static> Events<T> {
    /// What must arrive if anybody listens: there is room kept for it.
    pub(crate) fn tell(&self, line: T) {
        if self.lines.try_send(line).is_err() {
            tracing::trace!("nobody listens to this operation");
        }
    }

    /// What may be left out.
    pub(crate) fn hint(&self, line: T) {
        if self.lines.capacity() > EVENTS_KEPT {
            self.tell(line);
        }
    }

    /// Bytes as lines of progress, not more often than is of use.
    pub(crate) fn progress(
        &self,
        line: impl Fn(u64, Option<u64>) -> T + Send + Sync + 'static,
    ) -> Progress {
        let events = self.clone();
        let told = AtomicU64::new(0);
        Arc::new(move |bytes, total| {
            let before = told.load(Ordering::Relaxed);
            if bytes.abs_diff(before) >= PROGRESS_STEP_BYTES || Some(bytes) == total {
                told.store(bytes, Ordering::Relaxed);
                events.hint(line(bytes, total));
            }
        })
    }
}
