//! Monitors of virtual machines: from a request to a program that confines
//! itself.
//!
//! A monitor begins outside of its cgroups, where the kernel makes a machine
//! in less time, with the doors to them open; what it can see from its
//! beginning on is one folder of its own. Some have been started ahead:
//! [`super::warm`].

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, Uid};
use rustix::mount::OpenTreeFlags;
use skiff_base::Clock;
use skiff_net::Network;
use skiff_types::InstanceId;
use skiff_wire::launcher::{MonitorProgram, MonitorSpec, monitor_folder};

use super::client::ReplyTo;
use super::create::{self, START_DEADLINE, Streams, step};
use super::sandbox::{Outputs, Sandbox, State, Work};
use super::seat::Seat;
use super::{Launcher, LauncherOptions};
use crate::cgroup::Limits;
use crate::channel;
use crate::child::{self, ForeignTask, MonitorBirth, MonitorTask};
use crate::failure::{Context, Step, refuse};
use crate::handle::Handle;
use crate::ids::Ranges;
use crate::sys::{self, Cloned, MountChange};

const STEP: &str = "monitor";
/// The configuration and what that names, a tap the last.
pub(super) const FILES_MAX: usize = 8;
/// What a monitor's own threads and buffers take.
const MEMORY_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// A vCPU, the devices, control, and who waits for signals.
const PIDS_MIN: u32 = 5;
const KVM: &str = "/dev/kvm";

impl Launcher {
    pub(super) fn create_monitor(
        &mut self,
        to: ReplyTo,
        spec: MonitorSpec,
        mut files: Vec<OwnedFd>,
    ) -> Step<()> {
        check(&spec, files.len())?;
        self.admit_sandbox(spec.sandbox, &spec.label)?;
        let begun = self.clock.now();
        let network = self.take_network(&spec, &mut files)?;
        let networked = self.clock.now();
        let (number, outputs) = match self.monitor_for(&spec, files) {
            Ok(born) => born,
            Err(refusal) => {
                if let Some(network) = network {
                    self.release_network(network);
                }
                return Err(refusal);
            }
        };
        let now = self.clock.now();
        let pidfd = self.kept.seats.get(&number).map(|seat| seat.pidfd.as_fd());
        let app = pidfd.and_then(|pidfd| pidfd.try_clone_to_owned().ok());
        let state = State::Starting {
            reply: to,
            deadline: now.plus(START_DEADLINE).as_nanos(),
            steps_us: vec![
                step("network", begun, networked),
                step("clone", networked, now),
            ],
        };
        let sandbox = Sandbox {
            app: app.map(Handle::from),
            outputs,
            network,
            ..Sandbox::starting(Work::Monitor, number, state, spec.label)
        };
        self.kept.sandboxes.insert(spec.sandbox, sandbox);
        self.starting.insert(spec.sandbox);
        Ok(())
    }

    /// The network of a machine that has one, whose tap goes behind the files.
    fn take_network(
        &mut self,
        spec: &MonitorSpec,
        files: &mut Vec<OwnedFd>,
    ) -> Step<Option<Network>> {
        if !spec.egress {
            return Ok(None);
        }
        let taken = self.networks.take_for_machine();
        self.refill_networks = true;
        let (network, tap) = taken.map_err(|error| refuse("network", skiff_base::chain(&error)))?;
        files.push(tap);
        Ok(Some(network))
    }

    /// One that has waited, or a process that becomes it: its seat, and what is
    /// held of its output. Nothing is left of one that cannot be made.
    fn monitor_for(&mut self, spec: &MonitorSpec, files: Vec<OwnedFd>) -> Step<(u64, Outputs)> {
        if spec.program == MonitorProgram::Own
            && let Some(monitor) = self.take_monitor()
        {
            match self.assign(monitor, spec, &files) {
                Ok(assigned) => return Ok(assigned),
                // It may have died at this moment.
                Err(refusal) => tracing::warn!(%refusal, "a monitor that waited is of no use"),
            }
        }
        let range = self.kept.ranges.take()?;
        let number = self.kept.number();
        match self.open_monitor(spec, number, range, files) {
            Ok((seat, streams)) => {
                self.kept.seats.insert(number, seat);
                Ok((number, streams.outputs))
            }
            Err(refusal) => {
                self.forget_monitor(spec.sandbox, number);
                self.kept.ranges.release(range);
                Err(refusal)
            }
        }
    }

