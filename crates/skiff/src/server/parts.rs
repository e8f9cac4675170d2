//! The parts as the others ask for them: thin adapters, no decisions.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, chain};
use skiff_control::{Resolver, port as control};
use skiff_fleet::{Fleet, Launches, Rotation, StartFailure, Started, WorkerPort};
use skiff_gateway::{ColdPhases, Gateway, Load, RevisionRoute, ServiceRoute, Upstream};
use skiff_sandbox::{Needs, Process, Sandbox, SandboxError, TerminalSize, microvm_overhead_mib};
use skiff_sched::Shortage;
use skiff_types::api::{ExecTerminal, Instance, Quota};
use skiff_types::limits::DEFAULT_STOP_GRACE_S;
use skiff_types::{
    ErrorKind, InstanceId, IsolationClass, Launch, ProjectId, RevisionId, ServiceName, StartCause,
    WritableLayer,
};
use skiff_worker::{ExecWish, InstanceInfo, InstanceState, Worker, WorkerError};

use super::records::ServerRecords;

const MIB: u64 = 1 << 20;

/// A port of a sandbox, as the gateway connects to it.
#[derive(Debug)]
pub struct SandboxUpstream {
    pub sandbox: Arc<dyn Sandbox>,
    pub port: u16,
}

impl Upstream for SandboxUpstream {
    fn instance(&self) -> InstanceId {
        self.sandbox.id()
    }

    fn class(&self) -> IsolationClass {
        self.sandbox.class()
    }

    fn connect(&self) -> BoxFuture<'_, io::Result<ByteStream>> {
        self.sandbox.connect(self.port)
    }
}

/// The one worker, as the fleet steers it.
#[derive(Debug)]
pub struct LocalWorker {
    pub worker: Arc<Worker>,
    pub records: Arc<ServerRecords>,
}

impl WorkerPort for LocalWorker {
    fn start(
        &self,
        instance: InstanceId,
        launch: Arc<Launch>,
    ) -> BoxFuture<'_, Result<Started, StartFailure>> {
        async move {
            let started =
                self.worker
                    .start(instance, launch)
                    .await
                    .map_err(|error| StartFailure {
                        kind: error.kind(),
                        message: chain(&error).to_string(),
                        log: error.log,
                    })?;
            // Of containers, which take milliseconds, the steps are not told.
            if started.sandbox.class() == IsolationClass::Microvm {
                self.records.made(instance, started.phases.steps_us);
            }
            Ok(Started {
                upstream: Arc::new(SandboxUpstream {
                    sandbox: started.sandbox,
                    port: started.port,
                }),
                image_us: started.phases.image_us,
                sandbox_us: started.phases.sandbox_us,
                app_us: started.phases.app_us,
            })
        }
        .boxed()
    }

    fn stop(&self, instance: InstanceId, reason: &str, at_once: bool) -> BoxFuture<'_, ()> {
        let grace = if at_once {
            0
        } else {
            u64::from(DEFAULT_STOP_GRACE_S)
        };
        let reason = reason.to_owned();
        async move {
            // One that has ended by itself meanwhile is gone, as is wanted.
            if let Err(error) = self
                .worker
                .stop(instance, Duration::from_secs(grace), &reason)
                .await
            {
                tracing::debug!(%instance, error = %chain(&error), "nothing to stop");
            }
        }
        .boxed()
    }

    fn pause(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), String>> {
        async move {
            self.worker
                .pause(instance)
                .await
                .map_err(|error| told(&error))
        }
        .boxed()
    }

    fn resume(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), String>> {
        async move {
            self.worker
                .resume(instance)
                .await
                .map_err(|error| told(&error))
        }
        .boxed()
    }
}

fn told(error: &WorkerError) -> String {
    chain(error).to_string()
}

/// The gateway, which is made after the fleet that it asks.
#[derive(Debug, Default)]
pub struct GatewaySlot(OnceLock<Arc<Gateway>>);

impl GatewaySlot {
    /// Fills it, once.
    pub fn fill(&self, gateway: Arc<Gateway>) {
        // Only the wiring calls it, and once: a second gateway would be dropped.
        let _first = self.0.set(gateway);
    }

    fn get(&self) -> Option<&Arc<Gateway>> {
        self.0.get()
    }
}

impl Rotation for GatewaySlot {
    fn add(
        &self,
        revision: &RevisionId,
        upstream: Arc<dyn Upstream>,
        cold: Option<ColdPhases>,
    ) -> Result<(), String> {
        let gateway = self
            .get()
            .ok_or_else(|| "there is no gateway yet".to_owned())?;
        gateway
            .add_instance(revision, upstream, cold)
            .map_err(|error| chain(&error).to_string())
    }

