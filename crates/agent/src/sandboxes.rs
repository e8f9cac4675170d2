//! What the agent holds of each sandbox, and of each further process in one:
//! its streams, and how it ended.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use skiff_base::{Clock, Monotonic};
use skiff_types::InstanceId;
use skiff_wire::agent::Answer;
use skiff_wire::launcher::{Refusal, Stdio};

use crate::agent::Agent;
use crate::end::End;
use crate::requests::{kernel, refuse};
use crate::streams::Which;

const STEP: &str = "stream";
/// For what a sandbox wrote to go out by the streams that are open, before
/// its end is told all the same.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Outputs {
    /// stdout and stderr.
    Pipes([OwnedFd; 2]),
    Terminal(OwnedFd),
}

/// Whose streams and exit: a sandbox's first process, or a further one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) sandbox: InstanceId,
    pub(crate) exec: Option<u64>,
}

impl From<InstanceId> for Key {
    fn from(sandbox: InstanceId) -> Self {
        Self {
            sandbox,
            exec: None,
        }
    }
}

/// One of them, from its start to its removal.
#[derive(Debug)]
pub(crate) struct Sandbox {
    input: Option<OwnedFd>,
    outputs: Outputs,
    /// The streams by [`Which`].
    streams: [Option<u64>; 3],
    /// What the host is to be told, and when at the latest.
    exit: Option<(Answer, Monotonic)>,
    told: bool,
}

fn slot(which: Which) -> usize {
    match which {
        Which::Stdin => 0,
        Which::Stdout => 1,
        Which::Stderr => 2,
    }
}

impl Sandbox {
    /// Of the descriptors that the launcher gave.
    pub(crate) fn new(stdio: Stdio, fds: Vec<OwnedFd>) -> Result<Self, Refusal> {
        let count = fds.len();
        let mut fds = fds.into_iter();
        let parts = (fds.next(), fds.next(), fds.next());
        let (outputs, input) = match (stdio, parts) {
            (Stdio::Terminal { .. }, (Some(terminal), None, None)) => {
                (Outputs::Terminal(terminal), None)
            }
            (Stdio::Piped, (Some(out), Some(err), None)) => (Outputs::Pipes([out, err]), None),
            (Stdio::PipedInput, (Some(out), Some(err), Some(input))) => {
                (Outputs::Pipes([out, err]), Some(input))
            }
            _ => return Err(refuse(STEP, format!("the launcher gave {count} streams"))),
        };
        let sandbox = Self {
            input,
            outputs,
            streams: [None; 3],
            exit: None,
            told: false,
        };
        sandbox.make_nonblocking()?;
        Ok(sandbox)
    }

    fn make_nonblocking(&self) -> Result<(), Refusal> {
        let outputs = match &self.outputs {
            Outputs::Pipes([out, err]) => vec![out, err],
            Outputs::Terminal(terminal) => vec![terminal],
        };
        for fd in outputs.into_iter().chain(&self.input) {
            rustix::io::ioctl_fionbio(fd, true)
                .map_err(|errno| kernel(STEP, "make a stream non-blocking", errno))?;
        }
        Ok(())
    }

    /// The end for a stream, and the stream that had it before.
    pub(crate) fn attach(
        &mut self,
        which: Which,
        number: u64,
    ) -> Result<(End, Option<u64>), Refusal> {
        let end = match (which, &self.outputs) {
            (Which::Stdin, _) => self.input.as_ref().map(|fd| copy(fd).map(End::Writer)),
            (Which::Stdout, Outputs::Pipes([out, _])) => Some(copy(out).map(End::Reader)),
            (Which::Stderr, Outputs::Pipes([_, err])) => Some(copy(err).map(End::Reader)),
            (_, Outputs::Terminal(_)) => None,
        };
        let end = end.ok_or_else(|| refuse(STEP, "the sandbox has no such stream"))??;
        Ok((end, self.streams[slot(which)].replace(number)))
    }

    /// As [`Self::attach`], for a terminal.
    pub(crate) fn attach_terminal(&mut self, number: u64) -> Result<(End, Option<u64>), Refusal> {
        let end = End::Terminal(copy(self.terminal()?)?);
        Ok((end, self.streams[slot(Which::Stdout)].replace(number)))
    }

