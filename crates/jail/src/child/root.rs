//! The root file system of a sandbox.
//!
//! Everything is built on a tmpfs of the child's own mount namespace before
//! the application exists; names of the image are resolved inside its root
//! only, so its links lead nowhere else.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags};

use super::devices;
use super::disk;
use super::plan::{Birth, DiskPlan, Plan};
use crate::failure::{Context, Step, refuse};
use crate::layers::{attach, attach_on, make_owned, own, tmpfs};
use crate::sys::{self, MountChange};

const STEP: &str = "root";
/// Links that are followed on the way to a folder: the kernel's own limit.
const LINKS_MAX: usize = 40;

/// What needs no plan: a stage to build on, `/dev` and `/proc`.
///
/// The launcher's mounts propagate to nobody, so neither do these.
pub(super) fn prepare(birth: &Birth) -> Step<()> {
    rustix::process::umask(Mode::empty());
    // Otherwise this copy would hold a layer that the launcher removes.
    rustix::mount::unmount(&birth.layers, UnmountFlags::DETACH).at(STEP, birth.layers.display())?;
    let stage = tmpfs(&[("mode", "0700"), ("size", "1m")], MountAttrFlags::empty())
        .at(STEP, "the stage")?;
    attach(&stage, CWD, &birth.stage).at(STEP, birth.stage.display())?;
    rustix::process::fchdir(&stage).at(STEP, birth.stage.display())?;
    devices::make_dev(birth.owner)?;
    devices::make_proc()
}

/// Builds the root from the layers and changes to it. The network namespace
/// is the sandbox's already.
pub(super) fn build(
    birth: &Birth,
    plan: &Plan,
    disk: Option<(OwnedFd, DiskPlan)>,
    layers: Vec<OwnedFd>,
) -> Step<()> {
    let writable = match disk {
        Some((device, disk)) => disk::mount(&device, disk)?,
        None => {
            let size = plan.writable_bytes.to_string();
            let options = [("mode", "0755"), ("size", &*size)];
            tmpfs(&options, MountAttrFlags::empty()).at(STEP, "the writable layer")?
        }
    };
    mount_overlay(birth, writable, layers)?;
    let root = open_folder(CWD, "root").at(STEP, "open the root")?;
    fill(&root, birth.owner, plan)?;
    devices::make_sys(&birth.cgroup_views)?;
    for name in ["proc", "sys", "dev"] {
        take_over(&root, name, birth.owner)?;
    }
    if plan.readonly_root {
        make_readonly(&root, birth.owner, plan)?;
    }
    rustix::process::fchdir(&root).at(STEP, "enter the root")?;
    rustix::process::pivot_root(".", ".").at(STEP, "pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at(STEP, "leave the old root")?;
    rustix::process::chdir("/").at(STEP, "enter the root")
}

fn mount_overlay(birth: &Birth, writable: OwnedFd, layers: Vec<OwnedFd>) -> Step<()> {
    let folder = Mode::from_raw_mode(0o755);
    make_owned(&writable, "u", folder, birth.owner).at(STEP, "the writable layer")?;
    rustix::fs::mkdirat(&writable, "w", folder).at(STEP, "the writable layer")?;
    rustix::fs::mkdir("w", folder).at(STEP, "mkdir w")?;
    attach(writable, CWD, "w").at(STEP, "the writable layer")?;
    let mut lower = Vec::with_capacity(layers.len());
    for (number, layer) in layers.into_iter().enumerate() {
        let name = number.to_string();
        rustix::fs::mkdir(&name, folder).at(STEP, "mkdir a layer")?;
        attach(layer, CWD, &name).at(STEP, format!("layer {number}"))?;
        lower.push(name);
    }
    // The options are at most one page: names on the stage are short. Links
    // and metadata that an image's own attributes describe are not followed.
    lower.reverse();
    let options = format!(
        "lowerdir={},upperdir=w/u,workdir=w/w,redirect_dir=nofollow,metacopy=off,index=off",
        lower.join(":")
    );
    let options = std::ffi::CString::new(options).map_err(|error| refuse(STEP, error))?;
    rustix::fs::mkdir("root", folder).at(STEP, "mkdir root")?;
    rustix::mount::mount("overlay", "root", "overlay", MountFlags::NODEV, &*options)
        .at(STEP, "mount the overlay")
}

/// Writes what the image may not have or may have otherwise.
fn fill(root: &OwnedFd, owner: u32, plan: &Plan) -> Step<()> {
    // A link that leads nowhere inside, or a file, is no place for ours.
    let etc = match open_inside(root, Path::new("etc")) {
        Ok(folder) => folder,
        Err(_) => real_folder(root, "etc", owner)?,
    };
    let hostname = format!("{}\n", plan.hostname);
    let files = [
        ("hostname", hostname.as_str()),
        ("hosts", plan.hosts.as_str()),
        ("resolv.conf", plan.resolv_conf.as_str()),
    ];
    for (name, text) in files {
        replace_file(&etc, name, text, owner)?;
    }
    if rustix::fs::statat(root, "tmp", AtFlags::SYMLINK_NOFOLLOW).is_err() {
        make_owned(root, "tmp", Mode::from_raw_mode(0o1777), owner).at(STEP, "/tmp")?;
    }
    if plan.readonly_root {
        real_folder(root, "tmp", owner)?;
    }
    make_path(root, Path::new(&plan.process.cwd), owner).map(drop)
}

/// Moves a prepared mount from the stage over a real folder of the root.
fn take_over(root: &OwnedFd, name: &str, owner: u32) -> Step<()> {
    let place = real_folder(root, name, owner)?;
    let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(CWD, name, place, "", flags).at(STEP, format!("/{name}"))
}

/// A folder directly below the root; what else has its name is replaced.
fn real_folder(root: &OwnedFd, name: &str, owner: u32) -> Step<OwnedFd> {
    match open_folder(root, name) {
        Ok(folder) => return Ok(folder),
        Err(Errno::NOENT) => {}
        // A file, a link, a device: the image has no say in this name.
        Err(_) => rustix::fs::unlinkat(root, name, AtFlags::empty()).at(STEP, name)?,
    }
    make_owned(root, name, Mode::from_raw_mode(0o755), owner)
        .and_then(|()| open_folder(root, name))
        .at(STEP, format!("/{name}"))
}

fn open_folder(folder: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

/// Opens a folder of the image, made when it is not there, its links
/// followed inside the root.
fn make_path(root: &OwnedFd, path: &Path, owner: u32) -> Step<OwnedFd> {
    let say = || format!("make {}", path.display());
    let mut done = std::path::PathBuf::new();
    let mut folder = open_inside(root, Path::new(".")).at(STEP, say())?;
    if path.components().count() > LINKS_MAX * 8 {
        return Err(refuse(STEP, format!("{} is too deep", path.display())));
    }
    for component in path.components() {
        let Component::Normal(name) = component else {
            if component == Component::ParentDir {
                return Err(refuse(STEP, format!("{} has `..`", path.display())));
            }
            continue;
        };
        done.push(name);
        folder = match open_inside(root, &done) {
            Err(Errno::NOENT) => {
                make_folder(&folder, name, owner).at(STEP, say())?;
                open_inside(root, &done).at(STEP, say())?
            }
            result => result.at(STEP, say())?,
        };
    }
    Ok(folder)
}

fn make_folder(parent: &OwnedFd, name: &OsStr, owner: u32) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let id = (
        rustix::fs::Uid::from_raw(owner),
        rustix::fs::Gid::from_raw(owner),
    );
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(id.0), Some(id.1), flags)
}

