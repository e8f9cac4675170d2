//! Signals that end the monitor in order.

use std::os::fd::{FromRawFd, OwnedFd};

use vmm_sys_util::signal::create_sigset;

/// What asks a process to end.
const SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Has these signals wait, all from the same moment on. It must be called
/// before there are threads, which inherit it.
///
/// # Errors
/// When the system refuses.
pub fn hold() -> std::io::Result<()> {
    let set = create_sigset(&SIGNALS)
        .map_err(|errno| std::io::Error::from_raw_os_error(errno.errno()))?;
    // SAFETY: the set lives during the call, and nothing is asked for.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    match error {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

/// A descriptor that is readable when one of them has come.
///
/// # Errors
/// When the system refuses.
pub fn descriptor() -> std::io::Result<OwnedFd> {
    let set = create_sigset(&SIGNALS)
        .map_err(|errno| std::io::Error::from_raw_os_error(errno.errno()))?;
    // SAFETY: the set lives during the call.
    let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits for one of them.
///
/// # Errors
/// When the system refuses.
pub fn wait() -> std::io::Result<i32> {
    let set = create_sigset(&SIGNALS)
        .map_err(|errno| std::io::Error::from_raw_os_error(errno.errno()))?;
    let mut signal = 0;
    // SAFETY: both point to values that live during the call.
    let error = unsafe { libc::sigwait(&raw const set, &raw mut signal) };
    match error {
        0 => Ok(signal),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}
