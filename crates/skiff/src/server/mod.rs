//! `skiff server`: the wiring of gateway, control plane and worker.
//!
//! ```text
//!  root:  folders and locks ▶ launcher found or started ▶ doors opened
//!           │  root is left for good
//!           ▼
//!  store ▶ resolver ▶ launcher client ▶ worker ▶ fleet (held) ▶ gateway ▶
//!  control (tells all desired state) ▶ what runs is adopted, orphans end ▶
//!  fleet begins ▶ gateway serves ▶ API serves
//!           │  SIGTERM, SIGINT, or the launcher is gone
//!           ▼
//!  API stops ▶ gateway drains ▶ fleet stops ▶ worker leaves or stops all ▶ ledger ends
//! ```

pub mod doors;
pub mod handover;
pub mod home;
pub mod images;
pub mod inside;
pub mod launcher;
pub mod logs;
pub mod meter;
pub mod microvm;
pub mod objects;
pub mod parts;
pub mod prometheus;
pub mod records;
pub mod roles;
mod urls;
pub mod user;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use skiff_base::{Clock, SystemClock, Tasks, chain};
use skiff_config::{Config, LogFormat};
use skiff_control::port::Ports;
use skiff_control::{Control, EventSettings, LambdaConfig, Resolver, ServiceSettings};
use skiff_fleet::{Adopted, Fleet, FleetConfig, Parts};
use skiff_gateway::{Gateway, GatewayConfig, ServeHandle};
use skiff_image::ImageStore;
use skiff_lambda::Secret;
use skiff_meter::LedgerWriter;
use skiff_runtime::Functions;
use skiff_sandbox::{
    Backend, ContainerBackend, Exits, LauncherClient, MicrovmBackend, NullBackend,
};
use skiff_store::SqliteStore;
use skiff_types::{ServerId, WorkerId, limits};
use skiff_wire::launcher::PoolConfig;
use skiff_worker::{Backends, Ended, Seat, ShutdownMode, Trial, Worker, WorkerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::args;
use doors::Doors;
use handover::{Given, Line};
use home::Home;
use inside::InsideDoors;
use meter::Meter;
use microvm::Findings;
use parts::{GatewaySlot, LocalWorker, ResolverLaunches, SandboxUpstream, Steering};
use records::ServerRecords;

/// How long requests in flight may take when the server ends.
const DRAIN: Duration = Duration::from_secs(30);
/// How long everything else may take when the server ends.
const ENDING: Duration = Duration::from_secs(20);
/// How long an instance that leaves the rotation may finish its requests.
const INSTANCE_DRAIN: Duration = Duration::from_secs(300);
/// How long requests that wait for an instance may hold a handover up.
const GIVE_UP: Duration = Duration::from_secs(5);
/// Between two savings of what is derived from the ledger.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// Between two looks at memory that was freed and stays with the process.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(2);
/// Where the configuration is when nobody says otherwise.
const DEFAULT_CONFIG: &str = "/etc/skiff/skiff.toml";

/// Runs a server until it is told to end.
///
/// # Errors
/// When it cannot start, or loses its launcher.
pub fn run(args: &args::Server) -> anyhow::Result<()> {
    let config = configuration(args.config.as_deref(), &args.set)?;
    skiff_telemetry::init(&config.log.level, config.log.format == LogFormat::Json)?;
    raise_descriptor_limit();
    let threads = match config.gateway.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let (locks, doors, line) = match args
        .replace
        .then(|| handover::ask(&config.run_dir))
        .transpose()?
        .flatten()
    {
        Some(taken) => (Some(taken.locks), Some(taken.doors), Some(taken.line)),
        None => (None, None, None),
    };
    let home = Home::prepare(&config, locks)?;
    // Before the launcher: an address in use shall leave none behind.
    let doors = match doors {
        Some(doors) => doors,
        None => Doors::open(&config, &home, threads)?,
    };
    launcher::ensure(&launcher::Wanted {
        server: home.server,
        run_dir: &home.run_dir,
        user: &home.user,
        network: &config.network,
        disk_dir: Some(&home.data_dir),
        ends_with_us: false,
    })?;
    let machines = microvm::look(&home, config.microvm.monitor.as_deref());
    home.user.become_it()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("skiff")
        .enable_all()
        .build()
        .context("the runtime cannot be made")?;
    let instances = Instances::start()?;
    let stop_all = args.stop_all;
    let ended = runtime.block_on(async {
        let (line, given) = match line {
            Some(line) => take_over(line)
                .await
                .map(|(line, given)| (Some(line), given))?,
            None => (None, Given::default()),
        };
        let (run_dir, id) = (home.run_dir.clone(), home.server);
        let assembled =
            Server::assemble(&config, home, doors, threads, given, machines, &instances).await;
        if assembled.is_err() {
            end_idle_launcher(&run_dir, id).await;
        }
        let server = assembled?;
        if let Some(line) = line {
            server.settle_after(line);
        }
        match server.serve().await {
            Ok(End::Told) => server.end(stop_all).await,
            Ok(End::Replaced(next)) => server.give(next).await?,
            Err(error) => {
                server.end(stop_all).await;
                return Err(error);
            }
        }
        Ok(())
    });
    // What still runs on it belongs to what has been dropped by now.
    drop(instances);
    ended
}

/// One thread for all that starts, steers and ends instances: the steps of a
/// placement follow each other without a word between threads, and no call of
/// the API stands between them.
#[derive(Debug)]
struct Instances(tokio::runtime::Runtime);

impl Instances {
    fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("instances")
            .enable_all()
            .build()
            .context("the instances' runtime cannot be made")?;
        Ok(Self(runtime))
    }

    /// What this starts runs on that thread.
    fn make<T>(&self, make: impl FnOnce() -> T) -> T {
        let _entered = self.0.enter();
        make()
    }

    /// The same of something that waits.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let tasks = Tasks::new();
        let work = async move {
            // Who has gone away needs no answer.
            let _gone = answer.send(work.await);
        };
        tasks.spawn_on("instances", work, self.0.handle());
        answered.await.context("the instances' runtime has ended")
    }
}