    fn open_monitor(
        &mut self,
        spec: &MonitorSpec,
        number: u64,
        range: u32,
        mut files: Vec<OwnedFd>,
    ) -> Step<(Seat, Streams)> {
        self.cgroups.make(number)?;
        self.limit_monitor(number, spec)?;
        let id = spec.sandbox;
        let folder = self.make_monitor_folder(id, Ranges::base(range))?;
        let (program, task) = match &spec.program {
            MonitorProgram::Own => {
                let task = MonitorTask::Machine { id, files, folder };
                (self.open_program()?, task)
            }
            MonitorProgram::Given { args } => {
                let program = files.remove(0);
                let words = args.clone();
                let task = ForeignTask {
                    words,
                    files,
                    folder,
                };
                (program, MonitorTask::Foreign(task))
            }
        };
        self.bear_monitor(number, range, spec.sandbox, program, task)
    }

    pub(super) fn limit_monitor(&self, number: u64, spec: &MonitorSpec) -> Step<()> {
        let limits = Limits {
            memory_bytes: spec.memory_bytes,
            cpu_millis: spec.cpu_millis,
            pids: spec.pids,
        };
        self.cgroups.limit(number, limits)
    }

    /// Makes the process of a monitor whose cgroups are there.
    pub(super) fn bear_monitor(
        &mut self,
        number: u64,
        range: u32,
        holder: InstanceId,
        program: OwnedFd,
        task: MonitorTask,
    ) -> Step<(Seat, Streams)> {
        let owner = Ranges::base(range);
        let mut streams = create::open_outputs(create::open_empty()?, owner)?;
        let birth = MonitorBirth {
            program,
            owner,
            kvm: open(KVM.as_ref(), OFlags::RDWR)?,
            groups: self
                .cgroups
                .all_doors(number)
                .iter()
                .map(|door| open(door, OFlags::WRONLY))
                .collect::<Step<_>>()?,
            streams: std::mem::take(&mut streams.app),
            users: self
                .kept
                .ranges
                .namespace(range)?
                .try_clone_to_owned()
                .at(STEP, "dup")?,
            layers: self.kept.layers.folder().to_owned(),
        };
        let (ours, theirs) = channel::pair().at(STEP, "socketpair")?;
        let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
        // SAFETY: the launcher has one thread, checked at its start.
        let pidfd = match unsafe { sys::clone3(namespaces, None) }.at(STEP, "clone3")? {
            Cloned::Child => child::run_monitor(birth, task, theirs, &self.filters),
            Cloned::Parent { pidfd, .. } => pidfd,
        };
        self.watch_birth(number, &ours, &pidfd)?;
        let seat = Seat {
            range,
            pidfd: pidfd.into(),
            control: Some(ours.into()),
            holder: Some(holder),
            dead: false,
        };
        Ok((seat, streams))
    }

    /// Opened for each monitor, so that a new one serves the next machine.
    pub(super) fn open_program(&self) -> Step<OwnedFd> {
        let path = self.options.monitor.as_deref();
        let path = path
            .ok_or_else(|| refuse(STEP, "this launcher was started without the monitor's path"))?;
        open(path, OFlags::RDONLY)
    }

