//! Making network namespaces and visiting them.
//!
//! A namespace has no name: it lives while a descriptor or a process holds
//! it, so that none can be left behind by a crash.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The calling thread's network namespace.
pub(crate) fn current() -> io::Result<OwnedFd> {
    // Not /proc/self, which is the main thread's.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(open("/proc/thread-self/ns/net", flags, Mode::empty())?)
}

/// The calling thread is elsewhere until this is dropped.
#[derive(Debug)]
pub(crate) struct Visit<'home> {
    home: BorrowedFd<'home>,
}

impl<'home> Visit<'home> {
    /// Enters a namespace.
    pub(crate) fn enter(home: BorrowedFd<'home>, to: BorrowedFd<'_>) -> io::Result<Self> {
        move_into_link_name_space(to, Some(LinkNameSpaceType::Network))?;
        Ok(Self { home })
    }

    /// Makes a namespace and enters it.
    pub(crate) fn new_namespace(home: BorrowedFd<'home>) -> io::Result<(Self, OwnedFd)> {
        unshare_network()?;
        let visit = Self { home };
        let fd = current()?;
        Ok((visit, fd))
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let back = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network));
        if let Err(error) = back {
            // Whatever this thread did next would happen to an instance's
            // network instead of the host's.
            tracing::error!(%error, "cannot return to the host's network namespace");
            std::process::abort();
        }
    }
}

#[allow(unsafe_code, reason = "unshare(2) has no safe form in rustix")]
fn unshare_network() -> io::Result<()> {
    // SAFETY: only CLONE_FILES breaks Rust's ownership of descriptors; a new
    // network namespace touches neither memory nor descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Writes a file below /proc/sys/net of the namespace the thread is in.
///
/// A file that is not there is no error: the kernel was built or started
/// without what it steers.
pub(crate) fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Reads such a file; `None` when it is not there.
pub(crate) fn get_sysctl(name: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(format!("/proc/sys/net/{name}")) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
