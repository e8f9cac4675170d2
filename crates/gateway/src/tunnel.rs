//! After an upgrade: bytes both ways until either side ends or the request's
//! time does. It is one request all the while.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skiff_base::Monotonic;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

use crate::link::Link;
use crate::visit::Visit;

/// Held in each direction of one tunnel.
const BUFFER_BYTES: usize = 16 * 1024;

pub(crate) fn start(mut visit: Visit, link: Box<Link>, client: OnUpgrade, deadline: Monotonic) {
    let lane = visit.lane.clone();
    let ends_at = move |visit: &Visit| deadline.since(visit.lane.shared.clock.now());
    lane.tasks.spawn("tunnel", async move {
        let halves = async { tokio::join!(client, link.into_stream()) };
        let Ok((Ok(client), Some((instance, early)))) = timeout(ends_at(&visit), halves).await
        else {
            return;
        };
        let (client_reads, mut client_writes) = split(TokioIo::new(client));
        let instance = split(instance);
        let counts = Counts::default();
        let pumping = async {
            // What the instance said right behind its 101.
            counts.add_down(early.len());
            if client_writes.write_all(&early).await.is_ok() {
                pump(client_reads, &mut client_writes, instance, &counts).await;
            }
        };
        let late = timeout(ends_at(&visit), pumping).await.is_err();
        visit.bytes_in = counts.up.load(Ordering::Relaxed);
        visit.bytes_out = counts.down.load(Ordering::Relaxed);
        if late {
            crate::forward::timed_out(&visit);
        }
        // Recorded before the client sees the end.
        visit.finish();
        if let Err(error) = client_writes.shutdown().await {
            tracing::debug!(%error, "a tunnel's client was gone already");
        }
    });
}

#[derive(Debug, Default)]
struct Counts {
    up: AtomicU64,
    down: AtomicU64,
}

impl Counts {
    fn add_down(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.down.fetch_add(bytes, Ordering::Relaxed);
    }
}

async fn pump(
    client_reads: impl AsyncRead + Unpin,
    client_writes: &mut (impl AsyncWrite + Unpin),
    (instance_reads, mut instance_writes): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    counts: &Counts,
) {
    let up = async {
        let copied = copy(client_reads, &mut instance_writes, &counts.up).await;
        // The instance learns that the client has said all, and ends the
        // other direction when it has, too.
        if copied.is_ok() && instance_writes.shutdown().await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let down = copy(instance_reads, client_writes, &counts.down);
    tokio::select! {
        () = up => {}
        ended = down => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a tunnel broke");
            }
        }
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        count.fetch_add(u64::try_from(read).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
