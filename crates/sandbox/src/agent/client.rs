use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use skiff_base::Tasks;
use skiff_types::{Digest, InstanceId};
use skiff_wire::agent::{
    CONTROL_PORT, Envelope, OPENING_BYTES_MAX, Opened, Opening, PROTOCOL, REQUESTS_MAX, Reply,
    Request, STREAM_PORT, Window,
};
use skiff_wire::launcher::{ExecSpec, Listed, MachineNetwork, Refusal, SandboxSpec, Stats};
use skiff_wire::{FrameError, FrameReader, framed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, watch};

use super::dial::{dial, dial_patiently};
use super::driver::{Pending, read, write};
use crate::execs::ExecExits;
use crate::launcher::Exits;

/// Requests that wait to be written.
const QUEUE_MAX: usize = 64;
/// Being greeted by an agent that has been reached.
const HELLO_DEADLINE: Duration = Duration::from_secs(60);
/// Making or removing a sandbox, also when the machine is busy with others.
const SLOW_DEADLINE: Duration = Duration::from_secs(60);
/// Everything else.
const QUICK_DEADLINE: Duration = Duration::from_secs(20);
/// Pages of a list: with one sandbox a page, more than a machine holds.
const PAGES_MAX: usize = 10_000;

/// The agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be reached.
    #[error("the agent behind {} cannot be reached", monitor.display())]
    Connect {
        /// The monitor's socket.
        monitor: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection has ended; whether the request was carried out is not known.
    #[error("the agent's connection has ended: {0}")]
    Closed(String),
    /// No reply came in time; whether the request was carried out is not known.
    #[error("the agent did not answer `{what}` within {} s", deadline.as_secs())]
    Timeout {
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// It understood and refused.
    #[error("the agent refused `{what}` at {refusal}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its words.
        refusal: Refusal,
    },
    /// The request cannot be put in a frame.
    #[error("the request `{what}` cannot be sent")]
    Frame {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// The reply is not one to this request.
    #[error("the agent's reply to `{what}` is another one's")]
    Unexpected {
        /// What was asked.
        what: &'static str,
    },
    /// A stream ended before it was open.
    #[error("the stream `{what}` cannot be opened")]
    Stream {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl AgentError {
    /// Whether nothing but time has gone by.
    #[must_use]
    pub fn is_late(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Connect { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }
}

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentHello {
    /// The lower protocol of both sides' counts.
    pub protocol: u16,
    /// `skiff_wire::agent::FEATURE_*`.
    pub features: u64,
    /// The version of its program.
    pub version: String,
    /// The release of the guest's kernel.
    pub kernel: String,
}

/// A connection to a virtual machine's agent, shared by clones.
///
/// The tasks that read and write it run where it was made; calls may come
/// from any runtime. Dropping the last clone ends it, and nothing in the
/// machine: the machine is its caller's to end.
#[derive(Clone, Debug)]
pub struct AgentClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    monitor: PathBuf,
    hello: AgentHello,
    connection: Connection,
}

#[derive(Debug)]
struct Connection {
    queue: mpsc::Sender<Vec<u8>>,
    pending: Pending,
    /// Leave for a request to wait for its reply.
    leave: Arc<Semaphore>,
    next_id: AtomicU64,
    closed: watch::Receiver<Option<String>>,
    exits: Exits,
    execs: ExecExits,
    /// Owns the connection's tasks.
    _tasks: Tasks,
}

impl AgentClient {
    /// Connects to the agent behind a monitor's socket. While nobody listens,
    /// because the machine still boots, it tries again until the deadline.
    ///
    /// # Errors
    /// When it cannot be reached or does not greet in time.
    pub async fn connect(
        monitor: &Path,
        exits: Exits,
        deadline: Duration,
    ) -> Result<Self, AgentError> {
        let dialled = tokio::time::timeout(deadline, dial_patiently(monitor, CONTROL_PORT)).await;
        let socket = dialled
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| AgentError::Connect {
                monitor: monitor.to_owned(),
                source,
            })?;
        let connection = Connection::new(socket, exits);
        let hello = Request::Hello {
            protocol: PROTOCOL,
            features: 0,
        };
        match connection.call(hello).await? {
            Reply::Hello {
                protocol,
                features,
                version,
                kernel,
            } => Ok(Self {
                shared: Arc::new(Shared {
                    monitor: monitor.to_owned(),
                    hello: AgentHello {
                        protocol: protocol.min(PROTOCOL),
                        features,
                        version,
                        kernel,
                    },
                    connection,
                }),
            }),
            _ => Err(AgentError::Unexpected { what: "hello" }),
        }
    }

    /// What the agent said of itself.
    #[must_use]
    pub fn hello(&self) -> &AgentHello {
        &self.shared.hello
    }

    /// Who has ended.
    #[must_use]
    pub fn exits(&self) -> &Exits {
        &self.shared.connection.exits
    }

    /// Waits until the connection has ended and says why.
    pub async fn closed(&self) -> String {
        let mut closed = self.shared.connection.closed.clone();
        let why = closed.wait_for(Option::is_some).await;
        match why.as_deref() {
            Ok(Some(why)) => why.clone(),
            _ => "the connection's tasks were cut off".to_owned(),
        }
    }

    /// Sets up the machine's way out, before its first sandbox.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn connect_machine(&self, network: MachineNetwork) -> Result<(), AgentError> {
        self.done(Request::Connect(network)).await
    }

    /// Has a function's runtime find the host, before the function's sandbox.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn serve_runtime(&self) -> Result<(), AgentError> {
        self.done(Request::ServeRuntime).await
    }

    /// Makes a layer mountable that lies on a part of a disk.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn add_layer(&self, layer: Digest, window: Window) -> Result<(), AgentError> {
        self.done(Request::AddLayer { layer, window }).await
    }

    /// Unmounts a layer that no sandbox uses. When it is done, nothing reads
    /// the layer's part of the disk any more.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn remove_layer(&self, layer: Digest) -> Result<(), AgentError> {
        self.done(Request::RemoveLayer { layer }).await
    }

    /// Makes and starts a sandbox; how long each step took, microseconds.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn create(&self, spec: SandboxSpec) -> Result<Vec<(String, u32)>, AgentError> {
        match self.call(Request::Create(Box::new(spec))).await? {
            Reply::Created { steps_us } => Ok(steps_us),
            _ => Err(AgentError::Unexpected { what: "create" }),
        }
    }

    /// As [`AgentClient::create`], with the writable layer on the ext4 file
    /// system that lies on a part of a disk.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn create_on_disk(
        &self,
        spec: SandboxSpec,
        window: Window,
    ) -> Result<Vec<(String, u32)>, AgentError> {
        let spec = Box::new(spec);
        match self.call(Request::CreateOnDisk { spec, window }).await? {
            Reply::Created { steps_us } => Ok(steps_us),
            _ => Err(AgentError::Unexpected { what: "create" }),
        }
    }

    /// Creates a function, whose writable layer is on the file system there if
    /// it is on disk; the names of its extensions, for which it is held if there
    /// are any.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn create_function(
        &self,
        spec: SandboxSpec,
        window: Option<Window>,
    ) -> Result<Vec<String>, AgentError> {
        let spec = Box::new(spec);
        match self.call(Request::CreateFunction { spec, window }).await? {
            Reply::Created { .. } => Ok(Vec::new()),
            Reply::Held { extensions, .. } => Ok(extensions),
            _ => Err(AgentError::Unexpected { what: "create" }),
        }
    }

    /// Lets a function that is held go on.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn begin(&self, sandbox: InstanceId) -> Result<(), AgentError> {
        self.done(Request::Begin { sandbox }).await
    }

    /// The names of a function's extensions.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn extensions(&self, sandbox: InstanceId) -> Result<Vec<String>, AgentError> {
        match self.call(Request::Extensions { sandbox }).await? {
            Reply::Extensions(extensions) => Ok(extensions),
            _ => Err(AgentError::Unexpected { what: "extensions" }),
        }
    }

    /// Sends a signal to a sandbox's first process.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn signal(&self, sandbox: InstanceId, signal: i32) -> Result<(), AgentError> {
        self.done(Request::Signal { sandbox, signal }).await
    }

    /// Sets the size of a sandbox's terminal.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn resize(
        &self,
        sandbox: InstanceId,
        columns: u16,
        rows: u16,
    ) -> Result<(), AgentError> {
        let request = Request::Resize {
            sandbox,
            columns,
            rows,
        };
        self.done(request).await
    }

    /// Stops every process of a sandbox from running.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn freeze(&self, sandbox: InstanceId) -> Result<(), AgentError> {
        self.done(Request::Freeze { sandbox }).await
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn thaw(&self, sandbox: InstanceId) -> Result<(), AgentError> {
        self.done(Request::Thaw { sandbox }).await
    }

    /// Ends and removes a sandbox; one that is not there is no error.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn destroy(&self, sandbox: InstanceId) -> Result<(), AgentError> {
        self.done(Request::Destroy { sandbox }).await?;
        self.exits().forget(sandbox);
        self.exec_exits().forget_all(sandbox);
        Ok(())
    }

    /// Starts a further process in a sandbox that runs.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn exec(&self, spec: ExecSpec) -> Result<(), AgentError> {
        self.done(Request::Exec(Box::new(spec))).await
    }

    /// Which further processes have ended. A connection is told anew of those
    /// that are not forgotten.
    #[must_use]
    pub fn exec_exits(&self) -> &ExecExits {
        &self.shared.connection.execs
    }

    /// Sends a signal to a further process.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn signal_exec(
        &self,
        sandbox: InstanceId,
        exec: u64,
        signal: i32,
    ) -> Result<(), AgentError> {
        let request = Request::SignalExec {
            sandbox,
            exec,
            signal,
        };
        self.done(request).await
    }

    /// Sets the size of a further process's terminal.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn resize_exec(
        &self,
        sandbox: InstanceId,
        exec: u64,
        columns: u16,
        rows: u16,
    ) -> Result<(), AgentError> {
        let request = Request::ResizeExec {
            sandbox,
            exec,
            columns,
            rows,
        };
        self.done(request).await
    }

    /// Lets go of a further process that has ended.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn forget_exec(&self, sandbox: InstanceId, exec: u64) -> Result<(), AgentError> {
        self.done(Request::ForgetExec { sandbox, exec }).await?;
        self.exec_exits().forget(sandbox, exec);
        Ok(())
    }

    /// What a sandbox uses.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn stats(&self, sandbox: InstanceId) -> Result<Stats, AgentError> {
        match self.call(Request::Stats { sandbox }).await? {
            Reply::Stats(stats) => Ok(stats),
            _ => Err(AgentError::Unexpected { what: "stats" }),
        }
    }

    /// Every sandbox there is.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn list(&self) -> Result<Vec<Listed>, AgentError> {
        let mut all: Vec<Listed> = Vec::new();
        for _ in 0..PAGES_MAX {
            let after = all.last().map(|last| last.sandbox);
            match self.call(Request::List { after }).await? {
                Reply::List(page) if page.is_empty() => return Ok(all),
                Reply::List(page) if page.first().map(|first| first.sandbox) > after => {
                    all.extend(page);
                }
                _ => break,
            }
        }
        Err(AgentError::Unexpected { what: "list" })
    }

    /// Sets the machine's clock, nanoseconds since 1970.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn set_clock(&self, unix_ns: u64) -> Result<(), AgentError> {
        self.done(Request::SetClock { unix_ns }).await
    }

    /// Gives the machine's kernel fresh randomness.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn reseed(&self, seed: Vec<u8>) -> Result<(), AgentError> {
        self.done(Request::Reseed { seed }).await
    }

    /// Destroys every sandbox and switches the machine off, which is so when
    /// its monitor has ended.
    ///
    /// # Errors
    /// As [`AgentClient::call`].
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        self.done(Request::Shutdown).await
    }

    /// Opens a stream: of a sandbox, or to a port of the guest's loopback
    /// address. It may be opened whether or not the control connection lives.
    ///
    /// # Errors
    /// When the agent refuses, does not answer in time or is gone.
    pub async fn open(&self, opening: Opening) -> Result<UnixStream, AgentError> {
        let what = stream_name(&opening);
        let opened = tokio::time::timeout(QUICK_DEADLINE, self.open_now(what, &opening)).await;
        opened.map_err(|_| AgentError::Timeout {
            what,
            deadline: QUICK_DEADLINE,
        })?
    }

    async fn open_now(
        &self,
        what: &'static str,
        opening: &Opening,
    ) -> Result<UnixStream, AgentError> {
        let frame = framed(opening).map_err(|source| AgentError::Frame { what, source })?;
        let opened = async {
            let mut stream = dial(&self.shared.monitor, STREAM_PORT).await?;
            stream.write_all(&frame).await?;
            let opened = read_opened(&mut stream).await?;
            Ok((stream, opened))
        };
        let (stream, opened) = opened
            .await
            .map_err(|source| AgentError::Stream { what, source })?;
        opened.map_err(|refusal| AgentError::Refused { what, refusal })?;
        Ok(stream)
    }

    async fn done(&self, request: Request) -> Result<(), AgentError> {
        let (what, _) = kind(&request);
        match self.call(request).await? {
            Reply::Done => Ok(()),
            _ => Err(AgentError::Unexpected { what }),
        }
    }

    /// Asks anything and waits for the reply, each with the deadline of its kind.
    ///
    /// # Errors
    /// When the agent refuses, does not answer in time or is gone.
    pub async fn call(&self, request: Request) -> Result<Reply, AgentError> {
        self.shared.connection.call(request).await
    }
}

