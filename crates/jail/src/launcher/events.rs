//! What is heard of inits: their reports and their ends.

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};
use skiff_types::InstanceId;
use skiff_wire::launcher::{Exit, FIRST_PROCESS, Reply};

use std::os::fd::{AsFd, OwnedFd};

use super::Launcher;
use super::sandbox::{State, Work};
use crate::channel;
use crate::child::Report;
use crate::failure::refuse;
use crate::handle::Handle;

/// A report is far shorter.
const REPORT_BYTES_MAX: usize = 16 * 1024;

impl Launcher {
    /// Takes every report that a seat's init has sent.
    pub(super) fn hear(&mut self, number: u64) {
        loop {
            let Some(seat) = self.kept.seats.get(&number) else {
                return;
            };
            let Some(control) = &seat.control else {
                return;
            };
            let holder = seat.holder;
            let mut buffer = [0; REPORT_BYTES_MAX];
            match channel::receive(control, &mut buffer, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return,
                Ok(Some((length, fds))) => {
                    let frame = buffer.get(..length).unwrap_or_default();
                    match skiff_wire::decode::<Report>(frame) {
                        Ok(report) => self.take_report(number, holder, report, fds),
                        Err(error) => tracing::error!(%error, "an init's report is not readable"),
                    }
                }
                Ok(None) | Err(_) => {
                    self.stop_hearing(number);
                    if let Some(id) = holder {
                        self.monitor_runs(id);
                    }
                    return;
                }
            }
        }
    }

    fn stop_hearing(&mut self, number: u64) {
        let seat = self.kept.seats.get_mut(&number);
        if let Some(control) = seat.and_then(|seat| seat.control.take()) {
            self.unwatch(&control);
        }
    }

    fn take_report(
        &mut self,
        number: u64,
        holder: Option<InstanceId>,
        report: Report,
        fds: Vec<OwnedFd>,
    ) {
        match (report, holder) {
            (Report::Parked, _) => {}
            (Report::Failed(refusal), Some(id)) => self.fail(id, refusal),
            (Report::Failed(refusal), None) => {
                tracing::warn!(%refusal, number, "a seat could not be prepared");
                if let Some(seat) = self.kept.seats.get_mut(&number) {
                    seat.dead = true;
                }
                self.refill_after = skiff_base::Clock::now(&self.clock).plus(super::NETWORK_LOOK);
            }
            (Report::Started { root_us, exec_us }, Some(id)) => {
                self.started(id, &[("root", root_us), ("exec", exec_us)], fds);
            }
            (
                Report::Held {
                    root_us,
                    exec_us,
                    extensions,
                },
                Some(id),
            ) => {
                let fds = self.hold(id, extensions, fds);
                self.started(id, &[("root", root_us), ("exec", exec_us)], fds);
            }
            (Report::Exited(status), Some(id)) => {
                if let Some(sandbox) = self.kept.sandboxes.get_mut(&id) {
                    sandbox.status = Some(status);
                }
            }
            (Report::AppEnded(status), Some(id)) => {
                if let Some(sandbox) = self.kept.sandboxes.get_mut(&id) {
                    sandbox.status = Some(status);
                }
                self.tell_exec_exit(id, FIRST_PROCESS, Some(status));
            }
            (
                Report::Started { .. }
                | Report::Held { .. }
                | Report::AppEnded(_)
                | Report::Exited(_),
                None,
            ) => {
                tracing::error!(number, "a spare seat reports an application");
            }
        }
    }

    /// Keeps what is known of a function that is held; what is left is what
    /// another brings that has started.
    fn hold(
        &mut self,
        id: InstanceId,
        extensions: Vec<String>,
        mut fds: Vec<OwnedFd>,
    ) -> Vec<OwnedFd> {
        let gate = (fds.len() > 1).then(|| Handle::from(fds.remove(1)));
        if let Some(sandbox) = self.kept.sandboxes.get_mut(&id) {
            (sandbox.extensions, sandbox.gate) = (extensions, gate);
            if let State::Starting { reply, .. } = &sandbox.state {
                sandbox.keeper = Some(reply.client);
            }
        }
        fds
    }

