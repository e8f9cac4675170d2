//! Functions and their versions.
//!
//! ```text
//!  CreateFunction ─▶ stored, Pending ─ deployment ─┬─▶ Active    (a revision serves it)
//!  Update…        ─▶ stored, InProgress ───────────┴─▶ Failed    (the old one serves on)
//!                         │ crash: the next start tells how it ended
//! ```
//! `$LATEST` is the newest revision of the function's service; a version is a
//! revision that is kept.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use skiff_base::Backoff;
use skiff_lambda::{Code, FunctionName, FunctionRef, LambdaError, Qualifier};
use skiff_types::api::{Deploy, DeployContainer, DeployEvent};
use skiff_types::{
    CpuMode, EnvValue, EnvVar, FunctionSpec, IsolationRequest, Probe, Protocol, Resources, Scaling,
    ServiceName, WritableLayer,
};
use tokio::sync::mpsc;

use super::body::{self, CreateFunction};
use super::call::{Call, Reply, body as parse, invalid};
use super::record::{self, Configuration, FunctionRecord, Update};
use super::settings::{
    EPHEMERAL_MIB, Given, MEMORY_MIB, TIMEOUT_S, apply, check_architectures, check_package,
    check_same_package, check_tags,
};
use super::{CONCURRENT_EXECUTIONS, Front, executions, show, state::missing};
use crate::control::Control;
use crate::db::Change;
use crate::events::events;
use crate::key;
use crate::record::{ProjectRecord, ServiceRecord};

/// Versions of one function.
const VERSIONS_MAX: usize = 100;
/// Functions or versions in one reply.
pub(crate) const PAGE_MAX: usize = 50;

/// Between two tries to write down how a deployment ended.
const SETTLE_FIRST: Duration = Duration::from_millis(100);
const SETTLE_LONGEST: Duration = Duration::from_secs(30);
/// How often a function's deletion is tried that another change has overtaken.
const DELETE_TRIES: usize = 8;

/// A version to be, by its number, as it is told.
type Pending = Option<(u32, Configuration)>;

impl Front {
    pub(crate) async fn create_function(&self, call: &Call) -> Result<Reply, LambdaError> {
        let (wanted, given) = Given::apart::<CreateFunction>(call)?;
        let target = FunctionRef::parse(&wanted.function_name).map_err(invalid)?;
        let target = self.own(call, target)?;
        if target.qualifier.is_some() {
            return Err(invalid("a new function's name has no qualifier"));
        }
        let name = target.name;
        given.check(&name)?;
        check_architectures(wanted.architectures.as_deref())?;
        let source = wanted.code.source()?;
        check_package(wanted.package_type.as_deref(), &source)?;
        let (used, _pins) = self.used_layers(call, wanted.layers.as_deref()).await?;
        let (image_uri, code, _pin) = self.first_code(call, source).await?;
        let mut config = Configuration {
            revision_id: call.new_id(),
            modified_unix_ms: call.now_ms,
            description: String::new(),
            role: String::new(),
            timeout_s: TIMEOUT_S,
            memory_mib: MEMORY_MIB,
            ephemeral_mib: EPHEMERAL_MIB,
            environment: BTreeMap::new(),
            image_uri,
            code,
            entry_point: Vec::new(),
            command: Vec::new(),
            dead_letter: None,
            revision: None,
            digest: None,
            update: Update::InProgress,
        };
        self.check_dead_letter(call, wanted.dead_letter_config.as_ref())?;
        apply(
            &mut config,
            body::UpdateFunctionConfiguration {
                role: Some(wanted.role),
                runtime: wanted.runtime,
                handler: wanted.handler,
                layers: None,
                used,
                description: wanted.description,
                timeout: wanted.timeout,
                memory_size: wanted.memory_size,
                environment: wanted.environment,
                image_config: wanted.image_config,
                ephemeral_storage: wanted.ephemeral_storage,
                dead_letter_config: wanted.dead_letter_config,
                revision_id: None,
            },
        )?;
        self.settle_code(&mut config)?;
        let tags = wanted.tags.unwrap_or_default();
        check_tags(&tags)?;
        let mut record = FunctionRecord {
            name: (!name.is_services()).then(|| name.clone()),
            latest: config.clone(),
            last_version: 0,
            versions: BTreeMap::new(),
            publishing: None,
            aliases: BTreeMap::new(),
            tags,
            reserved_concurrency: None,
            policies: BTreeMap::new(),
            events: BTreeMap::new(),
            urls: BTreeMap::new(),
            provisioned: BTreeMap::new(),
        };
        let pending = match wanted.publish {
            Some(true) => Some(begin_version(call, &name, &mut record)?),
            _ => None,
        };
        self.store_new(call, &name, &record, &pending).await?;
        self.deploy(call, &name, &config, None).await?;
        self.told(call, &name, pending, StatusCode::CREATED).await
    }

