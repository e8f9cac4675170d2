//! A sandbox with nothing in it but what a test serves there.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use skiff_base::{ByteStream, SystemClock, Tasks};
use skiff_sandbox::{Sandbox, SandboxError};
use skiff_types::{FunctionLaunch, FunctionSpec, InstanceId, IsolationClass, StartCause};
use skiff_wire::launcher::{Exit, Stats};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::bridge::{Answer, Bridge, Event, Invocation, Origin, SIGKILL};
use crate::trailers::StreamError;
use crate::words;

const CONNECTIONS_MAX: usize = 16;
const PIPE_BYTES: usize = 64 * 1024;

/// A machine whose guest does nothing that it is told, unless it is an obedient
/// one: it ends by its destruction.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub destroyed: watch::Sender<bool>,
    /// What it was sent.
    pub signals: Mutex<Vec<i32>>,
    obeys: bool,
    listener: Mutex<Option<mpsc::Sender<DuplexStream>>>,
}

impl Fake {
    /// One that takes signals, and has used 31 MiB.
    pub fn obedient() -> Self {
        Self {
            obeys: true,
            ..Self::default()
        }
    }

    /// Connections to any port, from now on; they are refused before.
    pub fn listen(&self) -> mpsc::Receiver<DuplexStream> {
        let (sender, connections) = mpsc::channel(CONNECTIONS_MAX);
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        *listener = Some(sender);
        connections
    }

    fn open(&self) -> io::Result<ByteStream> {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let sent = listener.as_ref().map(|sender| sender.try_send(theirs));
        match sent {
            Some(Ok(())) => Ok(ByteStream::Memory(ours)),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

impl Sandbox for Fake {
    fn id(&self) -> InstanceId {
        InstanceId::from_parts(1, 1)
    }

    fn class(&self) -> IsolationClass {
        IsolationClass::Microvm
    }

    fn connect(&self, _: u16) -> BoxFuture<'_, io::Result<ByteStream>> {
        let opened = self.open();
        Box::pin(async { opened })
    }

    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.signals.lock().unwrap().push(signal);
        if !self.obeys {
            return Box::pin(std::future::pending());
        }
        if signal == SIGKILL {
            self.destroyed.send_replace(true);
        }
        Box::pin(async { Ok(()) })
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async { Ok(()) })
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async { Ok(()) })
    }

    fn stats(&self) -> BoxFuture<'_, Result<Stats, SandboxError>> {
        if !self.obeys {
            return Box::pin(std::future::pending());
        }
        Box::pin(async {
            Ok(Stats {
                cpu_us: 0,
                memory_bytes: 1 << 20,
                memory_peak_bytes: 31 << 20,
                pids: 1,
                oom_kills: 0,
            })
        })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async {
            let mut destroyed = self.destroyed.subscribe();
            destroyed.wait_for(|destroyed| *destroyed).await.unwrap();
            killed()
        })
    }

    fn destroy(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async {
            self.destroyed.send_replace(true);
            Ok(())
        })
    }
}

/// What serves this sandbox.
pub(crate) fn bridge_of(sandbox: &Arc<Fake>, origin: Origin) -> Arc<Bridge> {
    let function = FunctionLaunch {
        spec: FunctionSpec::default(),
        timeout_s: 3,
        memory_mib: 128,
        cause: StartCause::default(),
    };
    let clock = Arc::new(SystemClock);
    Arc::new(Bridge::new(function, sandbox.clone(), origin, clock, None))
}

/// Of an empty event.
pub(crate) fn invocation(id: &str) -> Invocation {
    let event = Event {
        id: id.to_owned(),
        body: Bytes::new(),
        deadline_unix_ms: 0,
        arn: String::new(),
        trace: words::trace(0),
        client_context: None,
    };
    Invocation {
        event,
        wants_log: false,
        is_cloud_event: false,
    }
}

/// The runtime streams its answer: its pieces, and how it ends.
pub(crate) fn streams(
    bridge: &Bridge,
    id: &str,
) -> (
    mpsc::Sender<Bytes>,
    oneshot::Sender<Result<(), StreamError>>,
) {
    let place = bridge.begin_answer(id).unwrap().unwrap();
    let (sender, pieces) = mpsc::channel(1);
    let (done, whole) = oneshot::channel();
    let answer = Answer::Stream {
        pieces,
        content_type: None,
        whole,
    };
    place.send(answer).unwrap();
    (sender, done)
}

/// The end of one that was killed.
pub(crate) fn killed() -> Exit {
    Exit {
        code: None,
        signal: Some(SIGKILL),
        out_of_memory: false,
        cpu_us: 0,
        memory_peak_bytes: 0,
    }
}

/// What is posted to a subscriber that listens inside, each array on its own.
pub(crate) fn posts(
    tasks: &Tasks,
    mut connections: mpsc::Receiver<DuplexStream>,
) -> mpsc::Receiver<Value> {
    let (sender, posts) = mpsc::channel(CONNECTIONS_MAX);
    tasks.spawn("subscriber", async move {
        while let Some(stream) = connections.recv().await {
            let sender = sender.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    assert_eq!(request.uri().path(), "/told");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let events = serde_json::from_slice(&body).unwrap();
                    sender.send(events).await.unwrap();
                    Ok::<_, Infallible>(Response::new(String::new()))
                }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // Its end is the client's to tell.
            drop(served.await);
        }
    });
    posts
}
