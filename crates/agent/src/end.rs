//! The two ends of a stream, whatever they are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendFlags, Shutdown};

use crate::flow::{Sink, Source};

/// One end, non-blocking.
#[derive(Debug)]
pub(crate) enum End {
    /// A connected socket: each side ends its half.
    Socket(OwnedFd),
    /// A pipe that is read.
    Reader(OwnedFd),
    /// A pipe that is written; dropping it ends it.
    Writer(OwnedFd),
    /// A terminal's controlling side. It has no end that could be said.
    Terminal(OwnedFd),
}

impl End {
    /// Whether bytes come from it.
    pub(crate) fn is_read(&self) -> bool {
        !matches!(self, Self::Writer(_))
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(fd) | Self::Reader(fd) | Self::Writer(fd) | Self::Terminal(fd) => {
                fd.as_fd()
            }
        }
    }
}

impl Source for End {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match retry_on_intr(|| rustix::io::read(self, &mut *buffer)) {
            // The other side of a terminal is closed (tty_ioctl(4) says so of
            // none; Linux's pty does).
            Err(Errno::IO) if matches!(self, Self::Terminal(_)) => Ok(0),
            result => Ok(result?),
        }
    }
}

impl Sink for End {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = retry_on_intr(|| match self {
            Self::Socket(socket) => rustix::net::send(socket, bytes, SendFlags::NOSIGNAL),
            Self::Reader(_) => Ok(bytes.len()),
            Self::Writer(fd) | Self::Terminal(fd) => rustix::io::write(fd, bytes),
        });
        Ok(written?)
    }

    fn finish(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => match rustix::net::shutdown(socket, Shutdown::Write) {
                // It has gone by itself.
                Err(Errno::NOTCONN) => Ok(()),
                result => Ok(result?),
            },
            Self::Reader(_) | Self::Writer(_) | Self::Terminal(_) => Ok(()),
        }
    }
}
