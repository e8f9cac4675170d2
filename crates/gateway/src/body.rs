//! The body of an answer on its way to a client of HTTP/2. A task reads it, so
//! that the client's reading does not stand between the request and its
//! deadline; it holds back the last frame until the request is recorded.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use skiff_base::Monotonic;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::answer::Own;
use crate::forward;
use crate::h1::body;
use crate::http2::Upload;
use crate::lane::Lane;
use crate::link::{Link, LinkError, Piece};
use crate::visit::Visit;

type Item = Result<Frame<Bytes>, AnswerError>;

/// Frames between the task and the client's stream.
const FRAMES: usize = 2;

/// The answer could not be sent whole; the client's stream is reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("the instance broke its answer off")]
    Instance(#[source] LinkError),
    #[error("the request's time ran out")]
    Timeout,
    #[error("the answer was abandoned")]
    Abandoned,
}

#[derive(Debug)]
pub(crate) enum AnswerBody {
    /// The gateway's own words.
    Text(Option<Bytes>),
    /// From an instance.
    Pumped(Pumped),
}

/// An answer and the rest of its request, as the task moves them.
#[derive(Debug)]
pub(crate) struct Download {
    /// Until the answer has ended.
    link: Option<Box<Link>>,
    upload: Upload,
    visit: Visit,
    deadline: Monotonic,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
pub(crate) struct Pumped {
    /// `None` is the end of a whole body.
    frames: mpsc::Receiver<Option<Item>>,
    ended: bool,
}

impl AnswerBody {
    pub(crate) fn text(own: &Own) -> Self {
        Self::Text(Some(Bytes::from(format!("{}\n", own.line))))
    }
}

impl Download {
    pub(crate) fn new(link: Box<Link>, upload: Upload, visit: Visit, deadline: Monotonic) -> Self {
        Self {
            link: Some(link),
            upload,
            visit,
            deadline,
            timer: None,
        }
    }

    /// Hands the reading to a task of its own. What has no body is over.
    pub(crate) fn start(mut self, lane: &Lane) -> AnswerBody {
        if self.link.as_ref().is_some_and(|link| link.has_ended()) {
            self.complete();
            return AnswerBody::Text(None);
        }
        let (sender, frames) = mpsc::channel(FRAMES);
        lane.tasks
            .spawn("answer body", async move { self.pump(&sender).await });
        AnswerBody::Pumped(Pumped {
            frames,
            ended: false,
        })
    }

    async fn pump(&mut self, sender: &mpsc::Sender<Option<Item>>) {
        loop {
            let item = tokio::select! {
                item = std::future::poll_fn(|cx| self.poll_item(cx)) => item,
                () = sender.closed() => return self.read_over().await,
            };
            let last = !matches!(item, Some(Ok(_)));
            let left = self.deadline.since(self.visit.lane.shared.clock.now());
            match tokio::time::timeout(left, sender.send(item)).await {
                Ok(Ok(())) if !last => {}
                Ok(Ok(())) => return,
                Ok(Err(_)) => return self.read_over().await,
                Err(_) => return self.time_out(),
            }
        }
    }

    /// The client has gone: what its instance goes on with keeps its slot until
    /// it is over.
    pub(crate) async fn read_over(&mut self) {
        let slot = self.visit.slot();
        let outlives = slot.is_some_and(|slot| slot.revision.route.outlives_client);
        if !outlives || !self.upload.has_ended() {
            return;
        }
        while let Some(Ok(_)) = std::future::poll_fn(|cx| self.poll_item(cx)).await {}
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let Some(link) = &mut self.link else {
            return Poll::Ready(None);
        };
        // What it does not take any more does not matter: it has answered.
        let sent = self.upload.poll(link, &mut self.visit, cx);
        let piece = match link.poll_piece(cx) {
            Poll::Ready(Ok(piece)) => piece,
            Poll::Ready(Err(error)) => return Poll::Ready(Some(self.fail(error))),
            Poll::Pending => {
                if let Poll::Ready(Err(error @ LinkError::Upload)) = sent {
                    return Poll::Ready(Some(self.fail(error)));
                }
                ready!(self.poll_timer(cx));
                self.time_out();
                return Poll::Ready(Some(Err(AnswerError::Timeout)));
            }
        };
        match piece {
            Piece::Data(count) => {
                let data = Bytes::copy_from_slice(link.data(count));
                let is_last = link.is_last(count);
                link.took(count);
                self.visit.add_out(count);
                if is_last {
                    self.complete();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Piece::End(section) => {
                self.complete();
                let trailers = section.map(|section| trailers(&section)).transpose();
                match trailers {
                    Ok(trailers) => {
                        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
                    }
                    Err(error) => Poll::Ready(Some(Err(AnswerError::Instance(error)))),
                }
            }
        }
    }

    fn fail(&mut self, error: LinkError) -> Item {
        self.link = None;
        self.visit.finish();
        Err(AnswerError::Instance(error))
    }

    /// Recorded, and the connection kept for the next request, before the
    /// slot is free.
    fn complete(&mut self) {
        if let Some(link) = self.link.take()
            && self.upload.has_ended()
            && link.is_reusable()
            && let Some(slot) = self.visit.slot()
        {
            self.visit.lane.park(&slot.instance, link);
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
        self.link = None;
        forward::timed_out(&self.visit);
        self.visit.finish();
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // The work behind it ends before the slot is free.
        self.link = None;
    }
}

fn trailers(section: &[u8]) -> Result<HeaderMap, LinkError> {
    let mut map = HeaderMap::new();
    body::trailers(section, |fields| {
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name);
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
                map.append(name, value);
            }
        }
    })?;
    Ok(map)
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Pumped(body) => body.poll_item(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Pumped(body) => body.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => {
                let bytes = text.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(bytes).unwrap_or(u64::MAX))
            }
            Self::Pumped(_) => SizeHint::default(),
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
                Poll::Ready(Some(Err(AnswerError::Abandoned)))
            }
        }
    }
}
