use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use skiff_base::{Clock, Tasks};
use skiff_sandbox::{Executed, Needs, Sandbox, SandboxError};
use skiff_types::api::LogLine;
use skiff_types::{
    Digest, InstanceId, IsolationClass, IsolationRequest, Launch, LogPage, LogRange, LogSpan,
    ProjectId, RevisionId, ServiceName,
};
use skiff_wire::launcher::Stats;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::adopt::Adopted;
use crate::class::Backends;
use crate::config::WorkerConfig;
use crate::error::{StartError, StartFailure, WorkerError};
use crate::exec::{self, ExecWish};
use crate::instance::{Instance, InstanceInfo, InstanceState, StopOrder};
use crate::label::Label;
use crate::life::{Ended, Life, Started};
use crate::logs::{LogFollow, LogQuery, LogStore};
use crate::records::WorkerRecords;
use crate::spec::needs;
use crate::{adopt, sample};

/// Events that nobody has read yet; further ends wait with their event.
const EVENTS_MAX: usize = 1024;

/// What becomes of the instances when the worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// They run on, for the next server to adopt. Those that were starting end.
    LeaveRunning,
    /// They are asked to stop, then killed.
    StopAll,
}

/// Runs instances. Dropping it leaves them running, without anybody who
/// watches; [`Worker::shutdown`] is the orderly way.
#[derive(Debug)]
pub struct Worker {
    inner: Arc<Inner>,
}

/// What the tasks of a worker share.
#[derive(Debug)]
pub struct Inner {
    pub config: WorkerConfig,
    pub backends: Backends,
    pub records: Arc<dyn WorkerRecords>,
    pub clock: Arc<dyn Clock>,
    pub logs: LogStore,
    pub table: Table,
    pub events: mpsc::Sender<Ended>,
    /// Instances are left to the next server from now on.
    pub left: watch::Sender<bool>,
    pub tasks: Tasks,
}

impl Inner {
    pub fn instance(&self, id: InstanceId, class: IsolationClass, label: Label) -> Instance {
        let writes = class != IsolationClass::Null;
        let sink = writes.then(|| self.logs.sink(id, label.revision.clone()));
        Instance::new(id, class, label, sink, &*self.clock)
    }
}

/// The instances there are.
#[derive(Debug)]
pub struct Table {
    most: usize,
    state: Mutex<TableState>,
}

#[derive(Debug, Default)]
struct TableState {
    instances: HashMap<InstanceId, Arc<Instance>>,
    closed: bool,
}

impl Table {
    fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, TableState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, instance: &Arc<Instance>) -> Result<(), StartFailure> {
        let mut state = self.lock();
        if state.closed {
            return Err(StartFailure::Ending);
        }
        if state.instances.contains_key(&instance.id) {
            return Err(StartFailure::Duplicate);
        }
        if state.instances.len() >= self.most {
            return Err(StartFailure::Full(self.most));
        }
        state.instances.insert(instance.id, instance.clone());
        Ok(())
    }

    pub fn remove(&self, instance: InstanceId) {
        self.lock().instances.remove(&instance);
    }

    pub fn all(&self) -> Vec<Arc<Instance>> {
        self.lock().instances.values().cloned().collect()
    }

    fn get(&self, instance: InstanceId) -> Result<Arc<Instance>, WorkerError> {
        let found = self.lock().instances.get(&instance).cloned();
        found.ok_or(WorkerError::NotFound(instance))
    }

    fn close(&self) {
        self.lock().closed = true;
    }
}

impl Worker {
    /// A worker without instances, and the ends of those that end by
    /// themselves. Its tasks run on the current runtime, and each instance's
    /// on the one its start was called on.
    ///
    /// # Errors
    /// When the logs' folder cannot be made.
    pub fn new(
        config: WorkerConfig,
        backends: Backends,
        records: Arc<dyn WorkerRecords>,
        clock: Arc<dyn Clock>,
    ) -> io::Result<(Self, mpsc::Receiver<Ended>)> {
        let folder = config.logs_folder.clone();
        let logs = LogStore::new(folder, config.log_limits, clock.clone())?;
        let (events, ends) = mpsc::channel(EVENTS_MAX);
        let inner = Arc::new(Inner {
            table: Table::new(config.instances_max),
            config,
            backends,
            records,
            clock,
            logs,
            events,
            left: watch::Sender::new(false),
            tasks: Tasks::new(),
        });
        inner.tasks.spawn("samples", sample::run(inner.clone()));
        Ok((Self { inner }, ends))
    }

