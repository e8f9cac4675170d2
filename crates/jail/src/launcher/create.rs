//! From a request to a process that builds its sandbox.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use skiff_base::{Clock, Monotonic};
use skiff_net::Network;
use skiff_types::{Digest, InstanceId};
use skiff_wire::launcher::{ProcessSpec, SandboxSpec, Stdio, Writable};

use super::Launcher;
use super::client::ReplyTo;
use super::disks::{DISK_BYTES_MIN, Disk};
use super::requests::listen_for_runtime;
use super::sandbox::{Outputs, Sandbox, State, Work};
use crate::cgroup::Limits;
use crate::child::Plan;
use crate::failure::{Context, Step, refuse};
use crate::handle::Handle;
use crate::ids::{RANGE_IDS, Ranges};

/// For everything from the request to the application's `execve`.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(30);
/// Sandboxes at a time.
const SANDBOXES_MAX: usize = 4096;
/// Overlayfs takes more, the option string and a plan's descriptors do not.
const LAYERS_MAX: usize = 127;
const LABEL_BYTES_MAX: usize = 16 * 1024;
const GROUPS_MAX: usize = 64;
/// Below this the init itself would not fit.
const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024;
const PIDS_MIN: u32 = 2;
const CWD_BYTES_MAX: usize = 4000;
const STDIO: &str = "stdio";

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// A function, and a socket for its runtime.
    Function,
    /// A function whose runtime's calls somebody else serves.
    Served,
}

/// Everything about a sandbox before its process is told.
struct Prepared {
    seat: u64,
    network: Network,
    furniture: Furniture,
    steps_us: Vec<(String, u32)>,
}

/// What a process needs to become its sandbox.
struct Furniture {
    streams: Streams,
    disk: Option<Disk>,
    views: Vec<OwnedFd>,
}

/// The application's streams, and what the launcher and the client hold.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) app: Vec<OwnedFd>,
    pub(super) outputs: Outputs,
    /// The client's end of stdin, if that is a pipe.
    pub(super) input: Option<OwnedFd>,
}

impl Launcher {
    pub(super) fn create(
        &mut self,
        to: ReplyTo,
        spec: SandboxSpec,
        fds: Vec<OwnedFd>,
        kind: Kind,
    ) -> Step<()> {
        check(&spec, fds.len(), self.options.takes_disks)?;
        self.admit_sandbox(spec.sandbox, &spec.label)?;
        let begun = self.clock.now();
        let network = self.networks.take(spec.egress);
        let network = network.map_err(|error| refuse("network", skiff_base::chain(&error)))?;
        self.refill_networks = true;
        let networked = self.clock.now();
        let prepared = match self.prepare(&spec, network, fds, (begun, networked)) {
            Ok(prepared) => prepared,
            Err((network, refusal)) => {
                self.release_network(network);
                return Err(refusal);
            }
        };
        if kind == Kind::Function {
            match listen_for_runtime(&prepared.network) {
                Ok(socket) => self.runtime_sockets.insert(spec.sandbox, socket),
                Err(refusal) => {
                    self.abandon_seat(prepared.seat);
                    self.release_network(prepared.network);
                    return Err(refusal);
                }
            };
        }
        self.start(to, spec, prepared, kind);
        Ok(())
    }

    /// Whether there is a place for another sandbox of that id.
    pub(super) fn admit_sandbox(&self, id: InstanceId, label: &[u8]) -> Step<()> {
        let problem = if self.kept.shutting_down {
            "the launcher is ending".to_owned()
        } else if self.kept.sandboxes.contains_key(&id) {
            format!("sandbox {id} is there already")
        } else if self.kept.sandboxes.len() >= SANDBOXES_MAX {
            format!("there are {SANDBOXES_MAX} sandboxes")
        } else if label.len() > LABEL_BYTES_MAX {
            format!("the label is over {LABEL_BYTES_MAX} bytes")
        } else {
            return Ok(());
        };
        Err(refuse("request", problem))
    }

    fn prepare(
        &mut self,
        spec: &SandboxSpec,
        network: Network,
        fds: Vec<OwnedFd>,
        (begun, networked): (Monotonic, Monotonic),
    ) -> Result<Prepared, (Network, skiff_wire::launcher::Refusal)> {
        let seat = match self.take_seat(spec.sandbox) {
            Ok(seat) => seat,
            Err(refusal) => return Err((network, refusal)),
        };
        let seated = self.clock.now();
        match self.furnish(spec, seat, fds) {
            Ok(furniture) => Ok(Prepared {
                seat,
                network,
                furniture,
                steps_us: vec![
                    step("network", begun, networked),
                    step("clone", networked, seated),
                    step("cgroup", seated, self.clock.now()),
                ],
            }),
            Err(refusal) => {
                self.abandon_seat(seat);
                Err((network, refusal))
            }
        }
    }

