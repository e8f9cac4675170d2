//! After an upgrade: bytes both ways until either side ends or the request's
//! time does. It is one request all the while.

use std::sync::atomic::{AtomicU64, Ordering};

use skiff_base::Monotonic;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

use crate::http1::Conn;
use crate::link::Link;
use crate::visit::Visit;

/// Held in each direction of one tunnel.
const BUFFER_BYTES: usize = 16 * 1024;

/// Runs until it ends; the answer's head waits in the client's outbox.
pub(crate) async fn run(visit: &mut Visit, conn: &mut Conn, link: Link, deadline: Monotonic) {
    let left = deadline.since(visit.lane.shared.clock.now());
    let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
    let late = timeout(left, pump(conn, link, &up, &down)).await.is_err();
    visit.bytes_in = up.load(Ordering::Relaxed);
    visit.bytes_out = down.load(Ordering::Relaxed);
    if late {
        crate::forward::timed_out(visit);
    }
    // Recorded before the client sees the end.
    visit.finish();
    if let Err(error) = conn.io.shutdown().await {
        tracing::debug!(%error, "a tunnel's client was gone already");
    }
}

async fn pump(conn: &mut Conn, link: Link, up: &AtomicU64, down: &AtomicU64) {
    let Some((instance, early_down)) = link.into_parts() else {
        return;
    };
    let (instance_reads, mut instance_writes) = split(instance);
    let sent = std::future::poll_fn(|cx| conn.outbox.poll_flush(&mut conn.io, cx));
    if sent.await.is_err() {
        return;
    }
    let early_up = &conn.inbox;
    let (client_reads, mut client_writes) = split(&mut conn.io);
    let upward = async {
        // What the client said right behind its request.
        let copied = copy(early_up.bytes(), client_reads, &mut instance_writes, up).await;
        // The instance learns that the client has said all, and ends the
        // other direction when it has, too.
        if copied.is_ok() && instance_writes.shutdown().await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let downward = copy(early_down.bytes(), instance_reads, &mut client_writes, down);
    tokio::select! {
        () = upward => {}
        ended = downward => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a tunnel broke");
            }
        }
    }
}

async fn copy(
    early: &[u8],
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
) -> std::io::Result<()> {
    let add = |bytes: usize| {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        count.fetch_add(bytes, Ordering::Relaxed);
    };
    if !early.is_empty() {
        to.write_all(early).await?;
        to.flush().await?;
        add(early.len());
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        add(read);
    }
}
