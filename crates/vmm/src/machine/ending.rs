use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use skiff_kvm::GuestExit;

/// Why the guest ended: the first reason that anybody has.
#[derive(Debug, Default)]
pub(super) struct Ending {
    exit: Mutex<Option<GuestExit>>,
    came: Condvar,
}

impl Ending {
    pub(super) fn set(&self, exit: GuestExit) {
        let mut first = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(exit);
        drop(first);
        self.came.notify_all();
    }

    pub(super) fn wait(&self, within: Option<Duration>) -> Option<GuestExit> {
        let exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |exit: &mut Option<GuestExit>| exit.is_none();
        match within {
            Some(within) => self
                .came
                .wait_timeout_while(exit, within, waits)
                .unwrap_or_else(PoisonError::into_inner)
                .0
                .clone(),
            None => self
                .came
                .wait_while(exit, waits)
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let ending = Ending::default();
        assert_eq!(ending.wait(Some(Duration::ZERO)), None);
        ending.set(GuestExit::Reset);
        ending.set(GuestExit::Stopped);
        assert_eq!(ending.wait(None), Some(GuestExit::Reset));
    }
}
