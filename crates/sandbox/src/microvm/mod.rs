//! The class of virtual machines: a monitor that the launcher starts, a
//! distribution's kernel, and an agent in it that runs the application as the
//! launcher runs a container.
//!
//! ```text
//!  create ─▶ launcher ─▶ monitor ─▶ kernel ─▶ agent ─▶ application
//!     │                     ▲ layers: windows of a disk  ▲
//!     └── control ──────────┘                            │
//!     └── vsock: requests, output, connections ──────────┘
//!  gateway, DNS ◀── sockets in the monitor's folder ◀── the application's calls
//! ```
//!
//! The monitor is Skiff's, or a Firecracker that the operator names: then the
//! machine is made over its API, and the layers are one file, a disk that is
//! there from the start.

mod config;
mod disks;
mod exec;
mod firecracker;
mod machine;
mod monitor;
mod sandbox;
mod services;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use skiff_base::{Clock, Monotonic, SystemClock, Tasks};
use skiff_types::{Digest, InstanceId, IsolationClass};
use skiff_wire::agent::{Opening, Window};
use skiff_wire::launcher::{
    Exit, Listed, MachineNetwork, MonitorProgram, MonitorSpec, Reply, Request, Writable,
};
use tokio::sync::watch;

use self::disks::{Disk, Disks};
use self::firecracker::{ApiError, MachineConfig};
use self::machine::{Birth, Machine};
use self::monitor::{MonitorClient, MonitorError};
use self::sandbox::MicrovmSandbox;
use crate::agent::{AgentClient, AgentError};
use crate::container::{ContainerBackend, Link, launcher_gone, refused as refused_by_launcher};
use crate::container::{sandbox_spec, unexpected};
use crate::{Backend, CreateSpec, Created, Found, LayerFile, Needs, Output, SandboxError};

/// Machines adopted at once.
const AT_ONCE: usize = 4;
/// Memory of a monitor beside its guest's.
const MONITOR_MIB: u64 = 32;
/// Threads of a monitor beside its vCPUs.
const MONITOR_THREADS: u32 = 8;
/// Windows begin at whole MiB of the disk, so that none shares a page.
const WINDOW_ALIGN_SECTORS: u64 = 2048;
const SECTOR_BYTES: u64 = 512;
const MIB: u64 = 1024 * 1024;
/// The layers' disk is the machine's first, and that of what is written its
/// second.
const LAYERS_DISK: u8 = 0;
const SCRATCH_DISK: u8 = 1;
/// An agent that has answered before answers again at once.
const ADOPT_DEADLINE: Duration = Duration::from_secs(10);

/// What a machine that stands still has not finished.
const BOOT: &str = "boot";

/// What a machine has that only shows that machines boot.
const TRIAL_BYTES: u64 = 32 * MIB;
const TRIAL_MILLIS: u32 = 1000;

/// The end of an application of which nobody has told.
const GONE: Exit = crate::launcher::UNKNOWN_EXIT;

/// MiB that a machine takes beyond what its application may have: for its
/// kernel and agent, and for its monitor.
#[must_use]
pub const fn microvm_overhead_mib(application_mib: u64) -> u64 {
    config::machine_mib(application_mib) - application_mib + MONITOR_MIB
}

/// What every machine boots.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// A kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
}

/// A machine without its application.
struct Up {
    machine: Machine,
    birth: Birth,
    booted: Booted,
}

/// A machine that has not come up.
struct Lost {
    error: SandboxError,
    /// By its guest's doing, so that another may come up: it stood still, or died.
    again: bool,
}

impl Lost {
    fn of(machine: &Machine, error: SandboxError) -> Self {
        let stood_still = matches!(error, SandboxError::Timeout { step: BOOT, .. });
        let again = stood_still || machine.guest_has_died();
        Self { error, again }
    }
}

impl From<SandboxError> for Lost {
    fn from(error: SandboxError) -> Self {
        let again = false;
        Self { error, again }
    }
}

impl From<Lost> for SandboxError {
    fn from(lost: Lost) -> Self {
        lost.error
    }
}

/// An agent that answers, and what it is to be told.
struct Booted {
    agent: AgentClient,
    network: Option<MachineNetwork>,
    /// Where each layer lies.
    windows: Vec<Window>,
    /// Where what is written goes, if that is a disk.
    scratch: Option<Window>,
    /// How long each step took, microseconds.
    steps: Vec<(String, u32)>,
}