    /// Takes over what a former server left: keeps what `keep` wants, has not
    /// ended and answers its probe, and ends the rest. Called once, before
    /// the first start.
    ///
    /// # Errors
    /// When a backend cannot say what there is.
    pub async fn adopt(
        &self,
        keep: impl Fn(&RevisionId, InstanceId) -> bool + Sync,
    ) -> Result<Vec<Adopted>, SandboxError> {
        let mut adopted = Vec::new();
        for backend in self.inner.backends.holders() {
            adopted.extend(adopt::adopt(&self.inner, &**backend, &keep).await?);
        }
        Ok(adopted)
    }

    /// Starts an instance and waits until it answers its probe. A caller that
    /// goes away ends the instance.
    ///
    /// # Errors
    /// When it does not come to serve; nothing of it is left but its log.
    pub async fn start(
        &self,
        instance: InstanceId,
        launch: Arc<Launch>,
    ) -> Result<Started, StartError> {
        let revision = launch.revision.clone();
        let fail = |failure| StartError {
            instance,
            revision: revision.clone(),
            failure: Box::new(failure),
            log: vec![],
        };
        let needs = needs(&launch);
        self.inner.backends.settled(launch.isolation, needs).await;
        let (backend, class_reason) = self
            .inner
            .backends
            .choose(launch.isolation, needs)
            .map_err(|(class, reason)| fail(StartFailure::Class { class, reason }))?;
        let label = self.label(&launch, class_reason);
        let entry = Arc::new(self.inner.instance(instance, backend.class(), label));
        self.inner.table.insert(&entry).map_err(fail)?;
        let (reply, replied) = oneshot::channel();
        let life = Life::new(self.inner.clone(), entry);
        self.inner
            .tasks
            .spawn("instance", life.start(backend, launch, reply));
        replied
            .await
            .unwrap_or_else(|_| Err(fail(StartFailure::Ending)))
    }

    fn label(&self, launch: &Launch, class_reason: String) -> Label {
        Label {
            revision: launch.revision.clone(),
            created_unix_ms: self.inner.clock.unix_ms(),
            memory_mib: launch.resources.memory_mib,
            class_reason,
            port: launch.port,
            stop_signal: launch.stop_signal,
            probe: launch.probe.clone(),
            egress: launch.egress,
            function: launch.function.clone(),
        }
    }

    /// Ends an instance: its stop signal, the grace, SIGKILL. Done when
    /// nothing of it is left and its end is recorded. With no grace it gets
    /// no signal either. A second call can only shorten the grace.
    ///
    /// # Errors
    /// When there is no such instance.
    pub async fn stop(
        &self,
        instance: InstanceId,
        grace: Duration,
        reason: &str,
    ) -> Result<(), WorkerError> {
        let entry = self.inner.table.get(instance)?;
        stop_and_wait(&entry, grace, reason).await;
        Ok(())
    }

    /// Lets nothing in it run.
    ///
    /// # Errors
    /// When there is no such instance, it is starting or stopping, or its
    /// sandbox refuses.
    pub async fn pause(&self, instance: InstanceId) -> Result<(), WorkerError> {
        self.inner.table.get(instance)?.pause().await
    }

    /// Lets it run again.
    ///
    /// # Errors
    /// As [`Worker::pause`].
    pub async fn resume(&self, instance: InstanceId) -> Result<(), WorkerError> {
        self.inner.table.get(instance)?.resume().await
    }

    /// Starts a further process in it, as its application is: with the launch's
    /// environment, folder and user. One that is paused runs meanwhile.
    ///
    /// # Errors
    /// As [`Worker::pause`].
    pub async fn exec(
        &self,
        instance: InstanceId,
        launch: &Launch,
        wish: ExecWish,
    ) -> Result<Executed, WorkerError> {
        let entry = self.inner.table.get(instance)?;
        exec::start(&self.inner, &entry, launch, wish).await
    }

    /// What it uses.
    ///
    /// # Errors
    /// As [`Worker::pause`].
    pub async fn stats(&self, instance: InstanceId) -> Result<Stats, WorkerError> {
        self.inner.table.get(instance)?.stats().await
    }

