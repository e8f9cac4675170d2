use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_types::InstanceId;
use skiff_wire::launcher::Exit;
use tokio::sync::watch;

use crate::execs::ExecExits;

/// How many sandboxes are remembered at once.
const EXITS_MAX: usize = 100_000;

/// An exit of which nothing is known but that it happened.
pub const UNKNOWN_EXIT: Exit = Exit {
    code: None,
    signal: None,
    out_of_memory: false,
    cpu_us: 0,
    memory_peak_bytes: 0,
};

/// Who has ended, by the launcher's word.
///
/// It outlives a connection: a sandbox that is watched through one is watched
/// through the next. An exit that comes before anybody watches is kept, since
/// a process may end before the reply to its creation is read.
#[derive(Clone, Debug, Default)]
pub struct Exits {
    of: Arc<Mutex<HashMap<InstanceId, watch::Sender<Option<Exit>>>>>,
    execs: ExecExits,
}

impl Exits {
    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, watch::Sender<Option<Exit>>>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of further processes.
    pub(crate) fn execs(&self) -> &ExecExits {
        &self.execs
    }

    /// The end of a sandbox, known or to come.
    pub fn watch(&self, sandbox: InstanceId) -> watch::Receiver<Option<Exit>> {
        self.lock().entry(sandbox).or_default().subscribe()
    }

    /// Whether somebody watches for its end.
    pub fn is_watched(&self, sandbox: InstanceId) -> bool {
        self.lock()
            .get(&sandbox)
            .is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// A sandbox has ended. The first word counts.
    pub fn set(&self, sandbox: InstanceId, exit: Exit) {
        let mut of = self.lock();
        if of.len() >= EXITS_MAX && !of.contains_key(&sandbox) {
            tracing::warn!(%sandbox, "an exit that nobody watches was dropped");
            return;
        }
        of.entry(sandbox)
            .or_default()
            .send_if_modified(|known| known.is_none() && known.replace(exit).is_none());
    }

    /// A sandbox does not exist any more; whoever still waits is told so.
    pub fn forget(&self, sandbox: InstanceId) {
        if let Some(sender) = self.lock().remove(&sandbox) {
            sender
                .send_if_modified(|known| known.is_none() && known.replace(UNKNOWN_EXIT).is_none());
        }
    }

    /// Forgets all that are watched and for which `there` is false.
    pub fn forget_unless(&self, there: impl Fn(&InstanceId) -> bool) {
        let gone: Vec<_> = self
            .lock()
            .keys()
            .filter(|id| !there(id))
            .copied()
            .collect();
        for sandbox in gone {
            self.forget(sandbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> Exit {
        Exit {
            code: Some(code),
            ..UNKNOWN_EXIT
        }
    }

    #[test]
    fn the_first_word_counts_whenever_somebody_starts_to_watch() {
        let exits = Exits::default();
        let id = InstanceId::from_parts(1, 1);
        let early = exits.watch(id);
        exits.set(id, exit(3));
        exits.set(id, exit(4));
        assert_eq!(*early.borrow(), Some(exit(3)));
        assert_eq!(*exits.watch(id).borrow(), Some(exit(3)));
        exits.forget(id);
        assert_eq!(*early.borrow(), Some(exit(3)));
        assert_eq!(*exits.watch(id).borrow(), None);
    }

    #[test]
    fn what_is_gone_has_ended_in_an_unknown_way() {
        let exits = Exits::default();
        let (stays, goes) = (InstanceId::from_parts(1, 1), InstanceId::from_parts(1, 2));
        let (stays_watch, goes_watch) = (exits.watch(stays), exits.watch(goes));
        exits.forget_unless(|id| *id == stays);
        assert_eq!(*stays_watch.borrow(), None);
        assert_eq!(*goes_watch.borrow(), Some(UNKNOWN_EXIT));
    }
}
