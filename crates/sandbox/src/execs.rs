use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_types::InstanceId;
use skiff_wire::agent::ExecExit;
use tokio::sync::watch;

/// How many are remembered at once: more than an agent keeps.
const EXITS_MAX: usize = 1024;

type Of = HashMap<(InstanceId, u64), watch::Sender<Option<ExecExit>>>;

/// Which further processes have ended, by the word of a machine's agent or of
/// the launcher.
#[derive(Clone, Debug, Default)]
pub struct ExecExits {
    of: Arc<Mutex<Of>>,
}

impl ExecExits {
    fn lock(&self) -> MutexGuard<'_, Of> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of a process, known or to come.
    #[must_use]
    pub fn watch(&self, sandbox: InstanceId, exec: u64) -> watch::Receiver<Option<ExecExit>> {
        self.lock().entry((sandbox, exec)).or_default().subscribe()
    }

    /// As [`Self::set`], when somebody watches: others' are nobody's business.
    pub(crate) fn tell(&self, sandbox: InstanceId, exec: u64, exit: ExecExit) {
        if let Some(known) = self.lock().get(&(sandbox, exec)) {
            known.send_if_modified(|known| known.is_none() && known.replace(exit).is_none());
        }
    }

    /// It has ended. The first word counts, and is kept when it comes before
    /// anybody watches.
    pub(crate) fn set(&self, sandbox: InstanceId, exec: u64, exit: ExecExit) {
        let mut of = self.lock();
        if of.len() >= EXITS_MAX && !of.contains_key(&(sandbox, exec)) {
            tracing::warn!(%sandbox, exec, "an exit that nobody watches was dropped");
            return;
        }
        of.entry((sandbox, exec))
            .or_default()
            .send_if_modified(|known| known.is_none() && known.replace(exit).is_none());
    }

    /// Nobody asks for it any more.
    pub(crate) fn forget(&self, sandbox: InstanceId, exec: u64) {
        self.lock().remove(&(sandbox, exec));
    }

    /// A sandbox is gone, and every process in it.
    pub(crate) fn forget_all(&self, gone: InstanceId) {
        self.lock().retain(|(sandbox, _), _| *sandbox != gone);
    }
}
