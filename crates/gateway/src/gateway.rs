//! The gateway as the rest of the server steers it.

use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use skiff_base::{Clock, Listener};
use skiff_types::{ErrorKind, InstanceId, ProjectId, RevisionId, ServiceName};

use crate::aside::{Aside, Kept};
use crate::config::GatewayConfig;
use crate::door::Door;
use crate::metrics::MetricsSnapshot;
use crate::port::{ColdPhases, Demand, Load, Records, RevisionRoute, ServiceRoute, Upstream};
use crate::probe;
use crate::revision::{Instance, Refusal, Revision};
use crate::serve::{self, InnerHandle, Lanes, ServeError, ServeHandle};
use crate::shared::{Placed, Shared};
use crate::table::RouteError;

/// The gateway: tables that change while requests go through.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    lanes: Arc<Lanes>,
}

/// Finished requests of one service since this process started, counted
/// beside the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCount {
    /// Its project.
    pub project: ProjectId,
    /// It.
    pub service: ServiceName,
    /// Requests that reached an instance and have ended.
    pub requests: u64,
}

/// An instance cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Its revision was never put, or is removed.
    #[error("the instance {instance} is of {revision}, which the gateway does not know")]
    UnknownRevision {
        /// The instance.
        instance: InstanceId,
        /// The revision.
        revision: RevisionId,
    },
    /// It is there already.
    #[error("the instance {0} is in the gateway already")]
    Twice(InstanceId),
}