/// An application that runs, or is held for its extensions.
struct Filled {
    agent: AgentClient,
    output: Output,
    extensions: Vec<String>,
    steps: Vec<(String, u32)>,
}

/// A monitor that is not ours.
#[derive(Debug)]
struct Foreign {
    program: PathBuf,
    disks: Disks,
}

/// Makes virtual machines through the launcher.
#[derive(Debug)]
pub struct MicrovmBackend {
    link: Arc<Link>,
    /// The launcher's.
    run_dir: PathBuf,
    /// From a monitor's start to its agent's hello.
    boot_deadline: Duration,
    files: OnceLock<GuestFiles>,
    foreign: Option<Foreign>,
    clock: SystemClock,
    /// Undoes what nobody waits for.
    tasks: Tasks,
}

impl MicrovmBackend {
    /// Over the same launcher as these containers, in its run folder. A
    /// machine whose agent has not said hello by the deadline is given up.
    #[must_use]
    pub fn beside(
        containers: &ContainerBackend,
        run_dir: PathBuf,
        boot_deadline: Duration,
    ) -> Self {
        Self {
            link: containers.link(),
            run_dir,
            boot_deadline,
            files: OnceLock::new(),
            foreign: None,
            clock: SystemClock,
            tasks: Tasks::new(),
        }
    }

    /// With a monitor that speaks Firecracker's API in place of Skiff's, and a
    /// folder for the disks that it needs.
    #[must_use]
    pub fn driving(mut self, program: PathBuf, disks: PathBuf) -> Self {
        self.foreign = Some(Foreign {
            program,
            disks: Disks::new(disks),
        });
        self
    }

    /// What machines boot from now on. The first word counts.
    pub fn boot_from(&self, files: GuestFiles) {
        // A second word changes nothing.
        drop(self.files.set(files));
    }

    /// How many monitors the launcher has wait for their machines: none, when
    /// they are not ours.
    ///
    /// # Errors
    /// When the launcher refuses or is gone.
    pub async fn keep_warm(&self, count: u32) -> Result<(), SandboxError> {
        let count = if self.foreign.is_some() { 0 } else { count };
        let request = Request::KeepMonitors { count };
        let kept = self.link.client().call(request, Vec::new()).await;
        kept.map(drop).map_err(launcher_gone)
    }

    /// Boots a machine without an application, to the agent's hello, and
    /// removes it.
    ///
    /// # Errors
    /// When it does not come up; nothing of it is left.
    pub async fn try_boot(&self) -> Result<Tried, SandboxError> {
        match self.try_once().await {
            Err(Lost { error, again: true }) => {
                tracing::warn!(%error, "a machine is tried once more");
                Ok(self.try_once().await?)
            }
            tried => Ok(tried?),
        }
    }

    async fn try_once(&self) -> Result<Tried, Lost> {
        let id = InstanceId::from_parts(self.clock.unix_ms(), skiff_base::random::u32());
        let begun = self.clock.now();
        let size = Size::of(TRIAL_BYTES, TRIAL_MILLIS, Needs::default());
        let (machine, birth, _) = self.begin(id, size, None, Vec::new()).await?;
        let up = async {
            let monitor = self.make_foreign(&machine, size, None).await?;
            self.greet(&machine).await.map(|_agent| monitor)
        };
        let booted = machine.while_it_lives(up).await;
        let took = self.clock.now().since(begun);
        let booted = booted.map_err(|error| Lost::of(&machine, error));
        birth.undo().await;
        booted.map(|monitor| Tried { took, monitor })
    }

    async fn create_machine(&self, spec: CreateSpec) -> Result<Created, SandboxError> {
        self.check(&spec)?;
        let disk = self.disk(&spec.layers).await?;
        let begun = self.clock.now();
        let up = match self.bring_up(&spec, disk.clone(), Vec::new()).await {
            // Nothing of the application's has run.
            Err(Lost { error, again: true }) => {
                tracing::warn!(%error, "a machine is booted once more");
                let lost = vec![self.step("first boot", begun)];
                self.bring_up(&spec, disk, lost).await?
            }
            up => up?,
        };
        let Up {
            machine,
            birth,
            booted,
        } = up;
        match machine.while_it_lives(self.fill(booted, spec)).await {
            Ok(filled) => {
                birth.keep();
                let sandbox = MicrovmSandbox::new(Arc::new(machine), filled.agent, false);
                Ok(Created {
                    sandbox: Arc::new(sandbox.with(filled.extensions)),
                    output: Some(filled.output),
                    steps_us: filled.steps,
                    paused: false,
                })
            }
            Err(error) => {
                birth.undo().await;
                Err(error)
            }
        }
    }

