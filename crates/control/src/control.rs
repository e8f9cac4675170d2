use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skiff_base::Tasks;
use skiff_types::{ErrorKind, ProjectId, ProjectName, ServiceName};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, watch};

use crate::db::{Db, Found};
use crate::error::{ControlError, conflict, exhausted, not_found, timeout, unavailable};
use crate::hold::{Ticket, Turns};
use crate::key;
use crate::lambda::{Events, Keys, Sources, Views};
use crate::library::Library;
use crate::limit::{EXECS_MAX, OPERATIONS_MAX, PORT_TIMEOUT, SERVICE_WAITERS_MAX};
use crate::port::Ports;
use crate::record::ProjectRecord;
use crate::resolver::{Base, Resolver};
use crate::schedules::Schedules;

/// A service within a project.
pub(crate) type ServiceKey = (ProjectId, ServiceName);

/// The control plane. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub base: Arc<Base>,
    pub ports: Ports,
    pub library: Library,
    pub turns: Turns<ServiceKey>,
    pub views: Views,
    pub keys: Keys,
    /// Absent until AWS Lambda's API is served.
    pub events: OnceLock<Arc<Events>>,
    pub schedules: Schedules,
    pub sources: Sources,
    /// Read while something is put into a project, written while one ends.
    pub projects: RwLock<()>,
    /// Read while a token is made, written never: see `tokens`.
    pub tokens: tokio::sync::Mutex<()>,
    pub operations: Arc<Semaphore>,
    pub execs: Arc<Semaphore>,
    pub tasks: Tasks,
    pub stopping: watch::Sender<bool>,
}

impl Control {
    /// Repairs what a crash interrupted, tells the gateway and the fleet all
    /// desired state, and is ready to serve the API.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(resolver: Resolver, ports: Ports) -> Result<Self, ControlError> {
        let base = Arc::clone(resolver.base());
        let inner = Inner {
            library: Library::new(Arc::clone(&base.images), base.db.clone()),
            turns: Turns::new(SERVICE_WAITERS_MAX),
            views: Views::default(),
            keys: Keys::default(),
            events: OnceLock::new(),
            schedules: Schedules::default(),
            sources: Sources::default(),
            projects: RwLock::new(()),
            tokens: tokio::sync::Mutex::new(()),
            operations: Arc::new(Semaphore::new(OPERATIONS_MAX)),
            execs: Arc::new(Semaphore::new(EXECS_MAX)),
            tasks: Tasks::new(),
            stopping: watch::Sender::new(false),
            base,
            ports,
        };
        let control = Self {
            inner: Arc::new(inner),
        };
        control.recover().await?;
        Ok(control)
    }

    /// Accepts nothing new, lets calls and deployments end until the
    /// deadline, then cuts off the rest; what is cut off is repaired at the
    /// next start.
    pub async fn stop(&self, deadline: Duration) {
        self.inner.stopping.send_replace(true);
        self.inner.operations.close();
        if let Err(error) = self.inner.tasks.drain(deadline).await {
            tracing::warn!(%error, "the control plane stops");
        }
        if let Some(events) = self.inner.events.get().cloned() {
            let closed = tokio::task::spawn_blocking(move || events.close());
            if let Err(error) = closed.await {
                tracing::error!(%error, "the log of events was not closed");
            }
        }
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn metrics(&self) -> String {
        let mut text = (self.inner.ports.metrics)();
        if let Some(events) = self.inner.events.get() {
            text.push_str(&events.metrics(self.inner.base.now()));
            text.push_str(&self.inner.sources.metrics());
        }
        text
    }

    /// Ready once [`Self::stop`] was called.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopping = self.inner.stopping.subscribe();
        async move {
            // An error means that the control plane is gone, which is as good.
            let _gone = stopping.wait_for(|stopping| *stopping).await.is_err();
        }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.inner.base.db
    }

    /// A place among the long operations, unless there are too many.
    pub(crate) fn operation(&self) -> Result<OwnedSemaphorePermit, ControlError> {
        let operations = Arc::clone(&self.inner.operations);
        operations.try_acquire_owned().map_err(|error| match error {
            tokio::sync::TryAcquireError::Closed => unavailable("the server is stopping"),
            tokio::sync::TryAcquireError::NoPermits => exhausted(format!(
                "{OPERATIONS_MAX} deployments, pulls and imports are under way: try again later"
            )),
        })
    }

    /// A place in the line of those who change a service.
    pub(crate) fn ticket(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> Result<Ticket<ServiceKey>, ControlError> {
        let ticket = self.inner.turns.ticket((project.clone(), service.clone()));
        ticket.ok_or_else(|| {
            conflict(format!(
                "{SERVICE_WAITERS_MAX} changes of {service} are waiting already: try again later"
            ))
        })
    }

    pub(crate) async fn project(
        &self,
        name: &ProjectName,
    ) -> Result<Found<ProjectRecord>, ControlError> {
        let missing = || not_found(format!("there is no project {name}"));
        let id = self.db().get::<ProjectId>(&key::project_name(name)).await?;
        let id = id.ok_or_else(missing)?.record;
        self.db().get(&key::project(&id)).await?.ok_or_else(missing)
    }
}

/// An answer of another part, within the time that is given to it.
pub(crate) async fn asked<T>(what: &str, answer: BoxFuture<'_, T>) -> Result<T, ControlError> {
    let answered = tokio::time::timeout(PORT_TIMEOUT, answer).await;
    answered.map_err(|_| timeout(format!("{what} did not answer in time")))
}

/// Whether a failure is our own and a human must look.
pub(crate) fn is_fault(error: &ControlError) -> bool {
    error.kind == ErrorKind::Internal
}
