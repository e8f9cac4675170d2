//! A monitor that is not ours: confined before it begins, since it cannot be
//! expected to do so itself.
//!
//! It sees a root with KVM, a few devices, its own `/proc`, the folder of its
//! sockets, and, when it is not a static program, the host's libraries; it is
//! a user of its own range without a capability, behind the filter of
//! containers. What it does to confine itself further is its own.

use std::ffi::CString;
use std::fs::read_link;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, mknodat, symlinkat};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

use super::devices;
use super::init::report;
use super::monitor::{ForeignTask, MonitorBirth, arrange};
use super::plan::Report;
use crate::failure::{Context, Step, refuse};
use crate::layers::{attach, own, tmpfs};
use crate::seccomp::Filters;
use crate::sys::{self, MountChange};

const STEP: &str = "monitor";
/// KVM's device, misc(4).
const KVM: (u32, u32) = (10, 232);
/// Where the folder of its sockets is, and where it begins.
const FOLDER: &str = "run";
/// Where the host's libraries are.
const LIBRARIES: [&str; 4] = ["usr/lib", "usr/lib64", "lib", "lib64"];

/// Confines the process and executes the program with its words.
pub(super) fn execute(
    birth: MonitorBirth,
    task: ForeignTask,
    control: &OwnedFd,
    filters: &Filters,
) -> Step<std::convert::Infallible> {
    for group in &birth.groups {
        rustix::io::write(group, b"0").at("cgroup", "enter the monitor's")?;
    }
    let own = UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: the process has one thread, and none of these has a part in its
    // open files.
    unsafe { rustix::thread::unshare_unsafe(own) }.at(STEP, "unshare")?;
    make_root(&birth, &task.folder)?;
    sys::bound_capabilities(0).at(STEP, "drop capabilities")?;
    sys::become_user(birth.owner, birth.owner, &[]).at(STEP, "become its user")?;
    sys::set_capabilities(0).at(STEP, "drop capabilities")?;
    // The change of user has cleared it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .at(STEP, "tie to the launcher")?;
    let args: Vec<CString> = task
        .words
        .into_iter()
        .map(|word| CString::new(word).map_err(|error| refuse(STEP, error)))
        .collect::<Step<_>>()?;
    let mut kept = birth.streams;
    kept.extend(task.files);
    let [program, control] = arrange(kept, [&birth.program, control])?;
    filters.apply()?;
    let errno = sys::execute_fd(program.as_fd(), &sys::pointers(&args), &sys::pointers(&[]));
    // The caller's number is another's by now.
    let refused: Step<()> = Err(errno).at(STEP, "execute the monitor");
    if let Err(refusal) = refused {
        report(&control, &Report::Failed(refusal), &[]);
    }
    sys::exit_now(127)
}

/// Builds the root on the folder of the layers, which this process has left,
/// and changes to it.
fn make_root(birth: &MonitorBirth, folder: &OwnedFd) -> Step<()> {
    let options = [("mode", "0755"), ("size", "1m")];
    let root = tmpfs(&options, MountAttrFlags::empty()).at(STEP, "the root")?;
    attach(&root, CWD, &birth.layers).at(STEP, birth.layers.display())?;
    rustix::process::fchdir(&root).at(STEP, "enter the root")?;
    devices::make_dev(birth.owner)?;
    devices::make_proc()?;
    let device = rustix::fs::makedev(KVM.0, KVM.1);
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, "dev/kvm", FileType::CharacterDevice, mode, device)
        .and_then(|()| own(CWD, "dev/kvm", birth.owner))
        .at(STEP, "/dev/kvm")?;
    make_folder(FOLDER)?;
    attach(folder, CWD, FOLDER).at(STEP, "its folder")?;
    show_libraries()?;
    let change = MountChange {
        set: sys::RDONLY | sys::NOSUID,
        ..MountChange::default()
    };
    sys::set_mount(&root, change).at(STEP, "make the root read-only")?;
    rustix::process::pivot_root(".", ".").at(STEP, "pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at(STEP, "leave the old root")?;
    rustix::process::chdir(format!("/{FOLDER}")).at(STEP, "enter its folder")
}

/// The host's libraries, to be read and executed, as they lie there: folders,
/// or links to them.
fn show_libraries() -> Step<()> {
    make_folder("usr")?;
    for name in LIBRARIES {
        let there = format!("/{name}");
        if let Ok(target) = read_link(&there) {
            symlinkat(target, CWD, name).at(STEP, there)?;
            continue;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        // What is not there is not needed.
        let Ok(libraries) = rustix::mount::open_tree(CWD, &there, flags) else {
            continue;
        };
        let change = MountChange {
            set: sys::RDONLY | sys::NOSUID | sys::NODEV,
            ..MountChange::default()
        };
        sys::set_mount(&libraries, change).at(STEP, &there)?;
        make_folder(name)?;
        attach(libraries, CWD, name).at(STEP, there)?;
    }
    Ok(())
}

fn make_folder(name: &str) -> Step<()> {
    rustix::fs::mkdir(name, Mode::from_raw_mode(0o755)).at(STEP, format!("mkdir {name}"))
}
