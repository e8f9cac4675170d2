//! What every thread of the gateway shares.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use skiff_base::Clock;
use skiff_types::{InstanceId, ProjectId, RevisionId};

use crate::access::AccessLog;
use crate::config::GatewayConfig;
use crate::lane::Lane;
use crate::lateness::Lateness;
use crate::metrics::Metrics;
use crate::port::{Demand, Load, Records};
use crate::revision::{Instance, Revision, lock};
use crate::shards::Shards;
use crate::table::Table;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) connection_bound: u64,
    pub(crate) demand: Arc<dyn Demand>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) lateness: Lateness,
    pub(crate) access: Option<AccessLog>,
    pub(crate) table: Table,
    pub(crate) instances: Shards<InstanceId, Placed>,
    projects: Mutex<HashMap<ProjectId, Arc<Project>>>,
    active: Mutex<Vec<Arc<Revision>>>,
    /// Those of the threads that serve.
    lanes: Mutex<Vec<Weak<Lane>>>,
}

/// An instance and the revision it is of.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) revision: Arc<Revision>,
    pub(crate) instance: Arc<Instance>,
}

/// Finished requests of one service, ever since this process started.
#[derive(Debug, Default)]
pub(crate) struct ServiceTotals {
    pub(crate) requests: AtomicU64,
}

/// One project's requests in flight and their bound.
#[derive(Debug)]
pub(crate) struct Project {
    in_flight: AtomicU32,
    limit: AtomicU32,
}

/// One request of a project; dropping ends it.
#[derive(Debug)]
pub(crate) struct Admission(Arc<Project>);

impl Project {
    /// `None` when the project has as many requests as it may.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Admission> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let admission = Admission(self.clone());
        (before < self.limit.load(Ordering::Relaxed)).then_some(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    pub(crate) fn new(
        mut config: GatewayConfig,
        demand: Arc<dyn Demand>,
        records: Arc<dyn Records>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let access = config.access_log.take().map(AccessLog::start);
        Self {
            connection_bound: config.connection_bound(),
            config,
            demand,
            records,
            clock,
            metrics: Metrics::default(),
            lateness: Lateness::default(),
            access,
            table: Table::default(),
            instances: Shards::default(),
            projects: Mutex::default(),
            active: Mutex::default(),
            lanes: Mutex::default(),
        }
    }

    pub(crate) fn project(&self, id: &ProjectId) -> Arc<Project> {
        let mut projects = lock(&self.projects);
        if let Some(project) = projects.get(id) {
            return project.clone();
        }
        let project = Arc::new(Project {
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(u32::MAX),
        });
        projects.insert(id.clone(), project.clone());
        project
    }

    pub(crate) fn set_quota(&self, id: &ProjectId, requests_in_flight: u32) {
        let project = self.project(id);
        project.limit.store(requests_in_flight, Ordering::Relaxed);
    }

    pub(crate) fn activate(&self, revision: Arc<Revision>) {
        lock(&self.active).push(revision);
    }

    pub(crate) fn loads(&self) -> Vec<Load> {
        let now = self.clock.now();
        let active = std::mem::take(&mut *lock(&self.active));
        let mut loads = Vec::with_capacity(active.len());
        let mut kept = Vec::with_capacity(active.len());
        for revision in active {
            if let Some(load) = revision.take_load(now) {
                loads.push(load);
                kept.push(revision);
            }
        }
        lock(&self.active).append(&mut kept);
        loads
    }

    /// It does not answer: out of rotation at once, and the scheduler is told, once.
    pub(crate) fn dead(&self, revision: &Arc<Revision>, instance: &Arc<Instance>, reason: &str) {
        if revision.retire(instance) {
            self.metrics.dead_instances.up();
            self.demand.dead(instance.id, reason);
        }
    }

    /// A thread serves with this lane from now on.
    pub(crate) fn know_lane(&self, lane: &Arc<Lane>) {
        let mut lanes = lock(&self.lanes);
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(lane));
    }

    /// It is out of rotation and empty. Connections that are kept to it close
    /// now, one by one, and not all that have gathered at a lane's next tick,
    /// for which requests would wait.
    pub(crate) fn forget(&self, instance: &Instance) {
        self.instances.remove_if(&instance.id, |placed| {
            placed.instance.serial == instance.serial
        });
        for lane in lock(&self.lanes).iter().filter_map(Weak::upgrade) {
            lane.forget(instance);
        }
    }

    pub(crate) fn revision(&self, id: &RevisionId) -> Option<Arc<Revision>> {
        self.table.revisions.get(id)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use skiff_base::{ByteStream, ManualClock};
    use skiff_types::{IsolationClass, Protocol};
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::aside::Nobody;
    use crate::link::Link;
    use crate::port::{RevisionRoute, Upstream};

    #[derive(Debug)]
    struct Somewhere(u32);

    impl Upstream for Somewhere {
        fn instance(&self) -> InstanceId {
            InstanceId::from_parts(1, self.0)
        }
        fn class(&self) -> IsolationClass {
            IsolationClass::Null
        }
        fn connect(&self) -> BoxFuture<'_, io::Result<ByteStream>> {
            async { Err(io::ErrorKind::Unsupported.into()) }.boxed()
        }
    }

    fn revision(shared: &Arc<Shared>) -> Arc<Revision> {
        let id = RevisionId::parse(&ProjectId::default_project(), "hello-00001").unwrap();
        let route = RevisionRoute {
            id: id.clone(),
            protocol: Protocol::Http1,
            concurrency: 1,
            timeout_ms: 1000,
            outlives_client: false,
            queue_requests: 1,
            queue_ms: 1000,
            liveness_period_ms: 0,
            liveness_path: None,
        };
        let project = shared.project(&id.project);
        Arc::new(Revision::new(
            route,
            project,
            Arc::default(),
            shared.clone(),
        ))
    }

    fn park(lane: &Lane, instance: &Arc<Instance>) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(64);
        lane.park(instance, Box::new(Link::new(ByteStream::Memory(near))));
        far
    }

    #[tokio::test]
    async fn what_is_kept_to_an_instance_closes_when_it_leaves_the_rotation() {
        let shared = Arc::new(Shared::new(
            GatewayConfig::default(),
            Arc::new(Nobody),
            Arc::new(Nobody),
            Arc::new(ManualClock::default()),
        ));
        let lanes = [Lane::new(shared.clone()), Lane::new(shared.clone())].map(Arc::new);
        lanes.iter().for_each(|lane| shared.know_lane(lane));
        let revision = revision(&shared);
        let [goes, stays] = [1, 2].map(|n| Arc::new(Instance::new(Arc::new(Somewhere(n)), None)));
        assert!(revision.add(&goes) && revision.add(&stays));
        let mut closed = Vec::new();
        for lane in &lanes {
            closed.push(park(lane, &goes));
            closed.push(park(lane, &goes));
        }
        let kept = park(&lanes[0], &stays);
        assert!(revision.retire(&goes));
        for mut far in closed {
            assert_eq!(far.read(&mut [0; 1]).now_or_never().unwrap().unwrap(), 0);
        }
        assert!(lanes[0].unpark(&stays).is_some());
        drop(kept);
    }
}
