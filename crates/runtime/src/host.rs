use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skiff_base::{Backoff, Clock, Listener, Tasks, chain};
use skiff_sandbox::{Sandbox, SandboxError};
use skiff_types::{FunctionLaunch, InstanceId, StartCause};
use skiff_wire::launcher::ProcessSpec;
use skiff_worker::{FunctionHost, OutputTap};

use crate::api;
use crate::bridge::{Bridge, Origin};
use crate::extensions;
use crate::sandbox::{Freezer, FunctionSandbox};

/// How often a sandbox's socket is asked for: a former server may still be
/// closing its own.
const LISTEN_TRIES: u32 = 10;

/// Serves the runtimes of all functions of a worker.
#[derive(Debug)]
pub struct Functions {
    clock: Arc<dyn Clock>,
    bridges: Mutex<HashMap<InstanceId, Arc<Bridge>>>,
}

impl Functions {
    /// Serves nobody yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            bridges: Mutex::default(),
        }
    }
}

impl FunctionHost for Functions {
    fn host(
        &self,
        function: &FunctionLaunch,
        made_with: Option<ProcessSpec>,
        sandbox: Arc<dyn Sandbox>,
        output: Option<Arc<OutputTap>>,
    ) -> Arc<dyn Sandbox> {
        let origin = match (&made_with, function.cause) {
            // No invocation waits for one that a former server left.
            (None, _) => Origin::Found,
            (Some(_), StartCause::Again) => Origin::MadeAgain,
            (Some(_), _) => Origin::Made,
        };
        let clock = self.clock.clone();
        let bridge = Bridge::new(function.clone(), sandbox.clone(), origin, clock, output);
        let bridge = Arc::new(bridge);
        let tasks = Tasks::new();
        let serving = (sandbox.clone(), bridge.clone());
        tasks.spawn("runtime api", async move {
            let (sandbox, bridge) = serving;
            let Some(extended) = extended(&bridge, made_with).await else {
                return;
            };
            let extensions = Tasks::new();
            let has_extensions = extended.is_some();
            if let Some(serving) = extended {
                extensions.spawn("extensions", serving);
            }
            match listener(&*sandbox).await {
                Ok(Some(listener)) => api::serve(listener, bridge.clone()).await,
                Ok(None) => {
                    tracing::error!(instance = %sandbox.id(), "a function has no socket for its runtime");
                }
                Err(error) => {
                    tracing::warn!(instance = %sandbox.id(), error = %chain(&error), "a runtime is not served");
                }
            }
            if has_extensions {
                // They know this server only: it is of no use to the next one.
                bridge.kill().await;
            }
        });
        let ending = (sandbox.clone(), bridge.clone());
        tasks.spawn("runtime exit", async move {
            let (sandbox, bridge) = ending;
            tokio::select! {
                biased;
                exit = sandbox.exited() => return bridge.has_exited(exit),
                ended = sandbox.first_ended() => bridge.runtime_ended(ended).await,
            }
            bridge.has_exited(sandbox.exited().await);
        });
        lock(&self.bridges).insert(sandbox.id(), bridge.clone());
        Arc::new(FunctionSandbox {
            inner: sandbox,
            bridge,
            freezer: Arc::new(Freezer::default()),
            tasks,
        })
    }

    fn let_go(&self, instance: InstanceId) {
        if let Some(bridge) = lock(&self.bridges).remove(&instance) {
            bridge.leave();
        }
    }
}

/// What serves an instance's extensions, if it has any; nothing when it is of
/// no use.
async fn extended(
    bridge: &Arc<Bridge>,
    made_with: Option<ProcessSpec>,
) -> Option<Option<BoxFuture<'static, ()>>> {
    let instance = bridge.sandbox.id();
    match (bridge.sandbox.extensions().await, made_with) {
        (Ok(names), _) if names.is_empty() => return Some(None),
        (Ok(names), Some(runtime)) => {
            let serving = extensions::serve(bridge.clone(), names, runtime);
            return Some(Some(Box::pin(serving)));
        }
        // They have lost the server that they knew.
        (Ok(_), None) => tracing::info!(%instance, "a function with extensions is not taken over"),
        (Err(error), _) => {
            tracing::warn!(%instance, error = %chain(&error), "a function's extensions are not known");
        }
    }
    bridge.kill().await;
    None
}

async fn listener(sandbox: &dyn Sandbox) -> Result<Option<Listener>, SandboxError> {
    let mut waits = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    for _ in 0..LISTEN_TRIES {
        if let Ok(listener) = sandbox.runtime_listener().await {
            return Ok(listener);
        }
        tokio::time::sleep(waits.next(skiff_base::random::u32())).await;
    }
    sandbox.runtime_listener().await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
