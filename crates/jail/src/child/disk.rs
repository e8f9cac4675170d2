//! Writable layers on disk: a file without a name becomes an ext4 of one
//! sandbox. File and device go with the last mount, whoever dies first.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::failure::{Context, Step, refuse};
use crate::loops::{self, Access};

const STEP: &str = "disk";
/// Wherever distributions put it; the environment's own path may lack both.
const PROGRAM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Formats the file and mounts it, attached nowhere yet.
pub(super) fn mount(file: OwnedFd, owner: u32) -> Step<OwnedFd> {
    format(&file, owner)?;
    let device = loops::attach(file.as_fd(), Access::Write)?;
    mount_device(&device.path).at(STEP, format!("mount {}", device.path))
}

/// What is written is thrown away with its sandbox: it needs no journal.
fn format(file: &OwnedFd, owner: u32) -> Step<()> {
    let input = file.try_clone().at(STEP, "dup")?;
    let made = skiff_base::process::command("mke2fs")
        .env_clear()
        .env("PATH", PROGRAM_PATH)
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-O",
            "^has_journal",
            "-E",
        ])
        .arg(format!(
            "nodiscard,lazy_itable_init=1,root_owner={owner}:{owner}"
        ))
        .arg("/proc/self/fd/0")
        .stdin(Stdio::from(File::from(input)))
        .stderr(Stdio::piped())
        .output()
        .at(STEP, "start mke2fs")?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr);
    let line = said.lines().last().unwrap_or_default();
    Err(refuse(
        STEP,
        format!("mke2fs fails with {}: {line}", made.status),
    ))
}

fn mount_device(path: &str) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", path)?;
    for flag in ["noinit_itable", "discard"] {
        rustix::mount::fsconfig_set_flag(&context, flag)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(&context, flags, MountAttrFlags::MOUNT_ATTR_NODEV)
}
