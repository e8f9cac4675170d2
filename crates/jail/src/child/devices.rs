//! `/dev`, `/proc` and what is hidden of it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};

use crate::failure::{Context, Step};
use crate::layers::{attach, attach_on, make_owned, new_mount, own, tmpfs};
use crate::sys::{self, MountChange};

const STEP: &str = "root";

/// Device files: name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// The group `tty` of every distribution.
const TTY_GROUP: u32 = 5;

/// Hidden, as runc and Docker hide them.
const MASKED_PROC: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "scsi",
];
const MASKED_SYS: [&str; 2] = ["firmware", "devices/virtual/powercap"];
const READONLY_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Makes `dev` in the current folder.
pub(super) fn make_dev(owner: u32) -> Step<()> {
    let ids = owner.to_string();
    let folder_mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdir("dev", folder_mode).at(STEP, "mkdir dev")?;
    let options = [
        ("mode", "0755"),
        ("size", "64k"),
        ("uid", &*ids),
        ("gid", &*ids),
    ];
    let secure = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = tmpfs(&options, secure).at(STEP, "/dev")?;
    attach(&dev, CWD, "dev").at(STEP, "/dev")?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(major, minor);
        mknodat(&dev, name, FileType::CharacterDevice, mode, device)
            .and_then(|()| own(&dev, name, owner))
            .at(STEP, format!("/dev/{name}"))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, &dev, name).at(STEP, format!("/dev/{name}"))?;
    }
    make_dev_mounts(dev.as_fd(), owner)
}

fn make_dev_mounts(dev: impl AsFd, owner: u32) -> Step<()> {
    let folder_mode = Mode::from_raw_mode(0o755);
    let tty = (owner + TTY_GROUP).to_string();
    let secure = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let plain = secure | MountAttrFlags::MOUNT_ATTR_NODEV;
    let pts = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", &*tty)];
    let shm = [("mode", "1777"), ("size", "64m")];
    let mounts = [
        ("pts", "devpts", &pts[..], secure),
        ("shm", "tmpfs", &shm[..], plain),
        ("mqueue", "mqueue", &[], plain),
    ];
    for (name, kind, options, attributes) in mounts {
        let made = new_mount(kind, options, attributes);
        if kind == "mqueue" && made.as_ref().is_err_and(|errno| *errno == Errno::NODEV) {
            // A kernel without POSIX message queues has none to show.
            continue;
        }
        let mount = made.at(STEP, format!("/dev/{name}"))?;
        make_owned(&dev, name, folder_mode, owner)
            .and_then(|()| attach(mount, &dev, name))
            .at(STEP, format!("/dev/{name}"))?;
    }
    Ok(())
}

/// Makes `proc` in the current folder, for this process's pid namespace.
pub(super) fn make_proc() -> Step<()> {
    let mode = Mode::from_raw_mode(0o555);
    rustix::fs::mkdir("proc", mode).at(STEP, "mkdir proc")?;
    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let proc = new_mount("proc", &[], plain).at(STEP, "/proc")?;
    attach(&proc, CWD, "proc").at(STEP, "/proc")?;
    let veil = Veil::new()?;
    for name in MASKED_PROC {
        veil.hide(&proc, name)?;
    }
    for name in READONLY_PROC {
        protect(&proc, name)?;
    }
    Ok(())
}

/// Makes `sys` in the current folder, for this process's network namespace.
pub(super) fn make_sys(cgroup_views: &[(String, std::path::PathBuf)]) -> Step<()> {
    let mode = Mode::from_raw_mode(0o555);
    rustix::fs::mkdir("sys", mode).at(STEP, "mkdir sys")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let sys = new_mount("sysfs", &[], attributes).at(STEP, "/sys")?;
    attach(&sys, CWD, "sys").at(STEP, "/sys")?;
    let veil = Veil::new()?;
    for name in MASKED_SYS {
        veil.hide(&sys, name)?;
    }
    show_cgroups(&sys, cgroup_views)
}

fn show_cgroups(sys: impl AsFd, views: &[(String, std::path::PathBuf)]) -> Step<()> {
    const AT: &str = "fs/cgroup";
    let several = views.iter().any(|(name, _)| !name.is_empty());
    if several {
        let folder = tmpfs(
            &[("mode", "0755"), ("size", "64k")],
            MountAttrFlags::empty(),
        )
        .at(STEP, AT)?;
        attach(&folder, &sys, AT).at(STEP, AT)?;
        for (name, _) in views {
            rustix::fs::mkdirat(&folder, name.as_str(), Mode::from_raw_mode(0o555)).at(STEP, AT)?;
        }
        for (name, group) in views {
            let view = cgroup_view(group)?;
            attach(view, &folder, name).at(STEP, AT)?;
        }
        let change = MountChange {
            set: sys::RDONLY | sys::NOSUID | sys::NODEV | sys::NOEXEC,
            ..MountChange::default()
        };
        return sys::set_mount(folder, change).at(STEP, AT);
    }
    for (_, group) in views {
        attach(cgroup_view(group)?, &sys, AT).at(STEP, AT)?;
    }
    Ok(())
}

fn cgroup_view(group: &std::path::Path) -> Step<OwnedFd> {
    let view = clone_tree(CWD, group, false).at(STEP, group.display())?;
    let change = MountChange {
        set: sys::RDONLY | sys::NOSUID | sys::NODEV | sys::NOEXEC,
        ..MountChange::default()
    };
    sys::set_mount(&view, change).at(STEP, group.display())?;
    Ok(view)
}

fn clone_tree(
    folder: impl AsFd,
    path: impl rustix::path::Arg,
    recursive: bool,
) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(folder, path, flags)
}

/// What lies over hidden files and folders. It needs `dev` in the current
/// folder.
struct Veil;

impl Veil {
    fn new() -> Step<Self> {
        match rustix::fs::mkdir("empty", Mode::from_raw_mode(0o555)) {
            Err(Errno::EXIST) => return Ok(Self),
            result => result.at(STEP, "mkdir empty")?,
        }
        let nothing = tmpfs(
            &[("mode", "0555"), ("size", "4k")],
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        )
        .at(STEP, "the veil")?;
        attach(nothing, CWD, "empty").at(STEP, "the veil")?;
        Ok(Self)
    }

    fn hide(&self, folder: impl AsFd, path: &str) -> Step<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = match rustix::fs::openat(folder, path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            result => result.at(STEP, path)?,
        };
        let stat = rustix::fs::fstat(&target).at(STEP, path)?;
        let over = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => "empty",
            _ => "dev/null",
        };
        clone_tree(CWD, over, false)
            .and_then(|veil| attach_on(veil, target))
            .at(STEP, format!("hide {path}"))
    }
}

fn protect(folder: impl AsFd, path: &str) -> Step<()> {
    let copy = match clone_tree(&folder, path, true) {
        Err(Errno::NOENT) => return Ok(()),
        result => result.at(STEP, path)?,
    };
    let change = MountChange {
        set: sys::RDONLY | sys::NOSUID | sys::NODEV | sys::NOEXEC,
        idmap: None,
        recursive: true,
    };
    sys::set_mount(&copy, change)
        .and_then(|()| attach(copy, folder, path))
        .at(STEP, format!("protect {path}"))
}
