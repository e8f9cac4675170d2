//! One stream of HTTP/2 with an instance: a request that is written as for
//! HTTP/1.1, but for its body, which is not framed, and an answer that is told
//! like one of HTTP/1.1. Dropping it resets the stream and no other.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};

use crate::h1::body::Decoder;
use crate::h1::fields::{self, Facts, Kind};
use crate::h1::outbox::FULL_BYTES;
use crate::h1::parse::ResponseHead;
use crate::h1::write;
use crate::link::{LinkError, Piece};
use crate::mux::Seat;

/// Of a request that has gone out, as much is kept to be sent elsewhere should
/// the instance refuse it.
const KEPT_BYTES: usize = 32 * 1024;

#[derive(Debug)]
pub(crate) struct Stream {
    seat: Seat,
    /// What has not gone out: the head first.
    waits: Vec<u8>,
    /// What has, as long as it is little.
    said: Option<Vec<u8>>,
    /// All of the request was put.
    whole: bool,
    trailers: HeaderMap,
    /// Until all of the request has gone out.
    request: Option<SendStream<Bytes>>,
    answer: Answer,
    /// How far the answer's body goes; in chunks, if nobody has said.
    extent: Decoder,
    piece: Bytes,
    /// The instance has processed nothing of it.
    refused: bool,
}

#[derive(Debug)]
enum Answer {
    /// The request's head has not gone out.
    NotAsked,
    Head(ResponseFuture),
    Body(RecvStream),
    /// There is none.
    Failed(Option<LinkError>),
}

impl Stream {
    pub(crate) fn new(seat: Seat) -> Self {
        Self {
            seat,
            waits: Vec::new(),
            said: Some(Vec::new()),
            whole: false,
            trailers: HeaderMap::new(),
            request: None,
            answer: Answer::NotAsked,
            extent: Decoder::Ended,
            piece: Bytes::new(),
            refused: false,
        }
    }

    /// Takes over a request's head, and what was put behind it before.
    pub(crate) fn begin(&mut self, head: &mut Vec<u8>) {
        std::mem::swap(&mut self.waits, head);
    }

    /// The request again, when the instance has processed nothing of it.
    pub(crate) fn take_back(&mut self) -> Option<Vec<u8>> {
        if !self.is_whole() && !self.refused {
            return None;
        }
        let mut said = self.said.take()?;
        said.append(&mut self.waits);
        Some(said)
    }

