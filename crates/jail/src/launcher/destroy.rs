//! How sandboxes and seats end, and what is left to remove.

use std::time::Duration;

use skiff_base::Clock;
use skiff_net::Network;
use skiff_types::InstanceId;
use skiff_wire::launcher::{Refusal, Reply};

use super::Launcher;
use super::client::ReplyTo;
use super::sandbox::{State, Work};
use crate::failure::refuse;

/// For everything of a sandbox to be gone. It goes on after that; only the
/// one who asked is told.
const DESTROY_DEADLINE: Duration = Duration::from_secs(30);

impl Launcher {
    pub(super) fn destroy(&mut self, to: ReplyTo, id: InstanceId) {
        let deadline = self.clock.now().plus(DESTROY_DEADLINE).as_nanos();
        let Some(sandbox) = self.kept.sandboxes.get_mut(&id) else {
            self.reply(to, Ok(Reply::Done), Vec::new());
            return;
        };
        sandbox.destroy_waiters.push(to);
        sandbox.destroy_deadline = deadline;
        self.end(id);
    }

    /// Kills what runs in a sandbox; what is left is removed as it dies.
    fn end(&mut self, id: InstanceId) {
        let Some(sandbox) = self.kept.sandboxes.get(&id) else {
            return;
        };
        match sandbox.seat {
            Some(seat) => self.kill_seat(seat),
            None => self.remove_if_done(id),
        }
    }

    /// A creation that has come to nothing: undone first, then told.
    pub(super) fn fail(&mut self, id: InstanceId, refusal: Refusal) {
        let Some(sandbox) = self.kept.sandboxes.get_mut(&id) else {
            tracing::warn!(%refusal, "what is prepared ahead has failed");
            return;
        };
        let State::Starting { reply, .. } = sandbox.state else {
            return;
        };
        sandbox.state = State::Failed { reply, refusal };
        self.starting.remove(&id);
        self.end(id);
    }

    /// A seat whose sandbox was never registered.
    pub(super) fn abandon_seat(&mut self, number: u64) {
        self.kill_seat(number);
        if let Some(seat) = self.kept.seats.get_mut(&number) {
            // It must not be found as a spare one.
            seat.dead = true;
            seat.holder = None;
            seat.control = None;
        }
    }

    /// Removes a dead seat's cgroups; tries again later if the kernel still
    /// holds them.
    pub(super) fn tidy(&mut self, number: u64) {
        if !self.cgroups.remove(number) {
            self.tidying.insert(number);
            return;
        }
        self.tidying.remove(&number);
        let Some(seat) = self.kept.seats.remove(&number) else {
            return;
        };
        self.kept.ranges.release(seat.range);
        let holder = seat.holder;
        // Whoever is told that nothing is left finds nothing.
        drop(seat);
        let Some(id) = holder else {
            return;
        };
        if let Some(sandbox) = self.kept.sandboxes.get_mut(&id) {
            sandbox.seat = None;
            self.remove_if_done(id);
        }
    }

    /// The end of a sandbox, if it is dead and somebody wants it gone.
    fn remove_if_done(&mut self, id: InstanceId) {
        let Some(sandbox) = self.kept.sandboxes.get(&id) else {
            return;
        };
        let failed = matches!(sandbox.state, State::Failed { .. });
        let wanted = failed || self.kept.shutting_down || !sandbox.destroy_waiters.is_empty();
        if sandbox.seat.is_some() || !wanted {
            return;
        }
        let Some(sandbox) = self.kept.sandboxes.remove(&id) else {
            return;
        };
        self.kept.layers.leave_all(&sandbox.layers);
        self.runtime_sockets.remove(&id);
        if sandbox.work == Work::Monitor {
            self.remove_monitor_folder(id);
        }
        if let Some(network) = sandbox.network {
            self.release_network(network);
        }
        // Whoever is told that nothing is left finds nothing.
        drop((sandbox.app, sandbox.outputs));
        if let State::Failed { reply, refusal } = sandbox.state {
            self.reply(reply, Err(refusal), Vec::new());
        }
        for waiter in sandbox.destroy_waiters {
            self.reply(waiter, Ok(Reply::Done), Vec::new());
        }
    }

    pub(super) fn release_network(&mut self, network: Network) {
        if let Err(error) = self.networks.release(network) {
            // The sweep of the next start finds it.
            let error = skiff_base::chain(&error).to_string();
            tracing::error!(error, "a network cannot be removed");
        }
        self.refill_networks = true;
    }

    /// Begins the launcher's end.
    pub(super) fn shut_down(&mut self, to: Option<ReplyTo>) {
        self.kept.shutdown_waiters.extend(to);
        self.kept.shutting_down = true;
        let ids: Vec<_> = self.kept.sandboxes.keys().copied().collect();
        for id in ids {
            self.end(id);
        }
        let seats: Vec<_> = self.kept.seats.keys().copied().collect();
        for seat in seats {
            self.kill_seat(seat);
        }
    }

    /// Ends the loop once nothing is left.
    pub(super) fn finish_shutdown(&mut self) {
        let empty = self.kept.sandboxes.is_empty() && self.kept.seats.is_empty();
        if !self.kept.shutting_down || !empty {
            return;
        }
        for waiter in std::mem::take(&mut self.kept.shutdown_waiters) {
            self.reply(waiter, Ok(Reply::Done), Vec::new());
        }
        self.ended = true;
    }

    /// Tells those who have waited too long for a destruction.
    pub(super) fn give_up_destroys(&mut self) {
        let now = self.clock.now().as_nanos();
        let late = |(id, sandbox): (&InstanceId, &super::sandbox::Sandbox)| {
            (!sandbox.destroy_waiters.is_empty() && sandbox.destroy_deadline <= now).then_some(*id)
        };
        let late: Vec<_> = self.kept.sandboxes.iter().filter_map(late).collect();
        for id in late {
            let waiters = match self.kept.sandboxes.get_mut(&id) {
                Some(sandbox) => std::mem::take(&mut sandbox.destroy_waiters),
                None => continue,
            };
            for waiter in waiters {
                let refusal = refuse("destroy", format!("sandbox {id} does not die"));
                self.reply(waiter, Err(refusal), Vec::new());
            }
        }
    }
}
