//! Connections of HTTP/2 to instances, begun with prior knowledge (RFC 9113
//! §3.3) and shared by the requests of one serving thread.
//!
//! A task moves each connection's bytes. It ends when nobody can open a stream
//! any more and the last one has ended, or when the instance closes.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use skiff_base::{ByteStream, Monotonic};
use skiff_types::limits;

use crate::revision::{Instance, lock};

/// Streams at once on one connection.
const STREAMS_MAX: usize = 64;
/// What one stream holds before its client takes it.
const STREAM_WINDOW: u32 = 128 * 1024;
/// What one connection holds: as much as its streams, so that none waits for
/// another's client.
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;
/// What one stream holds of its request before the instance takes it.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    opener: SendRequest<Bytes>,
    streams: AtomicUsize,
    /// It has been used since somebody looked.
    used: AtomicBool,
    /// An answer did not come: it takes no further streams.
    doubted: AtomicBool,
}

/// Room for one stream, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<Connection>);

/// The connections of a thread.
#[derive(Debug, Default)]
pub(crate) struct Pools(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// No connection is kept any more.
    closed: bool,
    /// By the instances' serial numbers.
    all: BTreeMap<u64, Pool>,
}

#[derive(Debug)]
struct Pool {
    instance: Arc<Instance>,
    connections: Vec<Kept>,
    /// Held by whoever makes another connection, for whom the others wait.
    making: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Kept {
    connection: Arc<Connection>,
    /// When it was last seen in use.
    used: Monotonic,
}

impl Connection {
    /// Begins HTTP/2 on a stream, and what then moves its bytes.
    pub(crate) async fn begin(
        stream: ByteStream,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send), h2::Error> {
        if let Err(error) = stream.set_nodelay() {
            tracing::debug!(%error, "an instance's socket has no TCP_NODELAY");
        }
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            // As long as the instance has not said how many it takes.
            .initial_max_send_streams(1)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .max_header_list_size(u32::try_from(limits::HEADER_BYTES_MAX).unwrap_or(u32::MAX));
        let (opener, connection) = builder.handshake(stream).await?;
        let moves = async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an instance's connection of HTTP/2 broke");
            }
        };
        let connection = Self {
            opener,
            streams: AtomicUsize::new(0),
            used: AtomicBool::new(true),
            doubted: AtomicBool::new(false),
        };
        Ok((Arc::new(connection), moves))
    }

    /// Room for another stream, if there is any.
    pub(crate) fn seat(self: &Arc<Self>) -> Option<Seat> {
        let most = self.opener.current_max_send_streams().min(STREAMS_MAX);
        // Only one thread adds to it.
        if !self.is_alive() || self.streams.load(Ordering::Relaxed) >= most {
            return None;
        }
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
        Some(Seat(self.clone()))
    }

    /// Whether another stream could be opened, as far as is known.
    fn is_alive(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let opens = self.opener.clone().poll_ready(&mut cx);
        !self.doubted.load(Ordering::Relaxed) && !matches!(opens, std::task::Poll::Ready(Err(_)))
    }

    fn take_used(&self) -> bool {
        let used = self.used.swap(false, Ordering::Relaxed);
        used || self.streams.load(Ordering::Relaxed) > 0
    }
}

impl Seat {
    /// What opens its stream.
    pub(crate) fn opener(&self) -> SendRequest<Bytes> {
        self.0.opener.clone()
    }

    /// The next requests go by another connection.
    pub(crate) fn doubt(&self) {
        self.0.doubted.store(true, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pools {
    /// Room for a stream on a connection that is there.
    pub(crate) fn seat(&self, instance: &Instance) -> Option<Seat> {
        let state = lock(&self.0);
        let pool = state.all.get(&instance.serial)?;
        pool.connections
            .iter()
            .find_map(|kept| kept.connection.seat())
    }

    /// What whoever makes a connection to the instance holds meanwhile.
    pub(crate) fn making(&self, instance: &Arc<Instance>) -> Arc<tokio::sync::Mutex<()>> {
        let mut state = lock(&self.0);
        state.pool(instance).making.clone()
    }

    /// Keeps a connection for further requests, until the instance leaves the
    /// rotation or the thread is drained.
    pub(crate) fn keep(
        &self,
        instance: &Arc<Instance>,
        connection: &Arc<Connection>,
        now: Monotonic,
    ) {
        let mut state = lock(&self.0);
        if state.closed || instance.is_out() {
            return;
        }
        state.pool(instance).connections.push(Kept {
            connection: connection.clone(),
            used: now,
        });
    }

    /// Lets go of what is kept to the instance.
    pub(crate) fn forget(&self, instance: &Instance) {
        let pool = lock(&self.0).all.remove(&instance.serial);
        drop(pool);
    }

    /// Lets go of all, now and later: each ends with its last stream.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.0);
        state.closed = true;
        let all = std::mem::take(&mut state.all);
        drop(state);
        drop(all);
    }

    /// Lets go of those that nobody has used for so long, and of the dead.
    pub(crate) fn close_unused(&self, now: Monotonic, longest: Duration) {
        lock(&self.0).all.retain(|_, pool| {
            pool.connections.retain_mut(|kept| {
                if kept.connection.take_used() {
                    kept.used = now;
                }
                now.since(kept.used) < longest && kept.connection.is_alive()
            });
            let in_making = Arc::strong_count(&pool.making) > 1;
            !pool.instance.is_out() && (in_making || !pool.connections.is_empty())
        });
    }
}

impl State {
    fn pool(&mut self, instance: &Arc<Instance>) -> &mut Pool {
        self.all.entry(instance.serial).or_insert_with(|| Pool {
            instance: instance.clone(),
            connections: Vec::new(),
            making: Arc::default(),
        })
    }
}
