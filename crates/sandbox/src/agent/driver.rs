//! The tasks that own the control connection: one reads it, one writes it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_wire::agent::{Answer, Reply};
use skiff_wire::launcher::Refusal;
use skiff_wire::{FRAME_BYTES_MAX, FrameReader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::execs::ExecExits;
use crate::launcher::Exits;

/// Read at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// What a request's reply came to.
pub type Outcome = Result<Reply, Refusal>;

/// A request whose reply is due, and the leave that it holds until then.
#[derive(Debug)]
struct Due {
    reply: oneshot::Sender<Outcome>,
    _leave: OwnedSemaphorePermit,
}

/// Requests whose replies are due, as many as there is leave for; nothing
/// once the connection has ended.
#[derive(Clone, Debug)]
pub struct Pending {
    of: Arc<Mutex<Option<HashMap<u64, Due>>>>,
}

impl Pending {
    pub fn new() -> Self {
        Self {
            of: Arc::new(Mutex::new(Some(HashMap::new()))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Due>>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the reply to a request about to be sent; it never comes once
    /// the connection has ended.
    pub fn insert(&self, id: u64, leave: OwnedSemaphorePermit) -> oneshot::Receiver<Outcome> {
        let (reply, replied) = oneshot::channel();
        if let Some(of) = self.lock().as_mut() {
            let due = Due {
                reply,
                _leave: leave,
            };
            of.insert(id, due);
        }
        replied
    }

    /// Says whether the reply was due.
    fn settle(&self, id: u64, outcome: Outcome) -> bool {
        let Some(due) = self.lock().as_mut().and_then(|of| of.remove(&id)) else {
            return false;
        };
        // Who has gone meanwhile wants no reply.
        due.reply.send(outcome).ok();
        true
    }

    /// The connection has ended: who waits is told.
    fn end(&self) {
        self.lock().take();
    }
}

/// Reads until the connection ends, and says why.
pub async fn read(
    mut socket: OwnedReadHalf,
    pending: Pending,
    exits: Exits,
    execs: ExecExits,
    closed: Arc<watch::Sender<Option<String>>>,
) {
    let why = match serve(&mut socket, &pending, &exits, &execs).await {
        Ok(()) => "the agent has closed it".to_owned(),
        Err(error) => skiff_base::chain(&error).to_string(),
    };
    end(&pending, &closed, why);
}

fn end(pending: &Pending, closed: &watch::Sender<Option<String>>, why: String) {
    tracing::debug!(%why, "the agent's connection has ended");
    // Before anybody is woken.
    closed.send_if_modified(|known| known.is_none() && known.replace(why).is_none());
    pending.end();
}

async fn serve(
    socket: &mut OwnedReadHalf,
    pending: &Pending,
    exits: &Exits,
    execs: &ExecExits,
) -> io::Result<()> {
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let wanted = reader.wanted().min(PIECE_BYTES);
        let length = socket.read(&mut piece[..wanted]).await?;
        if length == 0 {
            return Ok(());
        }
        let frame = reader.push(&piece[..length]).map_err(invalid)?;
        let Some(frame) = frame else {
            continue;
        };
        match skiff_wire::decode(&frame).map_err(invalid)? {
            Answer::Exited { sandbox, exit } => exits.set(sandbox, exit),
            Answer::ExecExited {
                sandbox,
                exec,
                exit,
            } => execs.set(sandbox, exec, exit),
            Answer::Reply { id, result } => {
                if !pending.settle(id, result) {
                    return Err(invalid(format!("a reply to no request, {id}")));
                }
            }
        }
    }
}

/// Writes until nobody has anything to say any more, or nobody listens.
pub async fn write(
    mut socket: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Vec<u8>>,
    pending: Pending,
    closed: Arc<watch::Sender<Option<String>>>,
) {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = socket.write_all(&frame).await {
            end(&pending, &closed, error.to_string());
            return;
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
