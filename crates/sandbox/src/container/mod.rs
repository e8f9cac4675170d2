//! The class of namespaced containers.

mod connect;
mod exec;
mod layers;
mod sandbox;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use skiff_types::{Digest, InstanceId, IsolationClass};
use skiff_wire::launcher::{Listed, Reply, Request, SandboxSpec, Stdio};

use self::layers::Layers;
use self::sandbox::ContainerSandbox;
use crate::launcher::{Exits, LauncherClient, LauncherError};
use crate::{Backend, CreateSpec, Created, Found, LayerFile, Output, SandboxError};

/// Sandboxes adopted or destroyed at once.
const AT_ONCE: usize = 16;

/// Makes containers through the launcher.
#[derive(Debug)]
pub struct ContainerBackend {
    link: Arc<Link>,
}

/// The way to the launcher that every sandbox of it shares, virtual machines
/// too: it stays when a connection is replaced.
#[derive(Debug)]
pub struct Link {
    current: Mutex<Current>,
    pub exits: Exits,
}

#[derive(Clone, Debug)]
struct Current {
    client: LauncherClient,
    /// What this launcher was told of layers.
    layers: Arc<Layers>,
}

impl Link {
    fn current(&self) -> Current {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn client(&self) -> LauncherClient {
        self.current().client
    }

    /// Asks about one sandbox.
    pub async fn ask(
        &self,
        id: InstanceId,
        request: Request,
    ) -> Result<(Reply, Vec<OwnedFd>), SandboxError> {
        let asked = self.client().call(request, vec![]).await;
        asked.map_err(|error| refused(id, error))
    }
}

impl ContainerBackend {
    /// A backend over this connection.
    #[must_use]
    pub fn new(client: LauncherClient) -> Self {
        let exits = client.exits().clone();
        let current = Mutex::new(Current {
            client,
            layers: Arc::default(),
        });
        Self {
            link: Arc::new(Link { current, exits }),
        }
    }

    /// What sandboxes of other classes share with its own.
    pub(crate) fn link(&self) -> Arc<Link> {
        self.link.clone()
    }

    /// The connection in use.
    #[must_use]
    pub fn client(&self) -> LauncherClient {
        self.link.client()
    }

    /// Goes on with a new connection, made with the [`Exits`] of the old one,
    /// to the same launcher or to another. Sandboxes that are not there any
    /// more have then ended; those that nobody knows are destroyed.
    ///
    /// # Errors
    /// When the launcher does not answer.
    pub async fn reconnect(&self, client: LauncherClient) -> Result<(), SandboxError> {
        let listed = client.list().await.map_err(launcher_gone)?;
        *self
            .link
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Current {
            client: client.clone(),
            layers: Arc::default(),
        };
        let there = |id: &InstanceId| listed.iter().any(|one| one.sandbox == *id);
        self.link.exits.forget_unless(there);
        let strangers = listed
            .iter()
            .map(|one| one.sandbox)
            .filter(|id| !self.link.exits.is_watched(*id));
        stream::iter(strangers)
            .for_each_concurrent(AT_ONCE, |sandbox| {
                let client = client.clone();
                async move {
                    let destroyed = client.call(Request::Destroy { sandbox }, vec![]).await;
                    if let Err(error) = destroyed {
                        tracing::error!(%sandbox, %error, "a stray sandbox was not destroyed");
                    }
                }
            })
            .await;
        Ok(())
    }

    async fn create_container(&self, spec: CreateSpec) -> Result<Created, SandboxError> {
        self.prepare(&spec.layers).await?;
        let id = spec.instance;
        // Watched before it exists, so that no exit is missed.
        let exit = self.link.exits.watch(id);
        let request = match spec.function {
            true => Request::CreateFunction(Box::new(sandbox_spec(spec))),
            false => Request::Create(Box::new(sandbox_spec(spec))),
        };
        let created = self.link.client().call(request, vec![]).await;
        let mut extensions = Vec::new();
        let (steps_us, output) = match created.map_err(|error| refused(id, error)) {
            Ok((Reply::Created { steps_us }, fds)) => (steps_us, pair(fds)),
            Ok((
                Reply::Held {
                    steps_us,
                    extensions: held_for,
                },
                fds,
            )) => {
                extensions = held_for;
                (steps_us, pair(fds))
            }
            Ok(_) => return Err(unexpected("create")),
            Err(error) => {
                self.link.exits.forget(id);
                return Err(error);
            }
        };
        let sandbox = ContainerSandbox::new(id, self.link.clone(), exit).with(extensions);
        Ok(Created {
            sandbox: Arc::new(sandbox),
            output,
            steps_us,
            paused: false,
        })
    }

