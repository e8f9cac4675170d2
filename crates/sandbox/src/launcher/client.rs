use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use skiff_base::Tasks;
use skiff_types::ServerId;
use skiff_wire::launcher::{Envelope, Listed, PoolConfig, Refusal, Reply, Request};
use skiff_wire::{FRAME_FDS_MAX, FrameError};
use tokio::sync::{mpsc, oneshot, watch};

use super::driver::{About, Call, Driver, OWN_IDS, Outcome};
use super::exits::Exits;
use super::socket::FrameSocket;

/// Requests that wait to be written.
const QUEUE_MAX: usize = 256;
/// Reaching the launcher and being greeted.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Making or removing a sandbox, also when the machine is busy with others.
const SLOW_DEADLINE: Duration = Duration::from_secs(60);
/// Everything else.
const QUICK_DEADLINE: Duration = Duration::from_secs(20);
/// Pages of a list: with one sandbox a page, more than a machine holds.
const PAGES_MAX: usize = 100_000;

/// The launcher did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// It cannot be reached.
    #[error("the launcher cannot be reached")]
    Connect(#[source] io::Error),
    /// The connection has ended; whether the request was carried out is not known.
    #[error("the launcher's connection has ended: {0}")]
    Closed(String),
    /// No reply came in time; whether the request was carried out is not known.
    #[error("the launcher did not answer `{what}` within {} s", deadline.as_secs())]
    Timeout {
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// It understood and refused.
    #[error("the launcher refused `{what}` at {refusal}")]
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
    #[error("the launcher's reply to `{what}` is another one's")]
    Unexpected {
        /// What was asked.
        what: &'static str,
    },
}

/// A connection to the launcher, shared by clones.
///
/// The task that reads and writes it runs where it was made; calls may come
/// from any runtime. Dropping the last clone ends it.
#[derive(Clone, Debug)]
pub struct LauncherClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Call>,
    next_id: AtomicU64,
    closed: watch::Receiver<Option<String>>,
    exits: Exits,
    /// Owns the connection's task.
    _tasks: Tasks,
}

impl LauncherClient {
    /// Connects to the launcher of this server's data folder. A socket on
    /// which nobody listens yet is tried again until the deadline.
    ///
    /// # Errors
    /// When it cannot be reached in time, or serves another data folder.
    pub async fn connect(
        path: &Path,
        server: ServerId,
        exits: Exits,
    ) -> Result<Self, LauncherError> {
        let socket = tokio::time::timeout(CONNECT_DEADLINE, FrameSocket::connect(path))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(LauncherError::Connect)?;
        Self::greet(socket, server, exits).await
    }

    /// As [`LauncherClient::connect`], over a socket that is connected already.
    ///
    /// # Errors
    /// When the launcher does not greet in time, or serves another data folder.
    pub async fn over(
        socket: OwnedFd,
        server: ServerId,
        exits: Exits,
    ) -> Result<Self, LauncherError> {
        let socket = FrameSocket::new(socket).map_err(LauncherError::Connect)?;
        Self::greet(socket, server, exits).await
    }

    async fn greet(
        socket: FrameSocket,
        server: ServerId,
        exits: Exits,
    ) -> Result<Self, LauncherError> {
        let (queue, calls) = mpsc::channel(QUEUE_MAX);
        let (closed_sender, closed) = watch::channel(None);
        let tasks = Tasks::new();
        let driver = Driver::new(socket, calls, exits.clone());
        tasks.spawn("launcher connection", driver.run(closed_sender));
        let client = Self {
            shared: Arc::new(Shared {
                queue,
                next_id: AtomicU64::new(0),
                closed,
                exits,
                _tasks: tasks,
            }),
        };
        match client.call(Request::Hello { server }, vec![]).await? {
            (Reply::Hello { pid, version }, _) => {
                tracing::info!(pid, version, "the launcher answers");
                Ok(client)
            }
            _ => Err(LauncherError::Unexpected { what: "hello" }),
        }
    }

    /// Who has ended.
    #[must_use]
    pub fn exits(&self) -> &Exits {
        &self.shared.exits
    }

    /// Waits until the connection has ended and says why.
    pub async fn closed(&self) -> String {
        let mut closed = self.shared.closed.clone();
        let why = closed.wait_for(Option::is_some).await;
        match why.as_deref() {
            Ok(Some(why)) => why.clone(),
            _ => "the connection's task was cut off".to_owned(),
        }
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.queue.is_closed()
    }

    /// Sizes of what is prepared ahead of demand.
    ///
    /// # Errors
    /// As [`LauncherClient::call`].
    pub async fn configure(&self, pools: PoolConfig) -> Result<(), LauncherError> {
        self.call(Request::Configure(pools), vec![]).await.map(drop)
    }

