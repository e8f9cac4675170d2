//! A virtual machine from the request for its monitor to its agent's hello.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skiff_base::{Listener, Tasks};
use skiff_types::InstanceId;
use skiff_wire::launcher::{Exit, Request, monitor_folder};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::config::{API, CONTROL, VSOCK};
use super::firecracker::Api;
use super::{refused, services};
use crate::agent::{AgentClient, AgentError};
use crate::container::Link;
use crate::launcher::Exits;
use crate::{Listeners, SandboxError};

/// Bytes of one line of a monitor's that are kept.
const LINE_BYTES_MAX: u64 = 1024;
/// For the last words of a monitor that has ended.
const WORDS_DEADLINE: Duration = Duration::from_secs(1);
/// For the end of a monitor whose sockets have closed.
const END_DEADLINE: Duration = Duration::from_millis(500);
/// What a monitor ends with whose guest has died, as by a triple fault.
const GUEST_DIED: i32 = 3;
/// Between two tries to reach an agent whose connection has ended.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A monitor that the launcher has started.
#[derive(Debug)]
pub struct Machine {
    pub id: InstanceId,
    pub link: Arc<Link>,
    folder: PathBuf,
    /// Of a monitor that is not ours.
    pub api: Option<Api>,
    /// The monitor's end.
    pub ended: watch::Receiver<Option<Exit>>,
    /// By the word of this machine's agent, which nobody else believes.
    pub exits: Exits,
    last_words: Arc<Mutex<String>>,
    /// Where its calls arrive, until somebody serves them.
    services: Mutex<Option<Listeners>>,
    /// Where a function's runtime calls, until somebody serves it.
    runtime: Mutex<Option<Listener>>,
    tasks: Tasks,
    /// Keeps the agent's connection.
    keeper: Tasks,
}

impl Machine {
    pub fn new(
        id: InstanceId,
        link: Arc<Link>,
        run_dir: &Path,
        ended: watch::Receiver<Option<Exit>>,
    ) -> Self {
        Self {
            id,
            link,
            folder: monitor_folder(run_dir, id),
            api: None,
            ended,
            exits: Exits::default(),
            last_words: Arc::default(),
            services: Mutex::default(),
            runtime: Mutex::default(),
            tasks: Tasks::new(),
            keeper: Tasks::new(),
        }
    }

    /// With a monitor that is not ours.
    pub fn foreign(mut self) -> Self {
        self.api = Some(Api::of(&self.folder.join(API)));
        self
    }

    /// The same, if it is so.
    pub fn foreign_if_there(self) -> Self {
        match self.folder.join(API).exists() {
            true => self.foreign(),
            false => self,
        }
    }

    pub fn control(&self) -> PathBuf {
        self.folder.join(CONTROL)
    }

    pub fn vsock(&self) -> PathBuf {
        self.folder.join(VSOCK)
    }

    /// Has its calls wait for who serves them, and those of a function's
    /// runtime: an application that calls as soon as it starts is not refused.
    pub async fn open_services(&self, function: bool) -> io::Result<()> {
        let listeners = self.bind(services::bind).await?;
        *lock(&self.services) = Some(listeners);
        if function {
            let listener = self.bind(services::bind_runtime).await?;
            *lock(&self.runtime) = Some(listener);
        }
        Ok(())
    }

    /// Where its calls arrive. Who asked before is not served any more.
    pub async fn take_services(&self) -> io::Result<Listeners> {
        let opened = lock(&self.services).take();
        match opened {
            Some(listeners) => Ok(listeners),
            None => self.bind(services::bind).await,
        }
    }

    /// Where a function's runtime calls, likewise.
    pub async fn take_runtime(&self) -> io::Result<Listener> {
        let opened = lock(&self.runtime).take();
        match opened {
            Some(listener) => Ok(listener),
            None => self.bind(services::bind_runtime).await,
        }
    }

