//! Tells the gateway and the fleet what a service's record says. All that
//! can fail happens in [`Publication::prepare`], before the record is stored;
//! [`Publication::apply`] cannot fail.

use std::collections::{BTreeMap, BTreeSet};

use skiff_gateway::{RevisionRoute, ServiceRoute};
use skiff_types::{FunctionSpec, ProbeKind, RevisionId, RevisionSpec, ServiceName};

use crate::config::Config;
use crate::db::Db;
use crate::error::{ControlError, internal};
use crate::key;
use crate::lambda::FunctionRecord;
use crate::port::{Ports, RevisionPlan};
use crate::record::{ProjectRecord, RevisionRecord, ServiceRecord};
use crate::traffic::revision_id;

/// What a function's answer may take beyond its timeouts, seconds.
const FUNCTION_MARGIN_S: u64 = 5;

/// All that has to be told after one change of a service.
#[derive(Debug)]
pub(crate) struct Publication {
    serving: Vec<(RevisionPlan, RevisionRoute)>,
    unrouted: Vec<RevisionPlan>,
    route: Option<ServiceRoute>,
}

impl Publication {
    /// What changes when `new` follows a record that routed `before`.
    pub(crate) async fn prepare(
        db: &Db,
        config: &Config,
        project: &ProjectRecord,
        service: &ServiceName,
        before: &BTreeSet<u32>,
        new: &ServiceRecord,
    ) -> Result<Self, ControlError> {
        let function = db
            .get::<FunctionRecord>(&key::function(&project.id, service))
            .await?;
        let floors = function.map(|found| found.record.floors());
        let floors = floors.unwrap_or_default();
        Self::with_floors(db, config, project, service, before, new, &floors).await
    }

    /// The same, where other revisions of a function are kept warm than is
    /// stored: instances by revision.
    pub(crate) async fn with_floors(
        db: &Db,
        config: &Config,
        project: &ProjectRecord,
        service: &ServiceName,
        before: &BTreeSet<u32>,
        new: &ServiceRecord,
        floors: &BTreeMap<u32, u32>,
    ) -> Result<Self, ControlError> {
        let routed = new.routed();
        let mut serving = Vec::with_capacity(routed.len());
        for number in &routed {
            let id = revision_id(&project.id, service, *number);
            let spec = spec_of(db, &id).await?;
            let route = revision_route(config, &id, &spec)?;
            let mut plan = plan(&id, &spec, true);
            let floor = floors.get(number).copied().unwrap_or_default();
            plan.scaling.min = plan.scaling.min.max(floor);
            serving.push((plan, route));
        }
        let mut unrouted = Vec::new();
        for number in before.difference(&routed) {
            let id = revision_id(&project.id, service, *number);
            let spec = spec_of(db, &id).await?;
            unrouted.push(plan(&id, &spec, false));
        }
        let route = (!serving.is_empty()).then(|| service_route(config, project, service, new));
        Ok(Self {
            serving,
            unrouted,
            route,
        })
    }

    /// Revisions first, then who leads to them, then what nobody leads to.
    pub(crate) fn apply(self, ports: &Ports) {
        for (plan, route) in self.serving {
            // The gateway first: an instance may be there at once.
            ports.router.put_revision(route);
            ports.fleet.put_revision(plan);
        }
        if let Some(route) = self.route {
            ports.router.put_service(route);
        }
        for plan in self.unrouted {
            // The gateway keeps it while it exists: requests in it end, those
            // that wait are answered, and a way back finds its instances.
            ports.fleet.put_revision(plan);
        }
    }
}

async fn spec_of(db: &Db, id: &RevisionId) -> Result<RevisionSpec, ControlError> {
    let found = db.get::<RevisionRecord>(&key::revision(id)).await?;
    let found =
        found.ok_or_else(|| internal(format!("the revision {id} is routed and does not exist")))?;
    Ok(found.record.spec)
}

/// A revision as scheduler and workers see it.
pub(crate) fn plan(id: &RevisionId, spec: &RevisionSpec, serving: bool) -> RevisionPlan {
    RevisionPlan {
        id: id.clone(),
        scaling: spec.scaling,
        resources: spec.resources,
        isolation: spec.isolation,
        egress: spec.egress,
        serving,
        function: spec.function.is_some(),
    }
}

pub(crate) fn revision_route(
    config: &Config,
    id: &RevisionId,
    spec: &RevisionSpec,
) -> Result<RevisionRoute, ControlError> {
    let first = spec.containers.first();
    let first = first.ok_or_else(|| internal(format!("the revision {id} has no container")))?;
    Ok(RevisionRoute {
        id: id.clone(),
        protocol: first.protocol,
        concurrency: spec.scaling.concurrency,
        timeout_ms: timeout_ms(spec),
        outlives_client: spec.function.is_some(),
        queue_requests: config.queue_requests,
        queue_ms: queue_ms(config, spec),
        liveness_period_ms: u64::from(first.probe.liveness_period_s) * 1000,
        liveness_path: match &first.probe.kind {
            ProbeKind::Tcp => None,
            ProbeKind::Http(path) => Some(path.clone()),
        },
    })
}

/// An event waits for a whole first init at least: what comes of the second is
/// its answer, and not that it waited.
fn queue_ms(config: &Config, spec: &RevisionSpec) -> u64 {
    let init_ms =
        |function: &FunctionSpec| (u64::from(function.init_timeout_s) + FUNCTION_MARGIN_S) * 1000;
    let needed = spec.function.as_ref().map_or(0, init_ms);
    config.queue_ms.max(needed)
}

/// A function's own limit is kept by whoever hands it its events, who can say
/// so in AWS's words; behind that, an invocation may first wait for a slow
/// init.
fn timeout_ms(spec: &RevisionSpec) -> u64 {
    let seconds = u64::from(spec.timeout_s);
    match &spec.function {
        Some(_) => (seconds * 2 + FUNCTION_MARGIN_S) * 1000,
        None => seconds * 1000,
    }
}

fn service_route(
    config: &Config,
    project: &ProjectRecord,
    service: &ServiceName,
    record: &ServiceRecord,
) -> ServiceRoute {
    let id = |number| revision_id(&project.id, service, number);
    let shares = record.shares().into_iter();
    let tags = record.tags().into_iter();
    ServiceRoute {
        project: project.id.clone(),
        service: service.clone(),
        hosts: vec![config.host(&project.id, &project.name, service)],
        traffic: shares
            .map(|(number, percent)| (id(number), percent))
            .collect(),
        tags: tags.map(|(tag, number)| (tag, id(number))).collect(),
    }
}
