//! A backend whose sandboxes do what a script says, and records that are kept.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, SystemClock, Tasks};
use skiff_sandbox::{
    Backend, CreateSpec, Created, Found, LayerFile, Output, Sandbox, SandboxError,
};
use skiff_types::{
    InstanceId, IsolationClass, IsolationRequest, Launch, Probe, ProbeKind, ProjectId, Resources,
    RevisionId,
};
use skiff_wire::launcher::{Exit, Stats};
use skiff_worker::{
    Backends, Ended, InstanceEnd, InstanceStart, SandboxWatcher, Worker, WorkerConfig,
    WorkerRecords,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How a sandbox behaves.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Connections refused before the first that is taken; `None` refuses all.
    pub refuses: Option<u32>,
    /// What the application answers first, one for each connection; 200 then.
    pub answers: Vec<u16>,
    /// Written to standard output and error at once.
    pub stdout: String,
    pub stderr: String,
    /// How it ends, at once.
    pub exit: Option<Exit>,
    pub ignores_stop: bool,
    /// The creation is refused.
    pub refuse: bool,
    /// The creation never ends.
    pub hang: bool,
}

/// Everything that happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    Start(InstanceStart),
    Sample(InstanceId, u64),
    End(InstanceEnd),
    Layers(usize),
    Create(InstanceId),
    Signal(i32),
    Pause,
    Resume,
    Destroy(InstanceId),
    There(InstanceId),
    Gone(InstanceId),
}

#[derive(Clone, Debug, Default)]
pub struct Diary(Arc<Mutex<Vec<Happened>>>);

impl Diary {
    pub fn push(&self, happened: Happened) {
        self.0.lock().unwrap().push(happened);
    }

    pub fn all(&self) -> Vec<Happened> {
        self.0.lock().unwrap().clone()
    }

    pub fn ends(&self) -> Vec<InstanceEnd> {
        let end = |happened| match happened {
            Happened::End(end) => Some(end),
            _ => None,
        };
        self.all().into_iter().filter_map(end).collect()
    }

    pub fn starts(&self) -> usize {
        let all = self.all();
        all.iter()
            .filter(|h| matches!(h, Happened::Start(_)))
            .count()
    }

    pub fn steering(&self) -> Vec<Happened> {
        let steers =
            |h: &Happened| matches!(h, Happened::Signal(_) | Happened::Pause | Happened::Resume);
        self.all().into_iter().filter(steers).collect()
    }
}

impl WorkerRecords for Diary {
    fn instance_start(&self, start: &InstanceStart) {
        self.push(Happened::Start(start.clone()));
    }
    fn instance_sample(&self, instance: InstanceId, _lifetime_us: u64, cpu_us: u64) {
        self.push(Happened::Sample(instance, cpu_us));
    }
    fn instance_end(&self, end: &InstanceEnd) {
        self.push(Happened::End(end.clone()));
    }
}

impl SandboxWatcher for Diary {
    fn there(&self, _revision: &RevisionId, _egress: bool, sandbox: &Arc<dyn Sandbox>) {
        self.push(Happened::There(sandbox.id()));
    }
    fn gone(&self, instance: InstanceId) {
        self.push(Happened::Gone(instance));
    }
}

#[derive(Debug, Default)]
pub struct FakeBackend {
    script: Mutex<Script>,
    pub diary: Diary,
    pub there: Arc<Mutex<HashMap<InstanceId, Arc<FakeSandbox>>>>,
    tasks: Tasks,
}

impl FakeBackend {
    pub fn script(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    pub fn sandbox(&self, id: InstanceId) -> Arc<FakeSandbox> {
        self.there.lock().unwrap()[&id].clone()
    }

    pub fn alive(&self) -> usize {
        self.there.lock().unwrap().len()
    }
}

impl Backend for FakeBackend {
    fn class(&self) -> IsolationClass {
        IsolationClass::Container
    }

