//! What instances reach inside their own namespaces: the services of their
//! project through the gateway, and names.
//!
//! Whose socket a call arrives on says which project it is of; nothing in the
//! call is believed for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use skiff_base::{Backoff, Clock, Tasks};
use skiff_gateway::{Gateway, InnerHandle};
use skiff_net::SERVICE_ADDRESS;
use skiff_net::dns::{DnsClient, DnsDatagrams, DnsForwarder, DnsServing, DnsSockets};
use skiff_sandbox::{Datagrams, Listeners, Sandbox, SandboxError};
use skiff_types::{InstanceId, IsolationClass, ProjectId, RevisionId, ServiceName};
use skiff_worker::SandboxWatcher;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How often a sandbox's sockets are asked for.
const LISTEN_TRIES: u32 = 10;
/// How long a sandbox's sockets wait for the gateway when a server starts.
const GATEWAY_WAIT: Duration = Duration::from_secs(60);

/// Serves every sandbox's sockets while it is there.
#[derive(Debug)]
pub struct InsideDoors {
    served: Arc<Mutex<HashMap<InstanceId, Option<Served>>>>,
    gateway: watch::Sender<Option<Arc<Gateway>>>,
    dns: DnsForwarder,
    tasks: Tasks,
    runtime: Handle,
}

/// Dropping it ends the serving.
#[derive(Debug)]
struct Served {
    _gateway: InnerHandle,
    _dns: DnsServing,
}

impl InsideDoors {
    /// Serves nobody yet; asks these resolvers for names of the world.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn new(resolvers: Vec<SocketAddr>, clock: Arc<dyn Clock>) -> Self {
        // Every name that can be a service's: whether there is one is for the
        // gateway to say, with words.
        let lookup = Arc::new(|_: &ProjectId, name: &str| {
            name.parse::<ServiceName>().ok().map(|_| SERVICE_ADDRESS)
        });
        Self {
            served: Arc::default(),
            gateway: watch::Sender::new(None),
            dns: DnsForwarder::new(lookup, resolvers, clock),
            tasks: Tasks::new(),
            runtime: Handle::current(),
        }
    }

    /// The gateway serves from now on.
    pub fn open(&self, gateway: Arc<Gateway>) {
        self.gateway.send_replace(Some(gateway));
    }
}

impl SandboxWatcher for InsideDoors {
    fn there(&self, revision: &RevisionId, egress: bool, sandbox: &Arc<dyn Sandbox>) {
        if sandbox.class() == IsolationClass::Null {
            // It has no network to call from.
            return;
        }
        let client = DnsClient {
            project: revision.project.clone(),
            egress,
        };
        let (sandbox, served) = (Arc::clone(sandbox), Arc::clone(&self.served));
        let (gateway, dns, tasks) = (
            self.gateway.subscribe(),
            self.dns.clone(),
            self.tasks.clone(),
        );
        lock(&served).insert(sandbox.id(), None);
        let serving = async move {
            let id = sandbox.id();
            match serve(client, &*sandbox, gateway, &dns, &tasks).await {
                Ok(doors) => {
                    // One that has gone meanwhile is not served.
                    if let Some(slot) = lock(&served).get_mut(&id) {
                        *slot = doors;
                    }
                }
                Err(error) => {
                    tracing::warn!(instance = %id, error = format!("{error:#}"), "an instance has no names and reaches no service")
                }
            }
        };
        self.tasks.spawn_on("doors inside", serving, &self.runtime);
    }

    fn gone(&self, instance: InstanceId) {
        lock(&self.served).remove(&instance);
    }
}

async fn serve(
    client: DnsClient,
    sandbox: &dyn Sandbox,
    mut gateway: watch::Receiver<Option<Arc<Gateway>>>,
    dns: &DnsForwarder,
    tasks: &Tasks,
) -> anyhow::Result<Option<Served>> {
    let Some(listeners) = listeners(sandbox).await? else {
        return Ok(None);
    };
    let opened = tokio::time::timeout(GATEWAY_WAIT, gateway.wait_for(Option::is_some)).await;
    let gateway = opened.context("the gateway does not serve")??.clone();
    let gateway = gateway.ok_or_else(|| anyhow!("there is no gateway"))?;
    let caller = SERVICE_ADDRESS.into();
    let inner = gateway.serve_inner(listeners.gateway, caller, client.project.clone())?;
    let sockets = DnsSockets {
        streams: listeners.dns,
        datagrams: match listeners.dns_datagrams {
            Datagrams::Socket(socket) => DnsDatagrams::Socket(socket),
            Datagrams::Carried(listener) => DnsDatagrams::Carried(listener),
        },
    };
    let names = dns.serve(tasks, client, sockets)?;
    Ok(Some(Served {
        _gateway: inner,
        _dns: names,
    }))
}

/// The sockets; a former server may still be closing its own.
async fn listeners(sandbox: &dyn Sandbox) -> Result<Option<Listeners>, SandboxError> {
    let mut waits = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    for _ in 0..LISTEN_TRIES {
        if let Ok(listeners) = sandbox.listeners().await {
            return Ok(listeners);
        }
        tokio::time::sleep(waits.next(skiff_base::random::u32())).await;
    }
    sandbox.listeners().await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
