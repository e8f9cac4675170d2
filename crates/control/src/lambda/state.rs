//! A function's record in the store: read, changed as a whole, removed with
//! its service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skiff_lambda::{Code, FunctionName, LambdaError};
use skiff_types::{Digest, ProjectId, ServiceName};

use super::cache::View;
use super::record::{Configuration, FunctionRecord, LayerRecord, Update, UrlConfig, UrlRecord};
use crate::control::Control;
use crate::db::{Change, Db, Found};
use crate::error::ControlError;
use crate::key;
use crate::record::{ProjectRecord, ServiceRecord};

/// How often a change is tried that another one has overtaken.
const TRIES: usize = 8;

impl From<ControlError> for LambdaError {
    fn from(error: ControlError) -> Self {
        if crate::control::is_fault(&error) {
            tracing::error!(%error, "a call of the Lambda API failed");
        }
        Self::new(Self::code_of(error.kind), error.to_api().message)
    }
}

pub(crate) fn missing(name: &FunctionName) -> LambdaError {
    let message = format!("Function not found: {name}");
    LambdaError::new(Code::ResourceNotFound, message)
}

/// What functions, their versions and layers are made of.
#[derive(Debug, Default)]
pub(crate) struct CodeInUse {
    /// Zip files by their SHA-256.
    pub zips: Vec<Digest>,
    /// What lies below the code: references, some of which are of no image.
    pub images: BTreeSet<String>,
}

impl CodeInUse {
    pub(crate) async fn of(db: &Db) -> Result<Self, ControlError> {
        let mut used = Self::default();
        for project in db.all::<ProjectRecord>(key::PROJECTS).await? {
            let id = &project.record.id;
            for found in db.all::<FunctionRecord>(&key::functions(id)).await? {
                used.note(&found.record.latest);
            }
            for found in db.all::<Configuration>(&key::function_versions(id)).await? {
                used.note(&found.record);
            }
            for found in db.all::<LayerRecord>(&key::layers(id)).await? {
                let versions = found.record.versions.into_values();
                used.zips.extend(versions.map(|version| version.sha256));
            }
        }
        Ok(used)
    }

    fn note(&mut self, config: &Configuration) {
        if let Some(code) = &config.code {
            self.zips.extend(code.zips().cloned());
            self.images.insert(config.image_uri.clone());
        }
    }
}

/// The change, with the ids of a function's URLs led to where they are now.
fn with_urls(
    change: Change,
    (project, function): (&ProjectId, &ServiceName),
    before: &BTreeMap<String, UrlConfig>,
    after: &BTreeMap<String, UrlConfig>,
) -> Result<Change, ControlError> {
    let gone = before.iter().filter(|(alias, url)| {
        let kept = after.get(*alias);
        kept.is_none_or(|kept| kept.id != url.id)
    });
    let change = gone.fold(change, |change, (_, url)| {
        change.delete(key::function_url(&url.id))
    });
    let mut new = after.iter().filter(|(alias, url)| {
        let known = before.get(*alias);
        known.is_none_or(|known| known.id != url.id)
    });
    new.try_fold(change, |change, (alias, url)| {
        let leads = UrlRecord {
            project: project.clone(),
            function: function.clone(),
            alias: alias.clone(),
        };
        change.put(key::function_url(&url.id), &leads)
    })
}

impl Control {
    pub(crate) async fn function(
        &self,
        project: &ProjectId,
        name: &FunctionName,
    ) -> Result<Found<FunctionRecord>, LambdaError> {
        let place = key::function(project, name.service());
        let found = self.db().get::<FunctionRecord>(&place).await?;
        let found = found.filter(|found| found.record.is_named(name));
        found.ok_or_else(|| missing(name))
    }