    fn drain(&self, instance: InstanceId) -> BoxFuture<'_, ()> {
        match self.get() {
            Some(gateway) => gateway.drain_instance(instance).boxed(),
            None => async {}.boxed(),
        }
    }

    fn set_paused(&self, instance: InstanceId, paused: bool) {
        if let Some(gateway) = self.get() {
            gateway.set_paused(instance, paused);
        }
    }

    fn refuse(&self, revision: &RevisionId, kind: ErrorKind, message: &str) {
        if let Some(gateway) = self.get() {
            gateway.refuse(revision, message, kind);
        }
    }

    fn set_limited(&self, revision: &RevisionId, limited: bool) {
        if let Some(gateway) = self.get() {
            gateway.set_limited(revision, limited);
        }
    }

    fn in_flight(&self, instance: InstanceId) -> u32 {
        self.get()
            .map_or(0, |gateway| gateway.instance_load(instance))
    }

    fn loads(&self) -> Vec<Load> {
        self.get()
            .map(|gateway| gateway.loads())
            .unwrap_or_default()
    }
}

/// The resolver, as the fleet asks for launches.
#[derive(Debug)]
pub struct ResolverLaunches(pub skiff_control::Resolver);

impl Launches for ResolverLaunches {
    fn launch(
        &self,
        revision: &RevisionId,
        cause: StartCause,
    ) -> BoxFuture<'_, Result<Arc<Launch>, StartFailure>> {
        let revision = revision.clone();
        async move {
            let launch = self.0.launch_for(&revision, cause).await;
            launch.map_err(|error| StartFailure {
                kind: error.kind,
                message: chain(&error).to_string(),
                log: Vec::new(),
            })
        }
        .boxed()
    }
}

/// What an instance takes beyond the memory that it is promised.
fn overhead_mib(class: IsolationClass, memory_mib: u32) -> u32 {
    match class {
        IsolationClass::Microvm => {
            u32::try_from(microvm_overhead_mib(memory_mib.into())).unwrap_or(u32::MAX)
        }
        IsolationClass::Container | IsolationClass::Null => 0,
    }
}

/// Fleet, worker and gateway, as the control plane steers them.
#[derive(Debug)]
pub struct Steering {
    pub fleet: Fleet,
    pub worker: Arc<Worker>,
    pub gateway: Arc<Gateway>,
    pub resolver: Resolver,
}

impl Steering {
    async fn exec_now(
        &self,
        wish: control::ExecWish,
    ) -> Result<control::Executed, control::PortError> {
        let info = self.place(&wish)?;
        let launch = self.resolver.launch(&info.revision).await;
        let launch = launch
            .map_err(|error| control::PortError::new(error.kind, chain(&error).to_string()))?;
        let terminal = wish.terminal.map(terminal_size);
        let wanted = ExecWish {
            command: wish.command,
            env: wish.env,
            workdir: wish.workdir,
            terminal,
        };
        let started = self.worker.exec(info.instance, &launch, wanted).await;
        let executed =
            started.map_err(|error| control::PortError::new(exec_kind(&error), told(&error)))?;
        Ok(control::Executed {
            instance: info.instance,
            process: Box::new(ClientProcess(executed.process)),
            input: executed.input,
            output: executed.output,
            errors: executed.errors,
        })
    }

    /// The instance that is meant: of a service the newest that serves, one
    /// that runs rather than one that stands.
    fn place(&self, wish: &control::ExecWish) -> Result<InstanceInfo, control::PortError> {
        let is_meant = |info: &InstanceInfo| {
            info.revision.project == wish.project
                && match &wish.place {
                    control::ExecPlace::Instance(id) => info.instance == *id,
                    control::ExecPlace::Service(service) => {
                        let serves = [InstanceState::Ready, InstanceState::Paused];
                        info.revision.service == *service && serves.contains(&info.state)
                    }
                }
        };
        let instances = self.worker.instances().into_iter().filter(is_meant);
        let best = instances.max_by_key(|info| (info.state == InstanceState::Ready, info.instance));
        best.ok_or_else(|| match &wish.place {
            control::ExecPlace::Instance(id) => {
                control::PortError::new(ErrorKind::NotFound, format!("there is no instance {id}"))
            }
            control::ExecPlace::Service(service) => control::PortError::new(
                ErrorKind::Conflict,
                format!(
                    "no instance of {service} runs: send it a request, or keep one with `skiff scale {service} --min 1`"
                ),
            ),
        })
    }
}

fn terminal_size(terminal: ExecTerminal) -> TerminalSize {
    TerminalSize {
        columns: terminal.columns,
        rows: terminal.rows,
    }
}

fn exec_kind(error: &WorkerError) -> ErrorKind {
    match error {
        WorkerError::NotFound(_) => ErrorKind::NotFound,
        WorkerError::State { .. } => ErrorKind::Conflict,
        WorkerError::Sandbox(_, SandboxError::ExecsFull { .. }) => ErrorKind::Exhausted,
        WorkerError::Sandbox(_, SandboxError::Unsupported { .. }) => ErrorKind::Unsupported,
        WorkerError::Sandbox(_, SandboxError::Launcher(_)) => ErrorKind::Unavailable,
        WorkerError::Sandbox(_, SandboxError::Timeout { .. }) => ErrorKind::Timeout,
        WorkerError::Sandbox(..) => ErrorKind::Failed,
        WorkerError::Log(_) => ErrorKind::Internal,
    }
}

