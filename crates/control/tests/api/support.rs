//! A whole control plane over a real socket, with parts that do as they are told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use skiff_control::port::*;
use skiff_control::{
    Config, Control, EventSettings, LambdaConfig, LambdaFront, Resolver, ServiceSettings,
};
use skiff_gateway::{RevisionRoute, ServiceRoute};
use skiff_types::api::{ColdStart, Instance, LogLine, Pruned, Quota, Usage, UsageCheck};
use skiff_types::{
    Digest, ErrorKind, InstanceId, IsolationClass, Launch, LogPage, LogRange, LogSpan, ProjectId,
    RevisionId, ServerId, ServiceName,
};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Notify;

use crate::store::TestStore;

/// How long a test waits for what must come: the machine may be slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a fleet does when it is asked to start an instance.
#[derive(Clone, Debug, Default)]
pub enum Start {
    #[default]
    Works,
    Fails(&'static str, Vec<String>),
    Hangs,
    Waits(Arc<Notify>),
}

#[derive(Debug, Default)]
pub struct Fleet {
    pub plans: Mutex<BTreeMap<RevisionId, RevisionPlan>>,
    pub removed: Mutex<Vec<RevisionId>>,
    pub start: Mutex<Start>,
    pub starts: AtomicUsize,
    pub launches: Mutex<Vec<Arc<Launch>>>,
    pub quotas: Mutex<HashMap<ProjectId, Quota>>,
    /// Processes that were asked for, and what they do.
    pub execs: Mutex<Vec<ExecWish>>,
    pub exec: Mutex<Option<Result<Executed, PortError>>>,
    pub resolver: OnceLock<Resolver>,
    ids: AtomicU64,
}

impl Fleet {
    pub fn serving(&self) -> Vec<String> {
        let plans = self.plans.lock().unwrap();
        let serving = plans.values().filter(|plan| plan.serving);
        serving.map(|plan| plan.id.name()).collect()
    }

    pub fn next_start(&self, start: Start) {
        *self.start.lock().unwrap() = start;
    }

    pub fn env_of_last(&self) -> Vec<String> {
        self.launches.lock().unwrap().last().unwrap().env.clone()
    }
}

impl skiff_control::port::Fleet for Fleet {
    fn put_revision(&self, plan: RevisionPlan) {
        self.plans.lock().unwrap().insert(plan.id.clone(), plan);
    }

    fn remove_revision(&self, revision: &RevisionId) {
        self.plans.lock().unwrap().remove(revision);
        self.removed.lock().unwrap().push(revision.clone());
    }

    fn start_one(&self, revision: &RevisionId) -> BoxFuture<'_, Result<InstanceId, StartFailure>> {
        assert!(
            self.plans.lock().unwrap().contains_key(revision),
            "put before start"
        );
        self.starts.fetch_add(1, Ordering::SeqCst);
        let start = self.start.lock().unwrap().clone();
        let revision = revision.clone();
        async move {
            let launched = self.resolver.get().unwrap().launch(&revision).await;
            match launched {
                Ok(launch) => self.launches.lock().unwrap().push(launch),
                Err(error) => {
                    return Err(StartFailure {
                        kind: error.kind,
                        message: error.message,
                        log: vec![],
                    });
                }
            }
            match start {
                Start::Works => {}
                Start::Waits(go) => go.notified().await,
                Start::Hangs => std::future::pending().await,
                Start::Fails(message, log) => {
                    let kind = ErrorKind::Failed;
                    return Err(StartFailure {
                        kind,
                        message: message.into(),
                        log,
                    });
                }
            }
            let id = self.ids.fetch_add(1, Ordering::SeqCst);
            Ok(InstanceId::from_parts(id, 0))
        }
        .boxed()
    }

    fn standing(&self, _: &RevisionId) -> Standing {
        Standing::default()
    }

    fn instances(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> BoxFuture<'_, Vec<Instance>> {
        let plans = self.plans.lock().unwrap();
        let of = |id: &&RevisionId| id.project == *project && id.service == *service;
        let tell = |id: &RevisionId| Instance {
            id: InstanceId::from_parts(1, id.number),
            revision: id.name(),
            state: "ready".into(),
            class: IsolationClass::Container,
            class_reason: "a test".into(),
            created_unix_ms: 0,
            in_flight: 0,
            memory_mib: None,
        };
        let found: Vec<_> = plans.keys().filter(of).map(tell).collect();
        async move { found }.boxed()
    }

