//! A tap of Linux's (Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::link::{Link, Offloads};
use super::queue::HEADER_BYTES;

const DEVICE: &str = "/dev/net/tun";
/// What a tap must have been made with.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// An interface cannot have this name.
    #[error("{name:?} is no interface's name: it has 1 to 15 bytes")]
    Name {
        /// The name.
        name: String,
    },
    /// There is no such interface.
    #[error("there is no interface {name}: make it first")]
    Absent {
        /// Its name.
        name: String,
        /// What the system says.
        #[source]
        source: Error,
    },
    /// The interface is no tap, is used by somebody else or is not ours.
    #[error("{name} cannot be used as a tap")]
    Attach {
        /// Its name.
        name: String,
        /// What the system says.
        #[source]
        source: Error,
    },
    /// A descriptor that was given is no tap's.
    #[error("it is no tap with IFF_NO_PI and IFF_VNET_HDR")]
    Kind(#[source] Option<Error>),
    /// The tap cannot be set up.
    #[error("the tap cannot be set up: {step}")]
    SetUp {
        /// What was to be done.
        step: &'static str,
        /// What the system says.
        #[source]
        source: Error,
    },
}

/// A tap, and what it takes.
#[derive(Debug)]
pub struct Tap {
    file: File,
    offloads: Offloads,
    mtu: Option<u16>,
}

impl Tap {
    /// A tap that is there, by its name in this network namespace.
    ///
    /// # Errors
    /// When it is not there, or not to be had.
    pub fn open(name: &str) -> std::result::Result<Self, TapError> {
        let mut request = request(name).ok_or_else(|| TapError::Name { name: name.into() })?;
        // First of all: a tap that is not there would be made.
        let mtu = mtu(request).map_err(|source| TapError::Absent {
            name: name.into(),
            source,
        })?;
        let failed = |source| TapError::Attach {
            name: name.into(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(Path::new(DEVICE))
            .map_err(failed)?;
        // They are three bits of the low sixteen.
        request.ifr_ifru.ifru_flags = FLAGS.try_into().unwrap_or_default();
        // SAFETY: the request is one of this call, and lives during it.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        done(result).map_err(failed)?;
        Self::set_up(file, Some(mtu))
    }

    /// A tap that somebody else opened.
    ///
    /// # Errors
    /// When it is none, or was opened in another way than it must be.
    pub fn from_descriptor(descriptor: OwnedFd) -> std::result::Result<Self, TapError> {
        let file = File::from(descriptor);
        let mut request = empty_request();
        // SAFETY: the request is one of this call, and lives during it.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        done(result).map_err(|source| TapError::Kind(Some(source)))?;
        // SAFETY: the call has filled the flags, and any bits are a number.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & FLAGS != FLAGS {
            return Err(TapError::Kind(None));
        }
        let set_up = |source| TapError::SetUp {
            step: "not to wait",
            source,
        };
        rustix::io::ioctl_fionbio(&file, true).map_err(|errno| set_up(errno.into()))?;
        Self::set_up(file, None)
    }

    /// The interface's largest packet, if it can be known.
    #[must_use]
    pub const fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn set_up(file: File, mtu: Option<u16>) -> std::result::Result<Self, TapError> {
        let failed = |step| move |source| TapError::SetUp { step, source };
        let length = i32::try_from(HEADER_BYTES).unwrap_or_default();
        // SAFETY: the call reads one number, which lives during it.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) };
        done(result).map_err(failed("the length of headers"))?;
        let mut tap = Self {
            file,
            offloads: Offloads {
                checksum: true,
                tcp4: true,
                tcp6: true,
                udp: true,
            },
            mtu,
        };
        // What this kernel has, and then nothing until a driver wants it.
        if tap.set_offloads(tap.offloads).is_err() {
            tap.offloads.udp = false;
            tap.set_offloads(tap.offloads).map_err(failed("offloads"))?;
        }
        tap.set_offloads(Offloads::default())
            .map_err(failed("no offloads"))?;
        Ok(tap)
    }
}

impl Link for Tap {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<()> {
        let bits = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tcp4, libc::TUN_F_TSO4),
            (offloads.tcp6, libc::TUN_F_TSO6),
            (offloads.udp, libc::TUN_F_UFO),
        ];
        let bits = bits.iter().filter(|(is_wanted, _)| *is_wanted);
        let bits = bits.fold(0, |all, (_, bit)| all | bit);
        // SAFETY: the call takes a number, and no pointer.
        let result = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(bits),
            )
        };
        done(result)
    }

    fn receive(&mut self, packet: &mut [u8]) -> Result<usize> {
        self.file.read(packet)
    }

    fn send(&mut self, packet: &[u8]) -> Result<()> {
        // A tap takes a packet whole.
        self.file.write(packet).map(drop)
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

fn done(result: i32) -> Result<()> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

fn empty_request() -> libc::ifreq {
    // SAFETY: zeros are a name of no bytes and a union of numbers.
    unsafe { std::mem::zeroed() }
}

/// A request about an interface, if it can have this name.
fn request(name: &str) -> Option<libc::ifreq> {
    let mut request = empty_request();
    let bytes = name.as_bytes();
    // The last is the end of the text.
    let fits = (1..request.ifr_name.len()).contains(&bytes.len());
    if !fits || bytes.contains(&0) {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    Some(request)
}

/// An interface's largest packet.
fn mtu(mut request: libc::ifreq) -> Result<u16> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: the request is one of this call, and lives during it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    done(result)?;
    // SAFETY: the call has filled the number.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}
