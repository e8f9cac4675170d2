//! Writable layers on disk: a file without a name, as a loop device, becomes an
//! ext4 of one sandbox. File and device go with the last mount, whoever dies
//! first. In a virtual machine it is a part of a disk, which was made on the
//! host.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::plan::DiskPlan;
use crate::failure::{Context, Step, refuse};

const STEP: &str = "disk";
/// Wherever distributions put it; the environment's own path may lack both.
const PROGRAM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Mounts the device, attached nowhere yet; without a file system on it, it
/// gets one first.
pub(super) fn mount(device: &OwnedFd, plan: DiskPlan) -> Step<OwnedFd> {
    if plan == DiskPlan::Empty {
        let made = make_file_system(device)?.stderr(Stdio::piped()).output();
        let made = made.at(STEP, "start mke2fs")?;
        made_file_system(made.status, &made.stderr)?;
    }
    match try_mount(device) {
        // A guest's kernel may have been installed without the module.
        Err(Errno::NODEV) => Err(refuse(
            STEP,
            "the kernel has no ext4: install it again with it",
        )),
        result => result.at(STEP, "mount the device"),
    }
}

/// What makes a file system of the file, to be started.
///
/// What is written is thrown away with its sandbox: it needs no journal. Its
/// root is nobody's but ours: what the sandbox sees is a folder in it.
pub(crate) fn make_file_system(file: &OwnedFd) -> Step<Command> {
    let input = file.try_clone().at(STEP, "dup")?;
    let mut command = skiff_base::process::command("mke2fs");
    command
        .env_clear()
        .env("PATH", PROGRAM_PATH)
        .args(["-q", "-F", "-t", "ext4", "-m", "0"])
        .args(["-O", "^has_journal"])
        .args(["-E", "nodiscard,lazy_itable_init=1"])
        .arg("/proc/self/fd/0")
        .stdin(Stdio::from(File::from(input)));
    Ok(command)
}

/// What came of it.
pub(crate) fn made_file_system(status: ExitStatus, said: &[u8]) -> Step<()> {
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(said);
    let line = said.lines().last().unwrap_or_default();
    Err(refuse(STEP, format!("mke2fs fails with {status}: {line}")))
}

fn try_mount(device: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", device.as_raw_fd());
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", path)?;
    // Nothing here outlives its sandbox, and so no host: it is never synced.
    for flag in ["noinit_itable", "discard", "nobarrier"] {
        rustix::mount::fsconfig_set_flag(&context, flag)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
