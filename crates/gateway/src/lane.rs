//! What belongs to one serving thread: its tasks, its idle connections to
//! instances, the client connections it watches and its lines of the access
//! log. Locks here are held by their own thread, and for a moment by the drain
//! and by whoever takes an instance out of rotation.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::time::Duration;

use skiff_base::{Monotonic, Tasks};

use crate::access::BATCH_BYTES;
use crate::link::Link;
use crate::mux::Pools;
use crate::revision::{Instance, lock};
use crate::shared::Shared;

/// Idle connections kept to one instance by one thread.
const LINKS_PER_INSTANCE: usize = 256;
/// Added to a request's deadline before its connection is cut from outside:
/// the request itself looks at its deadline first.
const CUT_GRACE: Duration = Duration::from_secs(1);
/// No deadline.
const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) shared: Arc<Shared>,
    /// What clients wait for: drained.
    pub(crate) tasks: Tasks,
    /// Listeners inside and probes: ended as soon as draining begins.
    pub(crate) background: Tasks,
    /// By serial number; most lanes know few instances, and a search among few
    /// is cheaper than a hash.
    links: Mutex<BTreeMap<u64, Parked>>,
    /// The connections that several requests use at once.
    pub(crate) pools: Pools,
    connections: Mutex<Connections>,
    lines: Mutex<Vec<u8>>,
    /// The clock at the last tick: enough for what is measured in seconds.
    ticked: AtomicU64,
    /// What the wall clock was ahead of the monotonic one at the last tick.
    unix_ahead_ms: AtomicU64,
}

#[derive(Debug)]
struct Parked {
    instance: Arc<Instance>,
    /// The most recently used is last.
    links: Vec<(Monotonic, Box<Link>)>,
}

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    all: HashMap<u64, Arc<Watched>>,
    /// What new ones are told, too.
    word: Word,
}

/// One client connection, steered from outside of its task.
#[derive(Debug)]
pub(crate) struct Watched {
    shared: Arc<Shared>,
    /// Requests under way.
    open: AtomicU32,
    /// When it is cut, nanoseconds of the monotonic clock.
    deadline: AtomicU64,
    /// A [`Word`]; it only gets stronger.
    word: AtomicU8,
    /// Its first bytes have come.
    spoken: AtomicBool,
    /// Its task's, which stays the same.
    waker: OnceLock<Waker>,
}

/// What a connection's task is told, from the weakest to the strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Word {
    #[default]
    GoOn,
    /// The request under way, or the next one, is the last.
    Drain,
    /// Close unless a request is under way.
    Close,
    /// Close now.
    Cut,
}

