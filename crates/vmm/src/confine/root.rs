use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount,
};

use super::ConfineError;

/// Makes a folder the root, and leaves everything else. It is a mount that is
/// nowhere yet; the mount namespace is the process's own.
pub(super) fn change(folder: &OwnedFd) -> Result<(), ConfineError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(ConfineError::at("make its mounts its own"))?;
    let refused = ConfineError::at("make its folder the root");
    // Anywhere will do, as long as it is attached: what it covers is left.
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(folder.as_fd(), "", CWD, "/", onto).map_err(&refused)?;
    rustix::process::fchdir(folder).map_err(&refused)?;
    rustix::process::pivot_root(".", ".").map_err(&refused)?;
    unmount(".", UnmountFlags::DETACH).map_err(&refused)?;
    rustix::process::chdir("/").map_err(&refused)
}