/// Has the former server let go of instances and state.
async fn take_over(mut line: Line) -> anyhow::Result<(Line, Given)> {
    let taken = tokio::task::spawn_blocking(move || line.take().map(|given| (line, given)));
    taken.await.context("the handover was cut off")?
}

/// Why a server ends.
#[derive(Debug)]
enum End {
    /// By a signal.
    Told,
    /// Another one takes over.
    Replaced(Line),
}

/// The configuration of the flags.
///
/// # Errors
/// The first setting that is wrong.
pub fn configuration(file: Option<&Path>, set: &[String]) -> anyhow::Result<Config> {
    let flags = set
        .iter()
        .map(|text| {
            let (key, value) = text
                .split_once('=')
                .with_context(|| format!("--set {text}: KEY=VALUE is expected"))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let default = Path::new(DEFAULT_CONFIG);
    let file = file.or_else(|| default.exists().then_some(default));
    Ok(skiff_config::load(file, std::env::vars(), &flags)?)
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Everything that runs.
#[derive(Debug)]
struct Server {
    doors_served: ServeHandleSlot,
    control: Control,
    fleet: Fleet,
    worker: Arc<Worker>,
    meter: Arc<Meter>,
    client: LauncherClient,
    tasks: Tasks,
    gateway: Arc<Gateway>,
    copies: Arc<Doors>,
    home: Arc<Home>,
}

type ServeHandleSlot = std::sync::Mutex<Option<ServeHandle>>;

impl Server {
    async fn assemble(
        config: &Config,
        home: Home,
        doors: Doors,
        threads: usize,
        given: Given,
        machines: Result<Findings, String>,
        instances: &Instances,
    ) -> anyhow::Result<Self> {
        let home = Arc::new(home);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let tasks = Tasks::new();
        let resolver = resolver(config, &home, &doors).await?;
        let socket = launcher::socket(&home.run_dir);
        let id = home.server;
        let client = instances
            .run(async move { LauncherClient::connect(&socket, id, Exits::default()).await })
            .await??;
        let prepared = PoolConfig {
            networks: config.worker.prepared_networks,
            egress_networks: config.worker.prepared_networks.min(8),
        };
        client
            .configure(prepared)
            .await
            .context("the launcher's pools cannot be set")?;

        let ledger_folder = home.data_dir.join("ledger");
        let writer = Arc::new(LedgerWriter::open(
            &ledger_folder,
            home.server,
            Arc::clone(&clock),
        )?);
        let records = Arc::new(ServerRecords::new(Arc::clone(&writer), Arc::clone(&clock)));
        let inside = Arc::new(InsideDoors::new(resolvers(config), Arc::clone(&clock)));
        let backends = instances.make(|| make_backends(config, &home, &client, &tasks, machines));
        let functions = Arc::new(Functions::new(Arc::clone(&clock)));
        let watched = Watched {
            inside: Arc::clone(&inside),
            functions,
        };
        let (worker, ends) =
            instances.make(|| make_worker(config, backends, &home, &records, watched, &clock))?;
        let slot = Arc::new(GatewaySlot::default());
        let fleet =
            instances.make(|| make_fleet(config, &worker, &records, &slot, &resolver, &clock));
        let gateway = Gateway::new(
            gateway_config(config, &home)?,
            Arc::new(fleet.clone()),
            Arc::clone(&records) as Arc<dyn skiff_gateway::Records>,
            Arc::clone(&clock),
        );
        slot.fill(Arc::clone(&gateway));
        let meter = Arc::new(Meter::new(
            &ledger_folder,
            writer,
            Arc::clone(&records),
            Arc::clone(&gateway),
            resolver.clone(),
            &config.meter,
            clock,
        )?);

        let steering = Arc::new(Steering {
            fleet: fleet.clone(),
            worker: Arc::clone(&worker),
            gateway: Arc::clone(&gateway),
            resolver: resolver.clone(),
        });
        let ports = Ports {
            fleet: Arc::clone(&steering) as Arc<dyn skiff_control::port::Fleet>,
            router: Arc::clone(&steering) as Arc<dyn skiff_control::port::Router>,
            logs: Arc::new(logs::WorkerLogs(Arc::clone(&worker))),
            traces: Arc::clone(&meter) as Arc<dyn skiff_control::port::Traces>,
            usage: Arc::clone(&meter) as Arc<dyn skiff_control::port::UsageSource>,
            metrics: metrics(&gateway, &fleet, &worker),
        };
        let control = Control::start(resolver, ports).await?;
        fleet.busy_elsewhere(given.busy);
        adopt(&worker, &fleet, &records).await?;
        meter.begin().await?;
        fleet.begin();

        spawn_loops(&tasks, &fleet, &worker, &meter, ends);
        let urls = match doors.lambda {
            Some(_) => Some(urls::lead(&gateway, &tasks)?),
            None => None,
        };
        let copies = Arc::new(doors.copies().context("the doors cannot be kept")?);
        let served = gateway
            .serve(doors.gateway, threads)
            .context("the gateway cannot serve")?;
        inside.open(Arc::clone(&gateway));
        let api = tokio::net::UnixListener::from_std(doors.api)
            .context("the operator's socket cannot be served")?;
        let on_unix = control.clone();
        tasks.spawn("api", async move { on_unix.serve_unix(api).await });
        if let Some(listener) = doors.api_tcp {
            let listener = tokio::net::TcpListener::from_std(listener)
                .context("api.listen cannot be served")?;
            let tls = tls(config)?;
            let on_tcp = control.clone();
            tasks.spawn("api over TCP", async move {
                on_tcp.serve_tcp(listener, tls).await
            });
        }
        if let Some(listener) = doors.lambda {
            let listener = tokio::net::TcpListener::from_std(listener)
                .context("lambda.listen cannot be served")?;
            let settings = LambdaConfig {
                region: config.lambda.region.clone(),
                egress: config.lambda.egress,
                events: event_settings(config, &home)?,
                runtimes: config.lambda.runtimes.clone(),
                objects: objects::of(&config.lambda.s3)?,
            };
            let front = control.lambda(settings, steering).await;
            let front = front.context("event invocations cannot go on")?;
            if let Some(told) = urls {
                told.send_replace(Some(front.urls()));
            }
            tasks.spawn("lambda", async move { front.serve(listener).await });
        }
        tracing::info!(addresses = ?served.addresses(), run_dir = %home.run_dir.display(), "the server is ready");
        Ok(Self {
            doors_served: std::sync::Mutex::new(Some(served)),
            control,
            fleet,
            worker,
            meter,
            client,
            tasks,
            gateway,
            copies,
            home,
        })
    }

    /// Until a signal comes, another server takes over, or the launcher is gone.
    async fn serve(&self) -> anyhow::Result<End> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok(End::Told),
            _ = interrupt.recv() => Ok(End::Told),
            next = self.successor() => next.map(End::Replaced),
            why = self.client.closed() => bail!(
                "the launcher is gone, and its instances with it: {why}; see {}, and start the server again",
                self.home.run_dir.join("launcher.log").display()
            ),
        }
    }

    /// The server that takes over, when one comes.
    async fn successor(&self) -> anyhow::Result<Line> {
        let listener = launcher::listen(&handover::socket(&self.home.run_dir))?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid != 0 && uid != self.home.user.uid.as_raw() {
                tracing::warn!(uid, "a stranger wanted to take over");
                continue;
            }
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            let (home, copies) = (Arc::clone(&self.home), Arc::clone(&self.copies));
            let answered = tokio::task::spawn_blocking(move || {
                handover::answer(stream, &home.locks(), &copies)
            });
            match answered.await? {
                Ok(line) => return Ok(line),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "a server did not take over")
                }
            }
        }
    }

    /// Lets go of instances and state, then ends with its last request.
    async fn give(&self, mut next: Line) -> anyhow::Result<()> {
        tracing::info!("another server takes over");
        self.control.stop(ENDING).await;
        let draining = Tasks::new();
        if let Some(served) = self.take_served() {
            draining.spawn("drain", async move {
                if let Err(error) = served.drain(DRAIN).await {
                    tracing::warn!(error = %chain(&error), "requests were cut off");
                }
            });
        }
        self.fleet.give_up(GIVE_UP).await;
        let busy = self.fleet.busy_instances();
        self.worker
            .shutdown(ShutdownMode::LeaveRunning, ENDING)
            .await;
        let given = tokio::task::spawn_blocking(move || next.give(&Given { busy }).map(|()| next));
        // Held to the end: its closing tells the next server that this one is gone.
        let _line = given.await.context("the handover was cut off")??;
        if let Err(error) = draining.drain(DRAIN + ENDING).await {
            tracing::warn!(error = %chain(&error), "the gateway did not drain");
        }
        tracing::info!(
            left = self.gateway.metrics().in_flight,
            "the last request has ended"
        );
        self.fleet.stop(Duration::ZERO).await;
        self.meter.end().await;
        self.tasks.abort();
        Ok(())
    }

    /// Counts former requests as gone once the former server is.
    fn settle_after(&self, mut line: Line) {
        let fleet = self.fleet.clone();
        self.tasks.spawn("former server", async move {
            let ended = tokio::task::spawn_blocking(move || line.wait_for_end());
            if ended.await.is_ok() {
                fleet.settle();
            }
        });
    }

    fn take_served(&self) -> Option<ServeHandle> {
        self.doors_served
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }

    async fn end(&self, stop_all: bool) {
        tracing::info!(stop_all, "the server ends");
        self.control.stop(ENDING).await;
        if let Some(served) = self.take_served()
            && let Err(error) = served.drain(DRAIN).await
        {
            tracing::warn!(error = %chain(&error), "the gateway did not drain");
        }
        self.fleet.stop(ENDING).await;
        let mode = if stop_all {
            ShutdownMode::StopAll
        } else {
            ShutdownMode::LeaveRunning
        };
        self.worker.shutdown(mode, ENDING).await;
        self.meter.end().await;
        self.tasks.abort();
        if stop_all && !self.client.is_closed() {
            end_launcher(&self.client).await;
        }
    }
}

