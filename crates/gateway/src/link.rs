//! One HTTP/1.1 connection to an instance, driven by whoever uses it: no task
//! of its own, so a request costs no wake-up between tasks, and dropping the
//! request drops the connection and with it the work behind it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use skiff_base::ByteStream;

use crate::socket::Socket;

type Connection = hyper::client::conn::http1::Connection<Socket<ByteStream>, RequestBody>;

#[derive(Debug)]
pub(crate) struct Link {
    sender: SendRequest<RequestBody>,
    /// Dropped once it has ended, which fails what it has not begun; after a
    /// switch of protocols it still holds the stream.
    connection: Option<Connection>,
    ended: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum LinkError {
    /// The request was not begun: here it is again.
    NotSent(Box<Request<RequestBody>>),
    /// Some of it may have been processed.
    Failed(hyper::Error),
}

/// A request's body on its way to the instance.
#[derive(Debug)]
pub(crate) struct RequestBody {
    inner: Incoming,
    progress: Option<Arc<Progress>>,
}

/// How far a request's body has come; the request keeps it, too.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    bytes: AtomicU64,
    ended: AtomicBool,
}

impl Progress {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming) -> (Self, Option<Arc<Progress>>) {
        let progress = (!inner.is_end_stream()).then(Arc::<Progress>::default);
        let body = Self {
            inner,
            progress: progress.clone(),
        };
        (body, progress)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(progress) = &self.progress {
            match &frame {
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                    progress.bytes.fetch_add(bytes, Ordering::Relaxed);
                    let ended = self.inner.is_end_stream();
                    progress.ended.store(ended, Ordering::Relaxed);
                }
                Some(Err(_)) | None => progress.ended.store(true, Ordering::Relaxed),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The most that an instance's answer head, or a chunk in flight, takes of memory.
const READ_BUFFER_MAX: usize = 128 * 1024;

fn drive(connection: &mut Option<Connection>, ended: &mut bool, cx: &mut Context<'_>) {
    if let Some(connection) = connection
        && !*ended
    {
        *ended = Pin::new(connection).poll(cx).is_ready();
    }
}

impl Link {
    pub(crate) async fn open(stream: ByteStream) -> hyper::Result<Self> {
        if let ByteStream::Tcp(socket) = &stream
            && let Err(error) = socket.set_nodelay(true)
        {
            tracing::debug!(%error, "an instance's socket has no TCP_NODELAY");
        }
        let (sender, connection) = Builder::new()
            .max_buf_size(READ_BUFFER_MAX)
            .handshake(Socket::new(stream))
            .await?;
        Ok(Self {
            sender,
            connection: Some(connection),
            ended: false,
        })
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, LinkError> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let (connection, ended) = (&mut self.connection, &mut self.ended);
        let result = std::future::poll_fn(|cx| {
            drive(connection, ended, cx);
            let polled = answer.as_mut().poll(cx);
            if polled.is_pending() && *ended {
                *connection = None;
                return answer.as_mut().poll(cx);
            }
            polled
        });
        result
            .await
            .map_err(|mut error| match error.take_message() {
                Some(request) => LinkError::NotSent(Box::new(request)),
                None => LinkError::Failed(error.into_error()),
            })
    }

    /// Moves bytes; ready when the connection has ended.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        drive(&mut self.connection, &mut self.ended, cx);
        if self.ended {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Whether another request can be sent on it.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ended && self.sender.is_ready()
    }

    /// Looks whether the other side has closed, without waiting.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.poll(&mut cx).is_pending() && self.is_ready()
    }

    /// After a switch of protocols: the stream, and what was read of it already.
    /// `None` when the connection broke first.
    pub(crate) async fn into_stream(mut self: Box<Self>) -> Option<(ByteStream, Bytes)> {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        let parts = self.connection?.into_parts();
        Some((parts.io.into_inner(), parts.read_buf))
    }

    /// Moves bytes until the connection ends.
    pub(crate) async fn run(mut self: Box<Self>) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}