    /// One transaction: nothing of that name is there, and then this is.
    async fn store_new(
        &self,
        call: &Call,
        name: &FunctionName,
        record: &FunctionRecord,
        pending: &Pending,
    ) -> Result<(), LambdaError> {
        let service = name.service();
        let place = key::function(&call.project.id, service);
        let _projects = self.control.inner.projects.read().await;
        let project = key::project(&call.project.id);
        if !self.control.db().exists(&project).await? {
            return Err(LambdaError::new(Code::AccessDenied, "the project is gone"));
        }
        let change = Change::default()
            .expect_absent(key::service(&call.project.id, service))
            .expect_absent(&place)
            .put(&place, record)?;
        let change = with_pending(change, call, name, pending)?;
        if self.control.db().try_commit(change).await? {
            return Ok(());
        }
        let message = format!("Function already exist: {name} (or there is a service {service})");
        Err(LambdaError::new(Code::ResourceConflict, message))
    }

    /// Starts to deploy a configuration that is stored; what is refused at
    /// once is as if it had never been stored.
    async fn deploy(
        &self,
        call: &Call,
        name: &FunctionName,
        config: &Configuration,
        before: Option<Configuration>,
    ) -> Result<(), LambdaError> {
        let (teller, listener) = events();
        let spec = FunctionSpec {
            name: name.to_string(),
            arn: self.arns(&call.project.id).function(name),
            ..FunctionSpec::default()
        };
        let most = max_instances(executions(&call.project));
        let wish = self.wish(config, self.wanted(config, spec, most))?;
        let control = &self.control;
        let project = call.project.clone();
        let begun = control
            .begin_deploy(project, name.service().clone(), wish, teller)
            .await;
        if let Err(error) = begun {
            self.undo(call, name, &config.revision_id, before).await?;
            return Err(error.into());
        }
        let settling = Settling {
            control: control.clone(),
            project: call.project.clone(),
            name: name.clone(),
            revision_id: config.revision_id.clone(),
        };
        let tasks = &control.inner.tasks;
        tasks.spawn("function", settling.run(listener));
        Ok(())
    }

    async fn undo(
        &self,
        call: &Call,
        name: &FunctionName,
        revision_id: &str,
        before: Option<Configuration>,
    ) -> Result<(), LambdaError> {
        let project = &call.project.id;
        let Some(before) = before else {
            let change = Change::default();
            let change = self
                .control
                .without_function(change, project, name.service());
            let change = change.await?;
            return Ok(self.control.db().commit(change).await?);
        };
        let back = |record: &mut FunctionRecord| {
            let mut gone = Change::default();
            if record.latest.revision_id == revision_id {
                record.latest = before.clone();
                if let Some(number) = record.publishing.take() {
                    gone = gone.delete(key::function_version(project, name.service(), number));
                }
            }
            Ok(((), gone))
        };
        self.control.change_with(project, name, back).await?;
        Ok(())
    }

