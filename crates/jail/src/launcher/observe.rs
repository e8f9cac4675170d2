//! What is looked at again until it is so: freezing, deadlines, clean-up.

use std::time::Duration;

use skiff_base::Clock;
use skiff_types::InstanceId;
use skiff_wire::launcher::Reply;

use super::Launcher;
use super::client::ReplyTo;
use super::sandbox::State;
use crate::failure::{Step, refuse};

/// For every process of a sandbox to stand.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);

impl Launcher {
    pub(super) fn freeze(&mut self, to: ReplyTo, id: InstanceId) -> Step<()> {
        let deadline = self.clock.now().plus(FREEZE_DEADLINE).as_nanos();
        let sandbox = self.running(id)?;
        if sandbox.freeze_waiter.is_some() {
            return Err(refuse("freeze", format!("sandbox {id} is being frozen")));
        }
        let Some(seat) = sandbox.seat else {
            return Err(refuse("freeze", format!("sandbox {id} does not run")));
        };
        sandbox.freeze_waiter = Some((to, deadline));
        if let Err(refusal) = self.cgroups.set_frozen(seat, true) {
            self.running(id)?.freeze_waiter = None;
            return Err(refusal);
        }
        self.freezing.insert(id);
        self.look_at_freeze(id);
        Ok(())
    }

    fn look_at_freeze(&mut self, id: InstanceId) {
        let Some(sandbox) = self.kept.sandboxes.get(&id) else {
            self.freezing.remove(&id);
            return;
        };
        let (Some((_, deadline)), Some(seat)) = (sandbox.freeze_waiter, sandbox.seat) else {
            self.freezing.remove(&id);
            return;
        };
        match self.cgroups.is_frozen(seat) {
            Ok(true) => self.settle_freeze(id, Ok(())),
            Ok(false) if self.clock.now().as_nanos() < deadline => {}
            Ok(false) => {
                let message = format!("sandbox {id} does not stand still");
                self.take_freeze_back(seat);
                self.settle_freeze(id, Err(refuse("freeze", message)));
            }
            Err(refusal) => self.settle_freeze(id, Err(refusal)),
        }
    }

    fn take_freeze_back(&self, seat: u64) {
        if let Err(refusal) = self.cgroups.set_frozen(seat, false) {
            tracing::error!(%refusal, seat, "a half-frozen sandbox cannot be thawed");
        }
    }

    /// Answers who waits for a sandbox to stand, if somebody does.
    pub(super) fn settle_freeze(&mut self, id: InstanceId, result: Step<()>) {
        self.freezing.remove(&id);
        let Some(sandbox) = self.kept.sandboxes.get_mut(&id) else {
            return;
        };
        let Some((to, _)) = sandbox.freeze_waiter.take() else {
            return;
        };
        sandbox.frozen = result.is_ok();
        self.reply(to, result.map(|()| Reply::Done), Vec::new());
    }

    /// After each turn of the loop.
    pub(super) fn look_again(&mut self) {
        for number in std::mem::take(&mut self.tidying) {
            self.tidy(number);
        }
        for id in self.freezing.clone() {
            self.look_at_freeze(id);
        }
        self.fail_late_starts();
        self.end_late_execs();
        self.give_up_destroys();
        self.give_up_late_disk();
        self.finish_shutdown();
    }

    fn fail_late_starts(&mut self) {
        let now = self.clock.now().as_nanos();
        let is_late = |id: &InstanceId| {
            let sandbox = self.kept.sandboxes.get(id);
            sandbox.is_some_and(|sandbox| {
                matches!(sandbox.state, State::Starting { deadline, .. } if deadline <= now)
            })
        };
        let late: Vec<_> = self.starting.iter().copied().filter(is_late).collect();
        for id in late {
            self.fail(id, refuse("start", "the application did not start in time"));
        }
    }
}