    /// The folder that becomes the monitor's root, as a mount that is nowhere
    /// yet: in another user namespace nobody can make one of a folder. The
    /// server may use what is in it, so nothing in it is followed here.
    pub(super) fn make_monitor_folder(&self, id: InstanceId, owner: u32) -> Step<OwnedFd> {
        let path = self.monitor_folder(id);
        let parent = path.parent().unwrap_or(&path);
        match std::fs::create_dir(parent) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).at(STEP, parent.display());
            }
            _ => {}
        }
        // Its parent is the launcher's own: it cannot have been replaced.
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let parent = open(parent, flags)?;
        let server = Uid::from_raw(self.options.allowed_uid);
        rustix::fs::fchown(&parent, Some(server), None).at(STEP, "chown")?;
        rustix::fs::fchmod(&parent, Mode::RWXU).at(STEP, "chmod")?;
        let name = id.to_string();
        let say = || path.display().to_string();
        rustix::fs::mkdirat(&parent, &name, Mode::RWXU).at(STEP, say())?;
        let folder = rustix::fs::openat(&parent, &name, flags | OFlags::CLOEXEC, Mode::empty())
            .at(STEP, say())?;
        rustix::fs::fchown(&folder, Some(Uid::from_raw(owner)), None).at(STEP, say())?;
        // The folder above keeps everybody else out.
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(0o777)).at(STEP, say())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let mount = rustix::mount::open_tree(&folder, "", flags).at(STEP, say())?;
        let change = MountChange {
            set: sys::NOSUID | sys::NODEV | sys::NOEXEC,
            ..MountChange::default()
        };
        sys::set_mount(&mount, change).at(STEP, say())?;
        Ok(mount)
    }

    fn monitor_folder(&self, id: InstanceId) -> PathBuf {
        monitor_folder(&self.options.run_dir, id)
    }

    /// Removes what was made for a monitor that was never born.
    fn forget_monitor(&self, id: InstanceId, number: u64) {
        self.remove_monitor_folder(id);
        if !self.cgroups.remove(number) {
            tracing::error!(number, "the cgroups of a monitor that was never born stay");
        }
    }

    pub(super) fn remove_monitor_folder(&self, id: InstanceId) {
        let path = self.monitor_folder(id);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::error!(%error, path = %path.display(), "a monitor's folder stays");
            }
            _ => {}
        }
    }

    /// Its channel has closed without a refusal: the monitor's program runs,
    /// or is dead already, which is told next.
    pub(super) fn monitor_runs(&mut self, id: InstanceId) {
        let Some(sandbox) = self.kept.sandboxes.get(&id) else {
            return;
        };
        let (State::Starting { deadline, .. }, Work::Monitor) = (&sandbox.state, sandbox.work)
        else {
            return;
        };
        let deadline = *deadline;
        let until = self.clock.now().plus(START_DEADLINE).as_nanos();
        let exec_us = u32::try_from(until.saturating_sub(deadline) / 1000).unwrap_or(u32::MAX);
        let app = sandbox
            .app
            .as_ref()
            .and_then(|app| app.as_fd().try_clone_to_owned().ok());
        self.started(id, &[("exec", exec_us)], app.into_iter().collect());
    }
}

/// Removes the folders that an earlier launcher has left: their monitors have
/// died with it.
pub(super) fn sweep(options: &LauncherOptions) -> Step<()> {
    let folder = options.own_folder().join("vms");
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).at(STEP, folder.display())
        }
        _ => Ok(()),
    }
}

fn open(path: &std::path::Path, flags: OFlags) -> Step<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).at(STEP, path.display())
}

fn check(spec: &MonitorSpec, files: usize) -> Step<()> {
    // A tap goes behind them.
    let most = FILES_MAX - usize::from(spec.egress);
    let problem = if files == 0 || files > most {
        format!("1 to {most} descriptors are expected, {files} came")
    } else if spec.egress && spec.program != MonitorProgram::Own {
        "its program takes no tap".to_owned()
    } else if spec.memory_bytes < MEMORY_BYTES_MIN {
        format!("{} bytes of memory are too few", spec.memory_bytes)
    } else if spec.pids < PIDS_MIN {
        format!("{} threads are fewer than {PIDS_MIN}", spec.pids)
    } else if matches!(&spec.program, MonitorProgram::Given { args } if args.is_empty()) {
        "its program has no words".to_owned()
    } else if spec.cpu_millis == 0 {
        "no part of a cpu is not enough".to_owned()
    } else {
        return Ok(());
    };
    Err(refuse("request", problem))
}