    fn wanted(&self, config: &Configuration, function: FunctionSpec, most: u32) -> Deploy {
        let variable = |(name, value): (&String, &String)| EnvVar {
            name: name.clone(),
            value: EnvValue::Value(value.clone()),
        };
        let container = DeployContainer {
            name: "main".to_owned(),
            image: config.image_uri.clone(),
            command: config.entry_point.clone(),
            args: config.command.clone(),
            env: config.environment.iter().map(variable).collect(),
            port: skiff_types::limits::DEFAULT_PORT,
            protocol: Protocol::Http1,
            probe: Probe::default(),
            essential: true,
        };
        Deploy {
            containers: vec![container],
            resources: Resources {
                memory_mib: config.memory_mib,
                cpu_mode: CpuMode::Request,
                writable: WritableLayer::Disk(config.ephemeral_mib),
                ..Resources::default()
            },
            scaling: Scaling {
                concurrency: 1,
                max: most,
                ..Scaling::default()
            },
            timeout_s: config.timeout_s,
            egress: self.egress,
            isolation: IsolationRequest::Auto,
            function: Some(function),
            tag: None,
            no_traffic: false,
            force: false,
            registry_auth: None,
        }
    }

    /// The reply to a change: `$LATEST`, or the version to be.
    async fn told(
        &self,
        call: &Call,
        name: &FunctionName,
        pending: Pending,
        status: StatusCode,
    ) -> Result<Reply, LambdaError> {
        if let Some((number, config)) = pending {
            let shown = self.told_version(call, name, number, &config);
            return Ok(Reply::json(status, shown));
        }
        let record = self.record(call, name).await?;
        let arns = self.arns(&call.project.id);
        let shown = show::latest(&arns, name, &record);
        Ok(Reply::json(status, shown))
    }

    pub(crate) async fn get_function(
        &self,
        call: &Call,
        text: &str,
        whole: bool,
    ) -> Result<Reply, LambdaError> {
        let target = self.target(call, text)?;
        let record = self.record(call, &target.name).await?;
        let qualifier = target.qualifier.as_ref();
        let (version, config) = self.version(call, &target.name, &record, qualifier).await?;
        let arns = self.arns(&call.project.id);
        let shown = show::configuration(&arns, &target.name, qualifier, &version, &config);
        let shown = match whole {
            true => {
                let location = config.code.as_ref().map(|code| {
                    let path = format!("/skiff/code/{}/{}", target.name, code.sha256.hex());
                    self.location(call, &path)
                });
                show::function(&record, &config, shown, location)
            }
            false => shown,
        };
        Ok(Reply::json(StatusCode::OK, shown))
    }

    /// The version that a qualifier means, and its configuration.
    pub(crate) async fn version(
        &self,
        call: &Call,
        name: &FunctionName,
        record: &FunctionRecord,
        qualifier: Option<&Qualifier>,
    ) -> Result<(String, Configuration), LambdaError> {
        let number = match qualifier {
            None | Some(Qualifier::Latest) => None,
            Some(Qualifier::Version(number)) => Some(*number),
            Some(Qualifier::Alias(alias)) => {
                let alias = record.aliases.get(alias).ok_or_else(|| missing(name))?;
                alias.version.parse().ok()
            }
        };
        let Some(number) = number else {
            return Ok(("$LATEST".to_owned(), record.latest.clone()));
        };
        let config = self.stored_version(call, name, number).await?;
        Ok((number.to_string(), config))
    }

    pub(crate) async fn list_functions(&self, call: &Call) -> Result<Reply, LambdaError> {
        if call.param("FunctionVersion").is_some() {
            return self.list_all_versions(call).await;
        }
        let limit = call.page(PAGE_MAX)?;
        let marker = call.param("Marker").map(str::parse::<ServiceName>);
        let marker = marker.transpose().map_err(invalid)?;
        let after = marker.map(|name| key::function(&call.project.id, &name));
        let prefix = key::functions(&call.project.id);
        let db = self.control.db();
        let mut found = db
            .first::<FunctionRecord>(&prefix, after.as_deref(), limit + 1)
            .await?;
        let more = found.len() > limit;
        found.truncate(limit);
        let arns = self.arns(&call.project.id);
        let mut shown = Vec::with_capacity(found.len());
        let mut last = String::new();
        for found in &found {
            last = key::last_part(&found.key).to_owned();
            let service: ServiceName = last.parse().map_err(invalid)?;
            let name = found.record.name_of(&service);
            shown.push(show::latest(&arns, &name, &found.record));
        }
        Ok(Reply::page("Functions", shown, more.then_some(last)))
    }

