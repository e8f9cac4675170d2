//! Further processes in instances.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use skiff_sandbox::{ExecRequest, Executed, Process, SandboxError, TerminalSize};
use skiff_types::Launch;
use skiff_wire::agent::ExecExit;
use tokio::runtime::Handle;

use crate::error::WorkerError;
use crate::instance::{Instance, Visit};
use crate::spec::process_spec;
use crate::worker::Inner;

/// A process that is wanted in an instance.
#[derive(Clone, Debug)]
pub struct ExecWish {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `NAME=VALUE`, each instead of the instance's own of that name.
    pub env: Vec<String>,
    /// Instead of the instance's own folder.
    pub workdir: Option<String>,
    /// It gets a terminal of this size.
    pub terminal: Option<TerminalSize>,
}

pub async fn start(
    inner: &Arc<Inner>,
    instance: &Arc<Instance>,
    launch: &Launch,
    wish: ExecWish,
) -> Result<Executed, WorkerError> {
    let mut visitor = Visitor {
        inner: Arc::clone(inner),
        process: None,
        visit: Some(instance.enter().await?),
        runtime: Handle::current(),
    };
    let request = request(launch, inner.config.nofile, wish);
    let executed = instance.sandbox()?.exec(request).await;
    let executed = executed.map_err(|error| WorkerError::Sandbox(instance.id, error))?;
    visitor.process = Some(executed.process);
    Ok(Executed {
        process: Box::new(visitor),
        ..executed
    })
}

fn request(launch: &Launch, nofile: u64, wish: ExecWish) -> ExecRequest {
    let mut process = process_spec(launch, nofile);
    process.args = wish.command;
    let name = |line: &str| line.split_once('=').map(|(name, _)| name.to_owned());
    for line in wish.env {
        process.env.retain(|own| name(own) != name(&line));
        process.env.push(line);
    }
    if let Some(folder) = wish.workdir {
        process.cwd = folder;
    }
    ExecRequest {
        process,
        terminal: wish.terminal,
    }
}

/// A process whose instance runs as long as it does.
#[derive(Debug)]
struct Visitor {
    inner: Arc<Inner>,
    /// Absent once it is being ended.
    process: Option<Box<dyn Process>>,
    visit: Option<Visit>,
    runtime: Handle,
}

impl Visitor {
    /// Ends the process, and the visit after it: a process that stands could
    /// not be ended.
    fn ending(&mut self) -> Option<BoxFuture<'static, ()>> {
        let visit = self.visit.take()?;
        let process = self.process.take();
        Some(Box::pin(async move {
            if let Some(process) = process {
                process.end().await;
            }
            let instance = Arc::clone(visit.instance());
            drop(visit);
            if let Err(error) = instance.settle().await {
                let error = skiff_base::chain(&error).to_string();
                tracing::warn!(instance = %instance.id, error, "an instance runs on after a visit");
            }
        }))
    }

    fn process(&self) -> Result<&dyn Process, SandboxError> {
        let gone = || SandboxError::Launcher(std::io::ErrorKind::NotConnected.into());
        self.process.as_deref().ok_or_else(gone)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if let Some(ending) = self.ending() {
            let tasks = &self.inner.tasks;
            tasks.spawn_on("end of visit", ending, &self.runtime);
        }
    }
}

impl Process for Visitor {
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move { self.process()?.signal(signal).await })
    }

    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move { self.process()?.resize(size).await })
    }

    fn exited(&self) -> BoxFuture<'_, ExecExit> {
        Box::pin(async move {
            match self.process() {
                Ok(process) => process.exited().await,
                Err(_) => ExecExit {
                    code: None,
                    signal: None,
                },
            }
        })
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