    fn prepare<'a>(&'a self, layers: &'a [LayerFile]) -> BoxFuture<'a, Result<(), SandboxError>> {
        self.diary.push(Happened::Layers(layers.len()));
        Box::pin(async { Ok(()) })
    }

    fn create(&self, spec: CreateSpec) -> BoxFuture<'_, Result<Created, SandboxError>> {
        Box::pin(async move {
            let script = self.script.lock().unwrap().clone();
            if script.hang {
                std::future::pending::<()>().await;
            }
            if script.refuse {
                return Err(SandboxError::Refused {
                    instance: spec.instance,
                    step: "exec".to_owned(),
                    message: "no such file or directory".to_owned(),
                });
            }
            self.diary.push(Happened::Create(spec.instance));
            let sandbox = Arc::new(FakeSandbox::new(&spec, script, self));
            let mut there = self.there.lock().unwrap();
            there.insert(spec.instance, sandbox.clone());
            Ok(Created {
                output: Some(sandbox.output()),
                sandbox,
                steps_us: vec![("exec".to_owned(), 5)],
                paused: false,
            })
        })
    }

    fn adopt(&self) -> BoxFuture<'_, Result<Vec<Found>, SandboxError>> {
        let there: Vec<_> = self.there.lock().unwrap().values().cloned().collect();
        Box::pin(async move {
            let found = |sandbox: Arc<FakeSandbox>| Found {
                label: sandbox.label.clone(),
                created: Created {
                    output: Some(sandbox.output()),
                    paused: sandbox.paused.load(Ordering::SeqCst),
                    sandbox,
                    steps_us: vec![],
                },
            };
            Ok(there.into_iter().map(found).collect())
        })
    }
}

#[derive(Debug)]
pub struct FakeSandbox {
    id: InstanceId,
    pub label: Vec<u8>,
    script: Script,
    exit: watch::Sender<Option<Exit>>,
    tries: AtomicU32,
    pub paused: AtomicBool,
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
    diary: Diary,
    there: Arc<Mutex<HashMap<InstanceId, Arc<FakeSandbox>>>>,
    tasks: Tasks,
}

impl FakeSandbox {
    fn new(spec: &CreateSpec, script: Script, backend: &FakeBackend) -> Self {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (stdout, stderr) = (pipe(), pipe());
        rustix::io::write(&stdout.1, script.stdout.as_bytes()).unwrap();
        rustix::io::write(&stderr.1, script.stderr.as_bytes()).unwrap();
        Self {
            id: spec.instance,
            label: spec.label.clone(),
            exit: watch::Sender::new(script.exit),
            script,
            tries: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            stdout,
            stderr,
            diary: backend.diary.clone(),
            there: backend.there.clone(),
            tasks: backend.tasks.clone(),
        }
    }

    fn output(&self) -> Output {
        Output {
            stdout: self.stdout.0.try_clone().unwrap(),
            stderr: self.stderr.0.try_clone().unwrap(),
            ends: false,
        }
    }

    /// The application writes.
    pub fn print(&self, text: &str) {
        rustix::io::write(&self.stdout.1, text.as_bytes()).unwrap();
    }

    /// The application ends.
    pub fn end(&self, exit: Exit) {
        self.exit
            .send_if_modified(|known| known.is_none() && known.replace(exit).is_none());
    }
}

impl Sandbox for FakeSandbox {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn class(&self) -> IsolationClass {
        IsolationClass::Container
    }