    fn exec(&self, wish: ExecWish) -> BoxFuture<'_, Result<Executed, PortError>> {
        self.execs.lock().unwrap().push(wish);
        let next = self.exec.lock().unwrap().take();
        let none = || Err(PortError::new(ErrorKind::Conflict, "no instance runs"));
        async move { next.unwrap_or_else(none) }.boxed()
    }

    fn set_quota(&self, project: &ProjectId, quota: Quota) {
        self.quotas.lock().unwrap().insert(project.clone(), quota);
    }
}

#[derive(Debug, Default)]
pub struct Table {
    pub services: Mutex<BTreeMap<(ProjectId, ServiceName), ServiceRoute>>,
    pub revisions: Mutex<BTreeMap<RevisionId, RevisionRoute>>,
}

impl Table {
    /// `[("hello-00001", 100)]` of the default project.
    pub fn traffic(&self, service: &str) -> Vec<(String, u8)> {
        let key = (ProjectId::default_project(), service.parse().unwrap());
        let services = self.services.lock().unwrap();
        let route = services.get(&key);
        let told = |(id, percent): &(RevisionId, u8)| (id.name(), *percent);
        route
            .map(|route| route.traffic.iter().map(told).collect())
            .unwrap_or_default()
    }

    pub fn hosts(&self) -> Vec<String> {
        let services = self.services.lock().unwrap();
        services
            .values()
            .flat_map(|route| route.hosts.clone())
            .collect()
    }
}

impl Router for Table {
    fn put_service(&self, route: ServiceRoute) {
        let revisions = self.revisions.lock().unwrap();
        for (id, _) in &route.traffic {
            assert!(
                revisions.contains_key(id),
                "{id} was not put before its route"
            );
        }
        let sum: u32 = route
            .traffic
            .iter()
            .map(|(_, percent)| u32::from(*percent))
            .sum();
        assert_eq!(sum, 100);
        let key = (route.project.clone(), route.service.clone());
        self.services.lock().unwrap().insert(key, route);
    }

    fn remove_service(&self, project: &ProjectId, service: &ServiceName) {
        let key = (project.clone(), service.clone());
        self.services.lock().unwrap().remove(&key);
    }

    fn put_revision(&self, route: RevisionRoute) {
        self.revisions
            .lock()
            .unwrap()
            .insert(route.id.clone(), route);
    }

    fn remove_revision(&self, revision: &RevisionId) {
        let services = self.services.lock().unwrap();
        for route in services.values() {
            let routed = route.traffic.iter().any(|(id, _)| id == revision);
            assert!(!routed, "{revision} is still routed");
        }
        self.revisions.lock().unwrap().remove(revision);
    }
}

/// A registry and the store behind it.
#[derive(Debug, Default)]
pub struct Shelf {
    pub registry: Mutex<HashMap<String, StoredImage>>,
    pub stored: Mutex<Vec<StoredImage>>,
    pub pulls: AtomicUsize,
    /// A pull waits for it, once it is set.
    pub gate: Mutex<Option<Arc<Notify>>>,
}

/// The digest of the test image with this number.
pub fn digest(number: u8) -> Digest {
    Digest::from_sha256([number; 32])
}

pub fn image(reference: &str, number: u8) -> StoredImage {
    StoredImage {
        digest: digest(number),
        references: vec![reference.to_owned()],
        platform: "linux/amd64".into(),
        runs_here: true,
        size_bytes: 4096,
        layers: vec![(digest(number + 100), PathBuf::from("/layers/x.erofs"))],
        created_unix_ms: 1,
        config: ImageConfig {
            entrypoint: vec!["/server".into()],
            env: vec!["FROM_IMAGE=1".into()],
            user: "app".into(),
            ..ImageConfig::default()
        },
    }
}

impl Shelf {
    fn find_now(&self, reference: &str) -> Option<StoredImage> {
        let stored = self.stored.lock().unwrap();
        let named = |image: &&StoredImage| {
            image.digest.as_str() == reference || image.references.iter().any(|r| r == reference)
        };
        stored.iter().find(named).cloned()
    }

    pub fn holds(&self, number: u8) -> bool {
        self.find_now(digest(number).as_str()).is_some()
    }
}