    /// Whether no byte of the request has gone out.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.answer, Answer::NotAsked)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.waits.len() >= FULL_BYTES
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.waits
    }

    /// Nothing more is put. Only the first call counts.
    pub(crate) fn end(&mut self, trailers: Option<&HeaderMap>) {
        if !self.whole {
            self.whole = true;
            self.trailers = trailers.cloned().unwrap_or_default();
        }
    }

    /// Sends what is put, as far as the instance takes it.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if let Answer::NotAsked = self.answer
            && let Err(error) = self.ask()
        {
            self.note(&error);
            // Whoever waits for the answer is told.
            self.answer = Answer::Failed(Some(error));
            return Poll::Ready(Err(LinkError::Ended));
        }
        let sent = ready!(self.poll_send(cx));
        Poll::Ready(sent.map_err(|error| self.fail_request(error)))
    }

    /// Sends the head.
    fn ask(&mut self) -> Result<(), LinkError> {
        let (length, request) = request(&self.waits)?;
        let ends = self.whole && self.waits.len() == length && self.trailers.is_empty();
        let (answer, stream) = self
            .seat
            .opener()
            .send_request(request, ends)
            .inspect_err(|_| self.refused = true)?;
        self.answer = Answer::Head(answer);
        self.request = (!ends).then_some(stream);
        self.gone_out(length);
        Ok(())
    }

    fn gone_out(&mut self, count: usize) {
        let gone = self.waits.drain(..count);
        match &mut self.said {
            Some(said) if said.len() + count <= KEPT_BYTES => said.extend(gone),
            _ => self.said = None,
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        loop {
            let Some(stream) = &mut self.request else {
                return Poll::Ready(match self.waits.is_empty() {
                    true => Ok(()),
                    false => Err(LinkError::Ended),
                });
            };
            if self.waits.is_empty() {
                if self.whole {
                    let trailers = std::mem::take(&mut self.trailers);
                    let ended = match trailers.is_empty() {
                        true => stream.send_data(Bytes::new(), true),
                        false => stream.send_trailers(trailers),
                    };
                    self.request = None;
                    ended?;
                }
                return Poll::Ready(Ok(()));
            }
            stream.reserve_capacity(self.waits.len());
            while stream.capacity() == 0 {
                match ready!(stream.poll_capacity(cx)) {
                    Some(room) => {
                        room?;
                    }
                    None => return Poll::Ready(Err(LinkError::Ended)),
                }
            }
            let count = stream.capacity().min(self.waits.len());
            let ends = self.whole && count == self.waits.len() && self.trailers.is_empty();
            stream.send_data(Bytes::copy_from_slice(&self.waits[..count]), ends)?;
            if ends {
                self.request = None;
            }
            self.gone_out(count);
        }
    }

    /// The answer's head, told to `then` with how far its body goes.
    pub(crate) fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        asked_head: bool,
        then: impl FnOnce(&ResponseHead<'_>, &Facts<'_>, Decoder) -> T,
    ) -> Poll<Result<T, LinkError>> {
        let answer = match &mut self.answer {
            Answer::Head(answer) => ready!(Pin::new(answer).poll(cx)),
            Answer::Failed(error) => {
                return Poll::Ready(Err(error.take().unwrap_or(LinkError::Ended)));
            }
            Answer::NotAsked | Answer::Body(_) => return Poll::Ready(Err(LinkError::Ended)),
        };
        let (head, body) = match answer {
            Ok(response) => response.into_parts(),
            Err(error) => return Poll::Ready(Err(self.fail(error.into()))),
        };
        let told = tell(&head, asked_head, body.is_end_stream(), then);
        self.answer = Answer::Body(body);
        let (told, extent) = told.map_err(|error| self.fail(error))?;
        self.extent = extent;
        Poll::Ready(Ok(told))
    }

    /// The next piece of the answer's body.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, LinkError>> {
        while self.piece.is_empty() {
            let Answer::Body(body) = &mut self.answer else {
                return Poll::Ready(Err(LinkError::Ended));
            };
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) => self.piece = data,
                Some(Err(error)) if is_enough(&error) => return Poll::Ready(self.end_of(None)),
                Some(Err(error)) => return Poll::Ready(Err(self.fail(error.into()))),
                None => {
                    let trailers = ready!(body.poll_trailers(cx));
                    let ended = match trailers {
                        Ok(trailers) => self.end_of(trailers.as_ref().map(section)),
                        Err(error) => Err(self.fail(error.into())),
                    };
                    return Poll::Ready(ended);
                }
            }
        }
        Poll::Ready(Ok(Piece::Data(self.piece.len())))
    }

    fn end_of(&mut self, trailers: Option<Vec<u8>>) -> Result<Piece, LinkError> {
        match self.extent {
            Decoder::Length(1..) => Err(LinkError::Ended),
            _ => {
                self.extent = Decoder::Ended;
                Ok(Piece::End(trailers))
            }
        }
    }

    /// The piece's bytes.
    pub(crate) fn data(&self, count: usize) -> &[u8] {
        &self.piece[..count.min(self.piece.len())]
    }

    /// So many of the piece's bytes went on: the instance may send as many.
    pub(crate) fn took(&mut self, count: usize) {
        let count = count.min(self.piece.len());
        self.piece.advance(count);
        self.extent.took(count);
        if let Answer::Body(body) = &mut self.answer
            && let Err(error) = body.flow_control().release_capacity(count)
        {
            tracing::debug!(%error, "a stream's window stays as it is");
        }
    }

    /// Whether neither body nor trailers come behind so many bytes.
    pub(crate) fn is_last(&self, count: usize) -> bool {
        let Answer::Body(body) = &self.answer else {
            return false;
        };
        count == self.piece.len() && self.extent.is_last(count) && body.is_end_stream()
    }

    /// The body is over, or there is none.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.answer, Answer::Body(_)) && self.extent == Decoder::Ended
    }

    /// There is no answer.
    fn fail(&mut self, error: LinkError) -> LinkError {
        self.note(&error);
        self.request = None;
        self.answer = Answer::Failed(None);
        error
    }

    /// The instance takes no more of the request; it may have answered.
    fn fail_request(&mut self, error: LinkError) -> LinkError {
        self.note(&error);
        self.request = None;
        error
    }

    fn note(&mut self, error: &LinkError) {
        if let LinkError::Stream(error) = error {
            self.refused |= is_unprocessed(error);
        }
    }
}

