use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A descriptor that lives through an upgrade: it is saved as its number and
/// taken up again under that number by the program that follows.
#[derive(Debug)]
pub(crate) struct Handle(OwnedFd);

impl From<OwnedFd> for Handle {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Handle> for OwnedFd {
    fn from(handle: Handle) -> Self {
        handle.0
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        save(self)
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

/// Keeps a descriptor open across the exec that follows; its number. What is
/// saved goes to the next program alone. [`unsave_all`] takes it back.
pub(crate) fn save(fd: impl AsFd) -> rustix::io::Result<RawFd> {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
    Ok(fd.as_fd().as_raw_fd())
}

/// After an exec that failed: every descriptor but the standard streams
/// closes at the next one again.
pub(crate) fn unsave_all() -> std::io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: sets a flag; nothing is closed.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, flags) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = RawFd::deserialize(deserializer)?;
        if raw < 0 {
            return Err(serde::de::Error::custom("a descriptor is negative"));
        }
        // SAFETY: the state comes from the program that this one replaced in
        // the same process, and names each descriptor that it kept once.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)
            .map_err(serde::de::Error::custom)?;
        Ok(Self(fd))
    }
}