impl Images for Shelf {
    fn pull(
        &self,
        request: PullRequest,
        progress: Progress,
    ) -> BoxFuture<'_, Result<Digest, PortError>> {
        async move {
            self.pulls.fetch_add(1, Ordering::SeqCst);
            let gate = self.gate.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.notified().await;
            }
            let found = self
                .registry
                .lock()
                .unwrap()
                .get(&request.reference)
                .cloned();
            let image = found.ok_or_else(|| {
                let message = format!("the registry has no {}", request.reference);
                PortError::new(ErrorKind::Failed, message)
            })?;
            progress(4096, Some(4096));
            let digest = image.digest.clone();
            self.stored.lock().unwrap().push(image);
            Ok(digest)
        }
        .boxed()
    }

    fn import(
        &self,
        reference: Option<String>,
        mut tar: BoxStream<'static, std::io::Result<Bytes>>,
        progress: Progress,
    ) -> BoxFuture<'_, Result<Digest, PortError>> {
        async move {
            let mut bytes = 0;
            while let Some(piece) = tar.next().await {
                let piece =
                    piece.map_err(|e| PortError::new(ErrorKind::TooLarge, e.to_string()))?;
                bytes += u64::try_from(piece.len()).unwrap();
                progress(bytes, None);
            }
            let mut image = image(&reference.unwrap_or_default(), 77);
            image.size_bytes = bytes;
            self.stored.lock().unwrap().push(image);
            Ok(digest(77))
        }
        .boxed()
    }

    fn find(&self, reference: &str) -> BoxFuture<'_, Result<Option<StoredImage>, PortError>> {
        let found = self.find_now(reference);
        async move { Ok(found) }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<StoredImage>, PortError>> {
        let all = self.stored.lock().unwrap().clone();
        async move { Ok(all) }.boxed()
    }

    fn remove(
        &self,
        reference: &str,
        in_use: &HashSet<Digest>,
    ) -> BoxFuture<'_, Result<Pruned, PortError>> {
        let found = self.find_now(reference).unwrap();
        assert!(!in_use.contains(&found.digest));
        self.stored
            .lock()
            .unwrap()
            .retain(|image| image.digest != found.digest);
        async move {
            Ok(Pruned {
                images: 1,
                layers: 1,
                bytes: 4096,
            })
        }
        .boxed()
    }

    fn prune(&self, in_use: &HashSet<Digest>) -> BoxFuture<'_, Result<Pruned, PortError>> {
        let mut stored = self.stored.lock().unwrap();
        let before = stored.len();
        stored.retain(|image| in_use.contains(&image.digest));
        let images = before - stored.len();
        async move {
            Ok(Pruned {
                images,
                layers: images,
                bytes: 0,
            })
        }
        .boxed()
    }

    fn resolve_user(
        &self,
        _digest: &Digest,
        user: &str,
    ) -> BoxFuture<'_, Result<ImageUser, PortError>> {
        assert_eq!(user, "app");
        let user = ImageUser {
            uid: 1000,
            gid: 1001,
            additional_gids: vec![7],
            home: "/home/app".into(),
        };
        async move { Ok(user) }.boxed()
    }

    fn spool(&self) -> BoxFuture<'_, Result<std::fs::File, PortError>> {
        async move { Err(no_code()) }.boxed()
    }

    fn add_code(
        &self,
        _zip: std::fs::File,
        _root: CodeRoot,
    ) -> BoxFuture<'_, Result<StoredCode, PortError>> {
        async move { Err(no_code()) }.boxed()
    }

    fn open_code(
        &self,
        _digest: &Digest,
    ) -> BoxFuture<'_, Result<Option<std::fs::File>, PortError>> {
        async move { Err(no_code()) }.boxed()
    }

    fn compose(&self, _parts: Composition) -> BoxFuture<'_, Result<StoredImage, PortError>> {
        async move { Err(no_code()) }.boxed()
    }
}

fn no_code() -> PortError {
    PortError::new(ErrorKind::Unsupported, "this shelf keeps no code")
}

/// Logs, traces and ledger that answer something of each kind.
#[derive(Debug, Default)]
pub struct Records {
    pub last_log: Mutex<Option<LogQuery>>,
    pub last_usage: Mutex<Option<UsageQuery>>,
}

impl Logs for Records {
    fn read(
        &self,
        query: LogQuery,
    ) -> BoxFuture<'_, Result<BoxStream<'static, LogLine>, PortError>> {
        let line = |text: &str| LogLine {
            unix_ms: 1,
            instance: InstanceId::from_parts(1, 1),
            revision: "hello-00001".into(),
            stream: "stdout".into(),
            text: text.into(),
        };
        let past = stream::iter(vec![line("one"), line("two\nlines")]);
        let lines = if query.follow {
            past.chain(stream::pending()).boxed()
        } else {
            past.boxed()
        };
        *self.last_log.lock().unwrap() = Some(query);
        async move { Ok(lines) }.boxed()
    }

