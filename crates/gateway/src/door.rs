//! Where connections come in, and who is turned away.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use skiff_base::{Backoff, ByteStream, Listener};
use skiff_types::ProjectId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::connection;
use crate::forward::Scope;
use crate::lane::Lane;
use crate::linger;
use crate::shared::Shared;

/// Clients that are told so at once; the rest is told and closed in one.
const TURNED_AWAY_AT_ONCE: u64 = 128;
/// Told to a client that is one too many.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
content-type: text/plain; charset=utf-8\r\ncontent-length: 36\r\n\r\nthe gateway has no more connections\n";

/// What a listener leads to.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    scope: Scope,
    /// Told of connections that have no address.
    caller: IpAddr,
    /// Beside the gateway's own bound.
    seats: Option<Arc<Semaphore>>,
}

impl Door {
    /// To all services.
    pub(crate) fn outside() -> Self {
        Self {
            scope: Scope::Outside,
            caller: Ipv4Addr::UNSPECIFIED.into(),
            seats: None,
        }
    }

    /// From this process to every revision.
    fn within() -> Self {
        Self {
            scope: Scope::Revisions,
            caller: Ipv4Addr::LOCALHOST.into(),
            seats: None,
        }
    }

    /// From one instance to the services of its project.
    pub(crate) fn inside(project: ProjectId, caller: IpAddr, connections: usize) -> Self {
        Self {
            scope: Scope::Inside(project),
            caller,
            seats: Some(Arc::new(Semaphore::new(connections))),
        }
    }

    /// Room for one more connection, held while it lasts; `None` when there
    /// is none.
    fn seat(&self, shared: &Shared) -> Option<Option<OwnedSemaphorePermit>> {
        if shared.metrics.connections.get() >= shared.connection_bound {
            return None;
        }
        let seat = self.seats.clone().map(Semaphore::try_acquire_owned);
        seat.transpose().ok()
    }
}

/// Accepts until the sender of `stop` is gone.
pub(crate) async fn accept(
    lane: Arc<Lane>,
    listener: Listener,
    door: Door,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = match listener.into_acceptor() {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::error!(%error, "a listener cannot be used");
            return;
        }
    };
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.accept() => accepted,
            _ = stop.changed() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff.reset();
                let peer = peer.map_or(door.caller, |peer| peer.ip());
                take(&lane, stream, peer, &door);
            }
            // A connection that ended before it was taken is no failure.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted for now");
                let random = skiff_base::random::u32();
                tokio::time::sleep(backoff.next(random)).await;
            }
        }
    }
}

/// Serves a connection from within the process.
pub(crate) fn take_within(lane: &Arc<Lane>, stream: UnixStream) {
    let door = Door::within();
    match tokio::net::UnixStream::from_std(stream) {
        Ok(stream) => take(lane, ByteStream::Unix(stream), door.caller, &door),
        Err(error) => tracing::warn!(%error, "a connection within the process is lost"),
    }
}

fn take(lane: &Arc<Lane>, stream: ByteStream, peer: IpAddr, door: &Door) {
    let Some(seat) = door.seat(&lane.shared) else {
        lane.shared.metrics.over_connections.up();
        turn_away(lane, stream);
        return;
    };
    if let Err(error) = stream.set_nodelay() {
        tracing::debug!(%error, "a client's socket has no TCP_NODELAY");
    }
    let serving = connection::serve(lane.clone(), stream, peer, door.scope.clone());
    lane.tasks.spawn("connection", async move {
        let _seat = seat;
        serving.await;
    });
}

fn turn_away(lane: &Arc<Lane>, stream: ByteStream) {
    let shared = lane.shared.clone();
    if shared.metrics.lingering.get() >= TURNED_AWAY_AT_ONCE {
        // Said if the socket takes it at once, which a new one does.
        if let Err(error) = stream.try_write(BUSY) {
            tracing::debug!(%error, "a client is turned away without a word");
        }
        return;
    }
    shared.metrics.lingering.up();
    let seat = Lingering(shared);
    lane.background.spawn("turned away", async move {
        let _seat = seat;
        linger::close(stream, BUSY).await;
    });
}

/// A client that was turned away and is not closed yet.
struct Lingering(Arc<Shared>);

impl Drop for Lingering {
    fn drop(&mut self) {
        self.0.metrics.lingering.down();
    }
}
