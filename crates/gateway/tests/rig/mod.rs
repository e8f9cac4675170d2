//! A gateway over real sockets, with applications that see raw bytes, and
//! fakes of what stands beside it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by several test binaries, none of which uses all"
)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, Clock, SystemClock};
use skiff_gateway::{
    ColdPhases, Demand, Gateway, GatewayConfig, Records, RequestRecord, RevisionRoute, ServeHandle,
    ServiceRoute, Upstream, WakeError,
};
use skiff_types::{InstanceId, IsolationClass, ProjectId, Protocol, RevisionId};

/// Generous: the machine is shared.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const HOST: &str = "hello.skiff.localhost";
/// Told as the address of an instance that calls over a local socket.
pub const CALLER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));

/// Polls until it holds.
#[track_caller]
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = SystemClock;
    let end = clock.now().plus(PATIENCE);
    while !holds() {
        assert!(clock.now() < end, "in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

type Start = Box<dyn Fn(&Arc<Gateway>, &RevisionId) + Send + Sync>;

#[derive(Default)]
pub struct Fakes {
    pub requests: Mutex<Vec<RequestRecord>>,
    pub cold: Mutex<Vec<(RevisionId, InstanceId, ColdPhases)>>,
    pub dead: Mutex<Vec<(InstanceId, String)>>,
    pub busy: AtomicUsize,
    pub idle: AtomicUsize,
    pub queued: AtomicUsize,
    pub last_waiting: AtomicU32,
    pub woken: AtomicUsize,
    pub wake_fails: AtomicUsize,
    /// Run by the first request that queues.
    pub on_queued: Mutex<Option<Start>>,
    gateway: Mutex<Weak<Gateway>>,
}

impl std::fmt::Debug for Fakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fakes")
    }
}

impl Demand for Fakes {
    fn queued(&self, revision: &RevisionId, waiting: u32, _: u32) {
        self.queued.fetch_add(1, Ordering::SeqCst);
        self.last_waiting.store(waiting, Ordering::SeqCst);
        if let Some(start) = self.on_queued.lock().unwrap().take() {
            let gateway = self.gateway.lock().unwrap().upgrade().unwrap();
            let revision = revision.clone();
            // Not from here: see `Demand`.
            std::thread::spawn(move || start(&gateway, &revision));
        }
    }
    fn busy(&self, _: InstanceId) {
        self.busy.fetch_add(1, Ordering::SeqCst);
    }
    fn idle(&self, _: InstanceId) {
        self.idle.fetch_add(1, Ordering::SeqCst);
    }
    fn dead(&self, instance: InstanceId, reason: &str) {
        self.dead
            .lock()
            .unwrap()
            .push((instance, reason.to_owned()));
    }
    fn wake(&self, _: InstanceId) -> BoxFuture<'_, Result<(), WakeError>> {
        self.woken.fetch_add(1, Ordering::SeqCst);
        let fails = self.wake_fails.load(Ordering::SeqCst) > 0;
        async move {
            if fails {
                Err(WakeError("frozen for good".to_owned()))
            } else {
                Ok(())
            }
        }
        .boxed()
    }
}

impl Records for Fakes {
    fn request(&self, record: &RequestRecord) {
        self.requests.lock().unwrap().push(record.clone());
    }
    fn cold_start(
        &self,
        revision: &RevisionId,
        instance: InstanceId,
        _: IsolationClass,
        phases: &ColdPhases,
    ) {
        let cold = (revision.clone(), instance, *phases);
        self.cold.lock().unwrap().push(cold);
    }
}

/// An instance at an address.
#[derive(Debug)]
pub struct At {
    pub id: InstanceId,
    pub address: SocketAddr,
    pub connects: AtomicUsize,
}

impl Upstream for At {
    fn instance(&self) -> InstanceId {
        self.id
    }
    fn class(&self) -> IsolationClass {
        IsolationClass::Container
    }
    fn connect(&self) -> BoxFuture<'_, io::Result<ByteStream>> {
        self.connects.fetch_add(1, Ordering::SeqCst);
        async {
            let stream = tokio::net::TcpStream::connect(self.address).await?;
            Ok(ByteStream::Tcp(stream))
        }
        .boxed()
    }
}

static NEXT_INSTANCE: AtomicU32 = AtomicU32::new(1);

pub fn at(address: SocketAddr) -> Arc<At> {
    Arc::new(At {
        id: InstanceId::from_parts(1, NEXT_INSTANCE.fetch_add(1, Ordering::SeqCst)),
        address,
        connects: AtomicUsize::new(0),
    })
}

pub fn revision(number: u32) -> RevisionId {
    RevisionId {
        project: ProjectId::default_project(),
        service: "hello".parse().unwrap(),
        number,
    }
}

pub fn route(number: u32) -> RevisionRoute {
    RevisionRoute {
        id: revision(number),
        protocol: Protocol::Http1,
        concurrency: 10,
        timeout_ms: 60_000,
        outlives_client: false,
        queue_requests: 100,
        queue_ms: 60_000,
        liveness_period_ms: 0,
        liveness_path: None,
    }
}

pub fn service(traffic: Vec<(RevisionId, u8)>) -> ServiceRoute {
    ServiceRoute {
        project: ProjectId::default_project(),
        service: "hello".parse().unwrap(),
        hosts: vec![HOST.to_owned()],
        traffic,
        tags: Vec::new(),
    }
}