    /// What AWS's clients call a service, if it is a function of theirs.
    pub(crate) async fn function_name(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> Result<Option<FunctionName>, ControlError> {
        let place = key::function(project, service);
        let found = self.db().get::<FunctionRecord>(&place).await?;
        Ok(found.map(|found| found.record.name_of(service)))
    }

    /// The function as invocations see it.
    pub(crate) async fn function_view(
        &self,
        project: &ProjectId,
        name: &FunctionName,
    ) -> Result<Arc<View>, LambdaError> {
        let view = self.service_view(project, name.service()).await?;
        let view = view.filter(|view| view.record.is_named(name));
        view.ok_or_else(|| missing(name))
    }

    /// The same of the function that a service is, whatever it is called.
    pub(crate) async fn service_view(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> Result<Option<Arc<View>>, LambdaError> {
        let key = (project.clone(), service.clone());
        let changes = match self.inner.views.get(&key) {
            Ok(view) => return Ok(Some(view)),
            Err(changes) => changes,
        };
        let place = key::function(project, service);
        let Some(function) = self.db().get::<FunctionRecord>(&place).await? else {
            return Ok(None);
        };
        let record = function.record;
        let place = key::service(project, service);
        let service = self.db().get::<ServiceRecord>(&place).await?;
        let latest = service.and_then(|found| found.record.latest_ready);
        let view = Arc::new(View { record, latest });
        self.inner.views.keep(key, &view, changes);
        Ok(Some(view))
    }

    /// Invocations look again: something of it has changed.
    pub(crate) fn forget_view(&self, project: &ProjectId, name: &ServiceName) {
        let key = (project.clone(), name.clone());
        self.inner.views.forget(&key);
    }

    /// Changes a function as `change` says, of what it is at that moment.
    pub(crate) async fn change_function<T>(
        &self,
        project: &ProjectId,
        name: &FunctionName,
        mut change: impl FnMut(&mut FunctionRecord) -> Result<T, LambdaError>,
    ) -> Result<(T, FunctionRecord), LambdaError> {
        for _ in 0..TRIES {
            let found = self.function(project, name).await?;
            let mut record = found.record;
            let urls = record.urls.clone();
            let changed = change(&mut record)?;
            let write = Change::default()
                .expect(&found.key, found.version)
                .put(&found.key, &record)?;
            let write = with_urls(write, (project, name.service()), &urls, &record.urls)?;
            let committed = self.db().try_commit(write).await;
            // Also when nobody knows whether it happened.
            self.forget_view(project, name.service());
            if committed? {
                return Ok((changed, record));
            }
        }
        let message = format!("the function {name} is being changed by others: try again");
        Err(LambdaError::new(Code::ResourceConflict, message))
    }

    /// The change, with all that is stored of a function removed.
    pub(crate) async fn without_function(
        &self,
        change: Change,
        project: &ProjectId,
        name: &ServiceName,
    ) -> Result<Change, ControlError> {
        let place = key::function(project, name);
        let Some(found) = self.db().get::<FunctionRecord>(&place).await? else {
            return Ok(change.expect_absent(place));
        };
        let versions = found.record.versions.keys();
        let change = versions.fold(change, |change, number| {
            change.delete(key::function_version(project, name, *number))
        });
        let urls = &found.record.urls;
        let change = with_urls(change, (project, name), urls, &BTreeMap::new())?;
        Ok(change.expect(&place, found.version).delete(place))
    }

    /// After a crash: what was being deployed is told as it ended.
    pub(crate) async fn settle_functions(
        &self,
        project: &ProjectRecord,
    ) -> Result<(), ControlError> {
        let prefix = key::functions(&project.id);
        for found in self.db().all::<FunctionRecord>(&prefix).await? {
            let mut record = found.record;
            if record.latest.update != Update::InProgress {
                continue;
            }
            let service = format!("{}/service/{}", project.id, key::last_part(&found.key));
            let service = self.db().get::<ServiceRecord>(&service).await?;
            let ready = service.and_then(|found| found.record.latest_ready);
            record.latest.update = if ready > record.latest.revision {
                record.latest.revision = ready;
                Update::Done
            } else {
                let reason = "interrupted: the server ended while it was being deployed";
                Update::Failed {
                    reason: reason.to_owned(),
                }
            };
            let change = Change::default()
                .expect(&found.key, found.version)
                .put(&found.key, &record)?;
            self.db().commit(change).await?;
        }
        Ok(())
    }
}
