//! What an instance is made of: looked up in the store, the image store and
//! the vault when an instance starts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use skiff_base::{Clock, SystemClock};
use skiff_store::Store;
use skiff_types::api::Quota;
use skiff_types::{
    EnvValue, EnvVar, FunctionLaunch, Launch, ProjectId, ProjectName, RevisionId, StartCause,
};

use crate::compose;
use crate::config::Config;
use crate::db::{Change, Db};
use crate::error::{ControlError, internal, not_found, unavailable};
use crate::key;
use crate::limit::PREPARED_MAX;
use crate::port::{ImageUser, Images};
use crate::record::{ProjectRecord, RevisionRecord};
use crate::vault::Vault;

/// Whom a function runs as when its image says root.
const FUNCTION_USER: (u32, u32) = (993, 990);

/// Answers what instances are made of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Resolver {
    base: Arc<Base>,
}

/// What everything here stands on.
#[derive(Debug)]
pub(crate) struct Base {
    pub config: Config,
    pub db: Db,
    pub images: Arc<dyn Images>,
    pub vault: Vault,
    pub clock: Arc<dyn Clock>,
    prepared: Mutex<HashMap<RevisionId, Arc<Prepared>>>,
}

/// What the instances of one revision are made of.
#[derive(Debug)]
struct Prepared {
    /// Whole, unless there are secrets in its environment.
    launch: Arc<Launch>,
    /// From what an environment with secrets is made anew for each instance.
    secret: Option<Box<SecretEnv>>,
}

#[derive(Debug)]
struct SecretEnv {
    role: Option<String>,
    image: Vec<String>,
    vars: Vec<EnvVar>,
    home: String,
}

impl Resolver {
    /// Opens the state: makes the project `default` and the secrets' key at
    /// the first start.
    ///
    /// # Errors
    /// When the store cannot be read, or the key is not where and what it
    /// should be.
    pub async fn open(
        config: Config,
        store: Arc<dyn Store>,
        images: Arc<dyn Images>,
    ) -> Result<Self, ControlError> {
        let db = Db::new(store);
        make_default_project(&db).await?;
        let vault = Vault::open(db.clone(), &config.secret_key_file, &config.data_dir).await?;
        let base = Base {
            config,
            db,
            images,
            vault,
            clock: Arc::new(SystemClock),
            prepared: Mutex::default(),
        };
        Ok(Self {
            base: Arc::new(base),
        })
    }

    /// The same, of an instance that is started for this cause.
    ///
    /// # Errors
    /// As those of [`Self::launch`].
    pub async fn launch_for(
        &self,
        revision: &RevisionId,
        cause: StartCause,
    ) -> Result<Arc<Launch>, ControlError> {
        let made = self.launch(revision).await?;
        if cause == StartCause::default() || made.function.is_none() {
            return Ok(made);
        }
        let mut launch = Launch::clone(&made);
        if let Some(function) = &mut launch.function {
            function.cause = cause;
            compose::tell_initialization(&mut launch.env, function);
        }
        Ok(Arc::new(launch))
    }

    /// Everything a worker needs to start one instance.
    ///
    /// # Errors
    /// When the revision or its image is gone, or a secret cannot be read.
    pub async fn launch(&self, revision: &RevisionId) -> Result<Arc<Launch>, ControlError> {
        let prepared = match self.base.prepared(revision) {
            Some(prepared) => prepared,
            None => self.base.prepare(revision).await?,
        };
        let Some(secret) = &prepared.secret else {
            return Ok(Arc::clone(&prepared.launch));
        };
        let role = secret.role.as_deref();
        let user = self.base.env_values(revision, &secret.vars, role).await?;
        let mut launch = Launch::clone(&prepared.launch);
        launch.env = env(&launch, &secret.image, user, &secret.home);
        Ok(Arc::new(launch))
    }

    /// A project's name, for bills.
    pub async fn project_name(&self, project: &ProjectId) -> Option<ProjectName> {
        let found = self
            .base
            .db
            .get::<ProjectRecord>(&key::project(project))
            .await;
        Some(found.ok()??.record.name)
    }

    pub(crate) fn base(&self) -> &Arc<Base> {
        &self.base
    }
}

/// The environment of a service's or a function's process.
fn env(launch: &Launch, image: &[String], user: Vec<(String, String)>, home: &str) -> Vec<String> {
    let contract = match &launch.function {
        Some(function) => compose::function_contract(function, &launch.args),
        None => compose::service_contract(&launch.revision, launch.port),
    };
    compose::env(image, user, contract, home)
}