/// Has the launcher end, and waits until it has.
async fn end_launcher(client: &LauncherClient) {
    if let Err(error) = client.shutdown().await {
        tracing::warn!(error = %chain(&error), "the launcher did not end in order");
    }
    if tokio::time::timeout(ENDING, client.closed()).await.is_err() {
        tracing::warn!("the launcher is still ending");
    }
}

/// A start that failed leaves no launcher without work behind.
async fn end_idle_launcher(run_dir: &Path, server: ServerId) {
    let socket = launcher::socket(run_dir);
    if let Ok(client) = LauncherClient::connect(&socket, server, Exits::default()).await
        && client
            .list()
            .await
            .is_ok_and(|sandboxes| sandboxes.is_empty())
    {
        end_launcher(&client).await;
    }
}

async fn resolver(config: &Config, home: &Home, doors: &Doors) -> anyhow::Result<Resolver> {
    let images = Arc::new(images::StoreImages {
        store: ImageStore::open(&home.data_dir.join("images"))?,
        plain_http: config.images.plain_http.clone(),
    });
    let mut gateway: Vec<String> = Vec::new();
    for listener in &doors.gateway {
        let address = listener.local_addr()?.to_string();
        if !gateway.contains(&address) {
            gateway.push(address);
        }
    }
    let port = doors
        .gateway
        .first()
        .and_then(|listener| listener.local_addr().ok())
        .map(|address| address.port());
    let lambda = doors.lambda.as_ref().map(std::net::TcpListener::local_addr);
    let control = skiff_control::Config {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        server_id: home.server,
        domain: config.gateway.domain.clone(),
        url_scheme: "http".to_owned(),
        url_port: port.filter(|port| *port != 80),
        gateway,
        lambda: lambda.transpose()?.map(|address| address.to_string()),
        data_dir: home.data_dir.clone(),
        secret_key_file: key_file(config),
        allow_null: config.worker.allow_null,
        queue_requests: limits::DEFAULT_QUEUE_REQUESTS,
        queue_ms: u64::from(limits::DEFAULT_QUEUE_S) * 1000,
        import_bytes_max: 64 << 30,
        roles: roles::of(&config.roles)?,
    };
    let store = Arc::new(SqliteStore::open(&home.data_dir.join("state/skiff.db"))?);
    Ok(Resolver::open(control, store, images).await?)
}

