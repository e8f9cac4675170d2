//! The way of one request to its instance and of the answer back, in the
//! protocol that the application speaks. The request's head is written as
//! HTTP/1.1 has it; what becomes of it is the protocol's.

use std::io;
use std::task::{Context, Poll};

use http::HeaderMap;
use skiff_base::ByteStream;
use skiff_types::limits;

use crate::h1::body::{BodyError, Decoder};
use crate::h1::fields::{Facts, FramingError};
use crate::h1::inbox::Inbox;
use crate::h1::parse::{HeadError, ResponseHead};
use crate::link1::Exchange;
use crate::link2::Stream;
use crate::mux::Seat;

#[derive(Debug)]
pub(crate) enum Link {
    /// A connection of its own, for one request after the other.
    Http1(Exchange),
    /// A stream of a shared one.
    Http2(Stream),
}

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the connection ended before the answer did")]
    Ended,
    #[error("the answer's head is not HTTP")]
    Head(#[from] HeadError),
    #[error("the answer's head is larger than {} bytes", limits::HEADER_BYTES_MAX)]
    TooLarge,
    #[error("the answer's body has no plain framing")]
    Framing(#[from] FramingError),
    #[error("the answer's body is not what its head says")]
    Body(#[from] BodyError),
    #[error("the request's body broke off")]
    Upload,
    #[error("the stream broke")]
    Stream(#[from] h2::Error),
    #[error("the request cannot be said in HTTP/2")]
    Unsayable,
}

/// What comes next of an answer's body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many bytes, which [`Link::data`] shows until [`Link::took`].
    Data(usize),
    /// It has ended, with a trailer section as it came.
    End(Option<Vec<u8>>),
}

macro_rules! either {
    ($self:ident, $link:ident => $call:expr) => {
        match $self {
            Link::Http1($link) => $call,
            Link::Http2($link) => $call,
        }
    };
}

impl Link {
    pub(crate) fn new(stream: ByteStream) -> Self {
        Self::Http1(Exchange::new(stream))
    }

    pub(crate) fn stream(seat: Seat) -> Self {
        Self::Http2(Stream::new(seat))
    }

    /// Takes over a request's head, and gives other memory for it.
    pub(crate) fn begin(&mut self, head: &mut Vec<u8>) {
        either!(self, link => link.begin(head));
    }

    /// The request as far as it was put, when nothing of it was processed.
    pub(crate) fn take_back(&mut self) -> Option<Vec<u8>> {
        either!(self, link => link.take_back())
    }

    /// Whether no byte of the request has gone out.
    pub(crate) fn is_whole(&self) -> bool {
        either!(self, link => link.is_whole())
    }

    /// Enough of the request waits.
    pub(crate) fn is_full(&self) -> bool {
        either!(self, link => link.is_full())
    }

    /// Where more of the request is put: framed by whoever puts it in
    /// HTTP/1.1, by the stream in HTTP/2.
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        either!(self, link => link.bytes_mut())
    }

    /// All of the request was put, with these trailers behind it. Said again it
    /// says nothing; HTTP/1.1 has the end in the bytes.
    pub(crate) fn end(&mut self, trailers: Option<&HeaderMap>) {
        if let Self::Http2(stream) = self {
            stream.end(trailers);
        }
    }

    /// Sends what is put.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        match self {
            Self::Http1(exchange) => exchange.poll_flush(cx).map_err(LinkError::Io),
            Self::Http2(stream) => stream.poll_flush(cx),
        }
    }

    /// The answer's head, told to `then` with how far its body goes. Interim
    /// answers are read over.
    pub(crate) fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        asked_head: bool,
        then: impl FnOnce(&ResponseHead<'_>, &Facts<'_>, Decoder) -> T,
    ) -> Poll<Result<T, LinkError>> {
        either!(self, link => link.poll_head(cx, asked_head, then))
    }

    /// The next piece of the answer's body.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, LinkError>> {
        either!(self, link => link.poll_piece(cx))
    }

    /// The piece's bytes.
    pub(crate) fn data(&self, count: usize) -> &[u8] {
        either!(self, link => link.data(count))
    }

    /// So many of the piece's bytes went on.
    pub(crate) fn took(&mut self, count: usize) {
        either!(self, link => link.took(count));
    }

    /// Whether nothing of the answer comes behind so many bytes.
    pub(crate) fn is_last(&self, count: usize) -> bool {
        either!(self, link => link.is_last(count))
    }

    /// The body is over, or there is none.
    pub(crate) fn has_ended(&self) -> bool {
        either!(self, link => link.has_ended())
    }

    /// Whether another request can be sent on it: all was sent and all was
    /// read, and not a byte more. A stream has one request.
    pub(crate) fn is_reusable(&self) -> bool {
        match self {
            Self::Http1(exchange) => exchange.is_reusable(),
            Self::Http2(_) => false,
        }
    }

    /// Looks whether an unused connection still stands, without waiting.
    pub(crate) fn is_alive(&mut self) -> bool {
        match self {
            Self::Http1(exchange) => exchange.is_alive(),
            Self::Http2(_) => false,
        }
    }

    /// Gives back memory that a large message took.
    pub(crate) fn shrink(&mut self) {
        if let Self::Http1(exchange) = self {
            exchange.shrink();
        }
    }

    /// After a switch of protocols, which HTTP/2 has none of: the connection,
    /// and what was read of it already.
    pub(crate) fn into_parts(self) -> Option<(ByteStream, Inbox)> {
        match self {
            Self::Http1(exchange) => Some(exchange.into_parts()),
            Self::Http2(_) => None,
        }
    }
}
