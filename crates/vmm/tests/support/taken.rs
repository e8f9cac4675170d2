//! A monitor that somebody has taken over: started as one, it confines itself
//! as one, and then makes the call that its configuration names, and says
//! with which error number it was answered, 0 if it was let through.
//!
//! The configuration is `CALL`, as the devices' thread, `CALL api`, as the
//! API's, or `CALL unfiltered`.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::Context as _;
use skiff_vmm::awaited::Waiting;
use skiff_vmm::confine::{Confinement, Filters, Part, join};
use skiff_vmm::inherited;

/// By its number when a machine has egress, here behind one file.
const TAP: i32 = 5;
/// <linux/if_tun.h>: the namespace that a tap is in.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

fn numbers(option: &str) -> Vec<i32> {
    let args: Vec<String> = std::env::args().collect();
    let value = |pair: &[String]| match pair {
        [name, value] if name == option => value.parse().ok(),
        _ => None,
    };
    args.windows(2).filter_map(value).collect()
}

fn confine() -> anyhow::Result<()> {
    let waiting = numbers("--await-fd").pop().map(Waiting::at).transpose()?;
    let groups: Vec<OwnedFd> = numbers("--cgroup-fd")
        .into_iter()
        .map(inherited::take)
        .collect::<Result<_, _>>()?;
    join(&groups)?;
    let folder = match waiting {
        Some(waiting) => waiting.wait()?.context("no machine comes")?.folder,
        None => inherited::take(numbers("--folder-fd").remove(0))?,
    };
    let confinement = Confinement::new(folder, Vec::new());
    confinement.enter_folder()?;
    confinement.seal()?;
    Ok(())
}

fn call(name: &str) -> i32 {
    let path = c"/etc/passwd".as_ptr();
    // SAFETY: every pointer is to something that outlives the call, or null;
    // nothing here comes back as another process.
    let result = unsafe {
        match name {
            "open" => libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, 0),
            "open-above" => {
                let path = c"../../../../etc/passwd".as_ptr();
                libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, 0)
            }
            "open-own" => {
                let flags = libc::O_CREAT | libc::O_RDWR;
                let path = c"own".as_ptr();
                libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, 0o600)
            }
            "execute" => libc::syscall(libc::SYS_execve, path, 0, 0),
            "clone" => libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER, 0, 0, 0, 0),
            "internet" => libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0),
            "reach-internet" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                let mut address: libc::sockaddr_in = std::mem::zeroed();
                address.sin_family = 2;
                address.sin_port = 80_u16.to_be();
                address.sin_addr.s_addr = u32::from_be_bytes([1, 1, 1, 1]).to_be();
                libc::connect(socket, (&raw const address).cast(), 16).into()
            }
            "vsock" => libc::syscall(libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            "signal-parent" => libc::syscall(libc::SYS_kill, libc::getppid().max(2), 0),
            "signal-all" => libc::syscall(libc::SYS_kill, -1, 0),
            "trace" => libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0),
            "mount" => {
                let root = c"/".as_ptr();
                libc::syscall(libc::SYS_mount, root, root, root, libc::MS_BIND, 0)
            }
            "leave-root" => libc::syscall(libc::SYS_chroot, c"/".as_ptr()),
            "namespace" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNET),
            "user-namespace" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
            "become-root" => libc::syscall(libc::SYS_setresuid, 5, 5, 5),
            "execute-memory" => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                libc::syscall(libc::SYS_mmap, 0, 4096, all, flags, -1, 0)
            }
            "ioctl" => libc::syscall(libc::SYS_ioctl, 1, libc::TIOCSTI, path),
            "bpf" => libc::syscall(libc::SYS_bpf, 0, 0, 0),
            "io-uring" => libc::syscall(libc::SYS_io_uring_setup, 1, 0),
            "keys" => libc::syscall(libc::SYS_keyctl, 0, 0, 0),
            "tap-send" => {
                let frame = [0_u8; 64];
                let sent = libc::write(TAP, frame.as_ptr().cast(), frame.len());
                sent.try_into().unwrap_or(-1)
            }
            "tap-keep" => libc::syscall(libc::SYS_ioctl, TAP, libc::TUNSETPERSIST, 1),
            "tap-attach" => {
                let request: libc::ifreq = std::mem::zeroed();
                libc::syscall(libc::SYS_ioctl, TAP, libc::TUNSETIFF, &raw const request)
            }
            "tap-address" => {
                let request: libc::ifreq = std::mem::zeroed();
                libc::syscall(
                    libc::SYS_ioctl,
                    TAP,
                    libc::SIOCSIFHWADDR,
                    &raw const request,
                )
            }
            "tap-namespace" => libc::syscall(libc::SYS_ioctl, TAP, TUNGETDEVNETNS, 0),
            "device" => libc::syscall(libc::SYS_mknod, c"dev".as_ptr(), libc::S_IFCHR | 0o600, 259),
            "write" => libc::write(2, c"".as_ptr().cast(), 0)
                .try_into()
                .unwrap_or(-1),
            _ => return -1,
        }
    };
    match result {
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    }
}

fn run() -> anyhow::Result<i32> {
    let filters = Filters::compile()?;
    confine()?;
    let mut wish = String::new();
    std::fs::File::from(inherited::take(3)?).read_to_string(&mut wish)?;
    let (name, how) = wish.split_once(' ').unwrap_or((&wish, "devices"));
    match how {
        "unfiltered" => {}
        "api" => filters.apply(Part::Api)?,
        _ => filters.apply(Part::Devices)?,
    }
    Ok(call(name))
}

#[allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test's program"
)]
fn main() -> ExitCode {
    match run() {
        Ok(errno) => {
            println!("{errno}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
