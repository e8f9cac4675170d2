//! The host's control connection: requests in, answers out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::SendFlags;
use skiff_wire::agent::{Answer, Envelope, REQUESTS_MAX};
use skiff_wire::{FRAME_BYTES_MAX, FrameError, FrameReader};

/// What waits for a host that does not read, before it is dropped.
const QUEUE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Read at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// Why a connection is ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the host has closed it")]
    Closed,
    #[error("it cannot be read or written")]
    Io(#[from] io::Error),
    #[error("what comes is no request")]
    Frame(#[from] FrameError),
    #[error("the host does not read its answers")]
    Unread,
    #[error("it does not begin with a greeting")]
    Rude,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    /// Tells it from those before.
    pub(crate) number: u64,
    /// The host has said `Hello`.
    pub(crate) greeted: bool,
    /// Requests whose replies are due.
    pub(crate) waiting: usize,
    /// Requests may be there that were not taken for want of room.
    pub(crate) held_back: bool,
    reader: FrameReader,
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    /// Of the first in the queue.
    written: usize,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd, number: u64) -> Self {
        Self {
            socket,
            number,
            greeted: false,
            waiting: 0,
            held_back: false,
            reader: FrameReader::new(FRAME_BYTES_MAX),
            queue: VecDeque::new(),
            queued_bytes: 0,
            written: 0,
        }
    }

    /// Whether it waits for the socket to take more.
    pub(crate) fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether another request may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting < REQUESTS_MAX
    }

    /// The next request, if it is whole.
    pub(crate) fn receive(&mut self) -> Result<Option<Envelope>, ControlError> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            let wanted = self.reader.wanted().min(PIECE_BYTES);
            let space = piece.get_mut(..wanted).unwrap_or_default();
            let length = match retry_on_intr(|| rustix::io::read(&self.socket, &mut *space)) {
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(io::Error::from(errno).into()),
                Ok(0) => return Err(ControlError::Closed),
                Ok(length) => length,
            };
            let read = space.get_mut(..length).unwrap_or_default();
            let frame = self.reader.push(read);
            // Requests carry environments, and those carry secrets.
            read.fill(0);
            if let Some(mut frame) = frame? {
                let envelope = skiff_wire::decode(&frame);
                frame.fill(0);
                return Ok(Some(envelope?));
            }
        }
    }

    /// Sends an answer, or queues it.
    pub(crate) fn send(&mut self, answer: &Answer) -> Result<(), ControlError> {
        let frame = skiff_wire::framed(answer)?;
        self.queued_bytes += frame.len();
        self.queue.push_back(frame);
        if self.queued_bytes > QUEUE_BYTES_MAX {
            return Err(ControlError::Unread);
        }
        self.flush()
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), ControlError> {
        while let Some(frame) = self.queue.front() {
            let rest = frame.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                self.queued_bytes -= frame.len();
                self.queue.pop_front();
                self.written = 0;
                continue;
            }
            let sent = retry_on_intr(|| {
                rustix::net::send(
                    &self.socket,
                    rest,
                    SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
                )
            });
            match sent {
                Ok(length) => self.written += length,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