impl Connection {
    fn new(socket: UnixStream, exits: Exits) -> Self {
        let (queue, frames) = mpsc::channel(QUEUE_MAX);
        let (closed_sender, closed) = watch::channel(None);
        let closed_sender = Arc::new(closed_sender);
        let pending = Pending::new();
        let execs = ExecExits::default();
        let (reader, writer) = socket.into_split();
        let tasks = Tasks::new();
        let reading = read(
            reader,
            pending.clone(),
            exits.clone(),
            execs.clone(),
            closed_sender.clone(),
        );
        tasks.spawn("agent connection, reading", reading);
        let writing = write(writer, frames, pending.clone(), closed_sender);
        tasks.spawn("agent connection, writing", writing);
        Self {
            queue,
            pending,
            leave: Arc::new(Semaphore::new(REQUESTS_MAX)),
            next_id: AtomicU64::new(0),
            closed,
            exits,
            execs,
            _tasks: tasks,
        }
    }

    async fn call(&self, request: Request) -> Result<Reply, AgentError> {
        let (what, deadline) = kind(&request);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = framed(&Envelope { id, request })
            .map_err(|source| AgentError::Frame { what, source })?;
        tokio::time::timeout(deadline, self.exchange(id, frame))
            .await
            .map_err(|_| AgentError::Timeout { what, deadline })?
            .ok_or_else(|| AgentError::Closed(self.why_closed()))?
            .map_err(|refusal| AgentError::Refused { what, refusal })
    }