    /// A machine whose agent answers; if it does not, nothing of it is left.
    async fn bring_up(
        &self,
        spec: &CreateSpec,
        disk: Option<Disk>,
        mut steps: Vec<(String, u32)>,
    ) -> Result<Up, Lost> {
        let begun = self.clock.now();
        let size = Size::of(spec.memory_bytes, spec.cpu_millis, spec.needs());
        let begin = self.begin(spec.instance, size, disk.as_ref(), spec.label.clone());
        let (machine, birth, network) = begin.await?;
        steps.push(self.step("monitor", begun));
        let boot = self.boot(&machine, spec, size, disk, network, steps);
        match machine.while_it_lives(boot).await {
            Ok(booted) => Ok(Up {
                machine,
                birth,
                booted,
            }),
            Err(error) => {
                let lost = Lost::of(&machine, error);
                birth.undo().await;
                Err(lost)
            }
        }
    }

    /// A machine whose monitor has been started, which is undone unless it is
    /// kept; and what it is to be told of its network.
    async fn begin(
        &self,
        id: InstanceId,
        size: Size,
        disk: Option<&Disk>,
        label: Vec<u8>,
    ) -> Result<(Machine, Birth, Option<MachineNetwork>), SandboxError> {
        let ended = self.link.exits.watch(id);
        let machine = self.machine(id, ended);
        let started = self.start_monitor(id, size, disk, label).await;
        let (output, network) = started.inspect_err(|_| self.link.exits.forget(id))?;
        let birth = Birth::of(&machine, &self.tasks);
        machine.listen(output);
        Ok((machine, birth, network))
    }

    fn machine(&self, id: InstanceId, ended: watch::Receiver<Option<Exit>>) -> Machine {
        let machine = Machine::new(id, self.link.clone(), &self.run_dir, ended);
        match self.foreign {
            Some(_) => machine.foreign(),
            None => machine,
        }
    }

    /// The layers' disk, where it has to be there from the start.
    async fn disk(&self, layers: &[LayerFile]) -> Result<Option<Disk>, SandboxError> {
        let (Some(foreign), Some(lowest)) = (&self.foreign, layers.first()) else {
            return Ok(None);
        };
        let made = foreign.disks.of(layers).await;
        made.map(Some).map_err(|source| SandboxError::Layer {
            layer: lowest.digest.clone(),
            source,
        })
    }

    /// Has the launcher start a monitor: what that says, to be read, and what
    /// its machine is to be told.
    async fn start_monitor(
        &self,
        id: InstanceId,
        size: Size,
        disk: Option<&Disk>,
        label: Vec<u8>,
    ) -> Result<(Vec<OwnedFd>, Option<MachineNetwork>), SandboxError> {
        let refused = |step: &str, message| SandboxError::Refused {
            instance: id,
            step: step.to_owned(),
            message,
        };
        let guest = self.files.get().cloned();
        let guest = guest.ok_or_else(|| refused("kernel", "no kernel is chosen yet".to_owned()))?;
        let (program, mut paths) = match &self.foreign {
            None => (MonitorProgram::Own, Vec::new()),
            Some(foreign) => {
                let words = ["firecracker", "--api-sock", config::API, "--id"];
                let mut args: Vec<String> = words.map(str::to_owned).into();
                args.push(id.to_string());
                (
                    MonitorProgram::Given { args },
                    vec![foreign.program.clone()],
                )
            }
        };
        paths.extend([guest.kernel, guest.initramfs]);
        paths.extend(disk.map(|disk| disk.path.clone()));
        let config = self.foreign.is_none().then_some(size);
        let files = blocking(move || open_files(config, &paths)).await;
        let files = files.map_err(|error| refused("kernel", error.to_string()))?;
        let request = Request::CreateMonitor(Box::new(MonitorSpec {
            sandbox: id,
            program,
            memory_bytes: (size.memory_mib + MONITOR_MIB) * MIB,
            cpu_millis: size.cpu_millis,
            pids: size.vcpus + MONITOR_THREADS,
            egress: size.needs.egress,
            label,
        }));
        match self.link.client().call(request, files).await {
            Ok((Reply::MonitorCreated { network, .. }, output)) => Ok((output, network)),
            Ok(_) => Err(unexpected("create monitor")),
            Err(error) => Err(refused_by_launcher(id, error)),
        }
    }