    pub(crate) async fn list_versions(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let name = self.target(call, text)?.name;
        let limit = call.page(PAGE_MAX)?;
        let record = self.record(call, &name).await?;
        let arns = self.arns(&call.project.id);
        let mut shown = Vec::new();
        let after: u32 = match call.param("Marker") {
            Some(marker) => marker.parse().map_err(invalid)?,
            None => {
                let latest = Qualifier::Latest;
                let latest = Some(&latest);
                shown.push(show::configuration(
                    &arns,
                    &name,
                    latest,
                    "$LATEST",
                    &record.latest,
                ));
                0
            }
        };
        let mut numbers = record.versions.keys().filter(|number| **number > after);
        let mut last = after;
        while shown.len() < limit
            && let Some(number) = numbers.next()
        {
            let config = self.stored_version(call, &name, *number).await?;
            shown.push(self.told_version(call, &name, *number, &config));
            last = *number;
        }
        let more = numbers.next().is_some();
        Ok(Reply::page(
            "Versions",
            shown,
            more.then(|| last.to_string()),
        ))
    }

    pub(crate) async fn update_code(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let wanted: body::UpdateFunctionCode = parse(call)?;
        check_architectures(wanted.architectures.as_deref())?;
        let name = self.unqualified(call, text)?;
        let id = call.new_id();
        let source = body::Code {
            image_uri: wanted.image_uri,
            zip_file: wanted.zip_file,
            s3_bucket: wanted.s3_bucket,
            s3_key: wanted.s3_key,
            s3_object_version: wanted.s3_object_version,
        };
        let source = source.source()?;
        let record = self.record(call, &name).await?;
        check_same_package(&record.latest, &source)?;
        let (image, code, _pin) = self.first_code(call, source).await?;
        let set = |config: &mut Configuration| {
            config.digest = None;
            match (&mut config.code, &code) {
                (Some(known), Some(new)) => known.take(new),
                (None, None) => config.image_uri.clone_from(&image),
                _ => return Err(invalid("the function's PackageType has changed: try again")),
            }
            self.settle_code(config)
        };
        if wanted.dry_run == Some(true) {
            return self
                .dry_update(call, &name, wanted.revision_id.as_deref(), set)
                .await;
        }
        let expected = wanted.revision_id.as_deref();
        let publish = wanted.publish == Some(true);
        let pending = self.update(call, &name, expected, &id, publish, set);
        self.told(call, &name, pending.await?, StatusCode::OK).await
    }

    async fn dry_update(
        &self,
        call: &Call,
        name: &FunctionName,
        expected: Option<&str>,
        set: impl Fn(&mut Configuration) -> Result<(), LambdaError>,
    ) -> Result<Reply, LambdaError> {
        let mut record = self.record(call, name).await?;
        check_changeable(&record, name, expected)?;
        set(&mut record.latest)?;
        let arns = self.arns(&call.project.id);
        let shown = show::latest(&arns, name, &record);
        Ok(Reply::json(StatusCode::OK, shown))
    }

    pub(crate) async fn update_configuration(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let (mut wanted, given) = Given::apart::<body::UpdateFunctionConfiguration>(call)?;
        self.check_dead_letter(call, wanted.dead_letter_config.as_ref())?;
        let name = self.unqualified(call, text)?;
        given.check(&name)?;
        let layers = wanted.layers.as_deref();
        let (used, _pins) = self.used_layers(call, layers).await?;
        wanted.used = used;
        let id = call.new_id();
        let expected = wanted.revision_id.clone();
        let set = |config: &mut Configuration| {
            apply(config, wanted.clone())?;
            self.settle_code(config)
        };
        let pending = self.update(call, &name, expected.as_deref(), &id, false, set);
        self.told(call, &name, pending.await?, StatusCode::OK).await
    }

    fn check_dead_letter(
        &self,
        call: &Call,
        wanted: Option<&body::DeadLetterConfig>,
    ) -> Result<(), LambdaError> {
        let target = wanted.and_then(|wanted| wanted.target_arn.as_deref());
        match target {
            None | Some("") => Ok(()),
            Some(target) => self.check_destination(call, target),
        }
    }

