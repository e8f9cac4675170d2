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
use crate::error::{ControlError, internal};
use crate::key;
use crate::publish::Publication;
use crate::record::{ProjectRecord, RevisionRecord, ServiceRecord};
use crate::traffic::revision_id;

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
        let alone = |record: &mut FunctionRecord| Ok((change(record)?, Change::default()));
        self.change_with(project, name, alone).await
    }

    /// The same, with what else is written in that transaction.
    pub(crate) async fn change_with<T>(
        &self,
        project: &ProjectId,
        name: &FunctionName,
        mut change: impl FnMut(&mut FunctionRecord) -> Result<(T, Change), LambdaError>,
    ) -> Result<(T, FunctionRecord), LambdaError> {
        for _ in 0..TRIES {
            let found = self.function(project, name).await?;
            let mut record = found.record;
            let urls = record.urls.clone();
            let (changed, write) = change(&mut record)?;
            let write = write
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
        let versions = versions.chain(&found.record.publishing);
        let change = versions.fold(change, |change, number| {
            change.delete(key::function_version(project, name, *number))
        });
        let urls = &found.record.urls;
        let change = with_urls(change, (project, name), urls, &BTreeMap::new())?;
        Ok(change.expect(&place, found.version).delete(place))
    }

    /// One transaction over a function and the revisions that its service
    /// keeps; gateway and fleet are told.
    pub(crate) async fn rekept<T>(
        &self,
        project: &ProjectRecord,
        name: &FunctionName,
        change: impl FnOnce(&mut FunctionRecord, &mut ServiceRecord) -> Result<(T, Change), LambdaError>,
    ) -> Result<T, LambdaError> {
        let service = name.service();
        let _turn = self.turn(&project.id, service).await?;
        let function = self.function(&project.id, name).await?;
        let kept = self.service(&project.id, service).await?;
        let before = kept.record.routed();
        let (mut record, place, version) = (function.record, kept.key, kept.version);
        let mut kept = kept.record;
        let (answer, write) = change(&mut record, &mut kept)?;
        let config = &self.inner.base.config;
        let floors = record.floors();
        let told =
            Publication::with_floors(self.db(), config, project, service, &before, &kept, &floors);
        let told = told.await?;
        let write = write
            .expect(&function.key, function.version)
            .expect(&place, version)
            .put(&function.key, &record)?
            .put(&place, &kept)?;
        self.db().commit(write).await?;
        self.forget_view(&project.id, service);
        told.apply(&self.inner.ports);
        Ok(answer)
    }

    /// Writes down how the deployment of `$LATEST` ended that is in this state,
    /// with the version that was to be made of it.
    pub(crate) async fn settle(
        &self,
        project: &ProjectRecord,
        name: &FunctionName,
        revision_id: &str,
        failed: Option<&str>,
    ) -> Result<(), LambdaError> {
        let record = self.function(&project.id, name).await?.record;
        let is_over = |record: &FunctionRecord| {
            record.latest.revision_id != revision_id || record.latest.update != Update::InProgress
        };
        if is_over(&record) {
            return Ok(());
        }
        let version = record.publishing;
        let version = version.map(|number| {
            let place = key::function_version(&project.id, name.service(), number);
            (number, place)
        });
        let served = match failed {
            None => self.served(&project.id, name.service()).await?,
            Some(_) => None,
        };
        let Some((revision, digest)) = served else {
            let reason = failed.unwrap_or("no revision of it is ready");
            let fail = |record: &mut FunctionRecord| {
                if is_over(record) {
                    return Ok(((), Change::default()));
                }
                record.publishing = None;
                record.latest.update = Update::Failed {
                    reason: reason.to_owned(),
                };
                let gone = version.iter();
                let gone = gone.fold(Change::default(), |gone, (_, place)| gone.delete(place));
                Ok(((), gone))
            };
            self.change_with(&project.id, name, fail).await?;
            return Ok(());
        };
        let serve = |config: &mut Configuration| {
            config.revision = Some(revision);
            config.digest = Some(digest.clone());
            config.update = Update::Done;
        };
        let Some((number, place)) = version else {
            let serve = |record: &mut FunctionRecord| {
                if !is_over(record) {
                    serve(&mut record.latest);
                }
                Ok(())
            };
            self.change_function(&project.id, name, serve).await?;
            return Ok(());
        };
        let stored = self.db().get::<Configuration>(&place).await?;
        let mut config = stored.ok_or_else(|| missing(name))?.record;
        serve(&mut config);
        self.rekept(project, name, |record, service| {
            if is_over(record) {
                return Ok(((), Change::default()));
            }
            serve(&mut record.latest);
            record.publishing = None;
            record.versions.insert(number, config.version(revision));
            service.kept.insert(revision);
            Ok(((), Change::default().put(&place, &config)?))
        })
        .await
    }

    /// The newest ready revision and its image.
    async fn served(
        &self,
        project: &ProjectId,
        name: &ServiceName,
    ) -> Result<Option<(u32, Digest)>, ControlError> {
        let place = key::service(project, name);
        let service = self.db().get::<ServiceRecord>(&place).await?;
        let Some(number) = service.and_then(|found| found.record.latest_ready) else {
            return Ok(None);
        };
        let place = key::revision(&revision_id(project, name, number));
        let found = self.db().get::<RevisionRecord>(&place).await?;
        let container = found.and_then(|found| found.record.spec.containers.into_iter().next());
        Ok(container.map(|container| (number, container.digest)))
    }

    /// After a crash: what was being deployed is told as it ended.
    pub(crate) async fn settle_functions(
        &self,
        project: &ProjectRecord,
    ) -> Result<(), ControlError> {
        let prefix = key::functions(&project.id);
        for found in self.db().all::<FunctionRecord>(&prefix).await? {
            let latest = &found.record.latest;
            if latest.update != Update::InProgress {
                continue;
            }
            let service = key::last_part(&found.key).parse::<ServiceName>();
            let service =
                service.map_err(|e| internal(format!("the key {} has no name: {e}", found.key)))?;
            let name = found.record.name_of(&service);
            let served = self.served(&project.id, &service).await?;
            let is_new = served.map(|(number, _)| number) > latest.revision;
            let failed = "interrupted: the server ended while it was being deployed";
            let failed = (!is_new).then_some(failed);
            let settled = self.settle(project, &name, &latest.revision_id, failed);
            settled.await.map_err(|error| internal(error.to_string()))?;
        }
        Ok(())
    }
}
