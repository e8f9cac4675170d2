use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use skiff_base::{Clock, Monotonic};
use skiff_sandbox::Sandbox;
use skiff_types::{InstanceId, IsolationClass, RevisionId};
use skiff_wire::launcher::Stats;
use tokio::sync::watch;

use crate::error::WorkerError;
use crate::label::Label;
use crate::logs::LogSink;

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// Being made or probed.
    Starting,
    /// Answers.
    Ready,
    /// Nothing in it runs.
    Paused,
    /// On its way out.
    Stopping,
}

impl InstanceState {
    /// The word that the API uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        }
    }
}

/// An instance as listed.
#[derive(Clone, Debug)]
pub struct InstanceInfo {
    /// Which.
    pub instance: InstanceId,
    /// Of what.
    pub revision: RevisionId,
    /// What isolates it.
    pub class: IsolationClass,
    /// Why it is this class.
    pub class_reason: String,
    /// Where it stands.
    pub state: InstanceState,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What it may use, MiB.
    pub memory_mib: u32,
    /// Where it listens.
    pub port: u16,
}

/// An order to end. A later one can only shorten the grace.
#[derive(Clone, Debug)]
pub struct StopOrder {
    pub grace: Duration,
    pub reason: String,
}

/// Further processes in an instance: while there are some, it does not stand.
#[derive(Debug, Default)]
struct Visits {
    count: u32,
    /// It is to stand once there are none.
    pause_due: bool,
}

/// One instance, shared by its life and whoever steers it.
#[derive(Debug)]
pub struct Instance {
    pub id: InstanceId,
    pub class: IsolationClass,
    pub label: Label,
    /// How old it was when this server got it.
    pub age_before: Duration,
    /// When this server got it.
    pub since: Monotonic,
    pub sandbox: OnceLock<Arc<dyn Sandbox>>,
    /// Absent for the class null, which writes nothing.
    pub sink: Option<LogSink>,
    pub last_cpu_us: AtomicU64,
    state: Mutex<InstanceState>,
    /// Held while it is being paused, resumed or asked to end.
    pub switch: tokio::sync::Mutex<()>,
    visits: Mutex<Visits>,
    pub order: watch::Sender<Option<StopOrder>>,
    pub done: watch::Sender<bool>,
    /// Its start is recorded and its end is not.
    open_record: AtomicBool,
}

impl Instance {
    pub fn new(
        id: InstanceId,
        class: IsolationClass,
        label: Label,
        sink: Option<LogSink>,
        clock: &dyn Clock,
    ) -> Self {
        let age_ms = clock.unix_ms().saturating_sub(label.created_unix_ms);
        Self {
            id,
            class,
            label,
            age_before: Duration::from_millis(age_ms),
            since: clock.now(),
            sandbox: OnceLock::new(),
            sink,
            last_cpu_us: AtomicU64::new(0),
            state: Mutex::new(InstanceState::Starting),
            switch: tokio::sync::Mutex::new(()),
            visits: Mutex::default(),
            order: watch::Sender::new(None),
            done: watch::Sender::new(false),
            open_record: AtomicBool::new(false),
        }
    }

    pub fn state(&self) -> InstanceState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the state and answers the one before; one that is on its way out
    /// stays so.
    pub fn set_state(&self, to: InstanceState) -> InstanceState {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *state;
        if before != InstanceState::Stopping {
            *state = to;
        }
        before
    }

    /// Its start is recorded: its end has to be.
    pub fn mark_started(&self) {
        self.open_record.store(true, Ordering::SeqCst);
    }

    /// Whether its end is to be recorded now: once, and only after its start.
    pub fn end_once(&self) -> bool {
        self.open_record.swap(false, Ordering::SeqCst)
    }

    pub fn lifetime_us(&self, at: Monotonic) -> u64 {
        let lifetime = self.age_before + at.since(self.since);
        u64::try_from(lifetime.as_micros()).unwrap_or(u64::MAX)
    }

    pub fn order_stop(&self, order: StopOrder) {
        self.order.send_if_modified(|known| match known {
            Some(before) if before.grace <= order.grace => false,
            Some(before) => {
                before.grace = order.grace;
                true
            }
            None => known.replace(order).is_none(),
        });
    }