    /// Stores the changed configuration and starts to deploy it; the version
    /// that is made of it, if it is to be published.
    async fn update(
        &self,
        call: &Call,
        name: &FunctionName,
        expected: Option<&str>,
        id: &str,
        publish: bool,
        set: impl Fn(&mut Configuration) -> Result<(), LambdaError>,
    ) -> Result<Pending, LambdaError> {
        // What it comes back to when it is refused is not collected meanwhile.
        let current = self.record(call, name).await?.latest;
        let _pins = self.pins(&current).await;
        let change = |record: &mut FunctionRecord| {
            check_changeable(record, name, expected)?;
            let before = record.latest.clone();
            set(&mut record.latest)?;
            record.latest.revision_id = id.to_owned();
            record.latest.modified_unix_ms = call.now_ms;
            record.latest.update = Update::InProgress;
            let pending = match publish {
                true => Some(begin_version(call, name, record)?),
                false => None,
            };
            let write = with_pending(Change::default(), call, name, &pending)?;
            Ok(((before, pending), write))
        };
        let project = &call.project.id;
        let changed = self.control.change_with(project, name, change).await?;
        let ((before, pending), record) = changed;
        self.deploy(call, name, &record.latest, Some(before))
            .await?;
        Ok(pending)
    }

    pub(crate) async fn delete_function(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let target = self.target(call, text)?;
        match target.qualifier {
            None => self.delete_whole(call, &target.name).await?,
            Some(Qualifier::Version(number)) => {
                self.delete_version(call, &target.name, number).await?;
            }
            Some(_) => {
                return Err(invalid(
                    "only a version or the whole function can be deleted",
                ));
            }
        }
        Ok(Reply::json(StatusCode::OK, json!({"StatusCode": 204})))
    }

    /// What is being deployed ends.
    async fn delete_whole(&self, call: &Call, name: &FunctionName) -> Result<(), LambdaError> {
        let (control, project) = (&self.control, &call.project.id);
        let record = self.record(call, name).await?;
        let service = name.service();
        if record.latest.update == Update::InProgress {
            control.inner.turns.end(&(project.clone(), service.clone()));
            drop(control.ticket(project, service)?.wait().await);
        }
        let mut tries = DELETE_TRIES;
        loop {
            tries -= 1;
            match self.try_delete(call, service).await {
                // How the deployment ended was written meanwhile.
                Err(error) if error.code == Code::ResourceConflict && tries > 0 => {}
                deleted => return deleted,
            }
        }
    }

    async fn try_delete(&self, call: &Call, service: &ServiceName) -> Result<(), LambdaError> {
        let place = key::service(&call.project.id, service);
        if self.control.db().exists(&place).await? {
            return Ok(self.control.delete_service(&call.project, service).await?);
        }
        // Its first deployment never came to a revision.
        let change = Change::default().expect_absent(place);
        let project = &call.project.id;
        let change = self.control.without_function(change, project, service);
        let change = change.await?;
        self.control.db().commit(change).await?;
        self.control.forget_view(project, service);
        Ok(())
    }

    async fn delete_version(
        &self,
        call: &Call,
        name: &FunctionName,
        number: u32,
    ) -> Result<(), LambdaError> {
        self.rekept(call, name, |record, service| {
            let version = record.versions.remove(&number);
            let revision = version.ok_or_else(|| missing(name))?.revision;
            let used = |alias: &record::Alias| {
                alias.version == number.to_string()
                    || alias.second.is_some_and(|(second, _)| second == number)
            };
            if record.aliases.values().any(used) {
                let message = format!("an alias of {name} leads to the version {number}");
                return Err(LambdaError::new(Code::ResourceConflict, message));
            }
            record.policies.remove(&number.to_string());
            record.events.remove(&number.to_string());
            record.provisioned.remove(&number.to_string());
            if !record
                .versions
                .values()
                .any(|kept| kept.revision == revision)
            {
                service.kept.remove(&revision);
            }
            let place = key::function_version(&call.project.id, name.service(), number);
            Ok(((), Change::default().delete(place)))
        })
        .await
    }

