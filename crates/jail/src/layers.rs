//! Layers: EROFS files, each mounted once for all sandboxes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use serde::{Deserialize, Serialize};
use skiff_types::Digest;

use crate::failure::{Context, Step, refuse};
use crate::loops;
use crate::sys::{self, MountChange};

/// Layers that may be mounted at a time.
const LAYERS_MAX: usize = 16_384;
const STEP: &str = "layer";

/// The mounted layers and how many sandboxes use each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Layers {
    folder: PathBuf,
    used: BTreeMap<Digest, u32>,
}

impl Layers {
    /// Prepares the folder: a mount of its own, so that one call takes every
    /// layer out of a namespace that was copied from this one.
    pub(crate) fn open(folder: PathBuf) -> Step<Self> {
        make_folder(&folder)?;
        let mount = tmpfs(&[("mode", "0700"), ("size", "1m")], MountAttrFlags::empty())
            .at(STEP, "tmpfs")?;
        attach(&mount, CWD, &folder).at(STEP, folder.display())?;
        Ok(Self {
            folder,
            used: BTreeMap::new(),
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn place(&self, layer: &Digest) -> PathBuf {
        self.folder.join(layer.to_string().replace(':', "-"))
    }

    /// Mounts the file, unless the layer is there already.
    pub(crate) fn add(&mut self, layer: &Digest, file: BorrowedFd<'_>) -> Step<()> {
        if self.used.contains_key(layer) {
            return Ok(());
        }
        if self.used.len() >= LAYERS_MAX {
            return Err(refuse(STEP, format!("{LAYERS_MAX} layers are mounted")));
        }
        let place = self.place(layer);
        make_folder(&place)?;
        let mounted = mount_erofs(file)
            .and_then(|mount| attach(&mount, CWD, &place).at(STEP, place.display()));
        if let Err(refusal) = mounted {
            remove_folder(&place);
            return Err(refusal);
        }
        self.used.insert(layer.clone(), 0);
        Ok(())
    }

    /// Unmounts a layer that no sandbox uses; one that is not there is no
    /// error.
    pub(crate) fn remove(&mut self, layer: &Digest) -> Step<()> {
        match self.used.get(layer) {
            None => return Ok(()),
            Some(0) => {}
            Some(users) => {
                return Err(refuse(
                    STEP,
                    format!("{layer} is used by {users} sandboxes"),
                ));
            }
        }
        let place = self.place(layer);
        rustix::mount::unmount(&place, UnmountFlags::DETACH).at(STEP, place.display())?;
        self.used.remove(layer);
        remove_folder(&place);
        Ok(())
    }

    /// A view of the layer whose owners are shifted into a user namespace.
    pub(crate) fn view(&self, layer: &Digest, namespace: BorrowedFd<'_>) -> Step<OwnedFd> {
        if !self.used.contains_key(layer) {
            return Err(refuse(STEP, format!("{layer} was not added")));
        }
        let place = self.place(layer);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let view = rustix::mount::open_tree(CWD, &place, flags).at(STEP, place.display())?;
        let change = MountChange {
            idmap: Some(namespace),
            ..MountChange::default()
        };
        sys::set_mount(&view, change).at(STEP, "shift the owners")?;
        Ok(view)
    }

    pub(crate) fn use_all(&mut self, layers: &[Digest]) {
        for layer in layers {
            if let Some(users) = self.used.get_mut(layer) {
                *users += 1;
            }
        }
    }

    pub(crate) fn leave_all(&mut self, layers: &[Digest]) {
        for layer in layers {
            if let Some(users) = self.used.get_mut(layer) {
                *users = users.saturating_sub(1);
            }
        }
    }

    /// Takes every layer out.
    pub(crate) fn close(&mut self) {
        // Only a second call finds nothing mounted.
        rustix::mount::unmount(&self.folder, UnmountFlags::DETACH).ok();
        self.used.clear();
    }
}

fn make_folder(path: &Path) -> Step<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => result.at(STEP, path.display()),
    }
}

fn remove_folder(path: &Path) {
    // An empty folder that stays is used again or goes with the tmpfs.
    std::fs::remove_dir(path).ok();
}

fn mount_erofs(file: BorrowedFd<'_>) -> Step<OwnedFd> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    match mount_source(&source) {
        // Kernels before 6.12, and some after, want a block device.
        Err(Errno::NOTBLK) => {
            let device = loops::attach(file, loops::Access::Read)?;
            mount_source(&device.path).at(STEP, format!("mount {}", device.path))
        }
        result => result.at(STEP, "mount the EROFS file"),
    }
}

fn mount_source(source: &str) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", source)?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}

/// A new tmpfs, attached nowhere yet.
pub(crate) fn tmpfs(
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    new_mount("tmpfs", options, attributes)
}

/// A new mount of a file system without a source, attached nowhere yet.
pub(crate) fn new_mount(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a mount at a path below a folder; never follows a link there.
pub(crate) fn attach(
    mount: impl AsFd,
    folder: impl AsFd,
    path: impl AsRef<Path>,
) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(folder, path.as_ref(), flags, Mode::empty())?;
    attach_on(mount, target)
}

/// Attaches a mount on the file or folder that a descriptor is.
pub(crate) fn attach_on(mount: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)
}

/// Makes a folder and everything about it certain: its mode and owner.
pub(crate) fn make_owned(
    folder: impl AsFd,
    name: &str,
    mode: Mode,
    owner: u32,
) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(&folder, name, mode)?;
    own(folder, name, owner)
}

/// Gives a file to the first user and group of a range.
pub(crate) fn own(folder: impl AsFd, name: &str, owner: u32) -> rustix::io::Result<()> {
    rustix::fs::chownat(
        folder,
        name,
        Some(rustix::fs::Uid::from_raw(owner)),
        Some(rustix::fs::Gid::from_raw(owner)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}