    fn connect(&self, _port: u16) -> BoxFuture<'_, io::Result<ByteStream>> {
        let count = self.tries.fetch_add(1, Ordering::SeqCst);
        let refused = self.script.refuses.is_none_or(|refuses| count < refuses);
        if refused || self.exit.borrow().is_some() {
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        }
        let taken = count - self.script.refuses.unwrap_or(0);
        let answer = self.script.answers.get(usize::try_from(taken).unwrap());
        let answer = format!("HTTP/1.1 {} X\r\n\r\n", answer.unwrap_or(&200));
        let (near, mut far) = tokio::io::duplex(1024);
        self.tasks.spawn("application", async move {
            let mut buffer = [0; 1024];
            if matches!(far.read(&mut buffer).await, Ok(1..)) {
                let _gone = far.write_all(answer.as_bytes()).await;
            }
        });
        Box::pin(async { Ok(ByteStream::Memory(near)) })
    }

    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.diary.push(Happened::Signal(signal));
        let paused = self.paused.load(Ordering::SeqCst);
        if signal == 9 {
            self.end(killed(9));
        } else if !self.script.ignores_stop && !paused {
            self.end(exited(0));
        }
        Box::pin(async { Ok(()) })
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.diary.push(Happened::Pause);
        self.paused.store(true, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.diary.push(Happened::Resume);
        self.paused.store(false, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn stats(&self) -> BoxFuture<'_, Result<Stats, SandboxError>> {
        let stats = Stats {
            cpu_us: 1000,
            ..Stats::default()
        };
        Box::pin(async move { Ok(stats) })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        let mut exit = self.exit.subscribe();
        Box::pin(async move {
            let known = exit.wait_for(Option::is_some).await;
            known.unwrap().unwrap()
        })
    }

    fn destroy(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.diary.push(Happened::Destroy(self.id));
        self.there.lock().unwrap().remove(&self.id);
        Box::pin(async { Ok(()) })
    }
}

pub fn exited(code: i32) -> Exit {
    Exit {
        code: Some(code),
        signal: None,
        out_of_memory: false,
        cpu_us: 2000,
        memory_peak_bytes: 0,
    }
}

pub fn killed(signal: i32) -> Exit {
    Exit {
        code: None,
        signal: Some(signal),
        ..exited(0)
    }
}

/// A worker over a fake backend.
pub struct Fixture {
    pub worker: Arc<Worker>,
    pub ends: mpsc::Receiver<Ended>,
    pub backend: Arc<FakeBackend>,
    pub diary: Diary,
    pub folder: TempDir,
}

pub fn fixture() -> Fixture {
    fixture_with(|_| {})
}

pub fn fixture_with(change: impl FnOnce(&mut WorkerConfig)) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let backend = Arc::new(FakeBackend::default());
    backend.script(Script {
        refuses: Some(0),
        ..Script::default()
    });
    let mut config = WorkerConfig::new(folder.path().join("logs"));
    change(&mut config);
    let diary = backend.diary.clone();
    let (worker, ends) = worker_over(&backend, config);
    Fixture {
        worker,
        ends,
        backend,
        diary,
        folder,
    }
}

pub fn worker_over(
    backend: &Arc<FakeBackend>,
    config: WorkerConfig,
) -> (Arc<Worker>, mpsc::Receiver<Ended>) {
    let (worker, ends) = Worker::new(
        config,
        Backends::container(backend.clone()),
        Arc::new(backend.diary.clone()),
        Arc::new(SystemClock),
    )
    .unwrap();
    (Arc::new(worker), ends)
}

pub fn id(number: u32) -> InstanceId {
    InstanceId::from_parts(1_700_000_000_000, number)
}

pub fn revision() -> RevisionId {
    RevisionId::parse(&ProjectId::default_project(), "hello-00001").unwrap()
}

pub fn launch() -> Launch {
    Launch {
        revision: revision(),
        isolation: IsolationRequest::Auto,
        layers: vec![],
        args: vec!["/app".to_owned()],
        env: vec!["PORT=8080".to_owned()],
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        additional_gids: vec![],
        stop_signal: 15,
        port: 8080,
        probe: Probe::default(),
        resources: Resources::default(),
        egress: false,
        function: None,
    }
}

pub fn launch_with(kind: ProbeKind, start_timeout_s: u32) -> Arc<Launch> {
    let mut launch = launch();
    launch.probe.kind = kind;
    launch.probe.start_timeout_s = start_timeout_s;
    Arc::new(launch)
}

/// Waits for a state that must come.
pub async fn eventually(what: &str, state: impl Fn() -> bool) {
    let reached = async {
        while !state() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(PATIENCE, reached).await.is_ok(), "never: {what}");
}
