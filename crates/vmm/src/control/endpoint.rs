use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::inherited;

/// How many clients wait to be accepted.
const BACKLOG: i32 = 4;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket cannot be made.
    #[error("{} cannot be listened on: remove what is there, or name another path", .path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What was inherited is no socket of this kind.
    #[error("descriptor {descriptor} is no connected Unix socket of the kind SOCK_SEQPACKET")]
    Inherited {
        /// Its number.
        descriptor: RawFd,
        /// What the system says, if it does.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The thread cannot be started.
    #[error("the control thread cannot be started")]
    Start(#[source] std::io::Error),
}

/// Where clients come from.
#[derive(Debug)]
pub enum Endpoint {
    /// A socket at a path, which goes with this.
    Listener(Listener),
    /// One client, there from the start.
    Connection(OwnedFd),
}

/// A socket at a path.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Endpoint {
    /// Listens at a path, for this user only, or for whoever reaches it.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn listen(path: &Path, for_all: bool) -> Result<Self, ControlError> {
        let listen = || -> rustix::io::Result<OwnedFd> {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?;
            // Before it has a path: then the path has the mode from the start.
            let mode = if for_all { 0o666 } else { 0o600 };
            rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let socket = listen().map_err(|errno| ControlError::Listen {
            path: path.to_owned(),
            source: errno.into(),
        })?;
        Ok(Self::Listener(Listener {
            socket,
            path: path.to_owned(),
        }))
    }

    /// Takes a connected socket over that the process was started with.
    ///
    /// # Errors
    /// When it is none.
    pub fn inherit(descriptor: RawFd) -> Result<Self, ControlError> {
        let wrong = |source| ControlError::Inherited { descriptor, source };
        let socket = inherited::take(descriptor).map_err(|error| wrong(Some(error)))?;
        let check = || -> rustix::io::Result<bool> {
            let kind = rustix::net::sockopt::socket_type(&socket)?;
            rustix::net::getpeername(&socket)?;
            Ok(kind == SocketType::SEQPACKET)
        };
        match check() {
            Ok(true) => Ok(Self::Connection(socket)),
            Ok(false) => Err(wrong(None)),
            Err(errno) => Err(wrong(Some(errno.into()))),
        }
    }
}

impl Listener {
    /// The next client, if one waits.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC).ok()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        std::fs::remove_file(&self.path).unwrap_or_default();
    }
}
