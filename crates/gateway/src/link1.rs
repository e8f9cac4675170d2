//! One HTTP/1.1 connection to an instance, driven by whoever uses it: no task
//! of its own, so a request costs no wake-up between tasks, and dropping the
//! request drops the connection and with it the work behind it.
//!
//! ```text
//!  begin ─▶ poll_flush ─▶ poll_head ─▶ poll_piece … End ─▶ is_reusable ─▶ begin
//!                              └─ 101 ─▶ into_parts
//! ```

use std::io;
use std::task::{Context, Poll, Waker, ready};

use skiff_base::ByteStream;
use skiff_types::limits;

use crate::h1::body::{Decoder, Step};
use crate::h1::fields::{self, Facts, FramingError};
use crate::h1::inbox::{BODY_BYTES, Inbox};
use crate::h1::outbox::Outbox;
use crate::h1::parse::{self, ResponseHead};
use crate::h1::write;
use crate::link::{LinkError, Piece};

const SWITCHING_PROTOCOLS: u16 = 101;

#[derive(Debug)]
pub(crate) struct Exchange {
    io: ByteStream,
    inbox: Inbox,
    outbox: Outbox,
    body: Decoder,
    /// Neither side has said that it is the last exchange.
    keeps: bool,
    /// No head ends before here in the inbox.
    looked_at: usize,
}

impl Exchange {
    pub(crate) fn new(stream: ByteStream) -> Self {
        if let ByteStream::Tcp(socket) = &stream
            && let Err(error) = socket.set_nodelay(true)
        {
            tracing::debug!(%error, "an instance's socket has no TCP_NODELAY");
        }
        Self {
            io: stream,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            body: Decoder::Ended,
            keeps: true,
            looked_at: 0,
        }
    }

    /// Takes over a request's head, and gives other memory for it.
    pub(crate) fn begin(&mut self, head: &mut Vec<u8>) {
        self.outbox.begin(head);
        self.keeps = true;
        self.looked_at = 0;
    }

    /// The head again, when no byte of it has gone out.
    pub(crate) fn take_back(&mut self) -> Option<Vec<u8>> {
        self.outbox.take_back()
    }

    /// Whether no byte of the request has gone out.
    pub(crate) fn is_whole(&self) -> bool {
        self.outbox.is_whole()
    }

    /// Enough of the request waits.
    pub(crate) fn is_full(&self) -> bool {
        self.outbox.is_full()
    }

    /// Where more of the request is put.
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        self.outbox.bytes_mut()
    }

    /// Sends what is put.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbox.poll_flush(&mut self.io, cx)
    }

    /// The answer's head, told to `then` with how far its body goes. Interim
    /// answers are read over.
    pub(crate) fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        asked_head: bool,
        then: impl FnOnce(&ResponseHead<'_>, &Facts<'_>, Decoder) -> T,
    ) -> Poll<Result<T, LinkError>> {
        let mut then = Some(then);
        loop {
            let looked_at = std::mem::replace(&mut self.looked_at, self.inbox.len());
            if self.inbox.len() > looked_at && parse::may_end(self.inbox.bytes(), looked_at) {
                let parsed = parse::response(self.inbox.bytes(), |head| {
                    if is_interim(head.status) {
                        return Ok(None);
                    }
                    let facts = fields::facts(fields::of(head.headers))?;
                    let body = body_of(head, &facts, asked_head)?;
                    let keeps = keeps(head, &facts, body);
                    let told = then.take().map(|then| then(head, &facts, body));
                    Ok(told.map(|told| (told, body, keeps)))
                });
                if let Some((length, told)) = parsed? {
                    self.inbox.consume(length);
                    self.looked_at = 0;
                    let Some((told, body, keeps)) = told.map_err(LinkError::Framing)? else {
                        continue;
                    };
                    self.body = body;
                    self.keeps = keeps;
                    return Poll::Ready(Ok(told));
                }
            }
            if self.inbox.len() >= limits::HEADER_BYTES_MAX {
                return Poll::Ready(Err(LinkError::TooLarge));
            }
            let most = limits::HEADER_BYTES_MAX;
            if ready!(self.inbox.poll_fill(&mut self.io, cx, most))? == 0 {
                return Poll::Ready(Err(LinkError::Ended));
            }
        }
    }

    /// The next piece of the answer's body.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, LinkError>> {
        loop {
            match self.body.step(self.inbox.bytes())? {
                Step::Data { skip, data } => {
                    self.inbox.consume(skip);
                    return Poll::Ready(Ok(Piece::Data(data)));
                }
                Step::End { skip, trailers } => {
                    let trailers = trailers.map(|range| self.inbox.bytes()[range].to_vec());
                    self.inbox.consume(skip);
                    return Poll::Ready(Ok(Piece::End(trailers)));
                }
                Step::More { skip } => self.inbox.consume(skip),
            }
            if ready!(self.inbox.poll_fill(&mut self.io, cx, BODY_BYTES))? == 0 {
                if self.body != Decoder::UntilEnd {
                    return Poll::Ready(Err(LinkError::Ended));
                }
                self.body = Decoder::Ended;
            }
        }
    }

    /// The piece's bytes.
    pub(crate) fn data(&self, count: usize) -> &[u8] {
        let bytes = self.inbox.bytes();
        &bytes[..count.min(bytes.len())]
    }

    /// So many of the piece's bytes went on.
    pub(crate) fn took(&mut self, count: usize) {
        self.body.took(count);
        self.inbox.consume(count);
    }

    /// Whether nothing of the body comes behind so many bytes.
    pub(crate) fn is_last(&self, count: usize) -> bool {
        self.body.is_last(count)
    }

    /// The body is over, or there is none.
    pub(crate) fn has_ended(&self) -> bool {
        self.body.has_ended()
    }

    /// Whether another request can be sent on it: all was sent and all was
    /// read, and not a byte more.
    pub(crate) fn is_reusable(&self) -> bool {
        self.keeps && self.has_ended() && self.inbox.is_empty() && self.outbox.is_empty()
    }

    /// Looks whether the other side has closed, or said what nobody asked
    /// for, without waiting.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let most = limits::HEADER_BYTES_MAX;
        self.inbox.is_empty()
            && self
                .inbox
                .poll_fill(&mut self.io, &mut cx, most)
                .is_pending()
    }

    /// Gives back memory that a large message took.
    pub(crate) fn shrink(&mut self) {
        self.inbox.shrink();
        self.outbox.shrink();
    }

    /// After a switch of protocols: the stream, and what was read of it already.
    pub(crate) fn into_parts(self) -> (ByteStream, Inbox) {
        (self.io, self.inbox)
    }
}