    async fn exchange(&self, id: u64, frame: Vec<u8>) -> Option<Result<Reply, Refusal>> {
        let leave = self.leave.clone().acquire_owned().await.ok()?;
        let replied = self.pending.insert(id, leave);
        self.queue.send(frame).await.ok()?;
        replied.await.ok()
    }

    fn why_closed(&self) -> String {
        let why = self.closed.borrow().clone();
        why.unwrap_or_else(|| "it is ending".to_owned())
    }
}

async fn read_opened(stream: &mut UnixStream) -> io::Result<Opened> {
    let mut reader = FrameReader::new(OPENING_BYTES_MAX);
    let mut piece = [0; OPENING_BYTES_MAX];
    loop {
        let wanted = reader.wanted().min(OPENING_BYTES_MAX);
        let length = stream.read(&mut piece[..wanted]).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(frame) = reader.push(&piece[..length]).map_err(io::Error::other)? {
            return skiff_wire::decode(&frame).map_err(io::Error::other);
        }
    }
}

fn stream_name(opening: &Opening) -> &'static str {
    match opening {
        Opening::Stdin { .. } => "stdin",
        Opening::Stdout { .. } => "stdout",
        Opening::Stderr { .. } => "stderr",
        Opening::Terminal { .. } => "terminal",
        Opening::Forward { .. } => "forward",
        Opening::ExecStdin { .. } => "exec stdin",
        Opening::ExecStdout { .. } => "exec stdout",
        Opening::ExecStderr { .. } => "exec stderr",
        Opening::ExecTerminal { .. } => "exec terminal",
    }
}