    pub(crate) async fn publish_version(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let wanted: body::PublishVersion = parse(call)?;
        let name = self.unqualified(call, text)?;
        let shown = self.publish(call, &name, &wanted).await?;
        Ok(Reply::json(StatusCode::CREATED, shown))
    }

    /// Makes a version of `$LATEST`; the last one, if nothing has changed.
    async fn publish(
        &self,
        call: &Call,
        name: &FunctionName,
        wanted: &body::PublishVersion,
    ) -> Result<Value, LambdaError> {
        let id = call.new_id();
        let record = self.record(call, name).await?;
        let last = match record.versions.last_key_value() {
            Some((number, version)) => {
                let version = version.clone();
                let config = self.stored_version(call, name, *number).await?;
                Some((*number, version, config))
            }
            None => None,
        };
        let published = self.rekept(call, name, |record, service| {
            check_changeable(record, name, wanted.revision_id.as_deref())?;
            let latest = &record.latest;
            if let Update::Failed { reason } = &latest.update {
                let message = format!(
                    "the last update of the function {name} has failed, so that $LATEST is not what serves: update it again. It failed because {reason}"
                );
                return Err(LambdaError::new(Code::ResourceConflict, message));
            }
            let Some(revision) = latest.revision else {
                let message = format!("the function {name} has no revision that serves");
                return Err(LambdaError::new(Code::ResourceConflict, message));
            };
            let sum = show::code_sha256(latest);
            if wanted.code_sha256.as_ref().is_some_and(|code| *code != sum) {
                return Err(invalid("CodeSha256 is not that of $LATEST"));
            }
            if record.versions.keys().next_back() != last.as_ref().map(|(number, ..)| number) {
                let message = format!("the function {name} is being changed by others: try again");
                return Err(LambdaError::new(Code::ResourceConflict, message));
            }
            if let Some((number, version, config)) = &last
                && is_published(latest, version, config)
            {
                return Ok(((*number, config.clone()), Change::default()));
            }
            let mut config = latest.clone();
            config.revision_id.clone_from(&id);
            config.modified_unix_ms = call.now_ms;
            let mut version = config.version(revision);
            if let Some(description) = &wanted.description {
                version.latest_description = Some(latest.description.clone());
                config.description.clone_from(description);
            }
            let number = next_version(record, name)?;
            record.versions.insert(number, version);
            service.kept.insert(revision);
            let place = key::function_version(&call.project.id, name.service(), number);
            let change = Change::default()
                .expect_absent(&place)
                .put(&place, &config)?;
            Ok(((number, config), change))
        });
        let (number, config) = published.await?;
        Ok(self.told_version(call, name, number, &config))
    }

    async fn stored_version(
        &self,
        call: &Call,
        name: &FunctionName,
        number: u32,
    ) -> Result<Configuration, LambdaError> {
        let place = key::function_version(&call.project.id, name.service(), number);
        let found = self.control.db().get::<Configuration>(&place).await?;
        Ok(found.ok_or_else(|| missing(name))?.record)
    }

    fn told_version(
        &self,
        call: &Call,
        name: &FunctionName,
        number: u32,
        config: &Configuration,
    ) -> Value {
        let arns = self.arns(&call.project.id);
        let qualifier = Qualifier::Version(number);
        show::configuration(&arns, name, Some(&qualifier), &number.to_string(), config)
    }

    /// One transaction over a function and the revisions that its service
    /// keeps, unless it is being changed.
    async fn rekept<T>(
        &self,
        call: &Call,
        name: &FunctionName,
        change: impl FnOnce(&mut FunctionRecord, &mut ServiceRecord) -> Result<(T, Change), LambdaError>,
    ) -> Result<T, LambdaError> {
        check_settled(&self.record(call, name).await?, name)?;
        let changed = self.control.rekept(&call.project, name, change);
        changed.await
    }

