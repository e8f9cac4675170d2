//! A monitor's process from its birth to its program.
//!
//! It becomes the root of a user namespace whose ids mean nobody on the host,
//! with namespaces of its own around it, and executes. What it may still do
//! then it gives up itself before a guest runs: `skiff_vmm::confine`.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use skiff_types::InstanceId;

use super::foreign;
use super::init::{APP_OOM_SCORE, die_with_launcher, report};
use super::plan::Report;
use crate::failure::{Context, Step, refuse};
use crate::seccomp::Filters;
use crate::sys;

const STEP: &str = "monitor";
/// Open files of a monitor: two for each of its streams, and what it begins
/// with.
const FILES_MAX: u64 = 4096;

/// What a monitor's process is made of.
#[derive(Debug)]
pub(crate) struct MonitorBirth {
    pub(crate) program: OwnedFd,
    pub(crate) kvm: OwnedFd,
    /// `cgroup.procs` of each hierarchy.
    pub(crate) groups: Vec<OwnedFd>,
    pub(crate) streams: Vec<OwnedFd>,
    pub(crate) users: OwnedFd,
    /// The first id of its range.
    pub(crate) owner: u32,
    /// The folder of the launcher's layers, to be left.
    pub(crate) layers: PathBuf,
}

/// What a monitor is started for.
#[derive(Debug)]
pub(crate) enum MonitorTask {
    /// This machine.
    Machine {
        id: InstanceId,
        /// The configuration, then what it names, a tap the last.
        files: Vec<OwnedFd>,
        folder: OwnedFd,
    },
    /// One that it is told at this socket, whose files take the numbers of
    /// these.
    Await {
        places: Vec<OwnedFd>,
        socket: OwnedFd,
    },
    /// Whatever a program that is not ours is told.
    Foreign(ForeignTask),
}

/// What a program that is not ours is started with.
#[derive(Debug)]
pub(crate) struct ForeignTask {
    pub(crate) words: Vec<String>,
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) folder: OwnedFd,
}

/// Becomes the monitor, or says why not and ends.
pub(crate) fn run_monitor(
    birth: MonitorBirth,
    task: MonitorTask,
    control: OwnedFd,
    filters: &Filters,
) -> ! {
    let refusal = match become_monitor(birth, task, &control, filters) {
        Ok(never) => match never {},
        Err(refusal) => refusal,
    };
    report(&control, &Report::Failed(refusal), &[]);
    sys::exit_now(127)
}

fn become_monitor(
    birth: MonitorBirth,
    task: MonitorTask,
    control: &OwnedFd,
    filters: &Filters,
) -> Step<std::convert::Infallible> {
    die_with_launcher(control)?;
    rustix::process::setsid().at(STEP, "setsid")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    // Otherwise this copy would hold a layer that the launcher removes.
    rustix::mount::unmount(&birth.layers, UnmountFlags::DETACH).at(STEP, birth.layers.display())?;
    sys::join_new_keyring();
    sys::limit_resource(libc::RLIMIT_NOFILE, FILES_MAX).at(STEP, "limit open files")?;
    sys::limit_resource(libc::RLIMIT_CORE, 0).at(STEP, "limit core files")?;
    // Best effort: without it the score is the process's size alone.
    std::fs::write("/proc/self/oom_score_adj", APP_OOM_SCORE).ok();
    let (words, files, first) = match task {
        MonitorTask::Foreign(task) => {
            sys::reset_signals();
            return foreign::execute(birth, task, control, filters);
        }
        MonitorTask::Machine { id, files, folder } => {
            let words = ["--id", &id.to_string(), "--config-file", "fd:3"].map(str::to_owned);
            (words.to_vec(), files, ("--folder-fd", folder))
        }
        MonitorTask::Await { places, socket } => (Vec::new(), places, ("--await-fd", socket)),
    };
    enter_namespaces(&birth.users)?;
    sys::reset_signals();
    execute(birth, words, files, first, control)
}

/// The user namespace first: the others are then that one's own, and all that
/// its root may do is done in them.
fn enter_namespaces(users: &OwnedFd) -> Step<()> {
    rustix::thread::move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))
        .at(STEP, "enter the user namespace")?;
    sys::become_user(0, 0, &[]).at(STEP, "become its root")?;
    let own = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: the process has one thread, and none of these has a part in its
    // open files.
    unsafe { rustix::thread::unshare_unsafe(own) }.at(STEP, "unshare")?;
    // The change of user has cleared it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .at(STEP, "tie to the launcher")
}

/// Executes with the standard streams, the files from 3 on or what keeps their
/// numbers, and behind them the folder or socket, KVM and the groups, by the
/// numbers that it is told.
fn execute(
    birth: MonitorBirth,
    more: Vec<String>,
    files: Vec<OwnedFd>,
    first: (&'static str, OwnedFd),
    control: &OwnedFd,
) -> Step<std::convert::Infallible> {
    let mut words = ["skiff-vmm", "--no-api", "--control", "control"]
        .map(str::to_owned)
        .to_vec();
    words.extend(more);
    let mut kept = birth.streams;
    kept.extend(files);
    let named = [first, ("--kvm-fd", birth.kvm)]
        .into_iter()
        .chain(birth.groups.into_iter().map(|group| ("--cgroup-fd", group)));
    for (option, fd) in named {
        words.push(option.to_owned());
        words.push(kept.len().to_string());
        kept.push(fd);
    }
    let [program, control] = arrange(kept, [&birth.program, control])?;
    let args: Vec<CString> = words
        .into_iter()
        .map(|word| CString::new(word).map_err(|error| refuse(STEP, error)))
        .collect::<Step<_>>()?;
    let errno = sys::execute_fd(program.as_fd(), &sys::pointers(&args), &sys::pointers(&[]));
    // The caller's number is another's by now.
    let refused: Step<()> = Err(errno).at(STEP, "execute the monitor");
    if let Err(refusal) = refused {
        report(&control, &Report::Failed(refusal), &[]);
    }
    sys::exit_now(127)
}

/// Puts the descriptors at 0 and on, to stay, and two more behind them that
/// close with the execution. All others close.
pub(super) fn arrange(kept: Vec<OwnedFd>, closing: [&OwnedFd; 2]) -> Step<[OwnedFd; 2]> {
    let count = i32::try_from(kept.len()).map_err(|error| refuse(STEP, error))?;
    // Everything goes above the numbers that are about to be replaced.
    let lift = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, count + 2).at(STEP, "dup");
    let lifted = kept.iter().map(lift).collect::<Step<Vec<_>>>()?;
    let [first, second] = closing;
    let closing = [lift(first)?, lift(second)?];
    for fd in kept {
        // Its number may be one of the first, which others get now.
        std::mem::forget(fd);
    }
    for (number, fd) in (0..).zip(&lifted) {
        sys::duplicate(fd.as_fd(), number, false).at(STEP, "dup3")?;
    }
    let [first, second] = closing;
    let placed = [
        sys::duplicate_owned(first.as_fd(), count).at(STEP, "dup3")?,
        sys::duplicate_owned(second.as_fd(), count + 1).at(STEP, "dup3")?,
    ];
    // close_range closes these with everything else.
    lifted.into_iter().for_each(std::mem::forget);
    [first, second].into_iter().for_each(std::mem::forget);
    let rest = u32::try_from(placed[1].as_raw_fd()).unwrap_or(u32::MAX);
    sys::close_from(rest.saturating_add(1)).at(STEP, "close_range")?;
    Ok(placed)
}
