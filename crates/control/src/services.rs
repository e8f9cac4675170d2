//! Services: told, their traffic moved, their old revisions collected, and
//! their end.

use std::collections::BTreeSet;

use skiff_types::api::{self, RevisionState};
use skiff_types::{ProjectId, ServiceName};

use crate::control::{Control, ServiceKey, asked};
use crate::db::{Change, Found};
use crate::error::{ControlError, conflict, internal, invalid, not_found};
use crate::hold::Held;
use crate::key;
use crate::publish::Publication;
use crate::record::{ProjectRecord, RevisionRecord, ServiceRecord};
use crate::traffic::{self, revision_id, revision_number};

/// Revisions kept besides those that requests can reach.
const KEPT: usize = skiff_types::limits::REVISIONS_KEPT;

type Revisions = Vec<(u32, RevisionRecord)>;

impl Control {
    pub(crate) async fn service(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> Result<Found<ServiceRecord>, ControlError> {
        let found = self.db().get(&key::service(project, service)).await?;
        found.ok_or_else(|| not_found(format!("there is no service {service}")))
    }

    /// A service with all its revisions, newest first, and what runs of it.
    pub(crate) async fn describe(
        &self,
        project: &ProjectRecord,
        service: &ServiceName,
    ) -> Result<api::Service, ControlError> {
        let found = self.service(&project.id, service).await?;
        let mut revisions = self.revisions(&project.id, service).await?;
        revisions.reverse();
        self.told(project, service, &found.record, revisions).await
    }

    /// At most `limit` services by name after `after`, each with its newest
    /// revision and those that have traffic.
    pub(crate) async fn list_services(
        &self,
        project: &ProjectRecord,
        after: Option<&ServiceName>,
        limit: usize,
    ) -> Result<Vec<api::Service>, ControlError> {
        let after = after.map(|name| key::service(&project.id, name));
        let prefix = key::services(&project.id);
        let page = self
            .db()
            .first::<ServiceRecord>(&prefix, after.as_deref(), limit)
            .await?;
        let mut services = Vec::with_capacity(page.len());
        for found in page {
            let name = key::last_part(&found.key).parse::<ServiceName>();
            let name =
                name.map_err(|e| internal(format!("the key {} has no name: {e}", found.key)))?;
            let mut revisions = Revisions::new();
            let newest = self.last_number(&project.id, &name).await?;
            let told: BTreeSet<u32> = found.record.routed().into_iter().chain(newest).collect();
            for number in told.into_iter().rev() {
                let id = revision_id(&project.id, &name, number);
                let found = self.db().get::<RevisionRecord>(&key::revision(&id)).await?;
                revisions.extend(found.map(|found| (number, found.record)));
            }
            services.push(self.told(project, &name, &found.record, revisions).await?);
        }
        Ok(services)
    }

    async fn last_number(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> Result<Option<u32>, ControlError> {
        let place = key::number(project, service);
        let found = self.db().get::<crate::record::NumberRecord>(&place).await?;
        Ok(found.map(|found| found.record.last))
    }

    async fn told(
        &self,
        project: &ProjectRecord,
        service: &ServiceName,
        record: &ServiceRecord,
        revisions: Revisions,
    ) -> Result<api::Service, ControlError> {
        let tell = |(number, record): (u32, RevisionRecord)| api::Revision {
            name: revision_id(&project.id, service, number).name(),
            created_unix_ms: record.created_unix_ms,
            state: record.state,
            reason: record.reason,
            spec: record.spec,
        };
        let instances = self.inner.ports.fleet.instances(&project.id, service);
        let config = &self.inner.base.config;
        Ok(api::Service {
            name: service.clone(),
            project: project.name.clone(),
            url: config.url(&config.host(&project.id, &project.name, service)),
            traffic: record.to_api(&project.id, service),
            revisions: revisions.into_iter().map(tell).collect(),
            instances: asked("the fleet", instances).await?,
        })
    }

    /// All revisions of a service, oldest first.
    async fn revisions(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> Result<Revisions, ControlError> {
        let found = self
            .db()
            .all::<RevisionRecord>(&key::revisions(project, service))
            .await?;
        let read = |found: Found<RevisionRecord>| {
            let number = key::last_part(&found.key).parse::<u32>();
            let number = number
                .map_err(|e| internal(format!("the key {} has no number: {e}", found.key)))?;
            Ok((number, found.record))
        };
        let mut revisions = found
            .into_iter()
            .map(read)
            .collect::<Result<Revisions, ControlError>>()?;
        revisions.sort_by_key(|(number, _)| *number);
        Ok(revisions)
    }

    pub(crate) async fn turn(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> Result<Held<ServiceKey>, ControlError> {
        // Who is not there has no line to wait in.
        self.service(project, service).await?;
        Ok(self.ticket(project, service)?.wait().await)
    }

    /// Sets who gets which share.
    pub(crate) async fn set_traffic(
        &self,
        project: &ProjectRecord,
        service: &ServiceName,
        wanted: &[api::TrafficTarget],
    ) -> Result<api::Service, ControlError> {
        let targets = traffic::from_api(&project.id, service, wanted)?;
        let _turn = self.turn(&project.id, service).await?;
        let current = self.service(&project.id, service).await?;
        let new = ServiceRecord {
            targets,
            ..current.record.clone()
        };
        if new.latest_ready.is_none() {
            return Err(conflict(format!("no revision of {service} is ready")));
        }
        for number in new.routed() {
            self.ready(&project.id, service, number).await?;
        }
        self.move_traffic(project, service, &current, new).await?;
        self.describe(project, service).await
    }

    async fn ready(
        &self,
        project: &ProjectId,
        service: &ServiceName,
        number: u32,
    ) -> Result<(), ControlError> {
        let id = revision_id(project, service, number);
        let found = self.db().get::<RevisionRecord>(&key::revision(&id)).await?;
        let found =
            found.ok_or_else(|| not_found(format!("there is no revision {}", id.name())))?;
        if found.record.state == RevisionState::Ready {
            return Ok(());
        }
        Err(conflict(format!("the revision {} is not ready", id.name())))
    }

    /// All traffic back to an older revision.
    pub(crate) async fn rollback(
        &self,
        project: &ProjectRecord,
        service: &ServiceName,
        wanted: &api::Rollback,
    ) -> Result<api::Service, ControlError> {
        let wanted = wanted.to.as_deref();
        let wanted = wanted.map(|text| revision_number(&project.id, service, text));
        let wanted = wanted.transpose()?;
        let _turn = self.turn(&project.id, service).await?;
        let current = self.service(&project.id, service).await?;
        let number = match wanted {
            Some(number) => number,
            None => {
                let revisions = self.revisions(&project.id, service).await?;
                let ready = revisions
                    .iter()
                    .filter(|(_, r)| r.state == RevisionState::Ready);
                let ready: Vec<u32> = ready.map(|(number, _)| *number).collect();
                traffic::before(current.record.serving(), &ready)?
            }
        };
        self.ready(&project.id, service, number).await?;
        let new = current.record.all_to(number);
        self.move_traffic(project, service, &current, new).await?;
        self.describe(project, service).await
    }

    /// One transaction, then gateway and fleet are told. The caller has the turn.
    pub(crate) async fn move_traffic(
        &self,
        project: &ProjectRecord,
        service: &ServiceName,
        current: &Found<ServiceRecord>,
        new: ServiceRecord,
    ) -> Result<(), ControlError> {
        let before = current.record.routed();
        let config = &self.inner.base.config;
        let told = Publication::prepare(self.db(), config, project, service, &before, &new).await?;
        let place = key::service(&project.id, service);
        let change = Change::default()
            .expect(&place, current.version)
            .put(&place, &new)?;
        self.db().commit(change).await?;
        self.forget_view(&project.id, service);
        told.apply(&self.inner.ports);
        Ok(())
    }

    /// Removes the oldest revisions that no request can reach; a failure is
    /// logged and made good by the next deployment. The caller has the turn.
    pub(crate) async fn collect_revisions(&self, project: &ProjectRecord, service: &ServiceName) {
        if let Err(error) = self.try_collect(project, service).await {
            tracing::warn!(%error, %service, "old revisions were not collected");
        }
    }

    async fn try_collect(
        &self,
        project: &ProjectRecord,
        service: &ServiceName,
    ) -> Result<(), ControlError> {
        let current = self.service(&project.id, service).await?;
        let revisions = self.revisions(&project.id, service).await?;
        let reached = current.record.routed();
        let kept =
            |number: &u32| reached.contains(number) || current.record.latest_ready == Some(*number);
        let (_, idle): (Revisions, Revisions) = revisions.into_iter().partition(|(n, _)| kept(n));
        let over = idle.len().saturating_sub(KEPT);
        if over == 0 {
            return Ok(());
        }
        let gone = &idle[..over];
        let place = key::service(&project.id, service);
        let change = Change::default().expect(place, current.version);
        self.db()
            .commit(without(change, &project.id, service, gone))
            .await?;
        self.forget_revisions(&project.id, service, gone);
        Ok(())
    }

    fn forget_revisions(
        &self,
        project: &ProjectId,
        service: &ServiceName,
        gone: &[(u32, RevisionRecord)],
    ) {
        for (number, _) in gone {
            let id = revision_id(project, service, *number);
            self.inner.ports.router.remove_revision(&id);
            self.inner.ports.fleet.remove_revision(&id);
            self.inner.base.forget(&id);
        }
    }

    /// Ends a service: its keys go in one transaction, then its routes, then
    /// its instances are drained. Its numbers are not used again.
    pub(crate) async fn delete_service(
        &self,
        project: &ProjectRecord,
        service: &ServiceName,
    ) -> Result<(), ControlError> {
        let _turn = self.turn(&project.id, service).await?;
        let current = self.service(&project.id, service).await?;
        let revisions = self.revisions(&project.id, service).await?;
        let place = key::service(&project.id, service);
        let change = Change::default()
            .expect(&place, current.version)
            .delete(&place);
        let change = self.without_function(change, &project.id, service).await?;
        self.db()
            .commit(without(change, &project.id, service, &revisions))
            .await?;
        self.forget_view(&project.id, service);
        self.inner.ports.router.remove_service(&project.id, service);
        self.forget_revisions(&project.id, service, &revisions);
        Ok(())
    }
}

/// The change, with these revisions and their use of images removed.
fn without(
    change: Change,
    project: &ProjectId,
    service: &ServiceName,
    gone: &[(u32, RevisionRecord)],
) -> Change {
    gone.iter().fold(change, |change, (number, record)| {
        let id = revision_id(project, service, *number);
        let used = record.spec.containers.iter();
        used.fold(change.delete(key::revision(&id)), |change, container| {
            change.delete(key::used(&container.digest, &id))
        })
        .delete(key::pending(&id))
    })
}

/// The revision's number that a log is asked for.
pub(crate) fn number_in(
    project: &ProjectId,
    service: &ServiceName,
    text: Option<&str>,
) -> Result<Option<u32>, ControlError> {
    let parse = |text| revision_number(project, service, text);
    text.map(parse).transpose().map_err(|e| invalid(e.message))
}
