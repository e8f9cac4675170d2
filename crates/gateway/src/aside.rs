//! Requests that are no service's: this process serves them itself, behind the
//! gateway's doors. They are neither counted, recorded nor scaled here: what
//! they come to is their server's own.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, Clock};
use skiff_types::{InstanceId, IsolationClass, ProjectId, Protocol, RevisionId, ServiceName};

use crate::config::GatewayConfig;
use crate::port::{ColdPhases, Demand, Records, RequestRecord, RevisionRoute, Upstream, WakeError};
use crate::revision::{Instance, Revision};
use crate::shared::Shared;

/// Far more than there are connections.
const AT_ONCE: u32 = 1 << 24;

/// Which requests these are, unless a service has their host.
#[derive(Debug)]
pub struct Aside {
    /// What the access log calls it.
    pub name: ServiceName,
    /// The second label of their hosts.
    pub label: &'static str,
    /// What their paths begin with, at any other host.
    pub path: &'static str,
    /// One's whole time, milliseconds.
    pub timeout_ms: u64,
    /// Makes connections to who serves them. It never fails and never takes
    /// long, since what fails is left out for good.
    pub connect: Arc<dyn Connect>,
}

/// Makes connections within this process.
pub trait Connect: std::fmt::Debug + Send + Sync + 'static {
    /// A new one, ready for HTTP/1.1.
    fn connect(&self) -> ByteStream;
}

/// They and the revision that stands for their server.
#[derive(Debug)]
pub(crate) struct Kept {
    label: &'static str,
    path: &'static str,
    revision: Arc<Revision>,
}

impl Kept {
    pub(crate) fn new(aside: Aside, clock: Arc<dyn Clock>) -> Self {
        // Of its own: nobody is told of it.
        let nobody = Arc::new(Nobody);
        let shared = Shared::new(GatewayConfig::default(), nobody.clone(), nobody, clock);
        let shared = Arc::new(shared);
        let project = ProjectId::default_project();
        let route = RevisionRoute {
            id: RevisionId {
                project: project.clone(),
                service: aside.name,
                number: 1,
            },
            protocol: Protocol::Http1,
            concurrency: AT_ONCE,
            timeout_ms: aside.timeout_ms,
            outlives_client: false,
            queue_requests: 0,
            queue_ms: 0,
            liveness_period_ms: 0,
            liveness_path: None,
        };
        let project = shared.project(&project);
        let revision = Arc::new(Revision::new(route, project, Arc::default(), shared));
        let upstream = Arc::new(Within(aside.connect));
        revision.add(&Arc::new(Instance::new(upstream, None)));
        Self {
            label: aside.label,
            path: aside.path,
            revision,
        }
    }

    /// The revision for such a request.
    pub(crate) fn of(&self, host: &str, target: &str) -> Option<&Arc<Revision>> {
        let label = host.split('.').nth(1);
        let is_theirs = label == Some(self.label) || target.starts_with(self.path);
        is_theirs.then_some(&self.revision)
    }
}

#[derive(Debug)]
struct Within(Arc<dyn Connect>);

impl Upstream for Within {
    fn instance(&self) -> InstanceId {
        InstanceId::from_parts(0, 0)
    }

    fn class(&self) -> IsolationClass {
        IsolationClass::Null
    }

    fn connect(&self) -> BoxFuture<'_, io::Result<ByteStream>> {
        Box::pin(async { Ok(self.0.connect()) })
    }
}

/// Whom nothing is told.
#[derive(Debug)]
pub(crate) struct Nobody;

impl Demand for Nobody {
    fn queued(&self, _: &RevisionId, _: u32, _: u32) {}
    fn busy(&self, _: InstanceId) {}
    fn idle(&self, _: InstanceId) {}
    fn dead(&self, _: InstanceId, _: &str) {}
    fn wake(&self, _: InstanceId) -> BoxFuture<'_, Result<(), WakeError>> {
        Box::pin(async { Ok(()) })
    }
}

impl Records for Nobody {
    fn request(&self, _: &RequestRecord) {}
    fn cold_start(&self, _: &RevisionId, _: InstanceId, _: IsolationClass, _: &ColdPhases) {}
}
