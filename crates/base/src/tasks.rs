use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Places that are kept for further tasks while there are none.
const PLACES_KEPT: usize = 64;

/// Tasks that have an owner: they end when it says so, or when its last clone
/// is dropped. One that has ended leaves nothing behind.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    owner: Arc<Owner>,
}

/// Not every task ended in time.
#[derive(Debug, thiserror::Error)]
#[error("{0} tasks did not end in time and were cut off")]
pub struct TasksError(pub usize);

/// Cuts the tasks off when it is dropped: they hold the list, not this.
#[derive(Debug, Default)]
struct Owner(Arc<List>);

#[derive(Debug, Default)]
struct List {
    running: Mutex<Running>,
    /// Told whenever no task is left.
    empty: Notify,
}

/// The tasks that have not ended.
#[derive(Debug, Default)]
struct Running {
    places: Vec<Option<Task>>,
    unused: Vec<usize>,
    /// Tasks so far, and how often all were cut off.
    begun: u64,
    aborts: u64,
}

#[derive(Debug)]
struct Task {
    id: u64,
    /// Absent until the runtime has it.
    handle: Option<AbortHandle>,
}

/// A task's place in the list, given back when it ends, however it does.
struct Place {
    list: Arc<List>,
    number: usize,
    name: &'static str,
}

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
        let list = &self.owner.0;
        let (number, id, aborts) = list.lock().enter();
        let place = Place {
            list: Arc::clone(list),
            number,
            name,
        };
        // Without the lock: a runtime that has ended drops the task at once.
        let spawned = runtime.spawn(async move {
            let _place = place;
            tracing::trace!(name, "task starts");
            task.await;
        });
        let handle = spawned.abort_handle();
        let mut running = list.lock();
        if running.aborts != aborts {
            handle.abort();
        }
        // It may have ended already, and another one have its place.
        let known = running.places.get_mut(number).and_then(Option::as_mut);
        if let Some(task) = known.filter(|task| task.id == id) {
            task.handle = Some(handle);
        }
    }

    /// How many have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owner.0.lock().len()
    }

    /// Whether all have ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until all have ended by themselves, those that begin meanwhile
    /// too, then cuts off the rest.
    ///
    /// # Errors
    /// How many had to be cut off.
    pub async fn drain(&self, deadline: Duration) -> Result<(), TasksError> {
        let list = &self.owner.0;
        if timeout(deadline, list.emptied()).await.is_ok() {
            return Ok(());
        }
        let left = self.len();
        list.abort();
        list.emptied().await;
        Err(TasksError(left))
    }

    /// Cuts off every task now.
    pub fn abort(&self) {
        self.owner.0.abort();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl List {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abort(&self) {
        let handles: Vec<AbortHandle> = {
            let mut running = self.lock();
            running.aborts += 1;
            let tasks = running.places.iter().flatten();
            tasks.filter_map(|task| task.handle.clone()).collect()
        };
        for handle in handles {
            handle.abort();
        }
    }

    async fn emptied(&self) {
        loop {
            let told = self.empty.notified();
            if self.lock().len() == 0 {
                return;
            }
            told.await;
        }
    }
}

impl Running {
    fn len(&self) -> usize {
        self.places.len() - self.unused.len()
    }

    /// A place for one more, its id, and the aborts so far.
    fn enter(&mut self) -> (usize, u64, u64) {
        self.begun += 1;
        let id = self.begun;
        let task = Some(Task { id, handle: None });
        let number = match self.unused.pop() {
            Some(number) => {
                self.places[number] = task;
                number
            }
            None => {
                self.places.push(task);
                self.places.len() - 1
            }
        };
        (number, id, self.aborts)
    }

    fn leave(&mut self, number: usize) -> Option<Task> {
        let ended = self.places[number].take();
        self.unused.push(number);
        if self.len() == 0 {
            // What a burst has needed is not kept.
            self.places.clear();
            self.places.shrink_to(PLACES_KEPT);
            self.unused.clear();
            self.unused.shrink_to(PLACES_KEPT);
        }
        ended
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(name = self.name, "a task panicked");
        }
        let (ended, none_left) = {
            let mut running = self.list.lock();
            (running.leave(self.number), running.len() == 0)
        };
        drop(ended);
        if none_left {
            self.list.empty.notify_waiters();
        }
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
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn a_task_that_has_ended_leaves_nothing_behind() {
        let tasks = Tasks::new();
        for _ in 0..1000 {
            tasks.spawn("quick", async {});
        }
        assert_eq!(tasks.len(), 1000);
        tasks.drain(Duration::from_secs(30)).await.unwrap();
        let running = tasks.owner.0.lock();
        assert!(running.places.capacity() <= PLACES_KEPT);
        assert!(running.unused.capacity() <= PLACES_KEPT);
    }

    #[tokio::test]
    async fn a_drain_waits_for_what_begins_meanwhile() {
        let tasks = Tasks::new();
        let (more, done) = (tasks.clone(), Arc::new(Mutex::new(false)));
        let of_task = Arc::clone(&done);
        tasks.spawn("first", async move {
            tokio::task::yield_now().await;
            more.spawn("second", async move {
                tokio::task::yield_now().await;
                *of_task.lock().unwrap() = true;
            });
        });
        tasks.drain(Duration::from_secs(30)).await.unwrap();
        assert!(*done.lock().unwrap());
    }

    #[tokio::test]
    async fn the_last_owner_takes_its_tasks_along() {
        let tasks = Tasks::new();
        let held = Arc::new(());
        let of_task = Arc::clone(&held);
        tasks.spawn("never", async move {
            let _held = of_task;
            std::future::pending::<()>().await;
        });
        let list = Arc::clone(&tasks.owner.0);
        drop(tasks.clone());
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&held), 2, "there is an owner yet");
        drop(tasks);
        timeout(Duration::from_secs(30), list.emptied())
            .await
            .unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_task_that_panics_gives_its_place_back() {
        let tasks = Tasks::new();
        tasks.spawn("bad", async { panic!("as it should") });
        tasks.drain(Duration::from_secs(30)).await.unwrap();
        assert!(tasks.is_empty());
    }

    #[test]
    fn a_runtime_that_has_ended_takes_no_task() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let tasks = Tasks::new();
        tasks.spawn_on("late", std::future::pending(), &handle);
        assert!(tasks.is_empty());
    }
}
