//! Hooks: where a server of S3's kind tells a function of its objects. A hook
//! has a token of its own, stored as its SHA-256 alone.

use skiff_lambda::Qualifier;
use skiff_types::api::{CreateHook, Hook};
use skiff_types::{HookName, ProjectId, ProjectName};

use crate::control::Control;
use crate::db::Change;
use crate::error::{ControlError, conflict, exhausted, invalid, not_found, unsupported};
use crate::key;
use crate::lambda::{FunctionRecord, HOOK_PATH, check_qualifier};
use crate::limit::HOOKS_MAX;
use crate::record::HookRecord;
use crate::tokens::{fingerprint, is_of, new_secret};

impl Control {
    pub(crate) async fn create_hook(
        &self,
        project: &ProjectName,
        wanted: CreateHook,
    ) -> Result<Hook, ControlError> {
        if self.inner.events.get().is_none() {
            return Err(unsupported(
                "hooks need event invocations: set lambda.listen and start the server again",
            ));
        }
        let _projects = self.inner.projects.read().await;
        let project = self.project(project).await?.record.id;
        self.check_hook(&project, &wanted).await?;
        let _hooks = self.inner.tokens.lock().await;
        let prefix = key::hooks(&project);
        let known = self.db().first::<HookRecord>(&prefix, None, HOOKS_MAX);
        if known.await?.len() >= HOOKS_MAX {
            return Err(exhausted(format!(
                "the project has {HOOKS_MAX} hooks already: delete one first"
            )));
        }
        let token = new_secret();
        let record = HookRecord {
            function: wanted.function,
            qualifier: wanted.qualifier,
            sha256: fingerprint(&token),
            created_unix_ms: self.inner.base.now(),
        };
        let place = key::hook(&project, &wanted.name);
        let change = Change::default()
            .expect_absent(&place)
            .put(&place, &record)?;
        if !self.db().try_commit(change).await? {
            let name = &wanted.name;
            return Err(conflict(format!(
                "there is a hook {name} already: delete it for a new token"
            )));
        }
        let mut hook = self.told_hook(&project, wanted.name, record);
        hook.token = Some(token);
        Ok(hook)
    }

    async fn check_hook(
        &self,
        project: &ProjectId,
        wanted: &CreateHook,
    ) -> Result<(), ControlError> {
        let place = key::function(project, &wanted.function);
        let found = self.db().get::<FunctionRecord>(&place).await?;
        let found = found.ok_or_else(|| {
            not_found(format!(
                "no function {} takes events: those do that were made over AWS Lambda's API",
                wanted.function
            ))
        })?;
        let Some(qualifier) = &wanted.qualifier else {
            return Ok(());
        };
        let parsed = qualifier.parse::<Qualifier>();
        parsed.map_err(|error| invalid(error.to_string()))?;
        check_qualifier(&found.record, qualifier).map_err(|error| not_found(error.message))
    }

    /// By name.
    pub(crate) async fn list_hooks(&self, project: &ProjectId) -> Result<Vec<Hook>, ControlError> {
        let found = self.db().all::<HookRecord>(&key::hooks(project)).await?;
        let told = found.into_iter().filter_map(|found| {
            let name = key::last_part(&found.key).parse().ok()?;
            Some(self.told_hook(project, name, found.record))
        });
        Ok(told.collect())
    }

    fn told_hook(&self, project: &ProjectId, name: HookName, record: HookRecord) -> Hook {
        let listening = self.inner.base.config.lambda.as_deref();
        let url = listening.map(|address| format!("http://{address}{HOOK_PATH}{project}/{name}"));
        Hook {
            name,
            function: record.function,
            qualifier: record.qualifier,
            url: url.unwrap_or_default(),
            created_unix_ms: record.created_unix_ms,
            token: None,
        }
    }

    /// From its answer on, nothing that comes with its token is taken.
    pub(crate) async fn delete_hook(
        &self,
        project: &ProjectId,
        name: &HookName,
    ) -> Result<(), ControlError> {
        let place = key::hook(project, name);
        let found = self.db().get::<HookRecord>(&place).await?;
        let found = found.ok_or_else(|| not_found(format!("there is no hook {name}")))?;
        let change = Change::default()
            .expect(&place, found.version)
            .delete(&place);
        self.db().commit(change).await
    }

    /// The hook, if this is its token.
    pub(crate) async fn hook(
        &self,
        project: &ProjectId,
        name: &HookName,
        token: &str,
    ) -> Result<Option<HookRecord>, ControlError> {
        let found = self.db().get::<HookRecord>(&key::hook(project, name)).await;
        let found = found?.map(|found| found.record);
        Ok(found.filter(|hook| is_of(&hook.sha256, token)))
    }
}