impl Gateway {
    /// A gateway that routes nothing yet.
    #[must_use]
    pub fn new(
        config: GatewayConfig,
        demand: Arc<dyn Demand>,
        records: Arc<dyn Records>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared::new(config, demand, records, clock)),
            lanes: Arc::default(),
        })
    }

    /// Leads what is no service's to a server within this process, from now on;
    /// once.
    pub fn put_aside(&self, aside: Aside) {
        let shared = &self.shared;
        let kept = || Kept::new(aside, shared.clock.clone());
        shared.table.aside.get_or_init(kept);
    }

    /// Adds a service or replaces its routes.
    ///
    /// # Errors
    /// When a revision was not put before; then nothing has changed.
    pub fn put_service(&self, route: &ServiceRoute) -> Result<(), RouteError> {
        self.shared.table.put(route)
    }

    /// Its hosts answer 404 from now on; requests under way go on.
    pub fn remove_service(&self, project: &ProjectId, service: &ServiceName) {
        self.shared.table.remove(project, service);
    }

    /// Adds a revision. One that is there stays as it is: revisions do not change.
    pub fn put_revision(&self, route: RevisionRoute) {
        let shared = &self.shared;
        let project = shared.project(&route.id.project);
        let totals = shared.table.totals(&route.id.project, &route.id.service);
        let id = route.id.clone();
        shared.table.revisions.get_or_insert(id, || {
            Arc::new(Revision::new(route, project, totals, shared.clone()))
        });
    }

    /// Takes its instances out of rotation and fails what waits for them.
    pub fn remove_revision(&self, id: &RevisionId) {
        if let Some(revision) = self.shared.table.revisions.remove(id) {
            revision.remove();
        }
    }

    /// An instance that is ready. `phases` is there when it was started for
    /// requests that wait.
    ///
    /// # Errors
    /// When its revision is not known, or it is there already.
    pub fn add_instance(
        &self,
        id: &RevisionId,
        upstream: Arc<dyn Upstream>,
        phases: Option<ColdPhases>,
    ) -> Result<(), AddError> {
        let instance = Arc::new(Instance::new(upstream, phases));
        let unknown = || AddError::UnknownRevision {
            instance: instance.id,
            revision: id.clone(),
        };
        let revision = self.shared.revision(id).ok_or_else(unknown)?;
        let placed = Placed {
            revision: revision.clone(),
            instance: instance.clone(),
        };
        let placed = self.shared.instances.get_or_insert(instance.id, || placed);
        if placed.instance.serial != instance.serial {
            return Err(AddError::Twice(instance.id));
        }
        if !revision.add(&instance) {
            self.shared.forget(&instance);
            return Err(unknown());
        }
        if revision.route.liveness_period_ms > 0 {
            let probing = probe::run(self.shared.clone(), revision, instance);
            if let Err(error) = self.lanes.run(probing) {
                tracing::warn!(%error, "an instance's liveness is not watched");
            }
        }
        Ok(())
    }

    /// Marks an instance paused, so that its next request wakes it first, or
    /// running. False when it may not be paused now: a request is in it.
    pub fn set_paused(&self, instance: InstanceId, paused: bool) -> bool {
        let placed = self.shared.instances.get(&instance);
        placed.is_some_and(|placed| placed.revision.set_paused(&placed.instance, paused))
    }

    /// Takes an instance out of rotation at once; the future resolves when
    /// nothing is in flight in it. The caller sets the deadline.
    pub fn drain_instance(
        &self,
        instance: InstanceId,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let drained = self.shared.instances.get(&instance).map(|placed| {
            placed.revision.retire(&placed.instance);
            placed.revision.drained(&placed.instance)
        });
        async move {
            if let Some(drained) = drained {
                // An error means that the instance is gone with its revision.
                drained.await.ok();
            }
        }
    }

    /// Nobody can start an instance of this revision: what waits for one fails.
    pub fn refuse(&self, id: &RevisionId, message: &str, kind: ErrorKind) {
        if let Some(revision) = self.shared.revision(id) {
            revision.refuse(&Refusal::Refused {
                message: message.to_owned(),
                kind,
            });
        }
    }

    /// Whether instances can be added to this revision has changed. While they
    /// can, its queue has no bound but its length and its deadline.
    pub fn set_limited(&self, id: &RevisionId, limited: bool) {
        if let Some(revision) = self.shared.revision(id) {
            revision.set_limited(limited);
        }
    }

    /// The load of each revision that had one since the last call.
    #[must_use]
    pub fn loads(&self) -> Vec<Load> {
        self.shared.loads()
    }

    /// Requests and streams in an instance.
    #[must_use]
    pub fn instance_load(&self, instance: InstanceId) -> u32 {
        let placed = self.shared.instances.get(&instance);
        placed.map_or(0, |placed| placed.revision.in_flight_of(&placed.instance))
    }

    /// Finished requests by service, also of services that are gone.
    #[must_use]
    pub fn counts(&self) -> Vec<ServiceCount> {
        let all = self.shared.table.all_totals().into_iter();
        let count = all.map(|((project, service), totals)| ServiceCount {
            project,
            service,
            requests: totals.requests.load(Ordering::Relaxed),
        });
        count.filter(|count| count.requests > 0).collect()
    }

    /// Requests that a project may have in flight, queued ones included.
    pub fn set_quota(&self, project: &ProjectId, requests_in_flight: u32) {
        self.shared.set_quota(project, requests_in_flight);
    }

    /// What the gateway has done and holds.
    #[must_use]
    pub fn metrics(&self) -> MetricsSnapshot {
        self.shared.metrics.snapshot()
    }

    /// Serves on threads of its own. Listeners of one address (SO_REUSEPORT)
    /// are spread over them; a single one is shared.
    ///
    /// # Errors
    /// When a listener or a thread is not to be had.
    pub fn serve(
        &self,
        listeners: Vec<TcpListener>,
        threads: usize,
    ) -> Result<ServeHandle, ServeError> {
        serve::start(&self.shared, self.lanes.clone(), listeners, threads)
    }

    /// A connection from within this process on which hosts name revisions:
    /// `NAME-00001.PROJECT`. Nobody else can come by it. Its requests are
    /// queued, counted and recorded as all are. After [`Gateway::serve`].
    ///
    /// # Errors
    /// When there are no sockets left, or nothing serves.
    pub fn connect_to_revisions(&self) -> Result<UnixStream, ServeError> {
        let (near, far) = UnixStream::pair().map_err(ServeError::Listener)?;
        far.set_nonblocking(true).map_err(ServeError::Listener)?;
        self.lanes.take(far)?;
        Ok(near)
    }

    /// Serves an instance's calls to its project: hosts are
    /// `NAME.skiff.internal`, of this project alone. `caller` is told as the
    /// address of connections that have none. After [`Gateway::serve`].
    ///
    /// # Errors
    /// When nothing serves.
    pub fn serve_inner(
        &self,
        listener: Listener,
        caller: IpAddr,
        project: ProjectId,
    ) -> Result<InnerHandle, ServeError> {
        let connections = self.shared.config.inner_connections;
        self.lanes
            .listen(listener, Door::inside(project, caller, connections))
    }
}