fn event_settings(config: &Config, home: &Home) -> anyhow::Result<EventSettings> {
    let events = &config.lambda.events;
    let service = |endpoint: &Option<String>, key: &Option<String>, file: &Option<PathBuf>| {
        let (Some(endpoint), Some(access_key), Some(file)) = (endpoint, key, file) else {
            return Ok(None);
        };
        let secret = roles::secret(file)?;
        anyhow::Ok(Some(ServiceSettings {
            endpoint: endpoint.clone(),
            access_key: access_key.clone(),
            secret: Secret(secret),
        }))
    };
    let sqs = service(
        &events.sqs_endpoint,
        &events.sqs_access_key,
        &events.sqs_secret_file,
    );
    let streams = service(
        &events.dynamodb_endpoint,
        &events.dynamodb_access_key,
        &events.dynamodb_secret_file,
    );
    Ok(EventSettings {
        folder: home.data_dir.join("events"),
        retry_ms: events.retry_ms,
        backoff_ms: events.backoff_ms,
        per_function: events.per_function,
        at_once: events.at_once,
        bytes_max: events.bytes,
        destinations: events.destinations.clone(),
        sqs: sqs.context("lambda.events.sqs_secret_file")?,
        streams: streams.context("lambda.events.dynamodb_secret_file")?,
    })
}

