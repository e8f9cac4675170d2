//! System calls that rustix has no safe form of.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The host's address (vsock(7)).
const HOST: u32 = 2;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: i32 = 1;
const BLKPG_DEL_PARTITION: i32 = 2;
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How what is outside of the machine is reached.
#[derive(Debug, Clone)]
pub enum Outside {
    /// By the machine's own socket device.
    Vsock,
    /// By Unix sockets, as a monitor has them: this path with `_PORT` behind
    /// it. For an agent without a machine.
    Unix(PathBuf),
}

impl Outside {
    /// A socket that is connected, or about to be, to the host's port.
    pub(crate) fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        match self {
            Self::Vsock => vsock_connect(port),
            Self::Unix(path) => {
                let mut path = path.clone().into_os_string();
                path.push(format!("_{port}"));
                let socket = rustix::net::socket_with(
                    AddressFamily::UNIX,
                    SocketType::STREAM,
                    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                    None,
                )?;
                rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
                Ok(socket)
            }
        }
    }
}

fn vsock() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, kind, 0) };
    check(socket)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn vsock_address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    // SAFETY: the structure is plain numbers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or_default();
    address.svm_cid = cid;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
    (address, length)
}

fn vsock_connect(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock()?;
    let (address, length) = vsock_address(HOST, port);
    // SAFETY: the address has this length and lives during the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    match check(result) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// A socket of the machine's where the host's connections to the port arrive.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2).
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock()?;
    let (address, length) = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address has this length and lives during the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    check(result)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Whether who has connected may be served: the host, and nobody in the
/// machine itself.
pub(crate) fn is_from_host(socket: BorrowedFd<'_>) -> bool {
    let (mut address, mut length) = vsock_address(0, 0);
    // SAFETY: the kernel writes at most `length` bytes to the address.
    let result = unsafe {
        libc::getpeername(
            socket.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    let is_vsock = i32::from(address.svm_family) == libc::AF_VSOCK;
    result == 0 && (!is_vsock || address.svm_cid == HOST)
}

/// Whether a socket that was connecting is connected now; an error when it
/// never will be.
pub(crate) fn is_connected(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let (mut address, mut length) = ([0u8; 128], 128);
    // SAFETY: the kernel writes at most `length` bytes to the address.
    let result = unsafe {
        libc::getpeername(
            socket.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    match check(result) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            rustix::net::sockopt::socket_error(socket)??;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// `struct blkpg_partition` of <linux/blkpg.h>.
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg` of <linux/blkpg.h>.
#[repr(C)]
struct PartitionCall {
    operation: i32,
    flags: i32,
    data_length: i32,
    data: *mut Partition,
}

fn change_partitions(
    disk: BorrowedFd<'_>,
    operation: i32,
    number: u8,
    bytes: std::ops::Range<u64>,
) -> rustix::io::Result<()> {
    let signed = |bytes: u64| i64::try_from(bytes).map_err(|_| Errno::OVERFLOW);
    let mut partition = Partition {
        start: signed(bytes.start)?,
        length: signed(bytes.end - bytes.start)?,
        number: number.into(),
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let mut call = PartitionCall {
        operation,
        flags: 0,
        data_length: i32::try_from(size_of::<Partition>()).unwrap_or(0),
        data: &raw mut partition,
    };
    // SAFETY: both structures have the kernel's layout and live during the call.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw mut call) };
    check(result).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Makes a partition of a part of the disk: a device of its own.
pub(crate) fn add_partition(
    disk: impl AsFd,
    number: u8,
    bytes: std::ops::Range<u64>,
) -> rustix::io::Result<()> {
    change_partitions(disk.as_fd(), BLKPG_ADD_PARTITION, number, bytes)
}

/// Removes a partition that nothing uses.
pub(crate) fn remove_partition(disk: impl AsFd, number: u8) -> rustix::io::Result<()> {
    change_partitions(disk.as_fd(), BLKPG_DEL_PARTITION, number, 0..0)
}

/// Mixes the bytes into the kernel's pool and credits all of them.
pub(crate) fn add_entropy(random: impl AsFd, seed: &[u8]) -> io::Result<()> {
    // `struct rand_pool_info` of <linux/random.h>: bits, bytes, the bytes.
    let length = i32::try_from(seed.len()).map_err(io::Error::other)?;
    let mut info = Vec::with_capacity(8 + seed.len());
    info.extend((length * 8).to_ne_bytes());
    info.extend(length.to_ne_bytes());
    info.extend(seed);
    let raw = random.as_fd().as_raw_fd();
    // SAFETY: the structure says how long it is, and lives during the call.
    // The kernel reads two words and copies bytes: no alignment is needed.
    let result = check(unsafe { libc::ioctl(raw, RNDADDENTROPY, info.as_ptr()) });
    info.fill(0);
    result
}

/// Draws a new key from the pool at once.
pub(crate) fn reseed(random: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG) })
}

/// Has these signals wait, and tells of them by a descriptor.
pub(crate) fn signals(numbers: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &number in numbers {
            libc::sigaddset(&raw mut set, number);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    check(fd)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A child that has ended, if there is one.
pub(crate) fn reap() -> Option<i32> {
    let mut status = 0;
    // SAFETY: the status lives during the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some(pid)
}
