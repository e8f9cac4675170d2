//! One client connection: HTTP/1.1, or HTTP/2 for a client that begins with
//! its preface.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use skiff_types::limits;
use tokio::net::TcpStream;

use crate::forward::{self, Client, Scope};
use crate::lane::{Lane, Watched, Word};
use crate::socket::Socket;

/// RFC 9113 §3.4; no HTTP/1 method begins so.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Between two looks at a preface that has come in part.
const PREFACE_LOOK: Duration = Duration::from_millis(5);
/// Streams at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// What one HTTP/2 stream buffers before the instance takes it.
const STREAM_WINDOW: u32 = 256 * 1024;
/// What one HTTP/2 connection buffers before instances take it.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Without a word from an HTTP/2 client before it is asked for one, and then
/// before it is cut.
const PING: Duration = Duration::from_secs(30);

/// Serves a connection until it ends.
pub(crate) async fn serve(lane: Arc<Lane>, stream: TcpStream, peer: SocketAddr, scope: Scope) {
    let opened = lane.shared.clock.now();
    let deadline = opened.plus(lane.shared.config.header_timeout);
    let (number, watched) = lane.watch(deadline);
    let client = Arc::new(client(lane.clone(), watched.clone(), peer.ip(), scope));
    let served = async {
        let preface = has_preface(&stream).await;
        watched.spoke();
        if preface {
            http2(client, stream, &watched).await;
        } else {
            http1(client, stream, &watched).await;
        }
    };
    Steered {
        watched: &watched,
        served: pin!(served),
    }
    .await;
    lane.unwatch(number);
}

fn client(lane: Arc<Lane>, watched: Arc<Watched>, address: IpAddr, scope: Scope) -> Client {
    let address = address.to_canonical();
    let text = address.to_string();
    let node = match address {
        IpAddr::V4(_) => text.clone(),
        IpAddr::V6(_) => format!("\"[{text}]\""),
    };
    let unknown = || HeaderValue::from_static("unknown");
    Client {
        lane,
        watched,
        forwarded: OnceLock::new(),
        address_text: HeaderValue::try_from(text).unwrap_or_else(|_| unknown()),
        node,
        scope,
    }
}

/// Whether HTTP/2 begins; a slow first byte is cut by the connection's deadline.
async fn has_preface(stream: &TcpStream) -> bool {
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

/// A head has at most 100 fields: hyper's own bound, up to which it parses
/// without allocating.
async fn http1(client: Arc<Client>, stream: TcpStream, watched: &Watched) {
    let service = service_fn(move |request| forward::serve(client.clone(), request));
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(limits::HEADER_BYTES_MAX)
        .pipeline_flush(false)
        .serve_connection(Socket::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut closing = false;
    let ended = std::future::poll_fn(|cx| {
        // hyper closes what is idle at once; but a request may be on its way
        // to an idle connection, so that has its grace.
        let last = match watched.word() {
            Word::GoOn => false,
            Word::Drain => watched.is_open(),
            Word::Close | Word::Cut => true,
        };
        if last && !closing {
            closing = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

async fn http2(client: Arc<Client>, stream: TcpStream, watched: &Watched) {
    let streams = Streams(client.lane.clone());
    let service = service_fn(move |request| forward::serve(client.clone(), request));
    let connection = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits::HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(Socket::new(stream), service);
    let mut connection = pin!(connection);
    let mut closing = false;
    let ended = std::future::poll_fn(|cx| {
        let polled = connection.as_mut().poll(cx);
        // After the first poll, for hyper drops a connection whose preface it
        // has not read. GOAWAY still lets in what the client sent before it
        // came (RFC 9113 §6.8).
        if polled.is_pending() && !closing && watched.word() >= Word::Drain {
            closing = true;
            connection.as_mut().graceful_shutdown();
            return connection.as_mut().poll(cx);
        }
        polled
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

/// Runs the streams of HTTP/2 connections as tasks of the lane.
#[derive(Clone, Debug)]
struct Streams(Arc<Lane>);

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.tasks.spawn("stream", stream);
    }
}
