//! Further processes in sandboxes that run.
//!
//! ```text
//!  asked ─▶ Starting: a helper enters the sandbox ─▶ Running ─▶ Exited
//!              │ refused, late                          │          │
//!              └──────────── the helper ends: told and forgotten ──┘
//!  whoever asked is gone ─▶ killed, wherever it stands
//! ```

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use skiff_base::Clock;
use skiff_types::InstanceId;
use skiff_wire::launcher::{Answer, ExecSpec, FIRST_PROCESS, Refusal, Reply, Stdio};

use super::client::ReplyTo;
use super::create::{START_DEADLINE, check_process, open_streams};
use super::events::code_and_signal;
use super::sandbox::{Sandbox, Work};
use super::{Launcher, Token};
use crate::channel;
use crate::child::{self, Report, Visit};
use crate::failure::{Context, Step, refuse};
use crate::handle::Handle;
use crate::ids::Ranges;
use crate::sys::{self, Cloned};

const STEP: &str = "exec";
/// At a time, in all sandboxes.
const EXECS_MAX: usize = 1024;
/// A report is far shorter.
const REPORT_BYTES_MAX: usize = 16 * 1024;

/// One process, and the helper that waits for it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Exec {
    sandbox: InstanceId,
    exec: u64,
    /// Whose it is.
    client: u64,
    helper: Handle,
    control: Handle,
    state: State,
}

#[derive(Debug, Serialize, Deserialize)]
enum State {
    Starting {
        reply: ReplyTo,
        /// Nanoseconds.
        deadline: u64,
        /// What the client gets: stdout, stderr, stdin.
        streams: Vec<Handle>,
        refusal: Option<Refusal>,
    },
    Running {
        process: Handle,
    },
    /// With wait(2)'s status.
    Exited(i32),
}

impl Launcher {
    pub(super) fn execute_in(
        &mut self,
        to: ReplyTo,
        spec: ExecSpec,
        fds: Vec<OwnedFd>,
    ) -> Step<()> {
        self.check_exec(&spec, fds.len())?;
        let sandbox = self.running(spec.sandbox)?;
        let seat = match (sandbox.work, sandbox.seat) {
            (Work::Init, Some(seat)) if !sandbox.frozen && sandbox.freeze_waiter.is_none() => seat,
            _ => {
                let message = format!("sandbox {} is frozen, or no container", spec.sandbox);
                return Err(refuse(STEP, message));
            }
        };
        let range = self.seat(seat)?.range;
        let owner = Ranges::base(range);
        let streams = open_streams(spec.stdio, fds, owner + spec.process.uid)?;
        let (ours, theirs) = channel::pair().at(STEP, "socketpair")?;
        let visit = Visit {
            terminal: match spec.stdio {
                Stdio::Terminal { columns, rows } => Some((columns, rows)),
                Stdio::Piped | Stdio::PipedInput | Stdio::Given => None,
            },
            doors: self.cgroups.doors(seat),
            owner,
            init: copy(&self.seat(seat)?.pidfd)?,
            users: copy(self.kept.ranges.namespace(range)?)?,
            streams: <[OwnedFd; 3]>::try_from(streams.app).ok(),
            process: spec.process,
        };
        let birthplace = self.cgroups.birthplace(seat)?;
        // SAFETY: the launcher has one thread, checked at its start.
        let cloned = unsafe { sys::clone3(0, birthplace.as_ref().map(AsFd::as_fd)) };
        let helper = match cloned.at(STEP, "clone3")? {
            Cloned::Child => child::run_visit(visit, &theirs, &self.filters),
            Cloned::Parent { pidfd, .. } => pidfd,
        };
        let number = self.kept.number();
        let watched = self
            .watch(&ours, Token::HelperControl(number), EventFlags::IN)
            .and_then(|()| self.watch(&helper, Token::Helper(number), EventFlags::IN));
        if let Err(refusal) = watched {
            // Nobody will hear of it: it must not live.
            sys::signal(helper.as_fd(), libc::SIGKILL).at(STEP, "kill")?;
            return Err(refusal);
        }
        let input = streams.input.map(Handle::from);
        let state = State::Starting {
            reply: to,
            deadline: self.clock.now().plus(START_DEADLINE).as_nanos(),
            streams: streams.outputs.readers.into_iter().chain(input).collect(),
            refusal: None,
        };
        let exec = Exec {
            sandbox: spec.sandbox,
            exec: spec.exec,
            client: to.client,
            helper: helper.into(),
            control: ours.into(),
            state,
        };
        self.kept.execs.insert(number, exec);
        Ok(())
    }

