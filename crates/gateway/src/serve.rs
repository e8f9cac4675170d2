//! The serving threads: each has a runtime, listeners and a lane of its own,
//! and shares nothing on a request's way but the tables.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use skiff_base::{Listener, Monotonic};
use tokio::sync::{mpsc, oneshot, watch};

use crate::door::{self, Door};
use crate::lane::{self, Lane};
use crate::revision::lock;
use crate::shared::Shared;

/// Words to a thread that it has not taken yet.
const WORDS_MAX: usize = 1024;
/// Between two looks at deadlines, unused connections and lines.
const TICK: Duration = Duration::from_millis(250);
/// How long an idle connection stays open after draining began, for a request
/// that its client has sent before it can know; at most half of the deadline,
/// so that such a request has time, too.
const DRAIN_IDLE_GRACE: Duration = Duration::from_secs(3);

/// The threads that serve. Dropping cuts everything off.
#[derive(Debug)]
pub struct ServeHandle {
    lanes: Arc<Lanes>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
}

/// A listener inside of a project; dropping stops it, not what it has accepted.
#[derive(Debug)]
pub struct InnerHandle {
    _stop: watch::Sender<bool>,
}

/// Listeners cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A thread or its runtime cannot start.
    #[error("a serving thread cannot start")]
    Thread(#[source] io::Error),
    /// A listener cannot be used.
    #[error("a listener cannot be used")]
    Listener(#[source] io::Error),
    /// There are no serving threads, or they are ending.
    #[error("the gateway does not serve")]
    NotServing,
}

/// Some work was cut off at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} connections and streams did not end in time and were cut off")]
pub struct DrainError(pub usize);

/// The way to the threads.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    senders: Mutex<Vec<mpsc::Sender<Word>>>,
    next: AtomicUsize,
}

enum Word {
    Listen {
        listener: Listener,
        door: Door,
        stop: watch::Receiver<bool>,
    },
    Take(UnixStream),
    Drain {
        deadline: Duration,
        done: oneshot::Sender<usize>,
    },
    Run(futures_util::future::BoxFuture<'static, ()>),
}

impl Lanes {
    /// Says a word to the next thread in turn.
    fn say(&self, word: Word) -> Result<(), ServeError> {
        let senders = lock(&self.senders);
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let sender = senders.get(turn % senders.len().max(1));
        let sent = sender.map(|sender| sender.try_send(word));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(ServeError::NotServing),
        }
    }

    pub(crate) fn listen(&self, listener: Listener, door: Door) -> Result<InnerHandle, ServeError> {
        let (stop_sender, stop) = watch::channel(false);
        self.say(Word::Listen {
            listener,
            door,
            stop,
        })?;
        Ok(InnerHandle { _stop: stop_sender })
    }

    /// Serves a connection from within the process on one of the threads.
    pub(crate) fn take(&self, stream: UnixStream) -> Result<(), ServeError> {
        self.say(Word::Take(stream))
    }

    /// Runs a task on one of the threads.
    pub(crate) fn run(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        self.say(Word::Run(Box::pin(task)))
    }
}

/// Starts `threads` threads over the listeners. Those of one address are
/// spread: each thread has one, and shares it when there are fewer.
pub(crate) fn start(
    shared: &Arc<Shared>,
    lanes: Arc<Lanes>,
    listeners: Vec<TcpListener>,
    threads: usize,
) -> Result<ServeHandle, ServeError> {
    let threads = threads.max(1);
    let (addresses, shares) = spread(listeners, threads).map_err(ServeError::Listener)?;
    let mut handle = ServeHandle {
        lanes,
        threads: Vec::new(),
        addresses,
    };
    for (number, listeners) in shares.into_iter().enumerate() {
        let (sender, words) = mpsc::channel(WORDS_MAX);
        let lane = Arc::new(Lane::new(shared.clone()));
        shared.know_lane(&lane);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServeError::Thread)?;
        let thread = std::thread::Builder::new()
            .name(format!("gateway-{number}"))
            .spawn(move || runtime.block_on(run(lane, listeners, words)))
            .map_err(ServeError::Thread)?;
        handle.threads.push(thread);
        lock(&handle.lanes.senders).push(sender);
    }
    Ok(handle)
}

type Spread = (Vec<SocketAddr>, Vec<Vec<TcpListener>>);

