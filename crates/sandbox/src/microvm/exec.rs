//! A further process in a virtual machine.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use skiff_base::Tasks;
use skiff_types::InstanceId;
use skiff_wire::agent::{ExecExit, Opening};
use skiff_wire::launcher::ExecSpec;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::machine::Machine;
use super::refused;
use crate::SandboxError;
use crate::agent::{AgentClient, AgentError};
use crate::exec::{
    EXECS_MAX, ExecRequest, Executed, Input, Process, SIGHUP, SIGKILL, Slot, TerminalSize,
    UNKNOWN_END,
};

/// The machine, and whoever speaks for its agent now.
#[derive(Clone, Debug)]
pub struct Line {
    pub machine: Arc<Machine>,
    pub agent: watch::Receiver<AgentClient>,
}

impl Line {
    fn agent(&self) -> AgentClient {
        self.agent.borrow().clone()
    }

    fn sandbox(&self) -> InstanceId {
        self.machine.id
    }

    async fn open(&self, opening: Opening) -> Result<UnixStream, SandboxError> {
        let opened = self.agent().open(opening).await;
        opened.map_err(refused(self.sandbox()))
    }

    /// Its end, or the machine's. A connection that follows another is told
    /// anew of the processes that have ended.
    pub async fn ended(&self, exec: u64) -> ExecExit {
        let mut agents = self.agent.clone();
        let machine = self.machine.end();
        tokio::pin!(machine);
        loop {
            let client = agents.borrow_and_update().clone();
            let mut exit = client.exec_exits().watch(self.sandbox(), exec);
            tokio::select! {
                biased;
                known = exit.wait_for(Option::is_some) => {
                    return known.ok().and_then(|exit| *exit).unwrap_or(UNKNOWN_END);
                }
                _ = &mut machine => return UNKNOWN_END,
                changed = agents.changed() => if changed.is_err() {
                    return UNKNOWN_END;
                },
            }
        }
    }

    /// Ends it and lets go of it; one that is not there is no matter.
    async fn end(&self, exec: u64) {
        let sandbox = self.sandbox();
        for signal in [SIGHUP, SIGKILL] {
            if let Err(error) = self.agent().signal_exec(sandbox, exec, signal).await {
                tracing::debug!(%sandbox, %error, "a further process was not signalled");
                break;
            }
        }
        self.ended(exec).await;
        self.forget(exec).await;
    }

    async fn forget(&self, exec: u64) {
        let sandbox = self.sandbox();
        if let Err(error) = self.agent().forget_exec(sandbox, exec).await {
            tracing::debug!(%sandbox, %error, "a further process was not forgotten");
        }
    }

    /// Ends those that a former server has left.
    pub async fn end_all(&self) {
        let sandbox = self.sandbox();
        for exec in 0..u64::from(EXECS_MAX) {
            let signalled = self.agent().signal_exec(sandbox, exec, SIGKILL).await;
            if signalled.is_ok() {
                self.ended(exec).await;
            }
            self.forget(exec).await;
        }
    }
}

#[derive(Debug)]
struct MachineProcess {
    line: Line,
    exec: u64,
    has_terminal: bool,
    slot: Option<Slot>,
    tasks: Tasks,
    runtime: Handle,
}

/// Starts one.
pub async fn start(
    line: Line,
    slot: Slot,
    tasks: Tasks,
    request: ExecRequest,
) -> Result<Executed, SandboxError> {
    let (sandbox, exec) = (line.sandbox(), slot.number());
    let spec = ExecSpec {
        sandbox,
        exec,
        stdio: request.stdio(),
        process: request.process,
    };
    let asked = line.agent().exec(spec).await;
    asked.map_err(refused(sandbox))?;
    let has_terminal = request.terminal.is_some();
    let process = MachineProcess {
        line: line.clone(),
        exec,
        has_terminal,
        slot: Some(slot),
        tasks,
        runtime: Handle::current(),
    };
    if has_terminal {
        let stream = line.open(Opening::ExecTerminal { sandbox, exec }).await?;
        let (output, input) = stream.into_split();
        return Ok(Executed {
            process: Box::new(process),
            input: Box::new(input),
            output: Box::new(output),
            errors: None,
        });
    }
    let output = line.open(Opening::ExecStdout { sandbox, exec }).await?;
    let errors = line.open(Opening::ExecStderr { sandbox, exec }).await?;
    let input = input(&line, exec).await?;
    Ok(Executed {
        process: Box::new(process),
        input,
        output: Box::new(output),
        errors: Some(Box::new(errors)),
    })
}

/// To its standard input; to nowhere, when it has ended already.
async fn input(line: &Line, exec: u64) -> Result<Input, SandboxError> {
    let sandbox = line.sandbox();
    match line
        .agent()
        .open(Opening::ExecStdin { sandbox, exec })
        .await
    {
        Ok(stream) => Ok(Box::new(stream)),
        Err(AgentError::Refused { .. }) => Ok(Box::new(tokio::io::sink())),
        Err(error) => Err(refused(sandbox)(error)),
    }
}

impl Process for MachineProcess {
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move {
            let sandbox = self.line.sandbox();
            let agent = self.line.agent();
            let told = agent.signal_exec(sandbox, self.exec, signal);
            told.await.map_err(refused(sandbox))
        })
    }

    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move {
            if !self.has_terminal {
                return Ok(());
            }
            let sandbox = self.line.sandbox();
            let agent = self.line.agent();
            let told = agent.resize_exec(sandbox, self.exec, size.columns, size.rows);
            told.await.map_err(refused(sandbox))
        })
    }

    fn exited(&self) -> BoxFuture<'_, ExecExit> {
        Box::pin(self.line.ended(self.exec))
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

impl MachineProcess {
    /// What is left to do for its end, once.
    fn ending(&mut self) -> Option<BoxFuture<'static, ()>> {
        let slot = self.slot.take()?;
        let (line, exec) = (self.line.clone(), self.exec);
        Some(Box::pin(async move {
            line.end(exec).await;
            // Its number is free only now.
            drop(slot);
        }))
    }
}

impl Drop for MachineProcess {
    fn drop(&mut self) {
        if let Some(ending) = self.ending() {
            self.tasks.spawn_on("end of exec", ending, &self.runtime);
        }
    }
}