    fn page(&self, _range: LogRange) -> BoxFuture<'_, Result<LogPage, PortError>> {
        async move { Ok(LogPage::default()) }.boxed()
    }

    fn spans(
        &self,
        _project: &ProjectId,
        _service: &ServiceName,
    ) -> BoxFuture<'_, Result<Vec<LogSpan>, PortError>> {
        async move { Ok(vec![]) }.boxed()
    }
}

impl Traces for Records {
    fn cold_starts(
        &self,
        _project: &ProjectId,
        service: Option<&ServiceName>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<ColdStart>, PortError>> {
        let trace = ColdStart {
            unix_ms: 1,
            service: service.cloned().unwrap_or_else(|| "hello".parse().unwrap()),
            revision: "hello-00001".into(),
            instance: InstanceId::from_parts(1, 1),
            class: IsolationClass::Container,
            phases_us: vec![("queue".into(), 5)],
            total_us: u64::from(limit),
        };
        async move { Ok(vec![trace]) }.boxed()
    }
}

impl UsageSource for Records {
    fn usage(&self, query: UsageQuery) -> BoxFuture<'_, Result<Usage, PortError>> {
        let usage = Usage {
            from_unix_ms: query.from_unix_ms,
            to_unix_ms: query.to_unix_ms,
            currency: "EUR".into(),
            rows: vec![],
            gaps: vec![],
        };
        *self.last_usage.lock().unwrap() = Some(query);
        async move { Ok(usage) }.boxed()
    }

    fn check(&self, _from: u64, _to: u64) -> BoxFuture<'_, Result<UsageCheck, PortError>> {
        async move {
            Ok(UsageCheck {
                checks: vec![],
                ok: true,
            })
        }
        .boxed()
    }
}

/// A gateway that nobody gets to.
#[derive(Debug)]
struct Nowhere;

impl Revisions for Nowhere {
    fn connect(&self) -> std::io::Result<std::os::unix::net::UnixStream> {
        Err(std::io::ErrorKind::NotConnected.into())
    }
}

/// What outlives a server: its store, its images and its key.
#[derive(Clone, Debug)]
pub struct World {
    pub dir: Arc<tempfile::TempDir>,
    pub store: TestStore,
    pub shelf: Arc<Shelf>,
}

impl World {
    pub fn new() -> Self {
        let shelf = Shelf::default();
        for number in 1..=9 {
            let reference = format!("hello:{number}");
            let image = image(&reference, number);
            shelf.registry.lock().unwrap().insert(reference, image);
        }
        Self {
            dir: Arc::new(tempfile::tempdir().unwrap()),
            store: TestStore::default(),
            shelf: Arc::new(shelf),
        }
    }

    pub fn config(&self) -> Config {
        let data_dir = self.dir.path().join("data");
        std::fs::create_dir_all(&data_dir).unwrap();
        Config {
            version: "0.1.0".into(),
            server_id: ServerId::from_parts(1, 1),
            domain: "skiff.localhost".into(),
            url_scheme: "http".into(),
            url_port: Some(8080),
            lambda: None,
            gateway: vec!["127.0.0.1:8080".into()],
            data_dir,
            secret_key_file: self.key_file(),
            allow_null: false,
            queue_requests: 10,
            queue_ms: 1000,
            roles: BTreeMap::new(),
            import_bytes_max: 1_000_000,
        }
    }

    /// The folder of events.
    pub fn events(&self) -> PathBuf {
        self.dir.path().join("events")
    }

