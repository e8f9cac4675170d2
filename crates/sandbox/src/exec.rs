//! Further processes in a sandbox that runs.
//!
//! ```text
//!  asked ─▶ starting ─▶ runs ─▶ has ended
//!     │ nobody waits      │ dropped
//!     └──────────▶ SIGHUP, SIGKILL ─▶ has ended
//! ```

use std::fmt::{self, Debug};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use rustix::io::Errno;
use skiff_base::Tasks;
use skiff_types::InstanceId;
use skiff_wire::agent::ExecExit;
use skiff_wire::launcher::{EXTENSIONS_MAX, ProcessSpec, Stdio};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::SandboxError;

/// Further processes of one sandbox at a time: a function's extensions, and 16
/// of clients.
pub const EXECS_MAX: u8 = 26;
const _: () = assert!(EXECS_MAX as usize == EXTENSIONS_MAX + 16);
/// The end of a process of which nobody has told.
pub const UNKNOWN_END: ExecExit = ExecExit {
    code: None,
    signal: None,
};
/// signal(7).
pub const SIGHUP: i32 = 1;
/// signal(7).
pub const SIGKILL: i32 = 9;

/// What is to run in a sandbox, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// The process.
    pub process: ProcessSpec,
    /// It gets a terminal of this size; otherwise three pipes.
    pub terminal: Option<TerminalSize>,
}

impl ExecRequest {
    pub(crate) fn stdio(&self) -> Stdio {
        match self.terminal {
            None => Stdio::PipedInput,
            Some(TerminalSize { columns, rows }) => Stdio::Terminal { columns, rows },
        }
    }
}

/// How large a terminal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What its bytes are written to.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// What its bytes are read from.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A further process that runs. Its streams belong to the runtime that asked.
pub struct Executed {
    /// It. Dropping this ends the process.
    pub process: Box<dyn Process>,
    /// To its standard input, which ends when this is dropped; a terminal
    /// must be kept until the process has ended.
    pub input: Input,
    /// From its standard output, or its terminal. What it has started may
    /// hold it open beyond its end.
    pub output: Output,
    /// From its standard error; a terminal has none of its own.
    pub errors: Option<Output>,
}

impl Debug for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executed")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

/// A further process. Dropping it sends SIGHUP and SIGKILL if it has not
/// ended; what it has left in the background ends with the sandbox.
pub trait Process: Debug + Send + Sync + 'static {
    /// Sends a signal (signal(7)).
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>>;
    /// Sets the size of its terminal; nothing without one.
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), SandboxError>>;
    /// Waits for its end. Neither code nor signal says that nobody knows how
    /// it ended.
    fn exited(&self) -> BoxFuture<'_, ExecExit>;
    /// As dropping it, and waits for its end.
    fn end(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Starts a process to its end whether or not somebody still waits: when
/// nobody does, it is dropped, which ends it.
pub async fn started(
    tasks: &Tasks,
    sandbox: InstanceId,
    start: impl Future<Output = Result<Executed, SandboxError>> + Send + 'static,
) -> Result<Executed, SandboxError> {
    let (answer, answered) = oneshot::channel();
    tasks.spawn("exec", async move {
        // Whom it is not told, it is not left to.
        drop(answer.send(start.await));
    });
    answered.await.unwrap_or_else(|_| {
        Err(SandboxError::Refused {
            instance: sandbox,
            step: "exec".to_owned(),
            message: "the sandbox is being destroyed".to_owned(),
        })
    })
}

/// The numbers of a sandbox's further processes.
#[derive(Clone, Debug, Default)]
pub struct Slots(Arc<AtomicU32>);

/// One of them, free again when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    number: u8,
}

impl Slots {
    /// One that is free.
    pub fn take(&self, sandbox: InstanceId) -> Result<Slot, SandboxError> {
        let full = SandboxError::ExecsFull {
            instance: sandbox,
            most: usize::from(EXECS_MAX),
        };
        let lowest = |taken: u32| (0..EXECS_MAX).find(|number| taken & (1 << number) == 0);
        let update = |taken| lowest(taken).map(|number| taken | (1 << number));
        let taken = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, update);
        let number = taken.ok().and_then(lowest).ok_or(full)?;
        Ok(Slot {
            slots: self.clone(),
            number,
        })
    }
}

impl Slot {
    pub fn number(&self) -> u64 {
        self.number.into()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots
            .0
            .fetch_and(!(1 << self.number), Ordering::SeqCst);
    }
}

/// What comes from a terminal's controlling side.
#[derive(Debug)]
pub struct TerminalOutput(pipe::Receiver);

/// A terminal's controlling side, to write to and to read from.
pub fn terminal(fd: &OwnedFd) -> io::Result<(pipe::Sender, TerminalOutput)> {
    rustix::io::ioctl_fionbio(fd, true)?;
    // To the runtime it is as good as a pipe's two ends.
    let input = pipe::Sender::from_owned_fd_unchecked(fd.try_clone()?)?;
    let output = pipe::Receiver::from_owned_fd_unchecked(fd.try_clone()?)?;
    Ok((input, TerminalOutput(output)))
}

impl AsyncRead for TerminalOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(context, buffer)) {
            // How a terminal tells that its other side is closed.
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                Poll::Ready(Ok(()))
            }
            read => Poll::Ready(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_has_so_many_numbers_and_gets_them_back() {
        let slots = Slots::default();
        let sandbox = InstanceId::from_parts(1, 1);
        let mut taken: Vec<_> = (0..EXECS_MAX)
            .map(|_| slots.take(sandbox).unwrap())
            .collect();
        let numbers: Vec<_> = taken.iter().map(Slot::number).collect();
        assert_eq!(numbers, (0..u64::from(EXECS_MAX)).collect::<Vec<_>>());
        let full = slots.take(sandbox).unwrap_err();
        assert!(matches!(full, SandboxError::ExecsFull { .. }), "{full}");
        drop(taken.remove(5));
        assert_eq!(slots.take(sandbox).unwrap().number(), 5);
    }
}