    /// Tells a monitor that is not ours what its machine is, and lets it run;
    /// the monitor's name and version.
    async fn make_foreign(
        &self,
        machine: &Machine,
        size: Size,
        disk: Option<&Disk>,
    ) -> Result<Option<String>, SandboxError> {
        let Some(api) = &machine.api else {
            return Ok(None);
        };
        let refused = refused(machine.id);
        let monitor = api.greet(self.boot_deadline).await.map_err(&refused)?;
        let config = MachineConfig {
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            kernel: config::GIVEN_KERNEL,
            initramfs: config::GIVEN_INITRAMFS,
            boot_args: config::BOOT_ARGS,
            disk: disk.map(|_| config::GIVEN_DISK),
            guest_cid: config::GUEST_CID,
            vsock: config::VSOCK,
        };
        api.start(&config).await.map_err(&refused)?;
        Ok(Some(monitor))
    }

    /// From a monitor that starts to an agent that answers.
    async fn boot(
        &self,
        machine: &Machine,
        spec: &CreateSpec,
        size: Size,
        disk: Option<Disk>,
        network: Option<MachineNetwork>,
        mut steps: Vec<(String, u32)>,
    ) -> Result<Booted, SandboxError> {
        let id = machine.id;
        let begun = self.clock.now();
        if let Err(error) = machine.open_services(spec.function).await {
            // Whoever is to serve them finds out as well, and tries again.
            tracing::debug!(instance = %id, %error, "a machine's calls are refused so far");
        }
        self.make_foreign(machine, size, disk.as_ref()).await?;
        let (windows, scratch) = match disk {
            Some(disk) => (disk.windows, None),
            None => map(machine, spec).await?,
        };
        let agent = self.greet(machine).await?;
        steps.push(self.step("kernel", begun));
        Ok(Booted {
            agent,
            network,
            windows,
            scratch,
            steps,
        })
    }

    /// Waits for a machine's agent, as long as a boot may take.
    async fn greet(&self, machine: &Machine) -> Result<AgentClient, SandboxError> {
        let instance = machine.id;
        let agent = machine.agent(self.boot_deadline).await;
        agent.map_err(|error| match error.is_late() {
            true => SandboxError::Timeout {
                instance,
                step: BOOT,
            },
            false => refused(instance)(error),
        })
    }

    /// From an agent that answers to an application that runs.
    async fn fill(&self, booted: Booted, spec: CreateSpec) -> Result<Filled, SandboxError> {
        let id = spec.instance;
        let Booted {
            agent,
            network,
            windows,
            scratch,
            mut steps,
        } = booted;
        let begun = self.clock.now();
        for (layer, window) in spec.layers.iter().zip(windows) {
            let added = agent.add_layer(layer.digest.clone(), window).await;
            added.map_err(refused(id))?;
        }
        steps.push(self.step("layers", begun));
        let begun = self.clock.now();
        if let Some(network) = network {
            let connected = agent.connect_machine(network).await;
            connected.map_err(refused(id))?;
        }
        let extensions = make(&agent, spec, scratch).await.map_err(refused(id))?;
        let output = open_output(&agent, id).await?;
        steps.push(self.step("agent", begun));
        Ok(Filled {
            agent,
            output,
            extensions,
            steps,
        })
    }