/// The setting, else systemd's credential, else the usual place.
fn key_file(config: &Config) -> PathBuf {
    let credential = || {
        let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
        let path = Path::new(&folder).join("skiff-secrets-key");
        path.exists().then_some(path)
    };
    config
        .secrets
        .key_file
        .clone()
        .or_else(credential)
        .unwrap_or_else(|| home::DEFAULT_KEY.into())
}

/// Every class, and the trial of virtual machines where there is hope for them.
fn make_backends(
    config: &Config,
    home: &Arc<Home>,
    client: &LauncherClient,
    tasks: &Tasks,
    machines: Result<Findings, String>,
) -> Backends {
    let containers = ContainerBackend::new(client.clone());
    let deadline = Duration::from_secs(config.microvm.boot_timeout_s.into());
    let mut microvms = MicrovmBackend::beside(&containers, home.run_dir.clone(), deadline);
    let foreign = config.microvm.monitor.clone();
    if let Some(program) = foreign.clone() {
        microvms = microvms.driving(program, home.data_dir.join("disks"));
    }
    let microvms = Arc::new(microvms);
    let trial = Trial::of(Arc::clone(&microvms) as Arc<dyn Backend>);
    match machines {
        Ok(findings) => {
            let (home, warm) = (Arc::clone(home), config.microvm.warm);
            let concluded =
                microvm::conclude(trial.clone(), microvms, home, foreign, findings, warm);
            tasks.spawn("trial of virtual machines", concluded);
        }
        Err(why) => trial.end(Err(why)),
    }
    let backends = Backends::container(Arc::new(containers)).with_microvm(Seat::Trial(trial));
    match config.worker.allow_null {
        true => backends.with_null(Arc::new(NullBackend::default())),
        false => backends,
    }
}

