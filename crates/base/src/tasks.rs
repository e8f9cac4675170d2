use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Tasks that have an owner: they end when it says so, or when it is dropped.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    set: Arc<Mutex<JoinSet<()>>>,
}

/// Not every task ended in time.
#[derive(Debug, thiserror::Error)]
#[error("{0} tasks did not end in time and were cut off")]
pub struct TasksError(pub usize);

impl Tasks {
    /// An owner without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task on the current runtime. Its failure is logged under its name.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_on(name, task, &Handle::current());
    }

    /// Starts a task on another runtime than the calling thread's.
    pub fn spawn_on<F>(&self, name: &'static str, task: F, runtime: &Handle)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = set.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a task panicked");
            }
        }
        let named = async move {
            tracing::trace!(name, "task starts");
            task.await;
        };
        set.spawn_on(named, runtime);
    }

    /// How many have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        while set.try_join_next().is_some() {}
        set.len()
    }

    /// Whether all have ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until all have ended by themselves, then cuts off the rest.
    ///
    /// # Errors
    /// How many had to be cut off.
    pub async fn drain(&self, deadline: Duration) -> Result<(), TasksError> {
        let mut set = std::mem::take(&mut *self.set.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while set.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, all).await.is_ok() {
            return Ok(());
        }
        let left = set.len();
        set.shutdown().await;
        Err(TasksError(left))
    }

    /// Cuts off every task now.
    pub fn abort(&self) {
        self.set
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .abort_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_waits_and_then_cuts_off() {
        let tasks = Tasks::new();
        tasks.spawn("quick", async {});
        assert!(tasks.drain(Duration::from_secs(30)).await.is_ok());
        tasks.spawn("never", std::future::pending());
        let error = tasks.drain(Duration::from_millis(5)).await.unwrap_err();
        assert_eq!(error.0, 1);
    }
}
