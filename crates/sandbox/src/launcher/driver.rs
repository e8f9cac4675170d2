//! The task that owns the connection: the only one that reads and writes it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;

use skiff_types::InstanceId;
use skiff_wire::FRAME_BYTES_MAX;
use skiff_wire::agent::ExecExit;
use skiff_wire::launcher::{Answer, Envelope, Refusal, Reply, Request};
use tokio::sync::{mpsc, oneshot, watch};

use super::exits::Exits;
use super::socket::FrameSocket;

/// Requests whose replies are due; further ones wait in the queue.
const PENDING_MAX: usize = 1024;

/// What a request's reply came to.
pub type Outcome = Result<(Reply, Vec<OwnedFd>), Refusal>;

/// A request on its way to the task, encoded by the caller.
#[derive(Debug)]
pub struct Call {
    pub id: u64,
    pub frame: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    pub about: About,
    pub reply: oneshot::Sender<Outcome>,
}

/// What the task itself must know of a request.
#[derive(Clone, Copy, Debug)]
pub enum About {
    /// Undone when nobody waits for the reply.
    Create(InstanceId),
    /// Ends the watching of its exit.
    Destroy(InstanceId),
    Other,
}

#[derive(Debug)]
struct Pending {
    about: About,
    reply: Option<oneshot::Sender<Outcome>>,
}

#[derive(Debug)]
pub struct Driver {
    socket: FrameSocket,
    queue: mpsc::Receiver<Call>,
    exits: Exits,
    pending: HashMap<u64, Pending>,
    /// Creations that nobody waits for; at most as many as are pending.
    undo: VecDeque<InstanceId>,
    /// Ids of the task's own requests, from the upper half.
    next_own: u64,
}

/// Callers' ids are below, the task's own above.
pub const OWN_IDS: u64 = 1 << 63;

type Outgoing = (Vec<u8>, Vec<OwnedFd>);

impl Driver {
    pub fn new(socket: FrameSocket, queue: mpsc::Receiver<Call>, exits: Exits) -> Self {
        Self {
            socket,
            queue,
            exits,
            pending: HashMap::new(),
            undo: VecDeque::new(),
            next_own: OWN_IDS,
        }
    }

    /// Runs until the connection or the client ends. Every reply that is due
    /// then fails, because its sender is dropped.
    pub async fn run(mut self, closed: watch::Sender<Option<String>>) {
        let why = match self.serve().await {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => skiff_base::chain(&error).to_string(),
        };
        tracing::debug!(%why, "the launcher's connection has ended");
        closed.send_replace(Some(why));
    }

    async fn serve(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let mut outgoing: Option<Outgoing> = None;
        loop {
            if outgoing.is_none() {
                outgoing = self.next_undo()?;
            }
            let room = outgoing.is_none() && self.pending.len() < PENDING_MAX;
            tokio::select! {
                received = self.socket.receive(&mut buffer) => {
                    let received = received?;
                    if received.len == 0 {
                        return Ok(());
                    }
                    self.answer(&buffer[..received.len], received.fds)?;
                }
                sent = send(&self.socket, outgoing.as_ref()), if outgoing.is_some() => {
                    sent?;
                    outgoing = None;
                }
                call = self.queue.recv(), if room => match call {
                    Some(call) => outgoing = self.accept(call),
                    None => return Ok(()),
                },
            }
        }
    }

    fn accept(&mut self, call: Call) -> Option<Outgoing> {
        if call.reply.is_closed() {
            return None;
        }
        let pending = Pending {
            about: call.about,
            reply: Some(call.reply),
        };
        self.pending.insert(call.id, pending);
        Some((call.frame, call.fds))
    }

    fn next_undo(&mut self) -> io::Result<Option<Outgoing>> {
        let Some(sandbox) = self.undo.pop_front() else {
            return Ok(None);
        };
        let id = self.next_own;
        self.next_own += 1;
        let envelope = Envelope {
            id,
            request: Request::Destroy { sandbox },
        };
        let frame = skiff_wire::encode(&envelope).map_err(io::Error::other)?;
        let pending = Pending {
            about: About::Destroy(sandbox),
            reply: None,
        };
        self.pending.insert(id, pending);
        Ok(Some((frame, vec![])))
    }

    fn answer(&mut self, frame: &[u8], fds: Vec<OwnedFd>) -> io::Result<()> {
        match skiff_wire::decode(frame).map_err(invalid)? {
            Answer::Exited { sandbox, exit } => self.exits.set(sandbox, exit),
            Answer::ExecExited {
                sandbox,
                exec,
                code,
                signal,
            } => self
                .exits
                .execs()
                .tell(sandbox, exec, ExecExit { code, signal }),
            Answer::Reply { id, result } => {
                let pending = self
                    .pending
                    .remove(&id)
                    .ok_or_else(|| invalid(format!("a reply to no request, {id}")))?;
                self.settle(pending, result, fds);
            }
        }
        Ok(())
    }

    fn settle(&mut self, pending: Pending, result: Result<Reply, Refusal>, fds: Vec<OwnedFd>) {
        let succeeded = result.is_ok();
        if let About::Destroy(sandbox) = pending.about
            && succeeded
        {
            self.exits.forget(sandbox);
        }
        let taken = match pending.reply {
            Some(reply) => reply.send(result.map(|reply| (reply, fds))).is_ok(),
            None => false,
        };
        if let About::Create(sandbox) = pending.about
            && succeeded
            && !taken
        {
            self.undo.push_back(sandbox);
        }
    }
}

async fn send(socket: &FrameSocket, outgoing: Option<&Outgoing>) -> io::Result<()> {
    match outgoing {
        Some((frame, fds)) => socket.send(frame, fds).await,
        None => Ok(()),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
