//! The body of an answer on its way to the client. It drives the connection
//! to the instance while it is read, and holds back its last frame until the
//! request is recorded.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use skiff_base::Monotonic;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use crate::lane::Lane;
use crate::link::Link;
use crate::visit::Visit;

type Item = Result<Frame<Bytes>, BodyError>;

/// The answer could not be sent whole; the client's connection is cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the instance broke its answer off")]
    Instance(#[source] hyper::Error),
    #[error("the request's time ran out")]
    Timeout,
    #[error("the answer was abandoned")]
    Abandoned,
}

#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and a box would cost each request"
)]
pub(crate) enum AnswerBody {
    /// The gateway's own words.
    Text(Option<Bytes>),
    /// From an instance.
    Proxied(ProxiedBody),
    /// From an instance, by way of a task: the client's reading does not
    /// stand between the request and its deadline.
    Pumped(Pumped),
}

#[derive(Debug)]
pub(crate) struct ProxiedBody {
    inner: Incoming,
    /// Until the answer has ended.
    driver: Option<Driver>,
    visit: Visit,
    deadline: Monotonic,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Who moves the bytes of the connection to the instance.
#[derive(Debug)]
pub(crate) enum Driver {
    /// Whoever reads the body.
    Reader(Box<Link>),
    /// A task, for the request's body is still on its way; dropping this ends it.
    Task { _stop: oneshot::Sender<()> },
}

#[derive(Debug)]
pub(crate) struct Pumped {
    /// `None` is the end of a whole body.
    frames: mpsc::Receiver<Option<Item>>,
    hint: SizeHint,
    ended: bool,
}

/// Frames between the task and the client's stream.
const PUMP_FRAMES: usize = 2;

impl ProxiedBody {
    pub(crate) fn new(inner: Incoming, driver: Driver, visit: Visit, deadline: Monotonic) -> Self {
        let mut body = Self {
            inner,
            driver: Some(driver),
            visit,
            deadline,
            timer: None,
        };
        // Such a body is never asked for a frame.
        if body.inner.is_end_stream() {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            body.complete(&mut cx);
        }
        body
    }

    /// Hands the reading to a task of its own.
    pub(crate) fn pump(mut self) -> Pumped {
        let (sender, frames) = mpsc::channel(PUMP_FRAMES);
        let hint = self.inner.size_hint();
        if self.inner.is_end_stream() {
            return Pumped {
                frames,
                hint,
                ended: true,
            };
        }
        let lane = self.visit.lane.clone();
        lane.tasks
            .spawn("answer body", async move { self.pump_to(&sender).await });
        Pumped {
            frames,
            hint,
            ended: false,
        }
    }

    async fn pump_to(&mut self, sender: &mpsc::Sender<Option<Item>>) {
        loop {
            let item = tokio::select! {
                item = std::future::poll_fn(|cx| self.poll_item(cx)) => item,
                () = sender.closed() => return,
            };
            let last = !matches!(item, Some(Ok(_)));
            let left = self.deadline.since(self.visit.lane.shared.clock.now());
            match tokio::time::timeout(left, sender.send(item)).await {
                Ok(Ok(())) if !last => {}
                Ok(_) => return,
                Err(_) => return self.time_out(),
            }
        }
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut driven = false;
        loop {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    self.visit.bytes_out += u64::try_from(bytes).unwrap_or(u64::MAX);
                    if self.inner.is_end_stream() {
                        self.complete(cx);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.driver = None;
                    self.visit.finish();
                    return Poll::Ready(Some(Err(BodyError::Instance(error))));
                }
                Poll::Ready(None) => {
                    self.complete(cx);
                    return Poll::Ready(None);
                }
                Poll::Pending if driven => break,
                Poll::Pending => {}
            }
            driven = true;
            if let Some(Driver::Reader(link)) = &mut self.driver
                && link.poll(cx).is_ready()
            {
                self.driver = None;
            }
        }
        ready!(self.poll_timer(cx));
        self.time_out();
        Poll::Ready(Some(Err(BodyError::Timeout)))
    }

    /// Recorded, and the connection kept for the next request, before the
    /// slot is free.
    fn complete(&mut self, cx: &mut Context<'_>) {
        if let Some(Driver::Reader(mut link)) = self.driver.take() {
            if !link.is_ready() && link.poll(cx).is_ready() {
                drop(link);
            } else if link.is_ready()
                && let Some(slot) = self.visit.slot()
            {
                self.visit.lane.park(&slot.instance, link);
            }
        }
        self.visit.finish();
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| {
            let left = self.deadline.since(self.visit.lane.shared.clock.now());
            Box::pin(tokio::time::sleep(left))
        });
        timer.as_mut().poll(cx)
    }

    fn time_out(&mut self) {
        self.driver = None;
        crate::forward::timed_out(&self.visit);
        self.visit.finish();
    }
}

impl Drop for ProxiedBody {
    fn drop(&mut self) {
        // The work behind it ends before the slot is free.
        self.driver = None;
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Proxied(body) => body.poll_item(cx),
            Self::Pumped(body) => body.poll_item(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Proxied(body) => body.inner.is_end_stream(),
            Self::Pumped(body) => body.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => {
                let bytes = text.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(bytes).unwrap_or(u64::MAX))
            }
            Self::Proxied(body) => body.inner.size_hint(),
            Self::Pumped(body) => body.hint,
        }
    }
}

impl Pumped {
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match ready!(self.frames.poll_recv(cx)) {
            Some(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Some(Some(item)) => {
                self.ended = item.is_err();
                Poll::Ready(Some(item))
            }
            None => {
                self.ended = true;
                Poll::Ready(Some(Err(BodyError::Abandoned)))
            }
        }
    }
}

impl Driver {
    /// A task that moves bytes until the connection ends or nobody wants it.
    pub(crate) fn task(lane: &Lane, link: Box<Link>) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        lane.tasks.spawn("request body", async move {
            tokio::select! {
                () = link.run() => {}
                _ = stopped => {}
            }
        });
        Self::Task { _stop: stop }
    }
}
