//! Takes over what a former server left running.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use skiff_base::chain;
use skiff_sandbox::{Backend, Created, Found, Sandbox, SandboxError};
use skiff_types::{InstanceId, IsolationClass, RevisionId};
use tokio::sync::oneshot;

use crate::error::EndReason;
use crate::instance::{Instance, InstanceState};
use crate::label::Label;
use crate::life::{Life, destroy};
use crate::worker::Inner;

/// Orphans ended at once.
const ENDED_AT_ONCE: usize = 16;

/// An instance that was running before this server.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// Which.
    pub instance: InstanceId,
    /// Of what.
    pub revision: RevisionId,
    /// How it is reached.
    pub sandbox: Arc<dyn Sandbox>,
    /// Where it listens.
    pub port: u16,
    /// What isolates it.
    pub class: IsolationClass,
    /// Why it is this class.
    pub class_reason: String,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What it may use, MiB.
    pub memory_mib: u32,
    /// Whether it is paused.
    pub paused: bool,
}

/// What a former server left, told apart.
#[derive(Debug, Default)]
struct Sorted {
    wanted: Vec<(Life, Created)>,
    orphans: Vec<(Life, Created)>,
    unreadable: Vec<Created>,
}

/// Adopts from one backend what `keep` wants and ends the rest.
pub async fn adopt(
    inner: &Arc<Inner>,
    backend: &dyn Backend,
    keep: &(dyn Fn(&RevisionId, InstanceId) -> bool + Sync),
) -> Result<Vec<Adopted>, SandboxError> {
    let found = backend.adopt().await?;
    let sorted = sort(inner, found, keep);
    let answers: Vec<_> = sorted
        .wanted
        .into_iter()
        .map(|(life, created)| {
            let instance = life.instance.clone();
            let (reply, replied) = oneshot::channel();
            inner.tasks.spawn("instance", life.adopt(created, reply));
            (instance, replied)
        })
        .collect();
    let orphans = stream::iter(sorted.orphans);
    orphans
        .for_each_concurrent(ENDED_AT_ONCE, |(life, created)| life.end_orphan(created))
        .await;
    for created in sorted.unreadable {
        destroy(created.sandbox.id(), &*created.sandbox).await;
    }
    let mut adopted = Vec::new();
    for (instance, replied) in answers {
        if replied.await.unwrap_or(false)
            && let Some(sandbox) = instance.sandbox.get()
        {
            adopted.push(tell(&instance, sandbox.clone()));
        }
    }
    Ok(adopted)
}

fn sort(
    inner: &Arc<Inner>,
    found: Vec<Found>,
    keep: &(dyn Fn(&RevisionId, InstanceId) -> bool + Sync),
) -> Sorted {
    let mut sorted = Sorted::default();
    for Found { created, label } in found {
        let id = created.sandbox.id();
        let label = match Label::decode(&label) {
            Ok(label) => label,
            Err(error) => {
                tracing::error!(instance = %id, error = %chain(&error), "a sandbox of unknown making is removed");
                sorted.unreadable.push(created);
                continue;
            }
        };
        let wanted = keep(&label.revision, id);
        let instance = Arc::new(inner.instance(id, created.sandbox.class(), label));
        // The former server recorded it before the sandbox was there.
        instance.mark_started();
        let listed = inner.table.insert(&instance).is_ok();
        let life = Life::new(inner.clone(), instance);
        if wanted && listed {
            sorted.wanted.push((life, created));
        } else {
            sorted.orphans.push((life, created));
        }
    }
    sorted
}

fn tell(instance: &Instance, sandbox: Arc<dyn Sandbox>) -> Adopted {
    Adopted {
        instance: instance.id,
        revision: instance.label.revision.clone(),
        sandbox,
        port: instance.label.port,
        class: instance.class,
        class_reason: instance.label.class_reason.clone(),
        created_unix_ms: instance.label.created_unix_ms,
        memory_mib: instance.label.memory_mib,
        paused: instance.state() == InstanceState::Paused,
    }
}

impl Life {
    async fn end_orphan(mut self, created: Created) {
        self.hold(created, None);
        self.end_as(EndReason::Orphan).await;
    }
}
