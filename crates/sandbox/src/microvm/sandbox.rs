use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, Listener, Tasks};
use skiff_types::{InstanceId, IsolationClass};
use skiff_wire::agent::{ExecExit, FEATURE_EXTENSIONS, Opening};
use skiff_wire::launcher::{Exit, FIRST_PROCESS, Reply, Request, Stats};
use tokio::sync::watch;

use super::exec::Line;
use super::machine::Machine;
use super::{GONE, exec, refused};
use crate::agent::{AgentClient, AgentError};
use crate::container::unexpected;
use crate::exec::{ExecRequest, Executed, Slots, UNKNOWN_END, started};
use crate::{Listeners, Sandbox, SandboxError};

/// One application in a virtual machine of its own.
#[derive(Debug)]
pub struct MicrovmSandbox {
    machine: Arc<Machine>,
    agent: watch::Receiver<AgentClient>,
    exit: watch::Receiver<Option<Exit>>,
    /// A machine that stands answers nothing.
    paused: AtomicBool,
    /// The agent's last word of what the application uses.
    used: Mutex<Stats>,
    execs: Slots,
    /// Known of one that was just made.
    extensions: Option<Vec<String>>,
    /// Starts and ends further processes.
    tasks: Tasks,
}

impl MicrovmSandbox {
    pub fn new(machine: Arc<Machine>, agent: AgentClient, paused: bool) -> Self {
        let exit = machine.exits.watch(machine.id);
        let (current, agent) = watch::channel(agent);
        machine.keep_agent(current);
        Self {
            machine,
            agent,
            exit,
            paused: AtomicBool::new(paused),
            used: Mutex::default(),
            execs: Slots::default(),
            extensions: None,
            tasks: Tasks::new(),
        }
    }

    /// With these extensions.
    pub fn with(self, extensions: Vec<String>) -> Self {
        Self {
            extensions: Some(extensions),
            ..self
        }
    }

    /// As [`Self::new`], of one that a former server has left, with whatever
    /// that ran in it besides the application.
    pub fn adopted(machine: Arc<Machine>, agent: AgentClient, paused: bool) -> Self {
        let sandbox = Self::new(machine, agent, paused);
        if !paused {
            let line = sandbox.line();
            let end = async move { line.end_all().await };
            sandbox.tasks.spawn("end of former execs", end);
        }
        sandbox
    }

    fn line(&self) -> Line {
        Line {
            machine: self.machine.clone(),
            agent: self.agent.clone(),
        }
    }

    fn agent(&self) -> AgentClient {
        self.agent.borrow().clone()
    }

    /// By the host's word: the guest's own is the guest's.
    async fn cpu_us(&self) -> Result<u64, SandboxError> {
        let id = self.machine.id;
        match self
            .machine
            .link
            .ask(id, Request::Stats { sandbox: id })
            .await?
        {
            (Reply::Stats(stats), _) => Ok(stats.cpu_us),
            _ => Err(unexpected("stats")),
        }
    }

    async fn stats_now(&self) -> Result<Stats, SandboxError> {
        let cpu_us = self.cpu_us().await?;
        if !self.paused.load(Ordering::SeqCst) {
            let id = self.machine.id;
            let used = self.agent().stats(id).await.map_err(refused(id))?;
            *self.used.lock().unwrap_or_else(PoisonError::into_inner) = used;
        }
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Stats { cpu_us, ..used })
    }

    async fn exit_now(&self) -> Exit {
        let mut exit = self.exit.clone();
        let application = async move {
            let known = exit.wait_for(Option::is_some).await;
            known.ok().and_then(|exit| *exit).unwrap_or(GONE)
        };
        tokio::select! {
            biased;
            exit = application => Exit {
                cpu_us: self.cpu_us().await.unwrap_or(exit.cpu_us),
                ..exit
            },
            // Its monitor has died under it, or was killed.
            end = self.machine.end() => Exit {
                code: None,
                signal: Some(end.signal.unwrap_or(KILLED)),
                ..end
            },
        }
    }

    fn not_served(&self, error: &io::Error) -> SandboxError {
        SandboxError::Refused {
            instance: self.machine.id,
            step: "services".to_owned(),
            message: error.to_string(),
        }
    }

    async fn stand(&self) -> Result<(), SandboxError> {
        // Before it stands: who asks meanwhile is told what was known.
        self.paused.store(true, Ordering::SeqCst);
        let stood = self.machine.stand().await;
        self.paused.store(stood.is_ok(), Ordering::SeqCst);
        stood
    }

    async fn go_on(&self) -> Result<(), SandboxError> {
        self.machine.go_on().await?;
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }
}

/// SIGKILL: what a container whose init was killed dies of.
const KILLED: i32 = 9;

impl Sandbox for MicrovmSandbox {
    fn id(&self) -> InstanceId {
        self.machine.id
    }

    fn class(&self) -> IsolationClass {
        IsolationClass::Microvm
    }

    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<ByteStream>> {
        Box::pin(async move {
            let opened = self.agent().open(Opening::Forward { port }).await;
            opened.map(ByteStream::Unix).map_err(|error| match error {
                AgentError::Refused { refusal, .. } if refusal.errno != 0 => {
                    io::Error::from_raw_os_error(refusal.errno)
                }
                AgentError::Stream { source, .. } => source,
                other => io::Error::other(other),
            })
        })
    }

    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move {
            let id = self.machine.id;
            self.agent().signal(id, signal).await.map_err(refused(id))
        })
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(self.stand())
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(self.go_on())
    }

    fn stats(&self) -> BoxFuture<'_, Result<Stats, SandboxError>> {
        Box::pin(self.stats_now())
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.exit_now())
    }

    fn first_ended(&self) -> BoxFuture<'_, ExecExit> {
        let line = self.line();
        Box::pin(async move {
            match line.ended(FIRST_PROCESS).await {
                // The machine's, which is told otherwise.
                UNKNOWN_END => std::future::pending().await,
                ended => ended,
            }
        })
    }

    fn listeners(&self) -> BoxFuture<'_, Result<Option<Listeners>, SandboxError>> {
        Box::pin(async move {
            let taken = self.machine.take_services().await;
            taken.map(Some).map_err(|error| self.not_served(&error))
        })
    }

    fn runtime_listener(&self) -> BoxFuture<'_, Result<Option<Listener>, SandboxError>> {
        Box::pin(async move {
            let taken = self.machine.take_runtime().await;
            taken.map(Some).map_err(|error| self.not_served(&error))
        })
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Executed, SandboxError>> {
        Box::pin(async move {
            let slot = self.execs.take(self.machine.id)?;
            let start = exec::start(self.line(), slot, self.tasks.clone(), request);
            started(&self.tasks, self.machine.id, start).await
        })
    }

    fn extensions(&self) -> BoxFuture<'_, Result<Vec<String>, SandboxError>> {
        Box::pin(async move {
            if let Some(extensions) = &self.extensions {
                return Ok(extensions.clone());
            }
            let (id, agent) = (self.machine.id, self.agent());
            if agent.hello().features & FEATURE_EXTENSIONS == 0 {
                return Ok(Vec::new());
            }
            agent.extensions(id).await.map_err(refused(id))
        })
    }

    fn begin(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move {
            let id = self.machine.id;
            self.agent().begin(id).await.map_err(refused(id))
        })
    }

    fn destroy(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move {
            let sandbox = self.machine.id;
            self.machine.let_agent_go();
            self.machine
                .link
                .ask(sandbox, Request::Destroy { sandbox })
                .await?;
            self.machine.exits.forget(sandbox);
            Ok(())
        })
    }
}