    /// What this class cannot do with a monitor that is not ours, which has no
    /// disks of windows and takes no tap by its descriptor.
    const fn lacks_one_of(&self, needs: Needs) -> Option<&'static str> {
        if self.foreign.is_none() {
            None
        } else if needs.egress {
            Some(
                "reach the internet with a monitor that is not Skiff's: deploy with `--egress closed`",
            )
        } else if needs.disk {
            Some("write to a disk with a monitor that is not Skiff's: deploy with `--disk 0`")
        } else {
            None
        }
    }

    fn check(&self, spec: &CreateSpec) -> Result<(), SandboxError> {
        let class = IsolationClass::Microvm.as_str();
        match self.lacks_one_of(spec.needs()) {
            Some(what) => Err(SandboxError::Unsupported { class, what }),
            None => Ok(()),
        }
    }

    fn step(&self, name: &str, begun: Monotonic) -> (String, u32) {
        let us = self.clock.now().since(begun).as_micros();
        (name.to_owned(), u32::try_from(us).unwrap_or(u32::MAX))
    }

    async fn adopt_all(&self) -> Result<Vec<Found>, SandboxError> {
        let listed = self.link.client().list().await.map_err(launcher_gone)?;
        let found = stream::iter(listed)
            .filter(|one| std::future::ready(one.monitor))
            .map(|one| self.adopt_one(one))
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready);
        Ok(found.collect().await)
    }

    /// A machine that does not answer is of no use: it is destroyed.
    async fn adopt_one(&self, listed: Listed) -> Option<Found> {
        let id = listed.sandbox;
        if let Some(exit) = listed.exit {
            self.link.exits.set(id, exit);
        }
        let ended = self.link.exits.watch(id);
        let machine = Machine::new(id, self.link.clone(), &self.run_dir, ended).foreign_if_there();
        let birth = Birth::of(&machine, &self.tasks);
        match self.take_up(&machine, listed.frozen).await {
            Ok((agent, output, paused)) => {
                birth.keep();
                let sandbox = MicrovmSandbox::adopted(Arc::new(machine), agent, paused);
                Some(Found {
                    created: Created {
                        sandbox: Arc::new(sandbox),
                        output: Some(output),
                        steps_us: Vec::new(),
                        paused,
                    },
                    label: listed.label,
                })
            }
            Err(error) => {
                let error = skiff_base::chain(&error).to_string();
                tracing::error!(instance = %id, error, "a machine cannot be adopted and is destroyed");
                birth.undo().await;
                None
            }
        }
    }

    /// Its agent, its output, and whether it stands.
    async fn take_up(
        &self,
        machine: &Machine,
        frozen: bool,
    ) -> Result<(AgentClient, Output, bool), SandboxError> {
        let sandbox = machine.id;
        if machine.ended.borrow().is_some() {
            return Err(machine.died().await);
        }
        if let (Reply::Descriptors, output) =
            self.link.ask(sandbox, Request::Output { sandbox }).await?
        {
            machine.listen(output);
        }
        let paused = machine.stands(frozen).await?;
        // One that stands cannot answer.
        if paused {
            machine.go_on().await?;
        }
        let agent = machine
            .agent(ADOPT_DEADLINE)
            .await
            .map_err(refused(sandbox))?;
        let output = open_output(&agent, sandbox).await?;
        if paused {
            machine.stand().await?;
        }
        Ok((agent, output, paused))
    }
}

impl Backend for MicrovmBackend {
    fn class(&self) -> IsolationClass {
        IsolationClass::Microvm
    }

    fn lacks(&self, needs: Needs) -> Option<&'static str> {
        self.lacks_one_of(needs)
    }

    fn create(&self, spec: CreateSpec) -> BoxFuture<'_, Result<Created, SandboxError>> {
        Box::pin(self.create_machine(spec))
    }

    fn release<'a>(&'a self, layer: &'a Digest) -> BoxFuture<'a, Result<(), SandboxError>> {
        Box::pin(async move {
            let Some(foreign) = &self.foreign else {
                return Ok(());
            };
            let released = foreign.disks.release(layer).await;
            released.map_err(|source| SandboxError::Layer {
                layer: layer.clone(),
                source,
            })
        })
    }

    fn adopt(&self) -> BoxFuture<'_, Result<Vec<Found>, SandboxError>> {
        Box::pin(self.adopt_all())
    }
}

/// A machine that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// From its monitor's start to its agent's hello.
    pub took: Duration,
    /// The name and version that a monitor which is not ours gives itself.
    pub monitor: Option<String>,
}

/// How large a machine is, and what it has.
#[derive(Clone, Copy, Debug)]
struct Size {
    memory_mib: u64,
    vcpus: u32,
    cpu_millis: u32,
    needs: Needs,
}

impl Size {
    /// For an application of this size.
    fn of(memory_bytes: u64, cpu_millis: u32, needs: Needs) -> Self {
        Self {
            needs,
            memory_mib: config::machine_mib(memory_bytes.div_ceil(MIB)),
            vcpus: config::vcpus(cpu_millis),
            cpu_millis,
        }
    }
}

/// A configuration, if one is wanted, and the files.
fn open_files(config: Option<Size>, paths: &[PathBuf]) -> io::Result<Vec<OwnedFd>> {
    let mut files = Vec::with_capacity(paths.len() + 1);
    if let Some(size) = config {
        files.push(config::file(size.memory_mib, size.vcpus, size.needs)?.into());
    }
    for path in paths {
        let opened = File::open(path).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{} cannot be opened: {error}", path.display()),
            )
        })?;
        files.push(opened.into());
    }
    Ok(files)
}

