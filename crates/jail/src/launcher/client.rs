//! Connections: who may, what they say, what they are told.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use serde::{Deserialize, Serialize};
use skiff_wire::FRAME_FDS_MAX;
use skiff_wire::launcher::{Answer, Envelope, Exit, Refusal, Reply};

use super::{Launcher, Token};
use crate::channel;
use crate::failure::{Context, Step};
use crate::handle::Handle;

/// Connections at a time: a server and its successor are two.
const CLIENTS_MAX: usize = 32;
/// What waits for a client that does not read, before it is dropped.
const QUEUE_FRAMES_MAX: usize = 4096;
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Frames that are taken from one client before the others have their turn.
const FRAMES_PER_TURN: usize = 16;

/// Where a reply goes, once it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplyTo {
    pub(super) client: u64,
    pub(super) id: u64,
}

/// One connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Client {
    pub(super) socket: Handle,
    /// It has said `Hello`.
    pub(super) greeted: bool,
    /// It connected as root: it may give the launcher another program.
    pub(super) root: bool,
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Outgoing {
    frame: Vec<u8>,
    fds: Vec<Handle>,
}

impl Client {
    fn new(socket: OwnedFd, root: bool) -> Self {
        Self {
            socket: socket.into(),
            greeted: false,
            root,
            queue: VecDeque::new(),
            queued_bytes: 0,
        }
    }

    /// Queues a frame; false when the client has not read for too long.
    fn push(&mut self, frame: Vec<u8>, fds: Vec<OwnedFd>) -> bool {
        self.queued_bytes += frame.len();
        let fds = fds.into_iter().map(Handle::from).collect();
        self.queue.push_back(Outgoing { frame, fds });
        self.queue.len() <= QUEUE_FRAMES_MAX && self.queued_bytes <= QUEUE_BYTES_MAX
    }

    /// Sends what the socket takes; says whether something is left.
    fn flush(&mut self) -> Result<bool, Errno> {
        while let Some(next) = self.queue.front() {
            let fds: Vec<_> = next.fds.iter().map(AsFd::as_fd).collect();
            match channel::send(&self.socket, &next.frame, &fds, SendFlags::DONTWAIT) {
                Ok(()) => {
                    self.queued_bytes -= next.frame.len();
                    self.queue.pop_front();
                }
                Err(Errno::AGAIN) => return Ok(true),
                Err(errno) => return Err(errno),
            }
        }
        Ok(false)
    }
}

const QUIET: EventFlags = EventFlags::IN;

impl Launcher {
    pub(super) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.kept.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(errno) => {
                tracing::error!(%errno, "a connection cannot be accepted");
                return;
            }
        };
        if let Err(refusal) = self.admit(socket) {
            tracing::warn!(%refusal, "a connection is refused");
        }
    }

    fn admit(&mut self, socket: OwnedFd) -> Step<()> {
        const STEP: &str = "connect";
        let peer = rustix::net::sockopt::socket_peercred(&socket).at(STEP, "ask for its user")?;
        let uid = peer.uid.as_raw();
        if uid != 0 && uid != self.options.allowed_uid {
            return Err(crate::failure::refuse(STEP, format!("user {uid} may not")));
        }
        if self.kept.clients.len() >= CLIENTS_MAX {
            let message = format!("{CLIENTS_MAX} clients are connected");
            return Err(crate::failure::refuse(STEP, message));
        }
        channel::fit_frames(&socket).at(STEP, "set the send buffer")?;
        let number = self.kept.number();
        self.watch(&socket, Token::Client(number), QUIET)?;
        self.kept
            .clients
            .insert(number, Client::new(socket, uid == 0));
        Ok(())
    }

    pub(super) fn serve(&mut self, number: u64, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.flush(number);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..FRAMES_PER_TURN {
            if !self.serve_one(number, &mut buffer) {
                break;
            }
        }
        self.buffer = buffer;
    }

    /// Takes one frame; says whether there may be more.
    fn serve_one(&mut self, number: u64, buffer: &mut [u8]) -> bool {
        let Some(client) = self.kept.clients.get(&number) else {
            return false;
        };
        match channel::receive(&client.socket, buffer, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => false,
            Ok(None) => self.drop_client(number, "it has closed"),
            Err(errno) => self.drop_client(number, &errno.to_string()),
            Ok(Some((length, fds))) => {
                let frame = buffer.get_mut(..length).unwrap_or_default();
                let envelope = skiff_wire::decode::<Envelope>(frame);
                // Requests carry environments, and those carry secrets.
                frame.fill(0);
                if fds.len() > FRAME_FDS_MAX {
                    return self.drop_client(number, "it sends too many descriptors");
                }
                match envelope {
                    Ok(envelope) => self.obey(number, envelope, fds),
                    Err(error) => self.drop_client(number, &error.to_string()),
                }
            }
        }
    }

    /// Ends a connection, and the further processes that it started. Whatever
    /// else it asked for goes on; nobody is told.
    pub(super) fn drop_client(&mut self, number: u64, reason: &str) -> bool {
        if let Some(client) = self.kept.clients.remove(&number) {
            tracing::debug!(number, reason, "a client is gone");
            self.unwatch(&client.socket);
            self.kill_execs_of(number);
        }
        false
    }

    pub(super) fn reply(&mut self, to: ReplyTo, result: Result<Reply, Refusal>, fds: Vec<OwnedFd>) {
        let answer = Answer::Reply { id: to.id, result };
        self.post(to.client, &answer, fds);
    }

    pub(super) fn tell_exit(&mut self, sandbox: skiff_types::InstanceId, exit: Exit) {
        self.tell_all(&Answer::Exited { sandbox, exit });
    }

    /// Tells everybody who has said hello.
    pub(super) fn tell_all(&mut self, answer: &Answer) {
        let greeted = |(number, client): (&u64, &Client)| client.greeted.then_some(*number);
        let numbers: Vec<_> = self.kept.clients.iter().filter_map(greeted).collect();
        for number in numbers {
            self.post(number, answer, Vec::new());
        }
    }

    pub(super) fn post(&mut self, number: u64, answer: &Answer, fds: Vec<OwnedFd>) {
        let Some(client) = self.kept.clients.get_mut(&number) else {
            return;
        };
        let fits = match skiff_wire::encode(answer) {
            Ok(frame) => client.push(frame, fds),
            Err(error) => {
                tracing::error!(%error, "an answer does not fit a frame");
                return;
            }
        };
        if fits {
            self.flush(number);
        } else {
            self.drop_client(number, "it does not read its answers");
        }
    }

    fn flush(&mut self, number: u64) {
        let Some(client) = self.kept.clients.get_mut(&number) else {
            return;
        };
        let flags = match client.flush() {
            Ok(true) => QUIET | EventFlags::OUT,
            Ok(false) => QUIET,
            Err(errno) => {
                self.drop_client(number, &errno.to_string());
                return;
            }
        };
        let data = Token::Client(number).encode();
        let changed = epoll::modify(&self.epoll, &client.socket, data, flags);
        if let Err(errno) = changed {
            self.drop_client(number, &errno.to_string());
        }
    }

    /// Watches the connections that an earlier program had.
    pub(super) fn watch_clients(&mut self) -> Step<()> {
        for (number, client) in &self.kept.clients {
            let flags = QUIET | EventFlags::OUT;
            self.watch(&client.socket, Token::Client(*number), flags)?;
        }
        Ok(())
    }
}
