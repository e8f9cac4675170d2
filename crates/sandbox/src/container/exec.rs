//! A further process in a container.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rustix::termios::Winsize;
use skiff_base::Tasks;
use skiff_types::InstanceId;
use skiff_wire::agent::ExecExit;
use skiff_wire::launcher::{ExecSpec, Reply, Request};
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Link, unexpected};
use crate::SandboxError;
use crate::exec::{
    ExecRequest, Executed, Process, SIGHUP, SIGKILL, Slot, TerminalSize, UNKNOWN_END,
};

/// One, from before it starts until its end is known.
#[derive(Debug)]
struct ContainerProcess {
    sandbox: InstanceId,
    link: Arc<Link>,
    exit: watch::Receiver<Option<ExecExit>>,
    /// The terminal's controlling side, once it runs and has one.
    terminal: Option<OwnedFd>,
    slot: Option<Slot>,
    tasks: Tasks,
    runtime: Handle,
}

/// Starts one.
pub async fn start(
    sandbox: InstanceId,
    link: Arc<Link>,
    slot: Slot,
    tasks: Tasks,
    request: ExecRequest,
) -> Result<Executed, SandboxError> {
    let exec = slot.number();
    let stdio = request.stdio();
    let spec = ExecSpec {
        sandbox,
        exec,
        process: request.process,
        stdio,
    };
    let exit = link.exits.execs().watch(sandbox, exec);
    let asked = link.ask(sandbox, Request::Exec(Box::new(spec))).await;
    let fds = match asked {
        Ok((Reply::Executed, fds)) => fds,
        other => {
            link.exits.execs().forget(sandbox, exec);
            return Err(other.err().unwrap_or_else(|| unexpected("exec")));
        }
    };
    let mut process = ContainerProcess {
        sandbox,
        link,
        exit,
        terminal: None,
        slot: Some(slot),
        tasks,
        runtime: Handle::current(),
    };
    let has_terminal = request.terminal.is_some();
    let (terminal, pipes) = sorted(fds, has_terminal).ok_or_else(|| unexpected("exec"))?;
    if let Some(terminal) = terminal {
        let ends = crate::exec::terminal(&terminal);
        let (input, output) = ends.map_err(SandboxError::Launcher)?;
        process.terminal = Some(terminal);
        return Ok(Executed {
            process: Box::new(process),
            input: Box::new(input),
            output: Box::new(output),
            errors: None,
        });
    }
    let [output, errors, input] = pipes.ok_or_else(|| unexpected("exec"))?;
    let reader = |fd| pipe::Receiver::from_owned_fd(fd).map_err(SandboxError::Launcher);
    let input = pipe::Sender::from_owned_fd(input).map_err(SandboxError::Launcher)?;
    Ok(Executed {
        process: Box::new(process),
        input: Box::new(input),
        output: Box::new(reader(output)?),
        errors: Some(Box::new(reader(errors)?)),
    })
}

/// A terminal, or stdout, stderr and stdin.
type Sorted = (Option<OwnedFd>, Option<[OwnedFd; 3]>);

fn sorted(fds: Vec<OwnedFd>, terminal: bool) -> Option<Sorted> {
    if terminal {
        let [terminal] = <[OwnedFd; 1]>::try_from(fds).ok()?;
        return Some((Some(terminal), None));
    }
    Some((None, Some(<[OwnedFd; 3]>::try_from(fds).ok()?)))
}

impl ContainerProcess {
    fn number(&self) -> u64 {
        self.slot.as_ref().map_or(0, Slot::number)
    }

    /// What is left to do for its end, once.
    fn ending(&mut self) -> Option<BoxFuture<'static, ()>> {
        let slot = self.slot.take()?;
        let (sandbox, exec) = (self.sandbox, slot.number());
        if self.exit.borrow().is_some() {
            self.link.exits.execs().forget(sandbox, exec);
            return None;
        }
        let (link, exit) = (self.link.clone(), self.exit.clone());
        Some(Box::pin(async move {
            for signal in [SIGHUP, SIGKILL] {
                let request = Request::SignalExec {
                    sandbox,
                    exec,
                    signal,
                };
                // One that has ended meanwhile has no need of it.
                if let Err(error) = link.ask(sandbox, request).await {
                    tracing::debug!(%sandbox, %error, "a further process was not signalled");
                }
            }
            ended(&link, exit).await;
            link.exits.execs().forget(sandbox, exec);
            // Its number is free only now.
            drop(slot);
        }))
    }
}

impl Process for ContainerProcess {
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        let request = Request::SignalExec {
            sandbox: self.sandbox,
            exec: self.number(),
            signal,
        };
        Box::pin(async move { self.link.ask(self.sandbox, request).await.map(drop) })
    }

    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move {
            let Some(terminal) = &self.terminal else {
                return Ok(());
            };
            let size = Winsize {
                ws_row: size.rows,
                ws_col: size.columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(terminal, size)
                .map_err(|errno| SandboxError::Launcher(errno.into()))
        })
    }

    fn exited(&self) -> BoxFuture<'_, ExecExit> {
        Box::pin(ended(&self.link, self.exit.clone()))
    }

    fn end(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        let ending = self.ending();
        Box::pin(async move {
            if let Some(ending) = ending {
                ending.await;
            }
        })
    }
}

/// Its end, or the launcher's, which takes it along.
async fn ended(link: &Link, mut exit: watch::Receiver<Option<ExecExit>>) -> ExecExit {
    let client = link.client();
    tokio::select! {
        biased;
        known = exit.wait_for(Option::is_some) => {
            known.ok().and_then(|exit| *exit).unwrap_or(UNKNOWN_END)
        }
        _ = client.closed() => UNKNOWN_END,
    }
}

impl Drop for ContainerProcess {
    fn drop(&mut self) {
        if let Some(ending) = self.ending() {
            self.tasks.spawn_on("end of exec", ending, &self.runtime);
        }
    }
}
