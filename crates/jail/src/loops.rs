//! Loop devices: for writable layers on disk, and for kernels that mount EROFS
//! from block devices only.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Context, Step, refuse};

const STEP: &str = "loop";
/// Somebody else may take the device that we were told is free.
const ATTEMPTS_MAX: u32 = 16;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of <linux/loop.h>.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of <linux/loop.h>.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// What may be done to the file through its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// An attached device. It frees itself once it is closed and unmounted.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub(crate) path: String,
    /// Keeps the device until the mount does.
    device: OwnedFd,
}

impl LoopDevice {
    pub(crate) fn into_device(self) -> OwnedFd {
        self.device
    }
}

/// Attaches the file to a free loop device. One caller at a time: of many at
/// once, most are told of devices that others take first.
pub(crate) fn attach(file: BorrowedFd<'_>, access: Access) -> Step<LoopDevice> {
    let control = open("/dev/loop-control", OFlags::RDWR)?;
    for _ in 0..ATTEMPTS_MAX {
        // SAFETY: takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(std::io::Error::last_os_error()).at(STEP, "find a free loop device");
        }
        let path = format!("/dev/loop{number}");
        let device = match access {
            Access::Read => open(&path, OFlags::RDONLY)?,
            Access::Write => open(&path, OFlags::RDWR)?,
        };
        match configure(device.as_fd(), file, access) {
            Ok(()) => {
                return Ok(LoopDevice { path, device });
            }
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno).at(STEP, format!("configure {path}")),
        }
    }
    Err(refuse(STEP, "every free loop device was taken first"))
}

fn open(path: &str, access: OFlags) -> Step<OwnedFd> {
    rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty()).at(STEP, path)
}

fn configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    access: Access,
) -> rustix::io::Result<()> {
    // SAFETY: the structure is plain numbers, for which zero means "not set".
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd().cast_unsigned();
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    if access == Access::Read {
        config.info.flags |= LO_FLAGS_READ_ONLY;
    }
    // SAFETY: the structure has the kernel's layout and outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(())
}
