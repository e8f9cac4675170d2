//! The start: what a crash interrupted is ended, and what is stored is told.

use std::collections::BTreeSet;

use skiff_types::{RevisionId, ServiceName};

use crate::control::Control;
use crate::error::{ControlError, internal};
use crate::key;
use crate::limit::RANGE_KEYS;
use crate::publish::Publication;
use crate::record::{Mark, ProjectRecord, ServiceRecord};

impl Control {
    /// Safe to repeat: each step leads to the same end.
    pub(crate) async fn recover(&self) -> Result<(), ControlError> {
        for project in self.db().all::<ProjectRecord>(key::PROJECTS).await? {
            let project = project.record;
            self.end_pending(&project).await?;
            self.settle_functions(&project).await?;
            self.inner.ports.fleet.set_quota(&project.id, project.quota);
            self.tell_services(&project).await?;
        }
        if self.inner.base.vault.is_rekeying() {
            let done = self.inner.base.vault.rekey(None).await?;
            tracing::info!(
                secrets = done.secrets,
                "went on with encrypting the secrets anew"
            );
        }
        Ok(())
    }

    async fn end_pending(&self, project: &ProjectRecord) -> Result<(), ControlError> {
        for pending in self.db().all::<Mark>(&key::pendings(&project.id)).await? {
            let id = RevisionId::parse(&project.id, key::last_part(&pending.key));
            let id = id
                .map_err(|e| internal(format!("the key {} names no revision: {e}", pending.key)))?;
            tracing::info!(revision = %id, "its deployment was interrupted");
            let reason = "interrupted: the server ended while it was being validated";
            self.fail_pending(&id, reason.to_owned()).await?;
        }
        Ok(())
    }

    async fn tell_services(&self, project: &ProjectRecord) -> Result<(), ControlError> {
        let prefix = key::services(&project.id);
        let mut after: Option<String> = None;
        loop {
            let page = self
                .db()
                .first::<ServiceRecord>(&prefix, after.as_deref(), RANGE_KEYS)
                .await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(last.key.clone());
            for found in &page {
                let name = key::last_part(&found.key).parse::<ServiceName>();
                let name =
                    name.map_err(|e| internal(format!("the key {} has no name: {e}", found.key)))?;
                self.tell(project, &name, &found.record).await?;
            }
        }
    }

    /// Tells the gateway and the fleet what is stored of a service.
    pub(crate) async fn tell_service(
        &self,
        project: &ProjectRecord,
        name: &ServiceName,
    ) -> Result<(), ControlError> {
        let found = self.service(&project.id, name).await?;
        self.tell(project, name, &found.record).await
    }

    async fn tell(
        &self,
        project: &ProjectRecord,
        name: &ServiceName,
        record: &ServiceRecord,
    ) -> Result<(), ControlError> {
        let config = &self.inner.base.config;
        let none = BTreeSet::new();
        let told = Publication::prepare(self.db(), config, project, name, &none, record).await?;
        told.apply(&self.inner.ports);
        Ok(())
    }
}