/// Maps what a machine of our own monitor reads and writes: its layers, and
/// its disk if it has one.
async fn map(
    machine: &Machine,
    spec: &CreateSpec,
) -> Result<(Vec<Window>, Option<Window>), SandboxError> {
    let mut monitor = MonitorClient::connect(&machine.control())
        .await
        .map_err(refused(machine.id))?;
    let windows = map_layers(machine.id, &mut monitor, &spec.layers).await?;
    let scratch = match spec.writable {
        Writable::Disk { bytes } => Some(map_scratch(machine, &mut monitor, bytes).await?),
        Writable::Tmpfs { .. } => None,
    };
    Ok((windows, scratch))
}

/// Maps each layer's file to a window of the machine's disk, one behind the
/// other.
async fn map_layers(
    id: InstanceId,
    monitor: &mut MonitorClient,
    layers: &[LayerFile],
) -> Result<Vec<Window>, SandboxError> {
    let mut windows = Vec::with_capacity(layers.len());
    let mut first_sector = 0;
    for layer in layers {
        let path = layer.path.clone();
        let opened = blocking(move || {
            let file = File::open(path)?;
            Ok((file.metadata()?.len(), OwnedFd::from(file)))
        });
        let (bytes, file) = opened.await.map_err(|source| SandboxError::Layer {
            layer: layer.digest.clone(),
            source,
        })?;
        let sectors = bytes / SECTOR_BYTES;
        monitor
            .map(config::LAYERS, first_sector, sectors, file)
            .await
            .map_err(refused(id))?;
        windows.push(Window {
            disk: LAYERS_DISK,
            first_sector,
            sectors,
        });
        first_sector = (first_sector + sectors).next_multiple_of(WINDOW_ALIGN_SECTORS);
    }
    Ok(windows)
}

/// Maps an empty file system of the launcher's to the second disk. From then on
/// it is the monitor's alone, and goes with it.
async fn map_scratch(
    machine: &Machine,
    monitor: &mut MonitorClient,
    bytes: u64,
) -> Result<Window, SandboxError> {
    let asked = machine
        .link
        .ask(machine.id, Request::Disk { bytes })
        .await?;
    let (Reply::Descriptors, files) = asked else {
        return Err(unexpected("disk"));
    };
    let file = files.into_iter().next();
    let file = file.ok_or_else(|| unexpected("disk"))?;
    let window = Window {
        disk: SCRATCH_DISK,
        first_sector: 0,
        sectors: bytes / SECTOR_BYTES,
    };
    let mapped = monitor.map(config::SCRATCH, window.first_sector, window.sectors, file);
    mapped.await.map_err(refused(machine.id))?;
    Ok(window)
}

/// Has the agent make the sandbox; its extensions.
async fn make(
    agent: &AgentClient,
    spec: CreateSpec,
    scratch: Option<Window>,
) -> Result<Vec<String>, AgentError> {
    if spec.function {
        agent.serve_runtime().await?;
        return agent.create_function(sandbox_spec(spec), scratch).await;
    }
    let spec = sandbox_spec(spec);
    match scratch {
        Some(window) => agent.create_on_disk(spec, window).await?,
        None => agent.create(spec).await?,
    };
    Ok(Vec::new())
}

async fn open_output(agent: &AgentClient, sandbox: InstanceId) -> Result<Output, SandboxError> {
    let open = async |opening| -> Result<OwnedFd, SandboxError> {
        let stream = agent.open(opening).await.map_err(refused(sandbox))?;
        let stream = stream.into_std().map_err(SandboxError::Launcher)?;
        Ok(stream.into())
    };
    Ok(Output {
        ends: true,
        stdout: open(Opening::Stdout { sandbox }).await?,
        stderr: open(Opening::Stderr { sandbox }).await?,
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// What a machine's own parts refuse.
trait Refused: std::error::Error {
    fn step(&self) -> &'static str;
}

impl Refused for MonitorError {
    fn step(&self) -> &'static str {
        "monitor"
    }
}

impl Refused for ApiError {
    fn step(&self) -> &'static str {
        "monitor"
    }
}

impl Refused for AgentError {
    fn step(&self) -> &'static str {
        "agent"
    }
}

fn refused<E: Refused + 'static>(instance: InstanceId) -> impl Fn(E) -> SandboxError {
    move |error| SandboxError::Refused {
        instance,
        step: error.step().to_owned(),
        message: skiff_base::chain(&error).to_string(),
    }
}