    /// Every sandbox there is.
    ///
    /// # Errors
    /// As [`LauncherClient::call`].
    pub async fn list(&self) -> Result<Vec<Listed>, LauncherError> {
        let mut all: Vec<Listed> = Vec::new();
        for _ in 0..PAGES_MAX {
            let after = all.last().map(|last| last.sandbox);
            match self.call(Request::List { after }, vec![]).await? {
                (Reply::List(page), _) if page.is_empty() => return Ok(all),
                (Reply::List(page), _) if page.first().map(|first| first.sandbox) > after => {
                    all.extend(page);
                }
                _ => break,
            }
        }
        Err(LauncherError::Unexpected { what: "list" })
    }

    /// Executes another program file in the launcher's place.
    ///
    /// # Errors
    /// As [`LauncherClient::call`].
    pub async fn upgrade(&self, program: OwnedFd) -> Result<(), LauncherError> {
        self.call(Request::Upgrade, vec![program]).await.map(drop)
    }

    /// Destroys every sandbox and ends the launcher.
    ///
    /// # Errors
    /// As [`LauncherClient::call`].
    pub async fn shutdown(&self) -> Result<(), LauncherError> {
        self.call(Request::Shutdown, vec![]).await.map(drop)
    }

    /// Asks anything and waits for the reply, each with the deadline of its kind.
    ///
    /// A creation whose caller goes away is undone when its reply comes.
    ///
    /// # Errors
    /// When the launcher refuses, does not answer in time or is gone.
    pub async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), LauncherError> {
        let (what, about, deadline) = kind(&request);
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed) % OWN_IDS;
        let frame = skiff_wire::encode(&Envelope { id, request })
            .map_err(|source| LauncherError::Frame { what, source })?;
        if fds.len() > FRAME_FDS_MAX {
            let source = FrameError::TooLong(frame.len());
            return Err(LauncherError::Frame { what, source });
        }
        let (reply, replied) = oneshot::channel();
        let call = Call {
            id,
            frame,
            fds,
            about,
            reply,
        };
        tokio::time::timeout(deadline, self.exchange(call, replied))
            .await
            .map_err(|_| LauncherError::Timeout { what, deadline })?
            .ok_or_else(|| LauncherError::Closed(self.why_closed()))?
            .map_err(|refusal| LauncherError::Refused { what, refusal })
    }

    async fn exchange(&self, call: Call, replied: oneshot::Receiver<Outcome>) -> Option<Outcome> {
        self.shared.queue.send(call).await.ok()?;
        replied.await.ok()
    }

    fn why_closed(&self) -> String {
        let why = self.shared.closed.borrow().clone();
        why.unwrap_or_else(|| "it is ending".to_owned())
    }
}

/// The word for a request, what the connection must know of it, and its deadline.
fn kind(request: &Request) -> (&'static str, About, Duration) {
    let quick = |what| (what, About::Other, QUICK_DEADLINE);
    match request {
        Request::Hello { .. } => ("hello", About::Other, CONNECT_DEADLINE),
        Request::Configure(_) => quick("configure"),
        Request::AddLayer { .. } => quick("add layer"),
        Request::RemoveLayer { .. } => quick("remove layer"),
        Request::Create(spec) | Request::CreateFunction(spec) | Request::CreateServed(spec) => {
            ("create", About::Create(spec.sandbox), SLOW_DEADLINE)
        }
        Request::CreateMonitor(spec) => {
            ("create monitor", About::Create(spec.sandbox), SLOW_DEADLINE)
        }
        Request::Signal { .. } => quick("signal"),
        Request::Freeze { .. } => quick("freeze"),
        Request::Thaw { .. } => quick("thaw"),
        Request::Destroy { sandbox } => ("destroy", About::Destroy(*sandbox), SLOW_DEADLINE),
        Request::Sockets { .. } => quick("sockets"),
        Request::Exec(_) => ("exec", About::Other, SLOW_DEADLINE),
        Request::SignalExec { .. } => quick("signal exec"),
        Request::Stats { .. } => quick("stats"),
        Request::List { .. } => quick("list"),
        Request::Output { .. } => quick("output"),
        Request::Upgrade => quick("upgrade"),
        Request::Listeners { .. } => quick("listeners"),
        Request::RuntimeListener { .. } => quick("runtime listener"),
        Request::Begin { .. } => quick("begin"),
        Request::Extensions { .. } => quick("extensions"),
        Request::Shutdown => ("shutdown", About::Other, SLOW_DEADLINE),
        Request::KeepMonitors { .. } => quick("keep monitors"),
        Request::Disk { .. } => ("disk", About::Other, SLOW_DEADLINE),
    }
}