fn open_inside(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// A regular file of our own in place of whatever has its name.
fn replace_file(folder: &OwnedFd, name: &str, text: &str, owner: u32) -> Step<()> {
    let say = || format!("/etc/{name}");
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {
            return Err(refuse(STEP, format!("the image's {} is a folder", say())));
        }
        Err(Errno::NOENT) | Ok(()) => {}
        result => result.at(STEP, say())?,
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file = rustix::fs::openat(folder, name, flags, mode).at(STEP, say())?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).at(STEP, say())?;
        rest = rest.get(written..).unwrap_or_default();
    }
    own(folder, name, owner).at(STEP, say())
}

/// `/tmp` lies on the disk that there is, beside the overlay's own folders, or on
/// a tmpfs.
fn make_readonly(root: &OwnedFd, owner: u32, plan: &Plan) -> Step<()> {
    let tmp = if plan.disk.is_some() {
        let disk = open_folder(CWD, "w").at(STEP, "/tmp")?;
        make_owned(&disk, "t", Mode::from_raw_mode(0o1777), owner).at(STEP, "/tmp")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(&disk, "t", flags).at(STEP, "/tmp")?
    } else {
        let size = plan.writable_bytes.to_string();
        let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        tmpfs(&[("mode", "1777"), ("size", &*size)], plain).at(STEP, "/tmp")?
    };
    let place = open_inside(root, Path::new("tmp")).at(STEP, "/tmp")?;
    attach_on(tmp, place).at(STEP, "/tmp")?;
    let change = MountChange {
        set: sys::RDONLY | sys::NODEV,
        ..MountChange::default()
    };
    sys::set_mount(root, change).at(STEP, "make the root read-only")
}
