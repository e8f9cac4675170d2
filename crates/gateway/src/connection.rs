//! One client connection: HTTP/1.1, or HTTP/2 for a client that begins with
//! its preface.

use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use skiff_base::ByteStream;

use crate::forward::{Client, Scope};
use crate::h1::write::Origin;
use crate::lane::{Lane, Watched, Word};
use crate::{http1, http2};

/// RFC 9113 §3.4; no HTTP/1 method begins so.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Between two looks at a preface that has come in part.
const PREFACE_LOOK: Duration = Duration::from_millis(5);

/// Serves a connection until it ends.
pub(crate) async fn serve(lane: Arc<Lane>, mut stream: ByteStream, peer: IpAddr, scope: Scope) {
    let opened = lane.shared.clock.now();
    let deadline = opened.plus(lane.shared.config.header_timeout);
    let (number, watched) = lane.watch(deadline);
    let client = Client {
        lane: lane.clone(),
        watched: watched.clone(),
        origin: Origin::new(peer, lane.shared.config.trust_forwarded),
        scope,
    };
    let served = async {
        let preface = has_preface(&mut stream).await;
        watched.spoke();
        if preface {
            http2::serve(Arc::new(client), stream, &watched).await;
        } else {
            http1::serve(&client, stream).await;
        }
    };
    Steered {
        watched: &watched,
        served: pin!(served),
    }
    .await;
    lane.unwatch(number);
}

/// Whether HTTP/2 begins; a slow first byte is cut by the connection's deadline.
async fn has_preface(stream: &mut ByteStream) -> bool {
    let mut start = [0; PREFACE.len()];
    loop {
        match stream.peek(&mut start).await {
            Ok(0) | Err(_) => return false,
            Ok(read) if start[..read] != PREFACE[..read] => return false,
            Ok(read) if read == PREFACE.len() => return true,
            // Readiness tells nothing about bytes beyond the first.
            Ok(_) => tokio::time::sleep(PREFACE_LOOK).await,
        }
    }
}

/// The connection's future, ended from outside.
struct Steered<'a, F> {
    watched: &'a Watched,
    served: Pin<&'a mut F>,
}

impl<F: Future<Output = ()>> Future for Steered<'_, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.watched.register(cx.waker());
        match self.watched.word() {
            Word::Cut => return Poll::Ready(()),
            Word::Close if !self.watched.has_spoken() => return Poll::Ready(()),
            Word::Close | Word::Drain | Word::GoOn => {}
        }
        self.served.as_mut().poll(cx)
    }
}
