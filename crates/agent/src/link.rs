//! The agent's connection to the launcher.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use skiff_jail::channel;
use skiff_wire::FRAME_BYTES_MAX;
use skiff_wire::launcher::{Answer, Envelope, Request};

/// See the module. What waits to be written is bounded by the requests that
/// wait for replies, which the caller counts.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    buffer: Vec<u8>,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            queue: VecDeque::new(),
            buffer: vec![0; FRAME_BYTES_MAX],
        }
    }

    /// Whether it waits for the socket to take more.
    pub(crate) fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends a request, or queues it.
    pub(crate) fn send(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        let frame = skiff_wire::encode(&Envelope { id, request }).map_err(io::Error::other)?;
        self.queue.push_back((frame, fds));
        self.flush()
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some((frame, fds)) = self.queue.front_mut() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match channel::send(&self.socket, frame, &borrowed, SendFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return Ok(()),
                result => result?,
            }
            // Requests carry environments, and those carry secrets.
            frame.fill(0);
            self.queue.pop_front();
        }
        Ok(())
    }

    /// The next answer with its descriptors, if there is one.
    pub(crate) fn receive(&mut self) -> io::Result<Option<(Answer, Vec<OwnedFd>)>> {
        match channel::receive(&self.socket, &mut self.buffer, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Some((length, fds))) => {
                let frame = self.buffer.get(..length).unwrap_or_default();
                let answer = skiff_wire::decode(frame).map_err(io::Error::other)?;
                Ok(Some((answer, fds)))
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
