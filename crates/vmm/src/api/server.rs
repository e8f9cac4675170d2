//! Connections of the API's clients, none of which is waited for alone:
//!
//! ```text
//! hearing ── a whole request ─▶ asked ── answer ─▶ answering ─▶ hearing
//!    │ it ends, or is none                             │ the last one
//!    └──────────────────────▶ gone ◀───────────────────┘
//! ```
//!
//! A client that does not take its answer is not heard meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::http::{self, MAX_BODY, MAX_HEAD, Parsed, Request, Response, Status};
use crate::listener::Listener;

/// The most clients at a time.
pub(super) const MAX_CONNECTIONS: usize = 10;
/// What is read at once.
const CHUNK: usize = 16 << 10;
const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What there is to do.
#[derive(Debug)]
pub(super) enum Event {
    /// A request, which must be answered before anything else.
    Request(Request),
    /// Something else that was waited for.
    Woken,
    /// Nothing yet: whoever has something else to do can do it.
    Idle,
}

/// All clients, and where they come from if they can.
#[derive(Debug)]
pub(super) struct Server {
    listener: Option<Listener>,
    connections: Vec<Connection>,
    /// Whose request was given out.
    asking: Option<(usize, bool)>,
}

impl Server {
    pub(super) const fn new(listener: Option<Listener>) -> Self {
        Self {
            listener,
            connections: Vec::new(),
            asking: None,
        }
    }

    /// Waits for clients, or for another descriptor to be readable, and gives
    /// out a request that has come.
    ///
    /// # Errors
    /// When the system cannot wait.
    pub(super) fn next(
        &mut self,
        other: BorrowedFd<'_>,
        within: Option<Duration>,
    ) -> Result<Event, Errno> {
        if let Some(request) = self.take() {
            return Ok(Event::Request(request));
        }
        self.connections.retain(|connection| !connection.is_over());
        if self.wait(other, within)? {
            return Ok(Event::Woken);
        }
        Ok(self.take().map_or(Event::Idle, Event::Request))
    }

    /// Answers the request that was given out last.
    pub(super) fn answer(&mut self, response: &Response) {
        if let Some((place, keeps)) = self.asking.take()
            && let Some(connection) = self.connections.get_mut(place)
        {
            connection.answer(response, keeps);
        }
    }

    /// A request that has come wholly.
    fn take(&mut self) -> Option<Request> {
        let mut connections = self.connections.iter_mut().enumerate();
        let (place, request) =
            connections.find_map(|(place, connection)| Some((place, connection.take()?)))?;
        self.asking = Some((place, request.keeps));
        Some(request)
    }

    /// Waits, reads and writes. Tells whether the other descriptor is
    /// readable.
    fn wait(&mut self, other: BorrowedFd<'_>, within: Option<Duration>) -> Result<bool, Errno> {
        let mut polled = vec![PollFd::from_borrowed_fd(other, PollFlags::IN)];
        polled.extend(self.connections.iter().map(Connection::waits_for));
        polled.extend(
            self.listener
                .iter()
                .map(|listener| PollFd::new(listener, PollFlags::IN)),
        );
        let timeout = within.map(|within| Timespec {
            tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(within.subsec_nanos()),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = polled
            .iter()
            .map(|polled| !polled.revents().is_empty())
            .collect();
        let is_ready = |place: usize| ready.get(place).copied().unwrap_or(false);
        let clients = self.connections.len();
        for (place, connection) in self.connections.iter_mut().enumerate() {
            if is_ready(place + 1) {
                connection.work();
            }
        }
        if is_ready(clients + 1) {
            self.accept();
        }
        Ok(is_ready(0))
    }

    fn accept(&mut self) {
        let Some(socket) = self.listener.as_ref().and_then(Listener::accept) else {
            return;
        };
        if self.connections.len() < MAX_CONNECTIONS {
            self.connections.push(Connection::new(socket));
            return;
        }
        let message = format!("there are {MAX_CONNECTIONS} connections already");
        let response = Response::fault(Status::Unavailable, &message);
        // A new connection has room for it; whoever does not read it is gone.
        send(&socket, &response.bytes(false))
            .map(drop)
            .unwrap_or_default();
    }
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// What was heard and is not a request yet.
    heard: Vec<u8>,
    /// There may be a whole request in it.
    may_be_whole: bool,
    /// The client was told to go on with its body.
    told: bool,
    unsent: Vec<u8>,
    /// Nothing more is heard, but what is unsent is sent.
    closes: bool,
    gone: bool,
}

impl Connection {
    const fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            heard: Vec::new(),
            may_be_whole: false,
            told: false,
            unsent: Vec::new(),
            closes: false,
            gone: false,
        }
    }

    const fn is_over(&self) -> bool {
        self.gone || (self.closes && self.unsent.is_empty())
    }

    fn waits_for(&self) -> PollFd<'_> {
        let wanted = if self.unsent.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::OUT
        };
        PollFd::from_borrowed_fd(self.socket.as_fd(), wanted)
    }

    /// Takes a request out of what was heard, once the last one's answer is
    /// sent.
    fn take(&mut self) -> Option<Request> {
        if !self.may_be_whole || !self.unsent.is_empty() || self.is_over() {
            return None;
        }
        match http::parse(&self.heard) {
            Ok(Parsed::Whole(request, used)) => {
                self.heard.drain(..used);
                self.told = false;
                return Some(request);
            }
            Ok(Parsed::Part { waits }) => {
                if waits && !self.told {
                    self.told = true;
                    self.unsent.extend(GO_ON);
                }
            }
            Err(error) => {
                let message = skiff_base::chain(&error).to_string();
                self.answer(&Response::fault(error.status(), &message), false);
            }
        }
        self.may_be_whole = false;
        None
    }

    fn answer(&mut self, response: &Response, keeps: bool) {
        self.unsent.extend(response.bytes(keeps));
        self.closes |= !keeps;
    }

    /// Sends what is unsent, or hears what comes.
    fn work(&mut self) {
        if self.unsent.is_empty() {
            self.hear();
            return;
        }
        match send(&self.socket, &self.unsent) {
            Ok(sent) => drop(self.unsent.drain(..sent)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.gone = true,
        }
    }

    fn hear(&mut self) {
        let mut chunk = [0; CHUNK];
        // What is there is part of one request, and no longer than one.
        let room = (MAX_HEAD + MAX_BODY).saturating_sub(self.heard.len());
        let space = chunk.get_mut(..room.min(CHUNK)).unwrap_or_default();
        match rustix::net::recv(&self.socket, space, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.gone = true,
            Ok((heard, _)) => {
                self.heard.extend(chunk.iter().take(heard));
                self.may_be_whole = true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.gone = true,
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(socket, bytes, flags)
}