    pub fn key_file(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub async fn start(&self) -> Server {
        let images: Arc<dyn Images> = self.shelf.clone();
        let resolver = Resolver::open(self.config(), self.store.open(), images);
        let resolver = resolver.await.unwrap();
        let (fleet, table) = (Arc::<Fleet>::default(), Arc::<Table>::default());
        fleet.resolver.set(resolver.clone()).unwrap();
        let records = Arc::<Records>::default();
        let ports = Ports {
            fleet: fleet.clone(),
            router: table.clone(),
            logs: records.clone(),
            traces: records.clone(),
            usage: records.clone(),
            metrics: Arc::new(|| "skiff_up 1\n".to_owned()),
        };
        let control = Control::start(resolver.clone(), ports).await.unwrap();
        let socket = self
            .dir
            .path()
            .join(format!("{:x}.sock", skiff_base::random::u64()));
        let listener = UnixListener::bind(&socket).unwrap();
        let tasks = skiff_base::Tasks::new();
        let serving = control.clone();
        tasks.spawn("unix", async move { serving.serve_unix(listener).await });
        Server {
            control,
            resolver,
            fleet,
            table,
            records,
            socket,
            tasks,
            world: self.clone(),
        }
    }
}

pub struct Server {
    pub control: Control,
    pub resolver: Resolver,
    pub fleet: Arc<Fleet>,
    pub table: Arc<Table>,
    pub records: Arc<Records>,
    pub socket: PathBuf,
    pub tasks: skiff_base::Tasks,
    pub world: World,
}

/// A status and the values of a body, one a line, or one in all.
pub struct Answer {
    pub status: u16,
    pub lines: Vec<Value>,
    pub text: String,
}

impl Answer {
    pub fn body(&self) -> &Value {
        self.lines.first().unwrap_or(&Value::Null)
    }

    pub fn last(&self) -> &Value {
        self.lines.last().unwrap_or(&Value::Null)
    }

    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(self.text.contains(part), "`{part}` is not in {}", self.text);
        self
    }
}

pub type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

pub async fn connect<S>(stream: S, tasks: &skiff_base::Tasks) -> Sender
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tasks.spawn("client", async move {
        let _ended = connection.await.is_ok();
    });
    sender
}

pub async fn send(
    mut sender: Sender,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Answer {
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "skiff");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).unwrap();
    let answer = async {
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let whole = serde_json::from_str::<Value>(&text).map(|value| vec![value]);
        let each = || {
            text.lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect()
        };
        let lines = whole.unwrap_or_else(|_| each());
        Answer {
            status,
            lines,
            text,
        }
    };
    tokio::time::timeout(PATIENCE, answer).await.unwrap()
}

impl Server {
    pub async fn connect(&self) -> Sender {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        connect(stream, &self.tasks).await
    }

    pub async fn raw(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        send(self.connect().await, method, path, &[], body.into()).await
    }

    pub async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.raw(method, path, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    /// Begins with what AWS Lambda's API does by itself: events, schedules, and
    /// sources, which may be streams that are there.
    pub async fn lambda(&self, streams: Option<ServiceSettings>) -> LambdaFront {
        let config = LambdaConfig {
            region: "us-east-1".into(),
            egress: false,
            events: EventSettings {
                folder: self.world.events(),
                retry_ms: 10,
                backoff_ms: 10,
                per_function: 16,
                at_once: 1,
                bytes_max: 1_000_000,
                destinations: vec![],
                sqs: None,
                streams,
            },
            runtimes: BTreeMap::new(),
            objects: None,
        };
        let front = self.control.lambda(config, Arc::new(Nowhere));
        front.await.unwrap()
    }

    /// Deploys into the default project.
    pub async fn deploy(&self, service: &str, body: Value) -> Answer {
        self.call("PUT", &service_path(service), body).await
    }

    #[track_caller]
    pub fn deployed(&self, service: &str, number: u8) -> impl Future<Output = ()> {
        let deploy = self.deploy(service, plain(number));
        async move {
            let answer = deploy.await.is(200);
            assert_eq!(answer.last()["event"], "done", "{}", answer.text);
        }
    }

    /// A listener for tokens, and its address.
    pub async fn tcp(&self) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = self.control.clone();
        self.tasks.spawn(
            "tcp",
            async move { serving.serve_tcp(listener, None).await },
        );
        address
    }

    pub async fn tcp_call(
        &self,
        address: std::net::SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Answer {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        send(
            connect(stream, &self.tasks).await,
            method,
            path,
            headers,
            body.into(),
        )
        .await
    }

    /// Ends it as a crash does: what is under way is cut off where it stands.
    pub async fn crash(self) -> World {
        self.control.stop(Duration::ZERO).await;
        self.tasks.abort();
        self.world
    }
}

pub fn service_path(service: &str) -> String {
    format!("/v1/projects/default/services/{service}")
}

/// A deployment of `hello:NUMBER` with nothing else said.
pub fn plain(number: u8) -> Value {
    json!({"containers": [{"image": format!("hello:{number}")}]})
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
}
