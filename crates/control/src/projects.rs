//! Projects: owners of services, secrets, quotas and bills.

use skiff_types::api::{CreateProject, Project, Quota};
use skiff_types::{ProjectId, ProjectName};

use crate::control::Control;
use crate::db::{Change, Found};
use crate::error::{ControlError, conflict, internal, invalid};
use crate::key;
use crate::lambda::LayerRecord;
use crate::record::{NumberRecord, ProjectRecord, TokenRecord};

/// Draws of an id before it is called impossible: of 10^12, few are taken.
const ID_DRAWS: usize = 20;
/// Numbers of former services removed in one transaction.
const NUMBERS_BATCH: usize = 100;

impl Control {
    pub(crate) async fn list_projects(&self) -> Result<Vec<Project>, ControlError> {
        let found = self.db().all::<ProjectRecord>(key::PROJECTS).await?;
        Ok(found
            .into_iter()
            .map(|found| to_api(found.record))
            .collect())
    }

    pub(crate) async fn one_project(
        &self,
        id: &ProjectId,
    ) -> Result<Option<Project>, ControlError> {
        let found = self.db().get::<ProjectRecord>(&key::project(id)).await?;
        Ok(found.map(|found| to_api(found.record)))
    }

    pub(crate) async fn create_project(
        &self,
        wanted: CreateProject,
    ) -> Result<Project, ControlError> {
        let _projects = self.inner.projects.write().await;
        let name_key = key::project_name(&wanted.name);
        if self.db().exists(&name_key).await? {
            return Err(conflict(format!(
                "there is a project {} already",
                wanted.name
            )));
        }
        let record = ProjectRecord {
            id: self.free_id().await?,
            name: wanted.name,
            quota: wanted.quota,
        };
        let change = Change::default()
            .expect_absent(&name_key)
            .expect_absent(key::project(&record.id))
            .put(&name_key, &record.id)?
            .put(key::project(&record.id), &record)?;
        self.db().commit(change).await?;
        self.inner.ports.fleet.set_quota(&record.id, record.quota);
        Ok(to_api(record))
    }

    async fn free_id(&self) -> Result<ProjectId, ControlError> {
        for _ in 0..ID_DRAWS {
            let text = format!("{:012}", skiff_base::random::u64() % 1_000_000_000_000);
            let id: ProjectId = text.parse().map_err(|e| internal(format!("{e}")))?;
            if !self.db().exists(&key::project(&id)).await? {
                return Ok(id);
            }
        }
        Err(internal("no free project id was drawn"))
    }

    pub(crate) async fn set_quota(
        &self,
        name: &ProjectName,
        quota: Quota,
    ) -> Result<Project, ControlError> {
        let _projects = self.inner.projects.write().await;
        let found = self.project(name).await?;
        let record = ProjectRecord {
            quota,
            ..found.record
        };
        let change = Change::default()
            .expect(&found.key, found.version)
            .put(&found.key, &record)?;
        let committed = self.db().commit(change).await;
        self.inner.keys.forget_all();
        committed?;
        self.inner.ports.fleet.set_quota(&record.id, quota);
        Ok(to_api(record))
    }

    /// Ends a project that has no services and no secrets; its tokens and
    /// keys end with it.
    pub(crate) async fn delete_project(&self, name: &ProjectName) -> Result<(), ControlError> {
        let _projects = self.inner.projects.write().await;
        let found = self.project(name).await?;
        let id = &found.record.id;
        if *id == ProjectId::default_project() {
            return Err(invalid("the project default cannot be deleted"));
        }
        let services = key::services(id);
        if self.db().any(&services).await? {
            return Err(conflict(format!(
                "the project {name} has services: delete them first"
            )));
        }
        if self.db().any(&key::functions(id)).await? {
            return Err(conflict(format!(
                "the project {name} has functions: delete them first"
            )));
        }
        if self.db().any(&key::schedules(id)).await? {
            return Err(conflict(format!(
                "the project {name} has schedules: delete them first"
            )));
        }
        if self.db().any(&key::mappings(id)).await? {
            return Err(conflict(format!(
                "the project {name} has event source mappings: delete them first"
            )));
        }
        if self.db().any(&key::hooks(id)).await? {
            return Err(conflict(format!(
                "the project {name} has hooks: delete them first"
            )));
        }
        let secrets = key::secrets(id);
        if self.db().any(&secrets).await? {
            return Err(conflict(format!(
                "the project {name} has secrets: delete them first"
            )));
        }
        let layers = self.db().all::<LayerRecord>(&key::layers(id)).await?;
        if layers.iter().any(|found| !found.record.versions.is_empty()) {
            return Err(conflict(format!(
                "the project {name} has layers: delete their versions first"
            )));
        }
        let change = Change::default()
            .expect(&found.key, found.version)
            .delete(&found.key)
            .delete(key::project_name(name));
        let committed = self.db().commit(change).await;
        self.inner.keys.forget_all();
        committed?;
        self.sweep_project(id).await;
        Ok(())
    }

    /// What is left has no owner and leads nowhere; a failure leaves keys
    /// behind, nothing else.
    async fn sweep_project(&self, id: &ProjectId) {
        let swept = async {
            self.sweep_numbers(id).await?;
            self.sweep_tokens(id).await?;
            for found in self.db().all::<LayerRecord>(&key::layers(id)).await? {
                let change = Change::default().delete(&found.key);
                self.db().commit(change).await?;
            }
            self.sweep_access_keys(id).await
        };
        if let Err(error) = swept.await {
            tracing::warn!(%error, project = %id, "keys of a deleted project are left behind");
        }
    }

    async fn sweep_numbers(&self, id: &ProjectId) -> Result<(), ControlError> {
        loop {
            let page = self
                .db()
                .first::<NumberRecord>(&key::numbers(id), None, NUMBERS_BATCH)
                .await?;
            if page.is_empty() {
                return Ok(());
            }
            let delete = |change: Change, found: &Found<NumberRecord>| change.delete(&found.key);
            self.db()
                .commit(page.iter().fold(Change::default(), delete))
                .await?;
        }
    }

    async fn sweep_tokens(&self, id: &ProjectId) -> Result<(), ControlError> {
        for found in self.db().all::<TokenRecord>(key::TOKENS).await? {
            if found.record.project.as_ref() == Some(id) {
                self.db()
                    .commit(Change::default().delete(&found.key))
                    .await?;
            }
        }
        Ok(())
    }
}

pub(crate) fn to_api(record: ProjectRecord) -> Project {
    Project {
        id: record.id,
        name: record.name,
        quota: record.quota,
    }
}