    /// The sandbox's program runs [its pidfd, a terminal's controlling side].
    pub(super) fn started(&mut self, id: InstanceId, steps: &[(&str, u32)], fds: Vec<OwnedFd>) {
        let Some(sandbox) = self.kept.sandboxes.get_mut(&id) else {
            return;
        };
        if !matches!(sandbox.state, State::Starting { .. }) {
            return;
        }
        let mut fds = fds.into_iter();
        sandbox.app = fds.next().map(Handle::from);
        sandbox.outputs.readers.extend(fds.map(Handle::from));
        let copies = sandbox.outputs.copies();
        let input = sandbox.input.take().map(OwnedFd::from);
        let extensions = sandbox.extensions.clone();
        let (work, has_network) = (sandbox.work, sandbox.network.is_some());
        let state = std::mem::replace(&mut sandbox.state, State::Running);
        self.starting.remove(&id);
        let State::Starting {
            reply,
            mut steps_us,
            ..
        } = state
        else {
            return;
        };
        steps_us.extend(steps.iter().map(|(name, us)| ((*name).to_owned(), *us)));
        // Without its output a client can do as little as without its reply.
        let mut copies = copies.unwrap_or_default();
        copies.extend(input);
        let created = match work {
            Work::Init if !extensions.is_empty() => Reply::Held {
                steps_us,
                extensions,
            },
            Work::Init => Reply::Created { steps_us },
            Work::Monitor => Reply::MonitorCreated {
                steps_us,
                network: has_network.then(|| self.networks.machine_network()),
            },
        };
        self.reply(reply, Ok(created), copies);
    }

    /// A seat's init has ended, and with it everything in its pid namespace.
    pub(super) fn bury(&mut self, number: u64) {
        let Some(seat) = self.kept.seats.get(&number) else {
            return;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match rustix::process::waitid(WaitId::PidFd(seat.pidfd.as_fd()), options) {
            Ok(None) => return,
            Ok(Some(status)) => Some(status),
            Err(Errno::CHILD) => None,
            Err(errno) => {
                tracing::error!(%errno, number, "a first process cannot be waited for");
                None
            }
        };
        self.unwatch(&seat.pidfd);
        self.hear(number);
        self.stop_hearing(number);
        let Some(seat) = self.kept.seats.get_mut(&number) else {
            return;
        };
        seat.dead = true;
        let holder = seat.holder;
        self.lose_monitor(number);
        if let Some(id) = holder {
            self.note_status(id, status.as_ref());
            self.ended(id, number);
        }
        self.tidy(number);
    }

    /// A monitor reports nothing: its end is its own.
    fn note_status(&mut self, id: InstanceId, status: Option<&WaitIdStatus>) {
        let sandbox = self.kept.sandboxes.get_mut(&id);
        if let Some(sandbox) = sandbox.filter(|sandbox| sandbox.work == Work::Monitor) {
            sandbox.status = status.and_then(|status| {
                let code = status.exit_status().map(|code| (code & 0xff) << 8);
                code.or(status.terminating_signal())
            });
        }
    }

    fn ended(&mut self, id: InstanceId, number: u64) {
        let stats = self.cgroups.stats(number);
        let Some(sandbox) = self.kept.sandboxes.get_mut(&id) else {
            return;
        };
        sandbox.last = skiff_wire::launcher::Stats {
            memory_bytes: 0,
            pids: 0,
            ..stats
        };
        sandbox.outputs.writers.clear();
        sandbox.frozen = false;
        match sandbox.state {
            State::Running => {
                let exit = exit(sandbox.status, &stats);
                sandbox.state = State::Ended(exit);
                sandbox.app = None;
                self.settle_freeze(id, Err(refuse("freeze", "it has ended")));
                self.tell_exit(id, exit);
            }
            State::Starting { .. } => {
                let message = if stats.oom_kills > 0 {
                    "the memory does not suffice to start"
                } else {
                    "the sandbox has ended before its application started"
                };
                self.fail(id, refuse("start", message));
            }
            State::Failed { .. } | State::Ended(_) => {}
        }
    }
}

fn exit(status: Option<i32>, stats: &skiff_wire::launcher::Stats) -> Exit {
    let (code, signal) = code_and_signal(status);
    Exit {
        code,
        signal,
        out_of_memory: stats.oom_kills > 0,
        cpu_us: stats.cpu_us,
        memory_peak_bytes: stats.memory_peak_bytes,
    }
}

/// What wait(2)'s status says; without one whoever would tell was killed, and
/// the rest with it.
pub(super) fn code_and_signal(status: Option<i32>) -> (Option<i32>, Option<i32>) {
    match status {
        Some(status) if libc::WIFEXITED(status) => (Some(libc::WEXITSTATUS(status)), None),
        Some(status) => (None, Some(libc::WTERMSIG(status))),
        None => (None, Some(libc::SIGKILL)),
    }
}