/// What serves the calls out of sandboxes.
#[derive(Debug)]
struct Watched {
    inside: Arc<InsideDoors>,
    functions: Arc<Functions>,
}

fn make_worker(
    config: &Config,
    backends: Backends,
    home: &Home,
    records: &Arc<ServerRecords>,
    watched: Watched,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<(Arc<Worker>, mpsc::Receiver<Ended>)> {
    let mut settings = WorkerConfig::new(home.data_dir.join("logs"));
    settings.log_limits.service_bytes = config.worker.log_bytes_per_service;
    // A machine boots twice before it is given up.
    settings.step_deadline += Duration::from_secs(2 * u64::from(config.microvm.boot_timeout_s));
    settings.watcher = Some(watched.inside as Arc<dyn skiff_worker::SandboxWatcher>);
    settings.functions = Some(watched.functions as Arc<dyn skiff_worker::FunctionHost>);
    let records = Arc::clone(records) as Arc<dyn skiff_worker::WorkerRecords>;
    let (worker, ends) = Worker::new(settings, backends, records, Arc::clone(clock))?;
    Ok((Arc::new(worker), ends))
}

fn make_fleet(
    config: &Config,
    worker: &Arc<Worker>,
    records: &Arc<ServerRecords>,
    slot: &Arc<GatewaySlot>,
    resolver: &Resolver,
    clock: &Arc<dyn Clock>,
) -> Fleet {
    let machine = machine();
    let settings = FleetConfig {
        scheduler: skiff_sched::Config {
            memory_overcommit_percent: percent(config.worker.memory_overcommit),
            cpu_overcommit_percent: percent(config.worker.cpu_overcommit),
            ..skiff_sched::Config::default()
        },
        worker: WorkerId::from_parts(0, 1),
        memory_mib: if config.worker.memory_mib == 0 {
            machine.0
        } else {
            config.worker.memory_mib
        },
        cpu_millis: if config.worker.cpu_millis == 0 {
            machine.1
        } else {
            config.worker.cpu_millis
        },
        starts_at_once: config.worker.starts_at_once,
        drain: INSTANCE_DRAIN,
    };
    let parts = Parts {
        worker: Arc::new(LocalWorker {
            worker: Arc::clone(worker),
            records: Arc::clone(records),
        }),
        rotation: Arc::clone(slot) as Arc<dyn skiff_fleet::Rotation>,
        launches: Arc::new(ResolverLaunches(resolver.clone())),
    };
    Fleet::new(settings, parts, Arc::clone(clock))
}

/// Whom the DNS forwarder asks: the configured ones, else the host's.
fn resolvers(config: &Config) -> Vec<SocketAddr> {
    if !config.network.dns.is_empty() {
        return config
            .network
            .dns
            .iter()
            .map(|ip| SocketAddr::new(*ip, 53))
            .collect();
    }
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    skiff_net::dns::upstreams_of(&text)
}

/// Memory in MiB less an eighth, and thousandths of CPUs.
fn machine() -> (u64, u64) {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (
        (bytes >> 20) / 8 * 7,
        u64::try_from(cpus).unwrap_or(1) * 1000,
    )
}

fn percent(factor: f64) -> u32 {
    // The configuration holds it between 0.1 and 1000.
    format!("{:.0}", factor * 100.0).parse().unwrap_or(100)
}

fn gateway_config(config: &Config, home: &Home) -> anyhow::Result<GatewayConfig> {
    let mut settings = GatewayConfig {
        overload_wait: Duration::from_millis(config.gateway.overload_wait_ms.into()),
        trust_forwarded: config.gateway.trust_forwarded,
        ..GatewayConfig::default()
    };
    if config.gateway.access_log {
        let path = home.data_dir.join("logs/access.log");
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path);
        settings.access_log =
            Some(file.with_context(|| format!("{} cannot be opened", path.display()))?);
    }
    Ok(settings)
}