/// An image without `/etc/passwd` still has root, whose home is known.
fn home_of(user: &ImageUser) -> String {
    if user.home.is_empty() && user.uid == 0 {
        return "/root".to_owned();
    }
    user.home.clone()
}

async fn make_default_project(db: &Db) -> Result<(), ControlError> {
    let id = ProjectId::default_project();
    if db.exists(&key::project(&id)).await? {
        return Ok(());
    }
    let name: ProjectName = "default"
        .parse()
        .map_err(|e| internal(format!("the default project has no name: {e}")))?;
    let record = ProjectRecord {
        id: id.clone(),
        name: name.clone(),
        quota: Quota::default(),
    };
    let change = Change::default()
        .expect_absent(key::project(&id))
        .put(key::project(&id), &record)?
        .put(key::project_name(&name), &id)?;
    db.commit(change).await
}

impl Base {
    fn prepared(&self, revision: &RevisionId) -> Option<Arc<Prepared>> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        prepared.get(revision).cloned()
    }

    /// Nobody will ask for this revision any more.
    pub(crate) fn forget(&self, revision: &RevisionId) {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        prepared.remove(revision);
    }

    async fn prepare(&self, revision: &RevisionId) -> Result<Arc<Prepared>, ControlError> {
        let found = self
            .db
            .get::<RevisionRecord>(&key::revision(revision))
            .await?;
        let spec = found
            .ok_or_else(|| not_found(format!("there is no revision {}", revision.name())))?
            .record
            .spec;
        let container = spec.containers.into_iter().next();
        let container = container
            .ok_or_else(|| internal(format!("the revision {revision} has no container")))?;
        let image = self.images.find(container.digest.as_str()).await?;
        let image = image.ok_or_else(|| {
            unavailable(format!(
                "the image {} ({}) of {} is not in the image store: pull it again",
                container.image,
                container.digest,
                revision.name()
            ))
        })?;
        let user = &image.config.user;
        let mut user = self.images.resolve_user(&container.digest, user).await?;
        let function = spec.function.map(|function| FunctionLaunch {
            spec: function,
            timeout_s: spec.timeout_s,
            memory_mib: spec.resources.memory_mib,
            cause: StartCause::default(),
        });
        if function.is_some() && user.uid == 0 {
            // As AWS has it: a function is never root.
            (user.uid, user.gid) = FUNCTION_USER;
            user.additional_gids.clear();
            user.home.clear();
        }
        let args = compose::args(&container, &image.config)?;
        let (vars, home) = (container.env, home_of(&user));
        let role = spec.role;
        let with_secrets = vars.iter().any(EnvVar::is_secret);
        let mut launch = Launch {
            revision: revision.clone(),
            isolation: spec.isolation,
            layers: image.layers,
            args,
            env: Vec::new(),
            cwd: compose::working_dir(&image.config.working_dir),
            uid: user.uid,
            gid: user.gid,
            additional_gids: user.additional_gids.clone(),
            stop_signal: compose::stop_signal(&image.config.stop_signal),
            port: container.port,
            probe: container.probe,
            resources: spec.resources,
            egress: spec.egress,
            function,
        };
        let image = image.config.env;
        let secret = if with_secrets {
            Some(Box::new(SecretEnv {
                role,
                image,
                vars,
                home,
            }))
        } else {
            let user = self.env_values(revision, &vars, role.as_deref()).await?;
            launch.env = env(&launch, &image, user, &home);
            None
        };
        let prepared = Arc::new(Prepared {
            launch: Arc::new(launch),
            secret,
        });
        self.keep(revision, &prepared);
        Ok(prepared)
    }

    fn keep(&self, revision: &RevisionId, made: &Arc<Prepared>) {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if prepared.len() >= PREPARED_MAX {
            // Which one goes hardly matters: it costs two reads to make again.
            let some = prepared.keys().next().cloned();
            some.map(|some| prepared.remove(&some));
        }
        prepared.insert(revision.clone(), Arc::clone(made));
    }

    async fn env_values(
        &self,
        revision: &RevisionId,
        vars: &[EnvVar],
        role: Option<&str>,
    ) -> Result<Vec<(String, String)>, ControlError> {
        // What the user sets wins over the role's.
        let role = role.and_then(|role| self.config.role(&revision.project, role));
        let mut values = role.map(|role| role.0.clone()).unwrap_or_default();
        for var in vars {
            let value = match &var.value {
                EnvValue::Value(value) => value.clone(),
                EnvValue::Secret(name) => self.vault.reveal(&revision.project, name).await?,
            };
            values.push((var.name.clone(), value));
        }
        Ok(values)
    }

    /// Now, milliseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        self.clock.unix_ms()
    }
}