    fn check_exec(&self, spec: &ExecSpec, fds: usize) -> Step<()> {
        let expected = if spec.stdio == Stdio::Given { 3 } else { 0 };
        let problem = if fds != expected {
            format!("{expected} descriptors are expected, {fds} came")
        } else if self.kept.execs.len() >= EXECS_MAX {
            format!("{EXECS_MAX} further processes run")
        } else if spec.exec == FIRST_PROCESS || self.find_exec(spec.sandbox, spec.exec).is_some() {
            format!("process {} is there already", spec.exec)
        } else {
            return check_process(&spec.process);
        };
        Err(refuse("request", problem))
    }

    fn find_exec(&self, sandbox: InstanceId, exec: u64) -> Option<&Exec> {
        let mut execs = self.kept.execs.values();
        execs.find(|one| one.sandbox == sandbox && one.exec == exec)
    }

    pub(super) fn signal_exec(&self, sandbox: InstanceId, exec: u64, signal: i32) -> Step<()> {
        match self.find_exec(sandbox, exec).map(|one| &one.state) {
            Some(State::Running { process }) => sys::signal(process.as_fd(), signal)
                .at("signal", format!("signal {signal} to process {exec}")),
            _ => Err(Refusal {
                errno: libc::ESRCH,
                ..refuse("lookup", format!("there is no process {exec}"))
            }),
        }
    }

    /// Takes every report that a helper has sent.
    pub(super) fn hear_helper(&mut self, number: u64) {
        while let Some(exec) = self.kept.execs.get(&number) {
            let mut buffer = [0; REPORT_BYTES_MAX];
            match channel::receive(&exec.control, &mut buffer, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return,
                Ok(Some((length, fds))) => {
                    let frame = buffer.get(..length).unwrap_or_default();
                    match skiff_wire::decode::<Report>(frame) {
                        Ok(report) => self.take_helpers_report(number, report, fds),
                        Err(error) => tracing::error!(%error, "a helper's report is not readable"),
                    }
                }
                Ok(None) | Err(_) => {
                    self.unwatch(&exec.control);
                    return;
                }
            }
        }
    }

    fn take_helpers_report(&mut self, number: u64, report: Report, fds: Vec<OwnedFd>) {
        let Some(exec) = self.kept.execs.get_mut(&number) else {
            return;
        };
        match (report, &mut exec.state) {
            (Report::Started { .. }, State::Starting { reply, streams, .. }) => {
                let (reply, streams) = (*reply, std::mem::take(streams));
                let mut fds = fds.into_iter();
                let Some(process) = fds.next() else {
                    return;
                };
                exec.state = State::Running {
                    process: process.into(),
                };
                let streams = fds.chain(streams.into_iter().map(OwnedFd::from)).collect();
                self.reply(reply, Ok(Reply::Executed), streams);
            }
            (Report::Failed(refused), State::Starting { refusal, .. }) => *refusal = Some(refused),
            (Report::Exited(status), State::Running { .. }) => exec.state = State::Exited(status),
            (report, _) => tracing::error!(?report, "a helper says something else"),
        }
    }

