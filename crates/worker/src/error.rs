use std::fmt;

use skiff_sandbox::SandboxError;
use skiff_types::{ErrorKind, InstanceId, IsolationClass, RevisionId};
use skiff_wire::launcher::Exit;

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// By itself, with this code.
    Exited {
        /// Its code.
        code: i32,
    },
    /// By a signal that Skiff did not send.
    Killed {
        /// signal(7).
        signal: i32,
    },
    /// The kernel killed it, or a part of it, for want of memory.
    OutOfMemory,
    /// Nobody knows how: its sandbox is gone.
    Lost,
    /// It was told to, for this reason.
    Stopped(String),
    /// It did not come to serve.
    StartFailed,
    /// A former server left it and nobody wants it.
    Orphan,
}

impl EndReason {
    /// What an exit that nobody asked for means.
    #[must_use]
    pub const fn of(exit: &Exit) -> Self {
        match (exit.code, exit.signal) {
            // A child that was killed for want of memory does not matter to
            // a process that ends well.
            (Some(0), _) => Self::Exited { code: 0 },
            _ if exit.out_of_memory => Self::OutOfMemory,
            (Some(code), _) => Self::Exited { code },
            (None, Some(signal)) => Self::Killed { signal },
            (None, None) => Self::Lost,
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Killed { signal } => write!(f, "was killed by signal {signal}"),
            Self::OutOfMemory => f.write_str("ran out of memory"),
            Self::Lost => f.write_str("was lost with its sandbox"),
            Self::Stopped(reason) => write!(f, "was stopped: {reason}"),
            Self::StartFailed => f.write_str("did not start"),
            Self::Orphan => f.write_str("was left by a former server"),
        }
    }
}

/// An instance did not come to serve. Nothing of it is left but its log.
#[derive(Debug, thiserror::Error)]
#[error("the instance {instance} of {revision} did not start")]
pub struct StartError {
    /// Which.
    pub instance: InstanceId,
    /// Of what.
    pub revision: RevisionId,
    /// Why.
    #[source]
    pub failure: Box<StartFailure>,
    /// Its last lines, at most 20.
    pub log: Vec<String>,
}

impl StartError {
    /// What kind of failure it is for a client.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.failure.kind()
    }
}

/// Why an instance did not come to serve.
#[derive(Debug, thiserror::Error)]
pub enum StartFailure {
    /// The class that was asked for does not serve here.
    #[error("the class {} cannot serve: {reason}", class.as_str())]
    Class {
        /// Which.
        class: IsolationClass,
        /// Why not.
        reason: String,
    },
    /// A layer could not be made ready.
    #[error("the image's layers cannot be used")]
    Image(#[source] SandboxError),
    /// The sandbox was not made.
    #[error("the sandbox was not made")]
    Sandbox(#[source] SandboxError),
    /// The process ended before it was ready.
    #[error("the application {0} before it answered on port {1}")]
    Ended(EndReason, u16),
    /// It did not answer in time.
    #[error("the application did not answer on port {port} within {seconds} s: {last}")]
    NotReady {
        /// Where it was asked.
        port: u16,
        /// How long it had.
        seconds: u32,
        /// What the last try came to.
        last: String,
    },
    /// A step of Skiff's own took too long.
    #[error("making the {what} took too long")]
    TooSlow {
        /// Which.
        what: &'static str,
    },
    /// It was told to stop before it was ready.
    #[error("it was stopped: {0}")]
    Stopped(String),
    /// The worker has as many as it may have.
    #[error("the worker has {0} instances and may not have more")]
    Full(usize),
    /// There is one of this id.
    #[error("the id is in use")]
    Duplicate,
    /// The worker is ending.
    #[error("the worker is ending")]
    Ending,
    /// What it is made of cannot be told to the sandbox.
    #[error("the launch cannot be used: {0}")]
    Invalid(String),
}

impl StartFailure {
    const fn kind(&self) -> ErrorKind {
        match self {
            Self::Class { .. } => ErrorKind::Unsupported,
            Self::Image(error) | Self::Sandbox(error) => match error {
                SandboxError::Launcher(_) => ErrorKind::Unavailable,
                SandboxError::Timeout { .. } => ErrorKind::Timeout,
                SandboxError::Unsupported { .. } => ErrorKind::Unsupported,
                _ => ErrorKind::Failed,
            },
            Self::Ended(EndReason::Lost, _) | Self::Stopped(_) | Self::Ending => {
                ErrorKind::Unavailable
            }
            Self::Ended(..) => ErrorKind::Failed,
            Self::NotReady { .. } | Self::TooSlow { .. } => ErrorKind::Timeout,
            Self::Full(_) => ErrorKind::Exhausted,
            Self::Duplicate => ErrorKind::Conflict,
            Self::Invalid(_) => ErrorKind::Invalid,
        }
    }
}

/// The worker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// There is no such instance.
    #[error("there is no instance {0}")]
    NotFound(InstanceId),
    /// It is not in a state for this.
    #[error("the instance {instance} is {state}")]
    State {
        /// Which.
        instance: InstanceId,
        /// In what state.
        state: &'static str,
    },
    /// Its sandbox did not do it.
    #[error("the instance {0} could not be steered")]
    Sandbox(InstanceId, #[source] SandboxError),
    /// Its log cannot be read.
    #[error("the log cannot be read")]
    Log(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: Option<i32>, signal: Option<i32>, out_of_memory: bool) -> Exit {
        Exit {
            code,
            signal,
            out_of_memory,
            cpu_us: 0,
            memory_peak_bytes: 0,
        }
    }

    #[test]
    fn an_exit_is_told_by_its_cause() {
        for (exit, words) in [
            (exit(Some(3), None, false), "exited with code 3"),
            (exit(Some(0), None, true), "exited with code 0"),
            (exit(Some(137), None, true), "ran out of memory"),
            (exit(None, Some(9), true), "ran out of memory"),
            (exit(None, Some(11), false), "was killed by signal 11"),
            (exit(None, None, false), "was lost with its sandbox"),
        ] {
            assert_eq!(EndReason::of(&exit).to_string(), words);
        }
    }
}
