use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::net::SocketType;

use crate::inherited;
use crate::listener::Listener;

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

impl Endpoint {
    /// Listens at a path, for this user only, or for whoever reaches it.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn listen(path: &Path, for_all: bool) -> Result<Self, ControlError> {
        let listener = Listener::bind(path, SocketType::SEQPACKET, for_all);
        listener
            .map(Self::Listener)
            .map_err(|source| ControlError::Listen {
                path: path.to_owned(),
                source,
            })
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