    /// A helper has ended, and its process before it.
    pub(super) fn helper_ended(&mut self, number: u64) {
        let Some(exec) = self.kept.execs.get(&number) else {
            return;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(exec.helper.as_fd()), options) {
            Ok(None) => return,
            Ok(Some(_)) | Err(Errno::CHILD) => {}
            Err(errno) => tracing::error!(%errno, number, "a helper cannot be waited for"),
        }
        self.unwatch(&exec.helper);
        self.hear_helper(number);
        let Some(exec) = self.kept.execs.remove(&number) else {
            return;
        };
        self.unwatch(&exec.control);
        let status = match exec.state {
            State::Starting { reply, refusal, .. } => {
                let late = || refuse(STEP, "the sandbox has ended, or it took too long");
                self.reply(reply, Err(refusal.unwrap_or_else(late)), Vec::new());
                return;
            }
            State::Exited(status) => Some(status),
            // The helper was killed before it could tell.
            State::Running { .. } => None,
        };
        self.tell_exec_exit(exec.sandbox, exec.exec, status);
    }

    /// Tells everybody of a process's end, by wait(2)'s status.
    pub(super) fn tell_exec_exit(&mut self, sandbox: InstanceId, exec: u64, status: Option<i32>) {
        let (code, signal) = code_and_signal(status);
        self.tell_all(&Answer::ExecExited {
            sandbox,
            exec,
            code,
            signal,
        });
    }

    /// Nobody has the streams of a connection's processes any more: they end
    /// with it, and their ends are told; so does a function that has extensions,
    /// whose processes are among them.
    pub(super) fn kill_execs_of(&self, client: u64) {
        for exec in self.kept.execs.values() {
            if exec.client != client {
                continue;
            }
            let target = match &exec.state {
                State::Starting { .. } => exec.helper.as_fd(),
                State::Running { process } => process.as_fd(),
                State::Exited(_) => continue,
            };
            if let Err(errno) = sys::signal(target, libc::SIGKILL) {
                tracing::debug!(%errno, "a further process cannot be killed");
            }
        }
        for sandbox in self.kept.sandboxes.values() {
            if sandbox.keeper == Some(client)
                && let Some(whole) = self.whole(sandbox)
                && let Err(errno) = sys::signal(whole.as_fd(), libc::SIGKILL)
            {
                tracing::debug!(%errno, "a function cannot be killed");
            }
        }
    }

    /// What ends a sandbox when it is killed: its first process, or the init of a
    /// function with extensions, which outlives that.
    pub(super) fn whole<'a>(&'a self, sandbox: &'a Sandbox) -> Option<&'a Handle> {
        if sandbox.extensions.is_empty() {
            return sandbox.app.as_ref();
        }
        let seat = self.kept.seats.get(&sandbox.seat?)?;
        Some(&seat.pidfd)
    }

    pub(super) fn has_starting_execs(&self) -> bool {
        let mut execs = self.kept.execs.values();
        execs.any(|exec| matches!(exec.state, State::Starting { .. }))
    }

    /// Ends helpers that take too long; their ends are told.
    pub(super) fn end_late_execs(&self) {
        let now = self.clock.now().as_nanos();
        for exec in self.kept.execs.values() {
            if let State::Starting { deadline, .. } = &exec.state
                && *deadline <= now
                && let Err(errno) = sys::signal(exec.helper.as_fd(), libc::SIGKILL)
            {
                tracing::debug!(%errno, "a helper cannot be killed");
            }
        }
    }

    /// Watches those that an earlier program had.
    pub(super) fn watch_execs(&self) -> Step<()> {
        for (number, exec) in &self.kept.execs {
            self.watch(&exec.control, Token::HelperControl(*number), EventFlags::IN)?;
            self.watch(&exec.helper, Token::Helper(*number), EventFlags::IN)?;
        }
        Ok(())
    }
}

fn copy(fd: impl AsFd) -> Step<OwnedFd> {
    fd.as_fd().try_clone_to_owned().at(STEP, "dup")
}
