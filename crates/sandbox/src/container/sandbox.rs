use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, Listener, Tasks};
use skiff_types::{InstanceId, IsolationClass};
use skiff_wire::agent::ExecExit;
use skiff_wire::launcher::{Exit, FIRST_PROCESS, Reply, Request, Stats};
use tokio::sync::watch;

use super::connect::{Tried, finish, into_stream, try_now};
use super::{Link, exec, unexpected};
use crate::exec::{ExecRequest, Executed, Slots, started};
use crate::launcher::UNKNOWN_EXIT;
use crate::{Datagrams, Listeners, Sandbox, SandboxError};

/// Sockets asked for at once: a probe, a request, and some in reserve.
const SOCKETS_ASKED: u8 = 4;
/// Sockets kept prepared.
const SOCKETS_KEPT: usize = 8;

/// One container, or what is left of it.
#[derive(Debug)]
pub struct ContainerSandbox {
    id: InstanceId,
    link: Arc<Link>,
    exit: watch::Receiver<Option<Exit>>,
    /// Sockets of its network namespace, not connected.
    stock: Mutex<Vec<OwnedFd>>,
    execs: Slots,
    extensions: Vec<String>,
    /// The end of a first process that they outlive.
    first: Option<watch::Receiver<Option<ExecExit>>>,
    /// Starts and ends further processes.
    tasks: Tasks,
}

impl ContainerSandbox {
    pub fn new(id: InstanceId, link: Arc<Link>, exit: watch::Receiver<Option<Exit>>) -> Self {
        Self {
            id,
            link,
            exit,
            stock: Mutex::default(),
            execs: Slots::default(),
            extensions: Vec::new(),
            first: None,
            tasks: Tasks::new(),
        }
    }

    /// With these extensions.
    pub fn with(self, extensions: Vec<String>) -> Self {
        let execs = self.link.exits.execs();
        let first = (!extensions.is_empty()).then(|| execs.watch(self.id, FIRST_PROCESS));
        Self {
            extensions,
            first,
            ..self
        }
    }

    fn take_prepared(&self) -> Option<OwnedFd> {
        let mut stock = self.stock.lock().unwrap_or_else(PoisonError::into_inner);
        stock.pop()
    }

    fn keep(&self, sockets: impl IntoIterator<Item = OwnedFd>) {
        let mut stock = self.stock.lock().unwrap_or_else(PoisonError::into_inner);
        stock.extend(sockets);
        stock.truncate(SOCKETS_KEPT);
    }

    async fn socket(&self) -> io::Result<OwnedFd> {
        if let Some(socket) = self.take_prepared() {
            return Ok(socket);
        }
        let request = Request::Sockets {
            sandbox: self.id,
            count: SOCKETS_ASKED,
        };
        match self.ask(request).await.map_err(io::Error::other)? {
            (Reply::Descriptors, mut sockets) => {
                let socket = sockets.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
                self.keep(sockets);
                Ok(socket)
            }
            _ => Err(io::Error::other(unexpected("sockets"))),
        }
    }

    async fn connect_to(&self, port: u16) -> io::Result<ByteStream> {
        let socket = self.socket().await?;
        let stream = match try_now(socket, port)? {
            Tried::Connected(socket) => into_stream(socket)?,
            Tried::Pending(socket) => finish(socket).await?,
            Tried::Refused(socket) => {
                self.keep([socket]);
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
        };
        Ok(ByteStream::Tcp(stream))
    }

    async fn ask(&self, request: Request) -> Result<(Reply, Vec<OwnedFd>), SandboxError> {
        self.link.ask(self.id, request).await
    }

    fn tell(&self, request: Request) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move { self.ask(request).await.map(drop) })
    }
}

impl Sandbox for ContainerSandbox {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn class(&self) -> IsolationClass {
        IsolationClass::Container
    }

    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<ByteStream>> {
        Box::pin(self.connect_to(port))
    }

    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.tell(Request::Signal {
            sandbox: self.id,
            signal,
        })
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.tell(Request::Freeze { sandbox: self.id })
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.tell(Request::Thaw { sandbox: self.id })
    }

    fn stats(&self) -> BoxFuture<'_, Result<Stats, SandboxError>> {
        Box::pin(async move {
            match self.ask(Request::Stats { sandbox: self.id }).await? {
                (Reply::Stats(stats), _) => Ok(stats),
                _ => Err(unexpected("stats")),
            }
        })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        let mut exit = self.exit.clone();
        Box::pin(async move {
            let known = exit.wait_for(Option::is_some).await;
            known.ok().and_then(|exit| *exit).unwrap_or(UNKNOWN_EXIT)
        })
    }

    fn first_ended(&self) -> BoxFuture<'_, ExecExit> {
        let first = self.first.clone();
        Box::pin(async move {
            if let Some(mut first) = first
                && let Ok(known) = first.wait_for(Option::is_some).await
                && let Some(ended) = *known
            {
                return ended;
            }
            std::future::pending().await
        })
    }

    fn listeners(&self) -> BoxFuture<'_, Result<Option<Listeners>, SandboxError>> {
        Box::pin(async move {
            let asked = self.ask(Request::Listeners { sandbox: self.id }).await?;
            let (Reply::Descriptors, fds) = asked else {
                return Err(unexpected("listeners"));
            };
            match <[OwnedFd; 3]>::try_from(fds) {
                Ok([gateway, dns_udp, dns_tcp]) => Ok(Some(Listeners {
                    gateway: TcpListener::from(gateway).into(),
                    dns: TcpListener::from(dns_tcp).into(),
                    dns_datagrams: Datagrams::Socket(dns_udp.into()),
                })),
                Err(_others) => Err(unexpected("listeners")),
            }
        })
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Executed, SandboxError>> {
        Box::pin(async move {
            let slot = self.execs.take(self.id)?;
            let (link, tasks) = (self.link.clone(), self.tasks.clone());
            let start = exec::start(self.id, link, slot, tasks, request);
            started(&self.tasks, self.id, start).await
        })
    }

    fn runtime_listener(&self) -> BoxFuture<'_, Result<Option<Listener>, SandboxError>> {
        Box::pin(async move {
            let request = Request::RuntimeListener { sandbox: self.id };
            match self.ask(request).await? {
                (Reply::Descriptors, mut fds) => match fds.pop() {
                    Some(fd) => Ok(Some(TcpListener::from(fd).into())),
                    None => Err(unexpected("runtime listener")),
                },
                _ => Err(unexpected("runtime listener")),
            }
        })
    }

    fn extensions(&self) -> BoxFuture<'_, Result<Vec<String>, SandboxError>> {
        // Those of a former server are not there any more: the launcher has
        // ended it with their connection.
        Box::pin(async { Ok(self.extensions.clone()) })
    }

    fn begin(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.tell(Request::Begin { sandbox: self.id })
    }

    fn destroy(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async move {
            self.ask(Request::Destroy { sandbox: self.id }).await?;
            if self.first.is_some() {
                self.link.exits.execs().forget(self.id, FIRST_PROCESS);
            }
            let stock =
                std::mem::take(&mut *self.stock.lock().unwrap_or_else(PoisonError::into_inner));
            drop(stock);
            Ok(())
        })
    }
}