    fn furnish(&mut self, spec: &SandboxSpec, seat: u64, mut fds: Vec<OwnedFd>) -> Step<Furniture> {
        let disk = self.disk(spec.writable, &mut fds)?;
        let range = self.seat(seat)?.range;
        let limits = Limits {
            memory_bytes: spec.memory_bytes,
            cpu_millis: spec.cpu_millis,
            pids: spec.pids,
        };
        self.cgroups.limit(seat, limits)?;
        let namespace = self.kept.ranges.namespace(range)?;
        let view = |layer: &Digest| self.kept.layers.view(layer, namespace);
        let views = spec.layers.iter().map(view).collect::<Step<_>>()?;
        let user = Ranges::base(range) + spec.process.uid;
        let streams = open_streams(spec.stdio, fds, user)?;
        Ok(Furniture {
            streams,
            disk,
            views,
        })
    }

    /// What a writable layer lies on: the last descriptor, or a file of ours.
    fn disk(&mut self, writable: Writable, fds: &mut Vec<OwnedFd>) -> Step<Option<Disk>> {
        let Writable::Disk { bytes } = writable else {
            return Ok(None);
        };
        if !self.options.takes_disks {
            return self.take_disk(bytes).map(Some);
        }
        let device = fds.pop();
        let device = device.ok_or_else(|| refuse("disk", "the device is missing"))?;
        Disk::given(device).map(Some)
    }

    /// Registers the sandbox and tells its process. From here on a failure is
    /// told once everything is undone.
    fn start(&mut self, to: ReplyTo, spec: SandboxSpec, prepared: Prepared, kind: Kind) {
        let deadline = self.clock.now().plus(START_DEADLINE).as_nanos();
        let id = spec.sandbox;
        let seat = prepared.seat;
        let disk = prepared.furniture.disk.as_ref();
        let plan = Plan {
            function: kind != Kind::Plain,
            ..plan(&spec, &prepared.network, disk)
        };
        let sent = self.send(&prepared, &plan);
        self.kept.layers.use_all(&spec.layers);
        let state = State::Starting {
            reply: to,
            deadline,
            steps_us: prepared.steps_us,
        };
        let sandbox = Sandbox {
            layers: spec.layers,
            network: Some(prepared.network),
            outputs: prepared.furniture.streams.outputs,
            input: prepared.furniture.streams.input.map(Handle::from),
            ..Sandbox::starting(Work::Init, seat, state, spec.label)
        };
        self.kept.sandboxes.insert(id, sandbox);
        self.starting.insert(id);
        if let Err(refusal) = sent {
            self.fail(id, refusal);
        }
    }

    fn send(&self, prepared: &Prepared, plan: &Plan) -> Step<()> {
        let range = self.seat(prepared.seat)?.range;
        let mut fds = vec![self.kept.ranges.namespace(range)?, prepared.network.as_fd()];
        let furniture = &prepared.furniture;
        fds.extend(furniture.streams.app.iter().map(AsFd::as_fd));
        fds.extend(furniture.disk.iter().map(|disk| disk.device.as_fd()));
        fds.extend(furniture.views.iter().map(AsFd::as_fd));
        self.send_plan(prepared.seat, plan, &fds)
    }
}

pub(super) fn step(name: &str, from: Monotonic, to: Monotonic) -> (String, u32) {
    let us = u32::try_from(to.since(from).as_micros()).unwrap_or(u32::MAX);
    (name.to_owned(), us)
}

fn plan(spec: &SandboxSpec, network: &Network, disk: Option<&Disk>) -> Plan {
    let address = network
        .address()
        .map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string());
    Plan {
        process: spec.process.clone(),
        hostname: spec.hostname.clone(),
        writable_bytes: match spec.writable {
            Writable::Tmpfs { bytes } | Writable::Disk { bytes } => bytes,
        },
        disk: disk.map(|disk| disk.plan),
        readonly_root: spec.readonly_root,
        terminal: match spec.stdio {
            Stdio::Terminal { columns, rows } => Some((columns, rows)),
            Stdio::Piped | Stdio::PipedInput | Stdio::Given => None,
        },
        resolv_conf: network.resolv_conf(),
        // The second is AWS's name for where extensions listen for telemetry.
        hosts: format!(
            "127.0.0.1\tlocalhost sandbox.localdomain\n{address}\t{}\n",
            spec.hostname
        ),
        function: false,
    }
}