/// A process in an instance, as the control plane knows it.
#[derive(Debug)]
struct ClientProcess(Box<dyn Process>);

impl control::ExecProcess for ClientProcess {
    fn resize(&self, size: ExecTerminal) -> BoxFuture<'_, Result<(), control::PortError>> {
        async move {
            let resized = self.0.resize(terminal_size(size)).await;
            resized.map_err(|error| {
                control::PortError::new(ErrorKind::Failed, chain(&error).to_string())
            })
        }
        .boxed()
    }

    fn exited(&self) -> BoxFuture<'_, control::ExecEnd> {
        async move {
            let exit = self.0.exited().await;
            match (exit.code, exit.signal) {
                (Some(code), _) => control::ExecEnd::Exited(code),
                (None, Some(signal)) => control::ExecEnd::Killed(signal),
                (None, None) => control::ExecEnd::Unknown,
            }
        }
        .boxed()
    }
}

impl control::Revisions for Steering {
    fn connect(&self) -> std::io::Result<std::os::unix::net::UnixStream> {
        let connected = self.gateway.connect_to_revisions();
        connected.map_err(std::io::Error::other)
    }
}

impl control::Fleet for Steering {
    fn put_revision(&self, plan: control::RevisionPlan) {
        let needs = Needs {
            egress: plan.egress,
            disk: matches!(plan.resources.writable, WritableLayer::Disk(_)),
        };
        let class = self.worker.expected_class(plan.isolation, needs);
        self.fleet.put_revision(skiff_sched::RevisionPlan {
            revision: plan.id,
            scaling: plan.scaling,
            memory_mib: plan.resources.memory_mib,
            overhead_mib: overhead_mib(class, plan.resources.memory_mib),
            cpu_millis: plan.resources.cpu_millis,
            cpu_mode: plan.resources.cpu_mode,
            serving: plan.serving,
            function: plan.function,
        });
    }

    fn remove_revision(&self, revision: &RevisionId) {
        self.fleet.remove_revision(revision);
    }

    fn start_one(
        &self,
        revision: &RevisionId,
    ) -> BoxFuture<'_, Result<InstanceId, control::StartFailure>> {
        let revision = revision.clone();
        async move {
            self.fleet
                .start_one(&revision)
                .await
                .map_err(|failure| control::StartFailure {
                    kind: failure.kind,
                    message: failure.message,
                    log: failure.log,
                })
        }
        .boxed()
    }

    fn standing(&self, revision: &RevisionId) -> control::Standing {
        let standing = self.fleet.standing(revision);
        control::Standing {
            ready: standing.counts.ready,
            starting: standing.counts.starting,
            shortage: standing.shortage.map(|shortage| control::Shortage {
                is_of_starts: matches!(shortage, Shortage::CrashLoop { .. }),
                message: shortage.to_string(),
            }),
        }
    }

    fn instances(
        &self,
        project: &ProjectId,
        service: &ServiceName,
    ) -> BoxFuture<'_, Vec<Instance>> {
        let (project, service) = (project.clone(), service.clone());
        async move {
            let of_service = self.worker.instances().into_iter().filter(|instance| {
                instance.revision.project == project && instance.revision.service == service
            });
            let mut all = Vec::new();
            for info in of_service {
                let stats = self.worker.stats(info.instance).await.ok();
                all.push(Instance {
                    id: info.instance,
                    revision: info.revision.name(),
                    state: info.state.as_str().to_owned(),
                    class: info.class,
                    class_reason: info.class_reason,
                    created_unix_ms: info.created_unix_ms,
                    in_flight: self.gateway.instance_load(info.instance),
                    memory_mib: stats.map(|stats| stats.memory_bytes / MIB),
                });
            }
            all
        }
        .boxed()
    }

    fn exec(
        &self,
        wish: control::ExecWish,
    ) -> BoxFuture<'_, Result<control::Executed, control::PortError>> {
        self.exec_now(wish).boxed()
    }

    fn set_quota(&self, project: &ProjectId, quota: Quota) {
        self.fleet.set_quota(project, quota);
        self.gateway
            .set_quota(project, quota.requests.unwrap_or(u32::MAX));
    }
}

impl control::Router for Steering {
    fn put_service(&self, route: ServiceRoute) {
        if let Err(error) = self.gateway.put_service(&route) {
            tracing::error!(service = %route.service, error = %chain(&error), "a service is not routed");
        }
    }

    fn remove_service(&self, project: &ProjectId, service: &ServiceName) {
        self.gateway.remove_service(project, service);
    }

    fn put_revision(&self, route: RevisionRoute) {
        self.gateway.put_revision(route);
    }

    fn remove_revision(&self, revision: &RevisionId) {
        self.gateway.remove_revision(revision);
    }
}
