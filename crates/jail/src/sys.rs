//! System calls that rustix has no safe form of.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::process::Pid;

/// What [`clone3`] returns, once in each process.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// In the process that called.
    Parent {
        /// The child, as the caller's pid namespace numbers it.
        pid: Pid,
        /// The child.
        pidfd: OwnedFd,
    },
    /// In the child.
    Child,
}

fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(result)
}

/// A copy of the calling process in the new namespaces of `flags`, on cgroup
/// v2 from its first moment in `cgroup`.
///
/// # Safety
/// The process has one thread: the copy may then go on as any program may.
pub(crate) unsafe fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: the structure is plain numbers, for which zero means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from((flags | libc::CLONE_PIDFD).cast_unsigned());
    arguments.pidfd = u64::try_from((&raw mut pidfd).expose_provenance()).unwrap_or(0);
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        arguments.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: the arguments outlive the call, the child keeps the parent's
    // memory as its own copy (no CLONE_VM), and the caller has one thread.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    })?;
    match Pid::from_raw(i32::try_from(pid).unwrap_or(0)) {
        None => Ok(Cloned::Child),
        Some(pid) => Ok(Cloned::Parent {
            pid,
            // SAFETY: the kernel has just opened it for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Attributes that [`set_mount`] puts on a mount.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountChange<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// Shifts the files' owners by this user namespace's map.
    pub idmap: Option<BorrowedFd<'a>>,
    /// The mounts below as well.
    pub recursive: bool,
}

pub(crate) const RDONLY: u64 = 0x1;
pub(crate) const NOSUID: u64 = 0x2;
pub(crate) const NODEV: u64 = 0x4;
pub(crate) const NOEXEC: u64 = 0x8;

/// mount_setattr(2) on the mount that `mount` is the root of.
pub(crate) fn set_mount(mount: impl AsFd, change: MountChange<'_>) -> Result<()> {
    let mut attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if let Some(namespace) = change.idmap {
        attributes.attr_set |= 0x0010_0000; // MOUNT_ATTR_IDMAP
        attributes.userns_fd = u64::from(namespace.as_raw_fd().cast_unsigned());
    }
    let recursive = if change.recursive { 0x8000 } else { 0 }; // AT_RECURSIVE
    // SAFETY: path and attributes outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Takes the identity on, all three ids of each kind, by the bare calls: the
/// C library's own would look for other threads.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    // SAFETY: plain numbers and a list that outlives the call.
    unsafe {
        check(libc::syscall(
            libc::SYS_setgroups,
            groups.len(),
            groups.as_ptr(),
        ))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// Replaces the program; returns only to say why not.
pub(crate) fn execute(
    program: &CStr,
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> Errno {
    debug_assert!(args.last().is_some_and(|last| last.is_null()));
    debug_assert!(env.last().is_some_and(|last| last.is_null()));
    // SAFETY: both lists end with a null pointer and point to strings that
    // outlive the call.
    let result = unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    check(result.into()).err().unwrap_or(Errno::INVAL)
}

/// Replaces the program by the file that `program` is; returns only to say
/// why not.
pub(crate) fn execute_fd(
    program: BorrowedFd<'_>,
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> Errno {
    debug_assert!(args.last().is_some_and(|last| last.is_null()));
    debug_assert!(env.last().is_some_and(|last| last.is_null()));
    // SAFETY: as for `execute`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result).err().unwrap_or(Errno::INVAL)
}

/// Pointers to the strings, ended as exec(3) wants them.
pub(crate) fn pointers(strings: &[std::ffi::CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Waits for any child to end; its pid and wait(2)'s status.
pub(crate) fn wait_any() -> Result<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: the status outlives the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        match check(pid.into()) {
            Ok(_) => return Ok((pid, status)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Makes `number` name what `fd` does, whatever it named before.
pub(crate) fn duplicate(fd: BorrowedFd<'_>, number: i32, close_on_exec: bool) -> Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: the callers replace numbers that nothing uses any more.
    check(unsafe { libc::dup3(fd.as_raw_fd(), number, flags) }.into())?;
    Ok(())
}

/// [`duplicate`], closed at the next execution or with what is returned.
pub(crate) fn duplicate_owned(fd: BorrowedFd<'_>, number: i32) -> Result<OwnedFd> {
    duplicate(fd, number, true)?;
    // SAFETY: the number is what was just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: u32) -> Result<()> {
    // SAFETY: the callers are about to use nothing but the descriptors below.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// Puts every signal's action back to the default and blocks none: a program
/// started by us starts as one started by a shell.
pub(crate) fn reset_signals() {
    // The kernel's own structure, all zero: SIG_DFL, no flags, an empty mask.
    // The C library's call would pass over the two signals that it uses.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the default action runs no code of ours; signals whose
        // action cannot be set are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                8,
            )
        };
    }
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Sends a signal, by its number, to a process.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: plain numbers; no further information is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Ends the process without running anything that the copied program had
/// planned for its own end.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// A session keyring of its own, so that none of the launcher's is possessed.
pub(crate) fn join_new_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring. A kernel without
    // keyrings answers ENOSYS, and then there is none to leave.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
}

/// Drops every capability from the bounding set that is not in `keep`.
pub(crate) fn bound_capabilities(keep: u64) -> Result<()> {
    for capability in 0..64u32 {
        if keep & (1 << capability) == 0 {
            // SAFETY: plain numbers; EINVAL ends the list of capabilities.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            match check(result.into()) {
                Ok(_) => {}
                Err(Errno::INVAL) => break,
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Keeps these capabilities, permitted and effective; nothing is inheritable
/// or ambient.
pub(crate) fn set_capabilities(bits: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let half = |shift: u32| {
        let part = u32::try_from((bits >> shift) & u64::from(u32::MAX)).unwrap_or(0);
        Data {
            effective: part,
            permitted: part,
            inheritable: 0,
        }
    };
    let header = Header {
        version: 0x2008_0522, // _LINUX_CAPABILITY_VERSION_3
        pid: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads two data elements; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// Sets a resource limit, or as much of it as this process may.
pub(crate) fn limit_resource(resource: libc::__rlimit_resource_t, wanted: u64) -> Result<()> {
    let set = |hard: u64| {
        let limit = libc::rlimit {
            rlim_cur: wanted.min(hard),
            rlim_max: wanted.min(hard),
        };
        // SAFETY: the limit outlives the call.
        check(unsafe { libc::setrlimit(resource, &raw const limit) }.into())
    };
    if set(u64::MAX).is_ok() {
        return Ok(());
    }
    // Without CAP_SYS_RESOURCE a hard limit can only be lowered.
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit outlives the call.
    check(unsafe { libc::getrlimit(resource, &raw mut now) }.into())?;
    set(now.rlim_max)?;
    Ok(())
}
