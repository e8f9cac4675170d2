//! The thread that hears clients.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use skiff_wire::monitor::FRAME_BYTES_MAX;
use vmm_sys_util::eventfd::EventFd;

use super::Controlled;
use super::answer::answer;
use super::endpoint::{ControlError, Endpoint};
use super::socket::{receive, send};
use crate::listener::Listener;

/// The thread. Dropping it ends it, with its socket.
#[derive(Debug)]
pub struct ControlThread {
    end: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl ControlThread {
    /// Starts it, and does `first` in it before anything else; if that fails,
    /// nobody is answered.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn(
        endpoint: Endpoint,
        machine: Arc<impl Controlled>,
        first: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Self, ControlError> {
        let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
        let end = Arc::new(EventFd::new(flags).map_err(ControlError::Start)?);
        let (listener, client) = match endpoint {
            Endpoint::Listener(listener) => (Some(listener), None),
            Endpoint::Connection(socket) => (None, Some(Client::new(socket))),
        };
        let server = Server {
            listener,
            client,
            end: Arc::clone(&end),
            machine,
            buffer: vec![0; FRAME_BYTES_MAX],
        };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                if first() {
                    server.live();
                }
            })
            .map_err(ControlError::Start)?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        let told = self.end.write(1);
        if let (Ok(()), Some(thread)) = (told, self.thread.take()) {
            // A panic of the thread has ended it as well.
            thread.join().unwrap_or_default();
        }
    }
}

struct Server<C> {
    listener: Option<Listener>,
    client: Option<Client>,
    end: Arc<EventFd>,
    machine: Arc<C>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    greeted: bool,
    /// An answer that it has no room for. It is not heard until it has.
    unsent: Option<Vec<u8>>,
}

/// Nothing more is to be had of a client.
#[derive(Debug)]
struct Gone;

impl<C: Controlled> Server<C> {
    fn live(mut self) {
        while self.turn() {}
    }

    /// Waits for something, and does it. Tells whether there is more to come.
    fn turn(&mut self) -> bool {
        let Ok(end) = ready(self.end.as_ref(), self.waits_for()) else {
            return false;
        };
        if end {
            return false;
        }
        match (&mut self.client, &self.listener) {
            (Some(client), _) => {
                if client
                    .serve(self.machine.as_ref(), &mut self.buffer)
                    .is_err()
                {
                    self.client = None;
                }
            }
            (None, Some(listener)) => self.client = listener.accept().map(Client::new),
            // The only client has gone.
            (None, None) => return false,
        }
        true
    }

    fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match (&self.client, &self.listener) {
            (Some(client), _) if client.unsent.is_some() => {
                Some((client.socket.as_fd(), PollFlags::OUT))
            }
            (Some(client), _) => Some((client.socket.as_fd(), PollFlags::IN)),
            (None, Some(listener)) => Some((listener.as_fd(), PollFlags::IN)),
            (None, None) => None,
        }
    }
}

/// Waits until the end has come or something is ready. Tells whether it is
/// the end.
fn ready(end: &EventFd, other: Option<(BorrowedFd<'_>, PollFlags)>) -> Result<bool, Errno> {
    // SAFETY: the event is borrowed for longer than this.
    let end = unsafe { BorrowedFd::borrow_raw(end.as_raw_fd()) };
    let mut polled = vec![PollFd::from_borrowed_fd(end, PollFlags::IN)];
    polled.extend(other.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
    loop {
        match poll(&mut polled, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(polled.first().is_some_and(|end| !end.revents().is_empty()))
}

impl Client {
    const fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            greeted: false,
            unsent: None,
        }
    }

    /// Sends the answer that waits, or hears and answers one frame.
    fn serve(&mut self, machine: &impl Controlled, buffer: &mut [u8]) -> Result<(), Gone> {
        let frame = match self.unsent.take() {
            Some(frame) => frame,
            None => match self.hear(machine, buffer)? {
                Some(frame) => frame,
                None => return Ok(()),
            },
        };
        match send(&self.socket, &frame) {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN | Errno::INTR) => {
                self.unsent = Some(frame);
                Ok(())
            }
            Err(_) => Err(Gone),
        }
    }

    /// Hears one frame. The answer to it, if there was one.
    fn hear(
        &mut self,
        machine: &impl Controlled,
        buffer: &mut [u8],
    ) -> Result<Option<Vec<u8>>, Gone> {
        let received = match receive(&self.socket, buffer) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(_) => return Err(Gone),
        };
        // No bytes are the client's end, and no frame either.
        let frame = buffer.get(..received.bytes).unwrap_or_default();
        let envelope = skiff_wire::decode(frame).map_err(|_| Gone)?;
        let answer = answer(machine, &mut self.greeted, envelope, received.fds);
        skiff_wire::encode(&answer).map(Some).map_err(|_| Gone)
    }
}