pub struct Rig {
    pub gateway: Arc<Gateway>,
    pub fakes: Arc<Fakes>,
    pub address: SocketAddr,
    pub handle: Option<ServeHandle>,
}

impl Rig {
    /// One service with one revision and no instance.
    pub fn new(change: impl FnOnce(&mut RevisionRoute)) -> Self {
        Self::with(GatewayConfig::default(), 2, change)
    }

    pub fn with(
        config: GatewayConfig,
        threads: usize,
        change: impl FnOnce(&mut RevisionRoute),
    ) -> Self {
        let fakes = Arc::new(Fakes::default());
        let clock = Arc::new(SystemClock);
        let gateway = Gateway::new(config, fakes.clone(), fakes.clone(), clock);
        *fakes.gateway.lock().unwrap() = Arc::downgrade(&gateway);
        let mut route = route(1);
        change(&mut route);
        gateway.put_revision(route);
        gateway
            .put_service(&service(vec![(revision(1), 100)]))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let handle = gateway.serve(vec![listener], threads).unwrap();
        Self {
            gateway,
            fakes,
            address,
            handle: Some(handle),
        }
    }

    pub fn add(&self, address: SocketAddr) -> Arc<At> {
        let upstream = at(address);
        self.gateway
            .add_instance(&revision(1), upstream.clone(), None)
            .unwrap();
        upstream
    }

    pub fn client(&self) -> Raw {
        Raw::connect(self.address)
    }

    /// One request on a connection of its own; the whole answer.
    pub fn get(&self, path: &str) -> Message {
        let mut client = self.client();
        client.send(format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
        client.message()
    }

    pub fn records(&self) -> Vec<RequestRecord> {
        self.fakes.requests.lock().unwrap().clone()
    }

    pub fn dead(&self) -> Vec<(InstanceId, String)> {
        self.fakes.dead.lock().unwrap().clone()
    }

    pub fn drain(mut self, deadline: Duration) -> Result<(), skiff_gateway::DrainError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(self.handle.take().unwrap().drain(deadline))
    }
}

/// One end of a connection, byte by byte.
pub struct Raw<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

/// A head and a body as they were on the wire, the body decoded.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
}

impl Message {
    pub fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.head.split("\r\n").skip(1);
        let fields = fields.filter_map(|field| field.split_once(':'));
        fields
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is there {} times", all.len());
        all.first().copied()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Raw {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).unwrap())
    }
}

impl Raw<UnixStream> {
    pub fn local(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }
}

impl<S: Read + Write> Raw<S> {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// More bytes; false at the end of the stream, however it came.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                read > 0
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing comes: {error}"),
        }
    }

    /// Exactly this many bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.fill(), "the stream ended early: {:?}", self.buffered());
        }
        self.buffer.drain(..count).collect()
    }

    /// Whatever is left until the end of the stream.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }

    pub fn buffered(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Up to and including the mark; `None` at the end of the stream.
    pub fn until(&mut self, mark: &str) -> Option<String> {
        let mark = mark.as_bytes();
        loop {
            let found = self.buffer.windows(mark.len()).position(|w| w == mark);
            if let Some(at) = found {
                let taken = self.buffer.drain(..at + mark.len()).collect();
                return Some(String::from_utf8(taken).unwrap());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The next head; `None` when the stream has ended.
    pub fn head(&mut self) -> Option<Message> {
        self.until("\r\n\r\n").map(|head| Message {
            head,
            ..Message::default()
        })
    }

    /// A whole message with the body that its head announces.
    pub fn message(&mut self) -> Message {
        self.try_message().expect("the stream ended")
    }

    pub fn try_message(&mut self) -> Option<Message> {
        let mut message = self.head()?;
        self.read_body(&mut message);
        Some(message)
    }

    pub fn read_body(&mut self, message: &mut Message) {
        let length = message.field("content-length").map(str::to_owned);
        if message.field("transfer-encoding") == Some("chunked") {
            assert_eq!(length, None, "two framings: {}", message.head);
            while let Some(chunk) = self.chunk() {
                message.body.extend(chunk);
            }
            let mut trailers = String::new();
            loop {
                let line = self.until("\r\n").unwrap();
                if line == "\r\n" {
                    break;
                }
                trailers.push_str(&line);
            }
            message.trailers = trailers;
        } else if let Some(length) = length {
            message.body = self.take(length.parse().unwrap());
        }
    }

    /// One chunk; `None` for the last.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.until("\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            return None;
        }
        let chunk = self.take(size);
        assert_eq!(self.take(2), b"\r\n");
        Some(chunk)
    }
}

/// An application: what it does with each connection. It ends with the test's process.
pub fn app(serve: impl Fn(Raw) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            let stream = stream.unwrap();
            std::thread::spawn(move || serve(Raw::new(stream)));
        }
    });
    address
}

/// Answers each request with what `answer` makes of it, on kept connections.
pub fn http_app(answer: impl Fn(&Message) -> String + Send + Sync + 'static) -> SocketAddr {
    app(move |mut raw| {
        raw.stream.set_read_timeout(None).unwrap();
        while let Some(request) = raw.try_message() {
            raw.send(answer(&request));
        }
    })
}

pub fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An address that refuses connections.
pub fn refusing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