    /// How it is reached.
    ///
    /// # Errors
    /// When there is no such instance or its sandbox is not made yet.
    pub fn sandbox(&self, instance: InstanceId) -> Result<Arc<dyn Sandbox>, WorkerError> {
        self.inner.table.get(instance)?.sandbox().cloned()
    }

    /// The class of the instances of a revision that asks for this, as far as
    /// it is known: a trial that goes on is taken for one that succeeds.
    #[must_use]
    pub fn expected_class(&self, request: IsolationRequest, needs: Needs) -> IsolationClass {
        self.inner.backends.expected(request, needs)
    }

    /// What there is, oldest first.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceInfo> {
        let mut all = self.inner.table.all();
        all.sort_by_key(|instance| instance.id);
        all.iter().map(|instance| instance.info()).collect()
    }

    /// Lets go of a layer that no instance uses, so that its file can be removed.
    ///
    /// # Errors
    /// When a backend still uses it or does not answer.
    pub async fn release_layer(&self, layer: &Digest) -> Result<(), SandboxError> {
        for backend in self.inner.backends.holders() {
            backend.release(layer).await?;
        }
        Ok(())
    }

    /// The newest lines that the query asks for, of running and of ended
    /// instances, oldest first.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn logs(&self, query: LogQuery) -> Result<Vec<LogLine>, WorkerError> {
        self.inner.logs.logs(query).await.map_err(WorkerError::Log)
    }

    /// As [`Worker::logs`], and then every new line.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn follow(&self, query: LogQuery) -> Result<LogFollow, WorkerError> {
        let followed = self.inner.logs.follow(query).await;
        followed.map_err(WorkerError::Log)
    }

    /// A page of a service's log, of running and of ended instances.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn log_page(&self, range: LogRange) -> Result<LogPage, WorkerError> {
        self.inner.logs.page(range).await.map_err(WorkerError::Log)
    }

    /// From when to when each of a service's instances wrote, the oldest
    /// instance first.
    ///
    /// # Errors
    /// When the disk does not answer in time.
    pub async fn log_spans(
        &self,
        project: ProjectId,
        service: ServiceName,
    ) -> Result<Vec<LogSpan>, WorkerError> {
        let spans = self.inner.logs.spans(project, service).await;
        spans.map_err(WorkerError::Log)
    }

    /// Log lines lost to a full or slow disk since the start.
    #[must_use]
    pub fn log_lines_dropped(&self) -> u64 {
        self.inner.logs.dropped()
    }

    /// Ends the worker. Starts are refused from now on. What has not ended by
    /// the deadline is cut off: its sandbox is then left to the next server.
    pub async fn shutdown(&self, mode: ShutdownMode, deadline: Duration) {
        self.inner.table.close();
        let orderly = async {
            match mode {
                ShutdownMode::StopAll => self.stop_all(deadline).await,
                ShutdownMode::LeaveRunning => self.leave_all().await,
            }
            if let Err(error) = self.inner.logs.flush().await {
                tracing::warn!(%error, "the logs were not written to their end");
            }
        };
        if timeout(deadline, orderly).await.is_err() {
            let left = self.inner.table.all().len();
            tracing::error!(instances = left, "instances did not end in time");
        }
        self.inner.tasks.abort();
    }

    async fn stop_all(&self, deadline: Duration) {
        // Some of the time is needed for what comes after SIGKILL.
        let default = Duration::from_secs(skiff_types::limits::DEFAULT_STOP_GRACE_S.into());
        let grace = default.min(deadline / 2);
        let all = self.inner.table.all();
        let stops = all
            .iter()
            .map(|instance| stop_and_wait(instance, grace, "the server ends"));
        join_all(stops).await;
    }

    async fn leave_all(&self) {
        let all = self.inner.table.all();
        let starting = all
            .iter()
            .filter(|instance| instance.state() == InstanceState::Starting);
        let ends = starting
            .map(|instance| stop_and_wait(instance, Duration::ZERO, "the server is replaced"));
        join_all(ends).await;
        self.inner.left.send_replace(true);
        for instance in &all {
            wait_done(instance).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.inner.tasks.abort();
    }
}

async fn stop_and_wait(instance: &Instance, grace: Duration, reason: &str) {
    instance.order_stop(StopOrder {
        grace,
        reason: reason.to_owned(),
    });
    wait_done(instance).await;
}

async fn wait_done(instance: &Instance) {
    let mut done = instance.done.subscribe();
    // An error says that the instance is gone, which is what is waited for.
    let _gone = done.wait_for(|done| *done).await;
}
