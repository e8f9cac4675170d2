//! A monitor that is started before its machine is known: it makes what every
//! machine has, and waits to be told the rest.
//!
//! ```text
//! started ─▶ the machine is made, the cgroups are joined ─▶ waits ─▶ goes on
//!                                                                    as any other
//! ```

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use skiff_wire::monitor::{Assignment, FRAME_BYTES_MAX};

use crate::control::socket::receive;
use crate::inherited;

/// The first descriptor that is no standard stream.
const FIRST: RawFd = 3;

/// Where a machine is waited for.
#[derive(Debug)]
pub struct Waiting {
    socket: OwnedFd,
    /// What keeps the numbers of its files, in order.
    places: Vec<OwnedFd>,
}

/// A machine that has come. Its configuration is descriptor 3.
#[derive(Debug)]
pub struct Assigned {
    /// Its name.
    pub id: String,
    /// What becomes the root.
    pub folder: OwnedFd,
}

impl Waiting {
    /// At this socket, which the process was started with, as with all
    /// descriptors from 3 up to it: files take their places.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn at(socket: RawFd) -> Result<Self> {
        Ok(Self {
            places: (FIRST..socket)
                .map(inherited::take)
                .collect::<Result<_>>()?,
            socket: inherited::take(socket)?,
        })
    }

    /// Waits for the machine; nothing when the other side has gone. From then
    /// on the socket is closed, and each file has its number.
    ///
    /// # Errors
    /// When what comes is no machine.
    pub fn wait(self) -> Result<Option<Assigned>> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        while let Err(errno) = poll(&mut polled, None) {
            if errno != Errno::INTR {
                return Err(errno.into());
            }
        }
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let received = receive(&self.socket, &mut buffer)?;
        let frame = buffer.get(..received.bytes).unwrap_or_default();
        if frame.is_empty() {
            return Ok(None);
        }
        let Assignment { id } = skiff_wire::decode(frame).map_err(Error::other)?;
        let mut fds = received.fds.into_iter();
        let folder = fds.next();
        let folder = folder.ok_or_else(|| wrong("a machine has come without its folder"))?;
        self.place(fds)?;
        Ok(Some(Assigned { id, folder }))
    }

    /// Gives the files their numbers. What has none is closed.
    fn place(self, files: impl ExactSizeIterator<Item = OwnedFd>) -> Result<()> {
        if files.len() > self.places.len() {
            return Err(wrong("a machine has come with too many files"));
        }
        for (mut place, file) in self.places.into_iter().zip(files) {
            rustix::io::dup2(&file, &mut place)?;
            // Whoever is told the number takes it.
            let _number = place.into_raw_fd();
        }
        Ok(())
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}
