//! Connections to the API: bounded, with deadlines, drained at the end.

use std::future::{Future, ready};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::{Transport, router};
use crate::control::Control;
use crate::limit::{CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, HEADER_TIMEOUT};

/// Before accepting again after a failure (descriptors may be short).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub(crate) trait Listener: Sync {
    type Stream: Send + 'static;
    /// The next connection, and who is at its other end.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

/// Who is at a connection's other end, as its requests are told: an address,
/// unless the socket has none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Peer(pub Option<IpAddr>);

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Peer)> {
        Ok((self.accept().await?.0, Peer::default()))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, Peer(Some(address.ip().to_canonical()))))
    }
}

impl Control {
    /// Serves the API to whoever the socket's permissions let in: the
    /// operator. Returns after [`Self::stop`].
    pub async fn serve_unix(&self, listener: UnixListener) {
        let router = router(self.clone(), Transport::Unix);
        self.accept_plain(&listener, router).await;
    }

    /// Serves the API over TCP to bearers of tokens; with TLS unless the
    /// listener is one that only this machine reaches. Returns after
    /// [`Self::stop`].
    pub async fn serve_tcp(&self, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) {
        let router = router(self.clone(), Transport::Tcp);
        let Some(tls) = tls else {
            return self.accept_plain(&listener, router).await;
        };
        let tls = TlsAcceptor::from(tls);
        let shake = move |stream| {
            let tls = tls.clone();
            async move {
                let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await;
                shaken.ok()?.ok()
            }
        };
        self.accept_all(&listener, shake, router, CONNECTIONS_MAX)
            .await;
    }

    async fn accept_plain<L>(&self, listener: &L, router: Router)
    where
        L: Listener,
        L::Stream: AsyncRead + AsyncWrite + Unpin,
    {
        let as_it_is = |stream| ready(Some(stream));
        self.accept_all(listener, as_it_is, router, CONNECTIONS_MAX)
            .await;
    }

    pub(crate) async fn accept_all<L, T, F>(
        &self,
        listener: &L,
        prepare: impl Fn(L::Stream) -> F,
        router: Router,
        connections: usize,
    ) where
        L: Listener,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(connections));
        loop {
            let next = async {
                // Never closed: there is always a place in the end.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                (place, listener.next().await)
            };
            let (place, accepted) = tokio::select! {
                next = next => next,
                () = self.stopped() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (stream, router) = (prepare(stream), router.clone());
                    self.serve_stream(stream, peer, router, place, HEADER_TIMEOUT);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin API was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one that has been accepted, as long as heads come in this time.
    pub(crate) fn serve_stream<T, F>(
        &self,
        stream: F,
        peer: Peer,
        router: Router,
        place: Option<OwnedSemaphorePermit>,
        header_timeout: Duration,
    ) where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let stopped = self.stopped();
        self.inner.tasks.spawn("admin connection", async move {
            let _place = place;
            let Some(stream) = stream.await else { return };
            let router = TowerToHyperService::new(router);
            let service = service_fn(move |mut request: http::Request<Incoming>| {
                request.extensions_mut().insert(peer);
                router.call(request)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .max_buf_size(skiff_types::limits::HEADER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopped => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the admin API ended early");
            }
        });
    }
}