    async fn adopt_all(&self) -> Result<Vec<Found>, SandboxError> {
        let client = self.link.client();
        let listed = client.list().await.map_err(launcher_gone)?;
        stream::iter(listed)
            .filter(|one| std::future::ready(!one.monitor))
            .map(|one| self.adopt_one(&client, one))
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect()
    }

    async fn adopt_one(
        &self,
        client: &LauncherClient,
        listed: Listed,
    ) -> Result<Found, SandboxError> {
        let id = listed.sandbox;
        if let Some(exit) = listed.exit {
            self.link.exits.set(id, exit);
        }
        let exit = self.link.exits.watch(id);
        let output = match client.call(Request::Output { sandbox: id }, vec![]).await {
            Ok((Reply::Descriptors, fds)) => pair(fds),
            Ok(_) => return Err(unexpected("output")),
            // It can be without output of its own; it is adopted all the same.
            Err(LauncherError::Refused { refusal, .. }) => {
                tracing::warn!(instance = %id, %refusal, "an adopted sandbox has no output");
                None
            }
            Err(error) => return Err(refused(id, error)),
        };
        let created = Created {
            sandbox: Arc::new(ContainerSandbox::new(id, self.link.clone(), exit)),
            output,
            steps_us: vec![],
            paused: listed.frozen,
        };
        Ok(Found {
            created,
            label: listed.label,
        })
    }
}

impl Backend for ContainerBackend {
    fn class(&self) -> IsolationClass {
        IsolationClass::Container
    }

    fn prepare<'a>(&'a self, layers: &'a [LayerFile]) -> BoxFuture<'a, Result<(), SandboxError>> {
        Box::pin(async move {
            let current = self.link.current();
            current.layers.add_all(&current.client, layers).await
        })
    }

    fn release<'a>(&'a self, layer: &'a Digest) -> BoxFuture<'a, Result<(), SandboxError>> {
        Box::pin(async move {
            let current = self.link.current();
            current.layers.remove(&current.client, layer).await
        })
    }

    fn create(&self, spec: CreateSpec) -> BoxFuture<'_, Result<Created, SandboxError>> {
        Box::pin(self.create_container(spec))
    }

    fn adopt(&self) -> BoxFuture<'_, Result<Vec<Found>, SandboxError>> {
        Box::pin(self.adopt_all())
    }
}

pub fn sandbox_spec(spec: CreateSpec) -> SandboxSpec {
    SandboxSpec {
        sandbox: spec.instance,
        layers: spec.layers.into_iter().map(|layer| layer.digest).collect(),
        process: spec.process,
        hostname: spec.hostname,
        memory_bytes: spec.memory_bytes,
        cpu_millis: spec.cpu_millis,
        pids: spec.pids,
        writable: spec.writable,
        readonly_root: spec.readonly_root,
        egress: spec.egress,
        stdio: Stdio::Piped,
        label: spec.label,
    }
}

/// The read ends of stdout and stderr, when both came.
pub fn pair(fds: Vec<OwnedFd>) -> Option<Output> {
    let mut fds = fds.into_iter();
    Some(Output {
        ends: false,
        stdout: fds.next()?,
        stderr: fds.next()?,
    })
}

pub fn refused(instance: InstanceId, error: LauncherError) -> SandboxError {
    match error {
        LauncherError::Refused { refusal, .. } => SandboxError::Refused {
            instance,
            step: refusal.step,
            message: refusal.message,
        },
        LauncherError::Timeout { what, .. } => SandboxError::Timeout {
            instance,
            step: what,
        },
        LauncherError::Frame { what, source } => SandboxError::Refused {
            instance,
            step: what.to_owned(),
            message: source.to_string(),
        },
        other => launcher_gone(other),
    }
}

pub fn launcher_gone(error: LauncherError) -> SandboxError {
    SandboxError::Launcher(io::Error::other(error))
}

pub fn unexpected(what: &'static str) -> SandboxError {
    launcher_gone(LauncherError::Unexpected { what })
}