    async fn bind<T: Send + 'static>(&self, bind: fn(&Path) -> io::Result<T>) -> io::Result<T> {
        let folder = self.folder.clone();
        super::blocking(move || bind(&folder)).await
    }

    /// Logs what the monitor says, and remembers its last line.
    pub fn listen(&self, output: impl IntoIterator<Item = OwnedFd>) {
        for fd in output {
            let (id, words) = (self.id, Arc::clone(&self.last_words));
            self.tasks.spawn("monitor output", async move {
                if let Err(error) = hear(id, fd, &words).await {
                    tracing::warn!(instance = %id, %error, "a monitor's output cannot be read");
                }
            });
        }
    }

    /// Waits for the agent, which comes with the kernel's boot.
    pub async fn agent(&self, deadline: Duration) -> Result<AgentClient, AgentError> {
        AgentClient::connect(&self.vsock(), self.exits.clone(), deadline).await
    }

    /// Lets nothing of it run: the monitor by the launcher's word, or the guest
    /// by its monitor's, where that is not ours. Such a one makes its machine
    /// inside of its cgroup, and with it a thread of the kernel's that never
    /// stands (cgroup v2, `cgroup.freeze`).
    pub async fn stand(&self) -> Result<(), SandboxError> {
        let sandbox = self.id;
        match &self.api {
            Some(api) => api.pause().await.map_err(refused(sandbox)),
            None => {
                let frozen = self.link.ask(sandbox, Request::Freeze { sandbox });
                frozen.await.map(drop)
            }
        }
    }

    /// Lets it run again.
    pub async fn go_on(&self) -> Result<(), SandboxError> {
        let sandbox = self.id;
        match &self.api {
            Some(api) => api.resume().await.map_err(refused(sandbox)),
            None => {
                let thawed = self.link.ask(sandbox, Request::Thaw { sandbox });
                thawed.await.map(drop)
            }
        }
    }

    /// Whether nothing of it runs, if the launcher says this of the monitor.
    pub async fn stands(&self, frozen: bool) -> Result<bool, SandboxError> {
        match &self.api {
            Some(api) => api.is_paused().await.map_err(refused(self.id)),
            None => Ok(frozen),
        }
    }

    /// Waits for the monitor's end.
    pub async fn end(&self) -> Exit {
        let mut ended = self.ended.clone();
        let known = ended.wait_for(Option::is_some).await;
        known.ok().and_then(|exit| *exit).unwrap_or(super::GONE)
    }

    /// What comes of the work, which the machine's end cuts off; an error says
    /// why that came, if it did.
    pub async fn while_it_lives<T>(
        &self,
        work: impl Future<Output = Result<T, SandboxError>>,
    ) -> Result<T, SandboxError> {
        let done = tokio::select! {
            done = work => done,
            error = self.died() => Err(error),
        };
        match done {
            Ok(done) => Ok(done),
            Err(error) => Err(self.blame(error).await),
        }
    }

    /// Why something failed: by the machine's end, if that comes now.
    async fn blame(&self, error: SandboxError) -> SandboxError {
        let died = tokio::time::timeout(END_DEADLINE, self.died()).await;
        died.unwrap_or(error)
    }

    /// Whether the monitor, if it is ours, has ended because of its guest.
    pub fn guest_has_died(&self) -> bool {
        let code = self.ended.borrow().and_then(|exit| exit.code);
        self.api.is_none() && code == Some(GUEST_DIED)
    }

    /// Why a machine that has ended did.
    pub async fn died(&self) -> SandboxError {
        let exit = self.end().await;
        // Its last words are in the pipes, or it said none.
        drop(self.tasks.drain(WORDS_DEADLINE).await);
        let words = lock(&self.last_words);
        let how = match (exit.code, exit.signal) {
            (Some(code), _) => format!("with {code}"),
            (None, Some(signal)) => format!("by signal {signal}"),
            (None, None) => "and nobody knows how".to_owned(),
        };
        let said = if words.is_empty() {
            String::new()
        } else {
            format!(": {words}")
        };
        SandboxError::Refused {
            instance: self.id,
            step: "monitor".to_owned(),
            message: format!("the monitor has ended {how}{said}"),
        }
    }

    /// The end of the agent's connection is wanted from now on.
    pub fn let_agent_go(&self) {
        self.keeper.abort();
    }

    /// Connects to the agent again whenever a connection ends, for as long as
    /// the machine lives.
    pub fn keep_agent(self: &Arc<Self>, current: watch::Sender<AgentClient>) {
        let machine = Arc::downgrade(self);
        self.keeper.spawn("agent connection", async move {
            loop {
                let client = current.borrow().clone();
                let why = client.closed().await;
                drop(client);
                let Some(machine) = machine.upgrade() else {
                    return;
                };
                if machine.ended.borrow().is_some() {
                    return;
                }
                tracing::warn!(instance = %machine.id, why, "an agent's connection has ended");
                match machine.agent(RECONNECT_DEADLINE).await {
                    Ok(client) => {
                        current.send_replace(client);
                    }
                    Err(error) => {
                        let error = skiff_base::chain(&error);
                        tracing::error!(instance = %machine.id, %error, "an agent is not reached again");
                        // What it runs is of no use to anybody.
                        machine.exits.set(machine.id, super::GONE);
                        return;
                    }
                }
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn hear(id: InstanceId, fd: OwnedFd, last: &Mutex<String>) -> io::Result<()> {
    let mut reader = BufReader::new(Receiver::from_owned_fd(fd)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        tracing::info!(instance = %id, text, "monitor");
        *lock(last) = text;
    }
}

/// Destroys a machine whose creation comes to nothing, whoever stops waiting
/// for it.
#[derive(Debug)]
pub struct Birth {
    link: Arc<Link>,
    id: InstanceId,
    tasks: Tasks,
    runtime: Handle,
    kept: bool,
}

impl Birth {
    pub fn of(machine: &Machine, tasks: &Tasks) -> Self {
        Self {
            link: machine.link.clone(),
            id: machine.id,
            tasks: tasks.clone(),
            runtime: Handle::current(),
            kept: false,
        }
    }

    /// It has been born.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// Undoes it, and waits until nothing is left.
    pub async fn undo(mut self) {
        self.kept = true;
        destroy(&self.link, self.id).await;
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (link, id) = (self.link.clone(), self.id);
        let undone = async move { destroy(&link, id).await };
        self.tasks.spawn_on("undo", undone, &self.runtime);
    }
}

async fn destroy(link: &Link, id: InstanceId) {
    if let Err(error) = link.ask(id, Request::Destroy { sandbox: id }).await {
        let error = skiff_base::chain(&error);
        tracing::error!(instance = %id, %error, "a machine that was not wanted stays");
    }
}