/// What was asked and not answered may be the connection's fault, of which
/// nothing else would tell.
impl Drop for Stream {
    fn drop(&mut self) {
        if matches!(self.answer, Answer::Head(_)) {
            self.seat.doubt();
        }
    }
}

/// RFC 9113 §8.7: streams above the last one that GOAWAY names, and those that
/// were refused, have not been processed in any way.
fn is_unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// RFC 9113 §8.1: the instance has answered, and wants no more of the request.
fn is_enough(error: &h2::Error) -> bool {
    error.is_remote() && error.is_reset() && error.reason() == Some(Reason::NO_ERROR)
}

/// A head as it is written for HTTP/1.1, and its length.
fn request(written: &[u8]) -> Result<(usize, Request<()>), LinkError> {
    let lines = written.iter().filter(|&&byte| byte == b'\n').count();
    let mut headers = vec![httparse::EMPTY_HEADER; lines];
    let mut head = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = head.parse(written) else {
        return Err(LinkError::Unsayable);
    };
    let mut request = Request::new(());
    let method = head.method.unwrap_or_default().as_bytes();
    *request.method_mut() = Method::from_bytes(method).map_err(|_| LinkError::Unsayable)?;
    *request.version_mut() = Version::HTTP_2;
    let mut authority = &b""[..];
    for (name, value) in fields::of(head.headers) {
        match fields::kind(name) {
            Kind::Host => authority = value,
            Kind::Connection | Kind::Hop | Kind::TransferEncoding | Kind::Upgrade => continue,
            _ => {
                let name = HeaderName::from_bytes(name);
                let value = HeaderValue::from_bytes(value);
                if let (Ok(name), Ok(value)) = (name, value) {
                    request.headers_mut().append(name, value);
                }
            }
        }
    }
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(head.path.unwrap_or("/"));
    *request.uri_mut() = uri.build().map_err(|_| LinkError::Unsayable)?;
    Ok((length, request))
}

/// Tells a head as one of HTTP/1.1, and how far its body goes.
fn tell<T>(
    head: &http::response::Parts,
    asked_head: bool,
    ended: bool,
    then: impl FnOnce(&ResponseHead<'_>, &Facts<'_>, Decoder) -> T,
) -> Result<(T, Decoder), LinkError> {
    let headers: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| httparse::Header {
            name: name.as_str(),
            value: value.as_bytes(),
        })
        .collect();
    let status = head.status.as_u16();
    let facts = fields::facts(fields::of(&headers))?;
    let extent = match facts.length {
        _ if asked_head || ended || write::has_no_body(status) => Decoder::Ended,
        Some(length) => Decoder::Length(length),
        None => Decoder::CHUNKED,
    };
    let head = ResponseHead {
        status,
        reason: reason(head.status),
        minor: 1,
        headers: &headers,
    };
    Ok((then(&head, &facts, extent), extent))
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or_default()
}

/// Trailers as they stand behind a body in chunks.
fn section(trailers: &HeaderMap) -> Vec<u8> {
    let mut section = Vec::new();
    for (name, value) in trailers {
        fields::put(&mut section, name.as_str().as_bytes(), value.as_bytes());
    }
    section.extend_from_slice(b"\r\n");
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_said_again_without_what_ends_at_this_hop() {
        let head = "POST /a?b HTTP/1.1\r\nhost: x:1\r\ncontent-type: t\r\ncontent-length: 2\r\n\
                    transfer-encoding: chunked\r\nte: trailers\r\nconnection: te\r\n\
                    upgrade: y\r\nX-Mine: 1\r\n\r\n";
        let (length, request) = request(format!("{head}hi").as_bytes()).unwrap();
        assert_eq!(length, head.len());
        assert_eq!(*request.method(), Method::POST);
        assert_eq!(request.uri().to_string(), "http://x:1/a?b");
        let names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-type", "content-length", "te", "x-mine"]);
    }

    #[test]
    fn what_http_2_cannot_say_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n",
        ] {
            let refused = request(head.as_bytes());
            assert!(matches!(refused, Err(LinkError::Unsayable)), "{head:?}");
        }
    }

    #[test]
    fn only_what_was_not_processed_is() {
        let reset = |reason: Reason| h2::Error::from(reason);
        // Ours, whatever it says.
        assert!(!is_unprocessed(&reset(Reason::REFUSED_STREAM)));
        assert!(!is_enough(&reset(Reason::NO_ERROR)));
    }
}