    pub(crate) async fn tag(&self, call: &Call, arn: &str) -> Result<Reply, LambdaError> {
        let wanted: body::TagResource = parse(call)?;
        let name = self.unqualified(call, arn)?;
        let change = |record: &mut FunctionRecord| {
            record.tags.extend(wanted.tags.clone());
            check_tags(&record.tags)
        };
        self.change(call, &name, change)
            .await
            .map(|_| Reply::empty())
    }

    pub(crate) async fn untag(&self, call: &Call, arn: &str) -> Result<Reply, LambdaError> {
        let name = self.unqualified(call, arn)?;
        let change = |record: &mut FunctionRecord| {
            record
                .tags
                .retain(|tag, _| !call.params("tagKeys").any(|gone| gone == tag));
            Ok(())
        };
        self.change(call, &name, change)
            .await
            .map(|_| Reply::empty())
    }

    pub(crate) async fn list_tags(&self, call: &Call, arn: &str) -> Result<Reply, LambdaError> {
        let name = self.unqualified(call, arn)?;
        let record = self.record(call, &name).await?;
        Ok(Reply::json(StatusCode::OK, json!({"Tags": record.tags})))
    }
}

/// Waits for a deployment's end and writes it into the function.
#[derive(Debug)]
struct Settling {
    control: Control,
    project: ProjectRecord,
    name: FunctionName,
    revision_id: String,
}

impl Settling {
    async fn run(self, mut listener: mpsc::Receiver<DeployEvent>) {
        let mut failed = Some("the server stopped while it was being deployed".to_owned());
        while let Some(event) = listener.recv().await {
            match event {
                DeployEvent::Done { .. } => failed = None,
                DeployEvent::Failed { error, log } => failed = Some(reason(&error.message, &log)),
                _ => {}
            }
        }
        let settle = || async {
            let (project, name) = (&self.project, &self.name);
            let settled = self
                .control
                .settle(project, name, &self.revision_id, failed.as_deref());
            settled.await
        };
        // Else the next start writes it down.
        tokio::select! {
            () = settled(&self.name, settle) => {}
            () = self.control.stopped() => {}
        }
    }
}

/// Of one function, whose project may invoke so many at once: a lower quota
/// holds by itself, and may be raised later.
fn max_instances(executions: u32) -> u32 {
    executions.clamp(
        CONCURRENT_EXECUTIONS,
        skiff_types::limits::INSTANCES_RANGE.1,
    )
}

/// Tries until it is done, or the function is gone.
async fn settled<F>(name: &FunctionName, mut settle: impl FnMut() -> F)
where
    F: Future<Output = Result<(), LambdaError>>,
{
    let mut backoff = Backoff::new(SETTLE_FIRST, SETTLE_LONGEST);
    loop {
        match settle().await {
            Ok(()) => return,
            Err(error) if error.code == Code::ResourceNotFound => return,
            Err(error) => {
                tracing::warn!(%error, function = %name, "how a function's deployment ended is not written down yet");
            }
        }
        tokio::time::sleep(backoff.next(skiff_base::random::u32())).await;
    }
}

/// Whether `$LATEST` is what was published as this version.
fn is_published(latest: &Configuration, version: &record::Version, config: &Configuration) -> bool {
    let mut published = config.clone();
    if let Some(description) = &version.latest_description {
        published.description.clone_from(description);
    }
    latest.revision == Some(version.revision) && latest.same_as(&published)
}

/// A number that no version has had.
fn next_version(record: &mut FunctionRecord, name: &FunctionName) -> Result<u32, LambdaError> {
    if record.versions.len() >= VERSIONS_MAX {
        let message = format!("{name} has {VERSIONS_MAX} versions: delete some");
        return Err(LambdaError::new(Code::ResourceConflict, message));
    }
    record.last_version += 1;
    Ok(record.last_version)
}

/// A version that is there once `$LATEST`, which is being deployed, serves.
fn begin_version(
    call: &Call,
    name: &FunctionName,
    record: &mut FunctionRecord,
) -> Result<(u32, Configuration), LambdaError> {
    let number = next_version(record, name)?;
    record.publishing = Some(number);
    let config = Configuration {
        revision_id: call.new_id(),
        revision: None,
        ..record.latest.clone()
    };
    Ok((number, config))
}