pub(super) fn open_streams(stdio: Stdio, given: Vec<OwnedFd>, user: u32) -> Step<Streams> {
    match stdio {
        Stdio::Given => Ok(Streams {
            app: given,
            ..Streams::default()
        }),
        Stdio::Terminal { .. } => Ok(Streams::default()),
        Stdio::Piped => open_outputs(open_empty()?, user),
        Stdio::PipedInput => {
            let (reader, writer) = open_pipe()?;
            give(&reader, user)?;
            let mut streams = open_outputs(reader, user)?;
            streams.input = Some(writer);
            Ok(streams)
        }
    }
}

/// Nothing to read.
pub(super) fn open_empty() -> Step<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty()).at(STDIO, "/dev/null")
}

/// Pipes for stdout and stderr, whose user may open them again by name.
pub(super) fn open_outputs(stdin: OwnedFd, user: u32) -> Step<Streams> {
    let mut streams = Streams {
        app: vec![stdin],
        ..Streams::default()
    };
    for _ in 0..2 {
        let (reader, writer) = open_pipe()?;
        give(&writer, user)?;
        streams.app.push(writer.try_clone().at(STDIO, "dup")?);
        streams.outputs.readers.push(Handle::from(reader));
        streams.outputs.writers.push(Handle::from(writer));
    }
    Ok(streams)
}

fn open_pipe() -> Step<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).at(STDIO, "pipe")
}

/// An application may open `/dev/stdout`, and needs leave to.
fn give(end: &OwnedFd, user: u32) -> Step<()> {
    rustix::fs::fchown(end, Some(rustix::fs::Uid::from_raw(user)), None).at(STDIO, "chown")
}

/// Everything that the kernel would refuse late, or not at all.
fn check(spec: &SandboxSpec, fds: usize, takes_disks: bool) -> Step<()> {
    let is_on_disk = matches!(spec.writable, Writable::Disk { .. });
    let streams = if spec.stdio == Stdio::Given { 3 } else { 0 };
    let expected = streams + usize::from(is_on_disk && takes_disks);
    let problem = if fds != expected {
        format!("{expected} descriptors are expected, {fds} came")
    } else if spec.layers.is_empty() || spec.layers.len() > LAYERS_MAX {
        format!("{} layers are not 1 to {LAYERS_MAX}", spec.layers.len())
    } else if matches!(spec.writable, Writable::Disk { bytes } if bytes < DISK_BYTES_MIN) {
        format!("a disk is at least {DISK_BYTES_MIN} bytes")
    } else if spec.memory_bytes < MEMORY_BYTES_MIN {
        format!("{} bytes of memory are too few", spec.memory_bytes)
    } else if spec.pids < PIDS_MIN {
        format!("{} processes are fewer than {PIDS_MIN}", spec.pids)
    } else if spec.cpu_millis == 0 {
        "no part of a cpu is not enough".to_owned()
    } else if !is_hostname(&spec.hostname) {
        "the host name is not 1 to 64 of a-z, 0-9, - and .".to_owned()
    } else {
        return check_process(&spec.process);
    };
    Err(refuse("request", problem))
}

pub(super) fn check_process(process: &ProcessSpec) -> Step<()> {
    let groups = &process.additional_gids;
    let mut ids = [process.uid, process.gid]
        .into_iter()
        .chain(groups.iter().copied());
    let cwd = &process.cwd;
    let has_parent = std::path::Path::new(cwd)
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    let problem = if process.args.first().is_none_or(String::is_empty) {
        "there is no program"
    } else if process
        .args
        .iter()
        .chain(&process.env)
        .any(|text| text.contains('\0'))
    {
        "a string has a zero byte"
    } else if !cwd.starts_with('/') || cwd.contains('\0') || cwd.len() > CWD_BYTES_MAX || has_parent
    {
        "the working folder is not an absolute path without `..`"
    } else if groups.len() > GROUPS_MAX {
        "there are too many groups"
    } else if ids.any(|id| id >= RANGE_IDS) {
        "a user or group id is over 65,535"
    } else if process.nofile == 0 {
        "no open file is not enough"
    } else {
        return Ok(());
    };
    Err(refuse("request", problem))
}

fn is_hostname(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(allowed)
}