fn spread(listeners: Vec<TcpListener>, threads: usize) -> io::Result<Spread> {
    let mut by_address: HashMap<SocketAddr, Vec<TcpListener>> = HashMap::new();
    let mut addresses = Vec::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
        by_address.entry(address).or_default().push(listener);
    }
    let mut shares: Vec<Vec<TcpListener>> = (0..threads).map(|_| Vec::new()).collect();
    for listeners in by_address.into_values() {
        for number in 0..threads.max(listeners.len()) {
            let listener = listeners[number % listeners.len()].try_clone()?;
            shares[number % threads].push(listener);
        }
    }
    Ok((addresses, shares))
}

impl ServeHandle {
    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting. The request under way on a connection is its last; an
    /// idle one may bring one more within a grace, and is closed then. Done
    /// when all have ended; at the deadline the rest is cut off.
    ///
    /// # Errors
    /// How many connections and streams were cut off.
    pub async fn drain(mut self, deadline: Duration) -> Result<(), DrainError> {
        let senders = std::mem::take(&mut *lock(&self.lanes.senders));
        let mut answers = Vec::new();
        for sender in &senders {
            let (done, answer) = oneshot::channel();
            if sender.send(Word::Drain { deadline, done }).await.is_ok() {
                answers.push(answer);
            }
        }
        let mut cut = 0;
        for answer in answers {
            cut += answer.await.unwrap_or(0);
        }
        drop(senders);
        self.join();
        if cut == 0 {
            Ok(())
        } else {
            Err(DrainError(cut))
        }
    }

    fn join(&mut self) {
        lock(&self.lanes.senders).clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a serving thread panicked");
            }
        }
    }
}

impl Drop for ServeHandle {
    fn drop(&mut self) {
        self.join();
    }
}

async fn run(lane: Arc<Lane>, listeners: Vec<TcpListener>, mut words: mpsc::Receiver<Word>) {
    let (stop, stopped) = watch::channel(false);
    for listener in listeners {
        let accepting = door::accept(
            lane.clone(),
            listener.into(),
            Door::outside(),
            stopped.clone(),
        );
        lane.tasks.spawn("accept", accepting);
    }
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            due = ticks.tick() => {
                lane.shared.lateness.note(due.elapsed());
                lane.tick(lane.shared.clock.now());
            }
            word = words.recv() => match word {
                Some(Word::Listen { listener, door, stop }) => {
                    let accepting = door::accept(lane.clone(), listener, door, stop);
                    lane.background.spawn("accept inside", accepting);
                }
                Some(Word::Take(stream)) => door::take_within(&lane, stream),
                Some(Word::Run(task)) => lane.background.spawn("probe", task),
                Some(Word::Drain { deadline, done }) => {
                    drop(stop);
                    lane.background.abort();
                    let cut = drain(&lane, deadline, &mut ticks).await;
                    done.send(cut).ok();
                    return;
                }
                None => break,
            }
        }
    }
    lane.background.abort();
    lane.tasks.abort();
    lane.tick(lane.shared.clock.now());
}

/// Waits for what is under way, and says how much was cut off.
async fn drain(lane: &Lane, deadline: Duration, ticks: &mut tokio::time::Interval) -> usize {
    lane.tell(lane::Word::Drain);
    let mut grace = pin!(tokio::time::sleep(DRAIN_IDLE_GRACE.min(deadline / 2)));
    let mut closed = false;
    let end = lane.shared.clock.now().plus(deadline);
    let mut ending = pin!(all_ended(lane, end));
    loop {
        tokio::select! {
            cut = &mut ending => {
                lane.tick(lane.shared.clock.now());
                return cut;
            }
            () = &mut grace, if !closed => {
                closed = true;
                lane.tell(lane::Word::Close);
            }
            _ = ticks.tick() => lane.tick(lane.shared.clock.now()),
        }
    }
}

/// Tasks start tasks: an upgrade's tunnel outlives its connection's.
async fn all_ended(lane: &Lane, end: Monotonic) -> usize {
    let mut cut = 0;
    while !lane.tasks.is_empty() {
        let left = end.since(lane.shared.clock.now());
        cut += lane
            .tasks
            .drain(left)
            .await
            .err()
            .map_or(0, |error| error.0);
    }
    cut
}