/// The change, with the version to be.
fn with_pending(
    change: Change,
    call: &Call,
    name: &FunctionName,
    pending: &Pending,
) -> Result<Change, LambdaError> {
    let Some((number, config)) = pending else {
        return Ok(change);
    };
    let place = key::function_version(&call.project.id, name.service(), *number);
    Ok(change.put(place, config)?)
}

/// One text of at most a kilobyte: why, and what its instance wrote last.
fn reason(message: &str, log: &[String]) -> String {
    let mut text = message.to_owned();
    for line in log {
        text.push_str("; ");
        text.push_str(line);
    }
    text.chars().take(1000).collect()
}

fn check_settled(record: &FunctionRecord, name: &FunctionName) -> Result<(), LambdaError> {
    if record.latest.update == Update::InProgress {
        let message = format!(
            "The operation cannot be performed at this time. An update is in progress for the function {name}"
        );
        return Err(LambdaError::new(Code::ResourceConflict, message));
    }
    Ok(())
}

/// Nothing is under way, and the revision id is the expected one.
fn check_changeable(
    record: &FunctionRecord,
    name: &FunctionName,
    expected: Option<&str>,
) -> Result<(), LambdaError> {
    check_settled(record, name)?;
    same_revision(expected, Some(&record.latest.revision_id))
}

/// A precondition, if one is given.
pub(crate) fn same_revision(
    expected: Option<&str>,
    current: Option<&str>,
) -> Result<(), LambdaError> {
    if expected.is_some() && expected != current {
        let message = "The RevisionId provided does not match the latest RevisionId: get the resource anew and look at its RevisionId";
        return Err(LambdaError::new(Code::PreconditionFailed, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_deployments_end_is_written_down_however_often_that_fails() {
        for (last, tries) in [(Ok(()), 4), (Err(Code::ResourceNotFound), 2)] {
            let tried = AtomicUsize::new(0);
            let settle = || async {
                let error = |code| LambdaError::new(code, "why");
                match tried.fetch_add(1, Ordering::SeqCst) + 1 {
                    n if n == tries => last.map_err(error),
                    n if n % 2 == 0 => Err(error(Code::Service)),
                    _ => Err(error(Code::ResourceConflict)),
                }
            };
            settled(&"f".parse().unwrap(), settle).await;
            assert_eq!(tried.load(Ordering::SeqCst), tries);
        }
    }

    fn config() -> Configuration {
        serde_json::from_value(json!({
            "revision_id": "r", "modified_unix_ms": 1, "description": "one", "role": "",
            "timeout_s": 3, "memory_mib": 128, "environment": {}, "image_uri": "i",
            "entry_point": [], "command": [], "revision": 7, "digest": null,
            "update": "done",
        }))
        .unwrap()
    }

    #[test]
    fn a_function_has_as_many_instances_as_its_project_may_invoke() {
        for (executions, expected) in [(0, 1000), (1000, 1000), (3000, 3000), (20_000, 10_000)] {
            assert_eq!(max_instances(executions), expected, "{executions}");
        }
    }

    #[test]
    fn what_has_changed_in_any_way_can_be_published() {
        let version = config().version(7);
        let described = record::Version {
            latest_description: Some("one".to_owned()),
            ..version.clone()
        };
        let mut own = config();
        own.description = "own".to_owned();
        let mut moved = config();
        moved.revision_id = "s".to_owned();
        moved.modified_unix_ms = 2;
        assert!(is_published(&moved, &version, &config()));
        assert!(is_published(&moved, &described, &own));
        let changes: [fn(&mut Configuration); 5] = [
            |config| config.description = "own".to_owned(),
            |config| config.dead_letter = Some("queue".to_owned()),
            |config| config.role = "other".to_owned(),
            |config| config.timeout_s = 4,
            |config| config.revision = Some(8),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut latest = config();
            change(&mut latest);
            assert!(!is_published(&latest, &version, &config()), "{number}");
            assert!(!is_published(&latest, &described, &own), "{number}");
        }
    }
}