/// Keeps what runs and is still wanted; the worker ends the rest.
async fn adopt(worker: &Worker, fleet: &Fleet, records: &ServerRecords) -> anyhow::Result<()> {
    let adopted = worker.adopt(|revision, _| fleet.knows(revision)).await?;
    for found in adopted {
        tracing::info!(instance = %found.instance, revision = %found.revision, "an instance is adopted");
        records.adopted(found.instance, found.created_unix_ms);
        fleet.adopt(Adopted {
            revision: found.revision,
            upstream: Arc::new(SandboxUpstream {
                sandbox: found.sandbox,
                port: found.port,
            }),
            paused: found.paused,
        });
    }
    Ok(())
}

fn spawn_loops(
    tasks: &Tasks,
    fleet: &Fleet,
    worker: &Arc<Worker>,
    meter: &Arc<Meter>,
    mut ends: mpsc::Receiver<Ended>,
) {
    let ticking = fleet.clone();
    tasks.spawn("scheduler", async move { ticking.run().await });
    let (telling, _worker) = (fleet.clone(), Arc::clone(worker));
    tasks.spawn("ends", async move {
        while let Some(ended) = ends.recv().await {
            tracing::info!(instance = %ended.instance, revision = %ended.revision, reason = %ended.reason, "an instance has ended by itself");
            telling.ended(ended.instance);
        }
    });
    let saving = Arc::clone(meter);
    tasks.spawn("ledger sums", async move {
        loop {
            tokio::time::sleep(SAVE_EVERY).await;
            saving.save(false).await;
        }
    });
    tasks.spawn("memory", async {
        loop {
            tokio::time::sleep(GIVE_BACK_EVERY).await;
            skiff_memory::give_back();
        }
    });
}

fn metrics(
    gateway: &Arc<Gateway>,
    fleet: &Fleet,
    worker: &Arc<Worker>,
) -> Arc<dyn Fn() -> String + Send + Sync> {
    let (gateway, fleet, worker) = (Arc::clone(gateway), fleet.clone(), Arc::clone(worker));
    Arc::new(move || {
        crate::server::prometheus::text(
            &gateway.metrics(),
            fleet.instance_count(),
            worker.log_lines_dropped(),
        )
    })
}

fn tls(config: &Config) -> anyhow::Result<Option<Arc<rustls::ServerConfig>>> {
    let (Some(certificate), Some(key)) = (&config.api.tls_certificate, &config.api.tls_key) else {
        return Ok(None);
    };
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let chain: Vec<_> =
        rustls_pemfile::certs(&mut read(certificate)?.as_slice()).collect::<Result<_, _>>()?;
    let key = rustls_pemfile::private_key(&mut read(key)?.as_slice())?
        .with_context(|| format!("api.tls_key: {} holds no private key", key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?;
    let mut tls = builder
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate cannot be used")?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Arc::new(tls)))
}
