//! Descriptors that the process was started with, taken by their numbers.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::FdFlags;

/// Standard input, output and error are something else.
const FIRST: RawFd = 3;
/// In the place of a path.
const PREFIX: &[u8] = b"fd:";

/// Takes a descriptor, once. One that closes at an execution has not come
/// through one: whatever this process opens is such, and so is what is taken.
///
/// # Errors
/// When it is not open, was not inherited, or was taken before.
pub fn take(number: RawFd) -> Result<OwnedFd> {
    if number < FIRST {
        let text = "descriptors 0, 1 and 2 are the standard streams";
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    // SAFETY: asks for a flag, if it is open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        let text = format!("descriptor {number} was not inherited, or is named twice");
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    // SAFETY: it is open, and nobody's in this process: see above.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// Whether a path is the name of a descriptor.
#[must_use]
pub fn is_name(path: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(PREFIX)
}

/// The descriptor that is named in the place of a path, as `fd:4`, if one is.
///
/// # Errors
/// When it cannot be taken.
pub fn named(path: &Path) -> Result<Option<File>> {
    let Some(number) = path.as_os_str().as_bytes().strip_prefix(PREFIX) else {
        return Ok(None);
    };
    let number = OsStr::from_bytes(number)
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "`fd:` is followed by a number"))?;
    take(number).map(File::from).map(Some)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn a_descriptor_is_taken_once() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"hello").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let own = format!("fd:{}", file.as_raw_fd());
        assert!(named(own.as_ref()).is_err());
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let name = format!("fd:{}", file.into_raw_fd());
        let mut text = String::new();
        let mut taken = named(name.as_ref()).unwrap().unwrap();
        taken.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(named(name.as_ref()).is_err());
    }

    #[test]
    fn what_is_no_descriptor_is_refused_or_a_path() {
        assert!(named("/dev/kvm".as_ref()).unwrap().is_none());
        for wrong in ["fd:", "fd:x", "fd:1", "fd:-1", "fd:999999"] {
            assert!(named(wrong.as_ref()).is_err(), "{wrong}");
        }
    }
}