    pub(crate) fn terminal(&self) -> Result<&OwnedFd, Refusal> {
        match &self.outputs {
            Outputs::Terminal(terminal) => Ok(terminal),
            Outputs::Pipes(_) => Err(refuse(STEP, "the sandbox has no terminal")),
        }
    }

    /// It has ended, and the host does not know yet.
    pub(crate) fn is_draining(&self) -> bool {
        self.exit.is_some() && !self.told
    }

    fn is_drained(&self) -> bool {
        [Which::Stdout, Which::Stderr]
            .iter()
            .all(|which| self.streams[slot(*which)].is_none())
    }
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, Refusal> {
    rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3)
        .map_err(|errno| kernel(STEP, "copy a descriptor", errno))
}

impl Agent {
    pub(crate) fn sandbox(&mut self, key: Key) -> Result<&mut Sandbox, Refusal> {
        let sandbox = self.sandboxes.get_mut(&key);
        sandbox.ok_or_else(|| Refusal {
            errno: libc::ESRCH,
            ..refuse(
                "lookup",
                format!("there is no sandbox {}, or no such process", key.sandbox),
            )
        })
    }

    /// Further processes, of which not all must have ended.
    pub(crate) fn execs(&self) -> usize {
        let keys = self.sandboxes.keys();
        keys.filter(|key| key.exec.is_some()).count()
    }

    /// Lets go of a further process that has ended.
    pub(crate) fn forget_exec(&mut self, key: Key) -> Result<(), Refusal> {
        match self.sandboxes.get(&key) {
            Some(process) if process.exit.is_none() => Err(refuse("forget", "it has not ended")),
            _ => {
                self.sandboxes.remove(&key);
                Ok(())
            }
        }
    }

    /// A stream of a sandbox's is gone. An input whose stream came to its end
    /// is at its end.
    pub(crate) fn detached(&mut self, number: u64, id: Key, which: Which, through: bool) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else {
            return;
        };
        let stream = &mut sandbox.streams[slot(which)];
        if *stream == Some(number) {
            *stream = None;
            if which == Which::Stdin && through {
                sandbox.input = None;
            }
            self.tell_if_drained(id);
        }
    }

    /// The launcher says that it is dead, and a sandbox's first process that
    /// everything is.
    pub(crate) fn exited(&mut self, id: Key, exit: Answer) {
        let deadline = self.clock.now().plus(DRAIN_DEADLINE);
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.exit.get_or_insert((exit, deadline));
            sandbox.input = None;
            self.tell_if_drained(id);
        }
    }

    fn tell_if_drained(&mut self, id: Key) {
        let sandbox = self.sandboxes.get(&id);
        if sandbox.is_some_and(|sandbox| sandbox.is_draining() && sandbox.is_drained()) {
            self.tell_exit(id);
        }
    }

    pub(crate) fn tell_late_exits(&mut self, now: Monotonic) {
        let is_late = |sandbox: &Sandbox| {
            sandbox.is_draining()
                && sandbox
                    .exit
                    .as_ref()
                    .is_some_and(|(_, deadline)| *deadline <= now)
        };
        let sandboxes = self.sandboxes.iter();
        let late: Vec<_> = sandboxes
            .filter(|(_, sandbox)| is_late(sandbox))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.tell_exit(id);
        }
    }

    fn tell_exit(&mut self, id: Key) {
        if let Some(sandbox) = self.sandboxes.get_mut(&id)
            && let Some((exit, _)) = sandbox.exit.clone()
        {
            sandbox.told = true;
            self.post(&exit);
        }
    }

    /// What a host that comes back may have missed.
    pub(crate) fn tell_exits_again(&mut self) {
        let sandboxes = self.sandboxes.iter();
        let told: Vec<_> = sandboxes
            .filter(|(_, sandbox)| sandbox.told)
            .map(|(id, _)| *id)
            .collect();
        for id in told {
            self.tell_exit(id);
        }
    }
}
