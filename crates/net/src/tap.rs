//! A tap (Documentation/networking/tuntap.rst) for a monitor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

const DEVICE: &str = "/dev/net/tun";
/// Packets as a virtio device has them, with its header in front.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes one in the namespace that the calling thread is in. It is there for
/// as long as its descriptor is open.
pub(crate) fn make(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = open(DEVICE, flags, Mode::empty()).map_err(|errno| {
        let why = io::Error::from(errno);
        io::Error::new(why.kind(), format!("{DEVICE} cannot be opened: {why}"))
    })?;
    attach(&device, name)?;
    Ok(device)
}

#[allow(unsafe_code, reason = "ioctl(2) has no safe form for a tap")]
fn attach(device: &OwnedFd, name: &str) -> io::Result<()> {
    // SAFETY: zeros are a name of no bytes and a union of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte is the end of the text.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // They are three bits of the low sixteen.
    request.ifr_ifru.ifru_flags = FLAGS.try_into().unwrap_or_default();
    // SAFETY: the request is one of this call, and lives during it.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