impl Watched {
    fn new(shared: &Arc<Shared>, deadline: Monotonic, word: Word) -> Self {
        shared.metrics.connections.up();
        Self {
            shared: shared.clone(),
            open: AtomicU32::new(0),
            deadline: AtomicU64::new(deadline.as_nanos()),
            word: AtomicU8::new(word as u8),
            spoken: AtomicBool::new(false),
            waker: OnceLock::new(),
        }
    }

    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
    }

    pub(crate) fn word(&self) -> Word {
        let told = self.word.load(Ordering::Relaxed);
        let words = [Word::GoOn, Word::Drain, Word::Close];
        let found = words.into_iter().find(|word| *word as u8 == told);
        found.unwrap_or(Word::Cut)
    }

    pub(crate) fn spoke(&self) {
        self.spoken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_spoken(&self) -> bool {
        self.spoken.load(Ordering::Relaxed)
    }

    /// A request begins: it has no deadline before it has a slot.
    pub(crate) fn begin(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.deadline.store(NEVER, Ordering::Relaxed);
    }

    /// The only request of an HTTP/1 connection got a deadline.
    pub(crate) fn until(&self, deadline: Monotonic) {
        let nanos = deadline.plus(CUT_GRACE).as_nanos();
        self.deadline.store(nanos, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, now: Monotonic, idle: Duration) {
        if self.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            let nanos = now.plus(idle).as_nanos();
            self.deadline.store(nanos, Ordering::Relaxed);
        }
    }

    fn tell(&self, word: Word) {
        self.word.fetch_max(word as u8, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

/// An upgraded connection counts until its tunnel ends, which keeps this.
impl Drop for Watched {
    fn drop(&mut self) {
        self.shared.metrics.connections.down();
    }
}

fn millis(at: Monotonic) -> u64 {
    at.as_nanos() / 1_000_000
}

impl Lane {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let lane = Self {
            shared,
            ticked: AtomicU64::new(0),
            unix_ahead_ms: AtomicU64::new(0),
            tasks: Tasks::new(),
            background: Tasks::new(),
            links: Mutex::default(),
            pools: Pools::default(),
            connections: Mutex::default(),
            lines: Mutex::default(),
        };
        lane.read_clocks(lane.shared.clock.now());
        lane
    }

    fn read_clocks(&self, now: Monotonic) {
        let ahead = self.shared.clock.unix_ms().wrapping_sub(millis(now));
        self.ticked.store(now.as_nanos(), Ordering::Relaxed);
        self.unix_ahead_ms.store(ahead, Ordering::Relaxed);
    }

    /// The time at the last tick.
    pub(crate) fn ticked(&self) -> Monotonic {
        Monotonic::from_nanos(self.ticked.load(Ordering::Relaxed))
    }

    /// The wall clock's time at a point, milliseconds since 1970.
    pub(crate) fn unix_ms(&self, at: Monotonic) -> u64 {
        let ahead = self.unix_ahead_ms.load(Ordering::Relaxed);
        ahead.wrapping_add(millis(at))
    }

    /// The wall clock's second at the last tick, since 1970.
    pub(crate) fn unix_s(&self) -> u64 {
        self.unix_ms(self.ticked()) / 1000
    }

    /// The most recently used idle connection to the instance that still
    /// stands, as far as this thread knows.
    pub(crate) fn unpark(&self, instance: &Instance) -> Option<Box<Link>> {
        let mut links = lock(&self.links);
        let parked = &mut links.get_mut(&instance.serial)?.links;
        loop {
            let mut link = parked.pop()?.1;
            if link.is_alive() {
                return Some(link);
            }
        }
    }

    /// Keeps a connection that is ready for another request.
    pub(crate) fn park(&self, instance: &Arc<Instance>, mut link: Box<Link>) {
        if instance.is_out() {
            return;
        }
        link.shrink();
        let mut links = lock(&self.links);
        let parked = links.entry(instance.serial).or_insert_with(|| Parked {
            instance: instance.clone(),
            links: Vec::new(),
        });
        if parked.links.len() < LINKS_PER_INSTANCE {
            parked.links.push((self.ticked(), link));
        }
    }

    /// Closes what is kept to the instance.
    pub(crate) fn forget(&self, instance: &Instance) {
        let parked = lock(&self.links).remove(&instance.serial);
        drop(parked);
        self.pools.forget(instance);
    }

    /// Watches a new connection.
    pub(crate) fn watch(&self, deadline: Monotonic) -> (u64, Arc<Watched>) {
        let mut connections = lock(&self.connections);
        let watched = Arc::new(Watched::new(&self.shared, deadline, connections.word));
        let number = connections.next;
        connections.next += 1;
        connections.all.insert(number, watched.clone());
        (number, watched)
    }

    pub(crate) fn unwatch(&self, number: u64) {
        lock(&self.connections).all.remove(&number);
    }

    /// Tells every connection, and those that were accepted but not begun.
    pub(crate) fn tell(&self, word: Word) {
        if word >= Word::Drain {
            self.pools.close();
        }
        let mut connections = lock(&self.connections);
        connections.word = word;
        for watched in connections.all.values() {
            watched.tell(word);
        }
    }

    /// Buffers a line of the access log.
    pub(crate) fn line(&self, append: impl FnOnce(&mut Vec<u8>)) {
        let mut lines = lock(&self.lines);
        append(&mut lines);
        if lines.len() >= BATCH_BYTES {
            self.send_lines(&mut lines);
        }
    }

    /// Several times a second: wakes and then cuts what is over its deadline,
    /// lets go of unused connections, hands lines on.
    pub(crate) fn tick(&self, now: Monotonic) {
        self.read_clocks(now);
        self.cut_late(now);
        self.close_unused(now);
        let mut lines = lock(&self.lines);
        if !lines.is_empty() {
            self.send_lines(&mut lines);
        }
    }

    fn cut_late(&self, now: Monotonic) {
        let request_late = now.plus(CUT_GRACE).as_nanos();
        let connections = lock(&self.connections);
        for watched in connections.all.values() {
            let deadline = watched.deadline.load(Ordering::Relaxed);
            if deadline < now.as_nanos() {
                watched.tell(Word::Cut);
            } else if deadline < request_late {
                watched.wake();
            }
        }
    }

    fn close_unused(&self, now: Monotonic) {
        let longest = self.shared.config.upstream_idle_timeout;
        self.pools.close_unused(now, longest);
        lock(&self.links).retain(|_, parked| {
            if parked.instance.is_out() {
                return false;
            }
            parked
                .links
                .retain_mut(|(since, link)| now.since(*since) < longest && link.is_alive());
            !parked.links.is_empty()
        });
    }

    fn send_lines(&self, lines: &mut Vec<u8>) {
        let batch = std::mem::replace(lines, Vec::with_capacity(BATCH_BYTES + 1024));
        let Some(log) = &self.shared.access else {
            return;
        };
        for _ in 0..log.send(batch) {
            self.shared.metrics.access_lines_dropped.up();
        }
    }
}