    pub async fn note(&self, text: String) {
        if let Some(sink) = &self.sink {
            sink.note(text).await;
        }
    }

    pub fn info(&self) -> InstanceInfo {
        InstanceInfo {
            instance: self.id,
            revision: self.label.revision.clone(),
            class: self.class,
            class_reason: self.label.class_reason.clone(),
            state: self.state(),
            created_unix_ms: self.label.created_unix_ms,
            memory_mib: self.label.memory_mib,
            port: self.label.port,
        }
    }

    /// The sandbox, once it is made.
    pub fn sandbox(&self) -> Result<&Arc<dyn Sandbox>, WorkerError> {
        self.sandbox.get().ok_or(WorkerError::State {
            instance: self.id,
            state: self.state().as_str(),
        })
    }

    pub async fn stats(&self) -> Result<Stats, WorkerError> {
        let stats = self.sandbox()?.stats().await;
        let stats = stats.map_err(|error| WorkerError::Sandbox(self.id, error))?;
        self.last_cpu_us.fetch_max(stats.cpu_us, Ordering::Relaxed);
        Ok(stats)
    }

    pub async fn pause(&self) -> Result<(), WorkerError> {
        let _switch = self.switch.lock().await;
        match self.state() {
            InstanceState::Paused => return Ok(()),
            InstanceState::Ready => {}
            state => return Err(self.refuse(state)),
        }
        if self.is_visited() {
            return Ok(());
        }
        self.stand().await
    }

    /// Whether there are visits; then it stands as soon as there are none.
    fn is_visited(&self) -> bool {
        let mut visits = self.visits();
        visits.pause_due = visits.count > 0;
        visits.pause_due
    }

    fn visits(&self) -> MutexGuard<'_, Visits> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a visit, for which it runs.
    pub async fn enter(self: &Arc<Self>) -> Result<Visit, WorkerError> {
        let _switch = self.switch.lock().await;
        match self.state() {
            InstanceState::Ready => {}
            InstanceState::Paused => {
                self.go_on().await?;
                self.visits().pause_due = true;
            }
            state => return Err(self.refuse(state)),
        }
        self.visits().count += 1;
        Ok(Visit(Arc::clone(self)))
    }

    /// A visit has ended: it stands if it is to, and nobody else is there.
    pub async fn settle(&self) -> Result<(), WorkerError> {
        let _switch = self.switch.lock().await;
        let due = {
            let mut visits = self.visits();
            visits.count == 0 && std::mem::take(&mut visits.pause_due)
        };
        match self.state() {
            InstanceState::Ready if due => self.stand().await,
            _ => Ok(()),
        }
    }

    async fn stand(&self) -> Result<(), WorkerError> {
        // Said before it is done: who goes away in between leaves an instance
        // that is resumed once too often rather than once too little.
        self.set_state(InstanceState::Paused);
        let paused = self.sandbox()?.pause().await;
        if paused.is_err() {
            self.set_state(InstanceState::Ready);
        }
        paused.map_err(|error| WorkerError::Sandbox(self.id, error))
    }

    pub async fn resume(&self) -> Result<(), WorkerError> {
        let _switch = self.switch.lock().await;
        self.visits().pause_due = false;
        match self.state() {
            InstanceState::Ready => return Ok(()),
            InstanceState::Paused => {}
            state => return Err(self.refuse(state)),
        }
        self.go_on().await
    }

    async fn go_on(&self) -> Result<(), WorkerError> {
        let resumed = self.sandbox()?.resume().await;
        resumed.map_err(|error| WorkerError::Sandbox(self.id, error))?;
        self.set_state(InstanceState::Ready);
        Ok(())
    }

    fn refuse(&self, state: InstanceState) -> WorkerError {
        WorkerError::State {
            instance: self.id,
            state: state.as_str(),
        }
    }
}

/// A further process is in an instance until this is dropped; whoever drops it
/// calls [`Instance::settle`] then.
#[derive(Debug)]
pub struct Visit(Arc<Instance>);

impl Visit {
    pub fn instance(&self) -> &Arc<Instance> {
        &self.0
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.visits().count -= 1;
    }
}