/// The word for a request, and its deadline.
fn kind(request: &Request) -> (&'static str, Duration) {
    match request {
        Request::Hello { .. } => ("hello", HELLO_DEADLINE),
        Request::Connect(_) => ("connect", QUICK_DEADLINE),
        Request::ServeRuntime => ("serve runtime", QUICK_DEADLINE),
        Request::AddLayer { .. } => ("add layer", QUICK_DEADLINE),
        Request::RemoveLayer { .. } => ("remove layer", QUICK_DEADLINE),
        Request::Create(_) | Request::CreateOnDisk { .. } | Request::CreateFunction { .. } => {
            ("create", SLOW_DEADLINE)
        }
        Request::Begin { .. } => ("begin", QUICK_DEADLINE),
        Request::Extensions { .. } => ("extensions", QUICK_DEADLINE),
        Request::Signal { .. } => ("signal", QUICK_DEADLINE),
        Request::Exec(_) => ("exec", SLOW_DEADLINE),
        Request::SignalExec { .. } => ("signal exec", QUICK_DEADLINE),
        Request::ResizeExec { .. } => ("resize exec", QUICK_DEADLINE),
        Request::ForgetExec { .. } => ("forget exec", QUICK_DEADLINE),
        Request::Resize { .. } => ("resize", QUICK_DEADLINE),
        Request::Freeze { .. } => ("freeze", QUICK_DEADLINE),
        Request::Thaw { .. } => ("thaw", QUICK_DEADLINE),
        Request::Destroy { .. } => ("destroy", SLOW_DEADLINE),
        Request::Stats { .. } => ("stats", QUICK_DEADLINE),
        Request::List { .. } => ("list", QUICK_DEADLINE),
        Request::SetClock { .. } => ("set clock", QUICK_DEADLINE),
        Request::Reseed { .. } => ("reseed", QUICK_DEADLINE),
        Request::Shutdown => ("shutdown", SLOW_DEADLINE),
    }
}