fn is_interim(status: u16) -> bool {
    (100..200).contains(&status) && status != SWITCHING_PROTOCOLS
}

/// RFC 9112 §6.3. A coding in HTTP/1.0 is a framing error.
fn body_of(
    head: &ResponseHead<'_>,
    facts: &Facts<'_>,
    asked_head: bool,
) -> Result<Decoder, FramingError> {
    if facts.chunked && head.minor == 0 {
        return Err(FramingError::Coding);
    }
    if asked_head || write::has_no_body(head.status) {
        return Ok(Decoder::Ended);
    }
    Ok(match facts.length {
        _ if facts.chunked => Decoder::CHUNKED,
        Some(length) => Decoder::Length(length),
        None => Decoder::UntilEnd,
    })
}

/// What had two framings is the connection's last answer.
fn keeps(head: &ResponseHead<'_>, facts: &Facts<'_>, body: Decoder) -> bool {
    let says = match head.minor {
        0 => facts.keep_alive && !facts.close,
        _ => !facts.close,
    };
    let plain = !(facts.chunked && facts.length.is_some());
    says && plain && body != Decoder::UntilEnd && head.status != SWITCHING_PROTOCOLS
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// An answer in pieces of the given size: status, decoded body, and
    /// whether the connection can be kept; or why not.
    async fn answer(wire: &[u8], piece: usize) -> Result<(u16, Vec<u8>, bool), LinkError> {
        let (ours, mut theirs) = tokio::io::duplex(piece);
        let mut link = Exchange::new(ByteStream::Memory(ours));
        let wire = wire.to_vec();
        let says = async move {
            theirs.write_all(&wire).await.ok();
            theirs.shutdown().await.ok();
            std::future::pending().await
        };
        let reads = async {
            let status =
                std::future::poll_fn(|cx| link.poll_head(cx, false, |head, _, _| head.status))
                    .await?;
            let mut body = Vec::new();
            loop {
                match std::future::poll_fn(|cx| link.poll_piece(cx)).await? {
                    Piece::Data(count) => {
                        body.extend_from_slice(link.data(count));
                        link.took(count);
                    }
                    Piece::End(_) => return Ok((status, body, link.is_reusable())),
                }
            }
        };
        tokio::select! {
            found = reads => found,
            found = says => found,
        }
    }

    #[tokio::test]
    async fn answers_end_where_their_heads_say() {
        for (wire, body, kept) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "hi", true),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi!",
                "hi",
                false,
            ),
            (
                "HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                "",
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", "to the end", false),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\na: b\r\n\r\n",
                "hi",
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                "",
                false,
            ),
            ("HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\n", "", true),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", "x", false),
            (
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx",
                "x",
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                "",
                false,
            ),
        ] {
            for piece in [1, 3, 4096] {
                let found = answer(wire.as_bytes(), piece).await.unwrap();
                assert_eq!(String::from_utf8(found.1).unwrap(), body, "{wire:?}");
                // In small pieces what comes too many has not come yet.
                if piece == 4096 {
                    assert_eq!(found.2, kept, "{wire:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn answers_that_cannot_be_followed_are_errors() {
        let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(100_000));
        for (wire, expected) in [
            ("", "the connection ended"),
            ("HTTP/1.1 200 OK\r\ncontent-le", "the connection ended"),
            ("SSH-2.0-x\r\n\r\n", "not HTTP"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh",
                "the connection ended",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
                "no plain framing",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
                "no plain framing",
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
                "no plain framing",
            ),
            (
                "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                "no plain",
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
                "not what its head says",
            ),
            (&large, "larger than"),
        ] {
            let error = answer(wire.as_bytes(), 4096).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{wire:.60?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_word_that_nobody_asked_for_ends_a_connections_use() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut link = Exchange::new(ByteStream::Memory(ours));
        assert!(link.is_alive());
        theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        assert!(!link.is_alive());
        let (ours, theirs) = tokio::io::duplex(64);
        let mut link = Exchange::new(ByteStream::Memory(ours));
        drop(theirs);
        assert!(!link.is_alive());
    }
}
