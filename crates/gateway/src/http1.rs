//! A client's connection of HTTP/1.0 or HTTP/1.1: one request after the other,
//! each read when the one before is answered.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use skiff_base::{ByteStream, Monotonic};
use skiff_types::{Protocol, limits};

use crate::answer::{self, Own};
use crate::exchange;
use crate::forward::{self, Client, Scope};
use crate::h1::body::{self, BodyError, Decoder, Step};
use crate::h1::fields::{self, Facts, FramingError};
use crate::h1::inbox::{BODY_BYTES, Inbox};
use crate::h1::outbox::Outbox;
use crate::h1::parse::{self, HeadError, RequestHead};
use crate::h1::write::{self, Framing, Onward, Reply};
use crate::host::{self, Place};
use crate::lane::Word;
use crate::linger;
use crate::revision::Revision;
use crate::visit::Visit;

/// Of a request's body that is read before it can go on.
const AHEAD_BYTES: usize = 4 * 1024;

/// The client's end of a connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) io: ByteStream,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    /// The request's head as it goes on.
    pub(crate) head: Vec<u8>,
    /// How far the request's body goes in what is still to be read.
    body: Decoder,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) visit: Visit,
    pub(crate) revision: Arc<Revision>,
    /// HTTP/1.0 or HTTP/1.1.
    pub(crate) minor: u8,
    /// The answer has no body.
    pub(crate) asked_head: bool,
    /// Another request may follow.
    pub(crate) keeps: bool,
    /// Its body goes on in chunks: HTTP/2 frames it anew.
    pub(crate) chunked: bool,
    pub(crate) takes_trailers: bool,
    /// It asks to switch protocols.
    pub(crate) switches: bool,
    /// It waits for a 100.
    pub(crate) expects: bool,
}

/// What was read.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and a box would cost each request"
)]
enum Heard {
    Call(Call),
    Refused(Refused),
    /// The connection ends without another request.
    Nothing,
}

/// A request that the gateway answers itself.
#[derive(Debug)]
pub(crate) struct Refused {
    visit: Visit,
    own: Own,
    asked_head: bool,
    keeps: bool,
}

/// How it goes on with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Next,
    /// All is said.
    Close,
    /// At once: the client has gone, or must see that something is missing.
    Cut,
}

/// How waiting for something ended.
#[derive(Debug)]
pub(crate) enum Waited<T> {
    Done(T),
    /// The client has gone.
    Gone,
    /// The request's time is over.
    Late,
}

/// A request's body cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the client has gone")]
    Gone,
    #[error("the request's body cannot be read")]
    Bad(#[from] BodyError),
}

/// Serves a connection until it ends.
pub(crate) async fn serve(client: &Client, stream: ByteStream) {
    let mut conn = Conn {
        io: stream,
        inbox: Inbox::default(),
        outbox: Outbox::default(),
        head: Vec::new(),
        body: Decoder::Ended,
    };
    loop {
        let then = match conn.listen(client).await {
            Heard::Call(call) => exchange::run(client, &mut conn, call).await,
            Heard::Refused(refused) => conn.answer(client, refused).await,
            Heard::Nothing => return,
        };
        match then {
            Then::Next => {}
            Then::Close => return conn.close().await,
            Then::Cut => return,
        }
    }
}

impl Conn {
    /// The next request. An idle connection ends when it is told to.
    async fn listen(&mut self, client: &Client) -> Heard {
        self.inbox.shrink();
        self.outbox.shrink();
        let most = limits::HEADER_BYTES_MAX;
        let mut seen = 0;
        loop {
            if self.inbox.len() > seen && parse::may_end(self.inbox.bytes(), seen) {
                let (onward, body) = (&mut self.head, &mut self.body);
                let parsed = parse::request(self.inbox.bytes(), |head| {
                    understand(client, head, onward, body)
                });
                match parsed {
                    Ok(Some((length, heard))) => {
                        self.inbox.consume(length);
                        return heard;
                    }
                    Ok(None) => {}
                    Err(error) => return self.no_head(client, error),
                }
            }
            seen = self.inbox.len();
            if seen >= most {
                return self.no_head(client, HeadError::Fields);
            }
            let read = std::future::poll_fn(|cx| match client.watched.word() {
                Word::Close | Word::Cut => Poll::Ready(Ok(0)),
                Word::GoOn | Word::Drain => self.inbox.poll_fill(&mut self.io, cx, most),
            });
            if !matches!(read.await, Ok(1..)) {
                return Heard::Nothing;
            }
        }
    }

    fn no_head(&mut self, client: &Client, error: HeadError) -> Heard {
        // What follows it is not known.
        self.body = Decoder::UntilEnd;
        let own = match error {
            HeadError::Malformed(cause) => forward::bad(client, format!("{error}: {cause}")),
            HeadError::Fields => {
                client.lane.shared.metrics.bad_request.up();
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                answer::text(status, "the request's head is too large")
            }
        };
        Heard::Refused(Refused {
            visit: Visit::begin(&client.lane, &client.watched),
            own,
            asked_head: false,
            keeps: false,
        })
    }

    /// Sends the gateway's own answer. What reached an instance is recorded
    /// before.
    pub(crate) async fn answer(&mut self, client: &Client, refused: Refused) -> Then {
        let Refused {
            mut visit,
            own,
            asked_head,
            keeps,
        } = refused;
        let keeps = keeps && client.watched.word() == Word::GoOn && self.skip_body();
        let reply = Reply {
            close: !keeps,
            is_own: client.scope == Scope::Revisions,
            unix_s: client.lane.unix_s(),
            ..Reply::default()
        };
        write::own(self.outbox.bytes_mut(), &own, !asked_head, reply);
        visit.status = Some(own.status.as_u16());
        visit.finish();
        drop(visit);
        let sent = std::future::poll_fn(|cx| self.outbox.poll_flush(&mut self.io, cx));
        match sent.await {
            Ok(()) if keeps => Then::Next,
            Ok(()) => Then::Close,
            Err(_) => Then::Cut,
        }
    }

    /// Whether the rest of the request's body is there and was read over.
    fn skip_body(&mut self) -> bool {
        loop {
            match self.body.step(self.inbox.bytes()) {
                Ok(Step::Data { skip, data }) => {
                    self.body.took(data);
                    self.inbox.consume(skip + data);
                }
                Ok(Step::End { skip, .. }) => {
                    self.inbox.consume(skip);
                    return true;
                }
                Ok(Step::More { .. }) | Err(_) => return false,
            }
        }
    }

    /// Ends the connection so that the client can read all that was said.
    async fn close(self) {
        if !self.body.has_ended() || !self.inbox.is_empty() {
            linger::close(self.io, &[]).await;
        }
    }

    /// Puts more of the request's body where it goes on, framed as its head
    /// says: how many bytes of data, or `None` when that was all.
    pub(crate) fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
        chunked: bool,
    ) -> Poll<Result<Option<usize>, UploadError>> {
        loop {
            match self.body.step(self.inbox.bytes())? {
                Step::Data { skip, data } => {
                    let bytes = &self.inbox.bytes()[skip..skip + data];
                    if chunked {
                        body::put_chunk(out, bytes);
                    } else {
                        out.extend_from_slice(bytes);
                    }
                    self.body.took(data);
                    self.inbox.consume(skip + data);
                    return Poll::Ready(Ok(Some(data)));
                }
                Step::End { skip, trailers } => {
                    if chunked {
                        let section = trailers.map(|range| &self.inbox.bytes()[range]);
                        body::put_end_of(out, section)?;
                    }
                    self.inbox.consume(skip);
                    return Poll::Ready(Ok(None));
                }
                Step::More { skip } => self.inbox.consume(skip),
            }
            match ready!(self.inbox.poll_fill(&mut self.io, cx, BODY_BYTES)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Err(UploadError::Gone)),
            }
        }
    }

    /// The request's body has been read to its end.
    pub(crate) fn has_read_body(&self) -> bool {
        self.body.has_ended()
    }

    /// Whether the client has gone. What it sends ahead is kept, up to a
    /// bound; so of a large body that waits it cannot be told.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        let most = match self.body.has_ended() {
            true => limits::HEADER_BYTES_MAX,
            false => AHEAD_BYTES,
        };
        while self.inbox.len() < most {
            match self.inbox.poll_fill(&mut self.io, cx, most) {
                Poll::Pending => return false,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => return true,
            }
        }
        false
    }

    /// Waits for something while the client does, and no longer than until
    /// the deadline. The lane's tick wakes this connection when that is over,
    /// so that a request needs no timer of its own.
    pub(crate) async fn wait<T>(
        &mut self,
        client: &Client,
        deadline: Option<Monotonic>,
        what: impl Future<Output = T>,
    ) -> Waited<T> {
        let mut what = pin!(what);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = what.as_mut().poll(cx) {
                return Poll::Ready(Waited::Done(done));
            }
            if self.poll_gone(cx) {
                return Poll::Ready(Waited::Gone);
            }
            match deadline {
                Some(deadline) if client.lane.ticked() > deadline => Poll::Ready(Waited::Late),
                _ => Poll::Pending,
            }
        })
        .await
    }
}

impl Call {
    /// The gateway's own answer instead of an instance's.
    pub(crate) fn refuse(self, own: Own) -> Refused {
        Refused {
            visit: self.visit,
            own,
            asked_head: self.asked_head,
            keeps: self.keeps,
        }
    }
}

/// Reads a head and writes it anew: onward for an instance.
fn understand(
    client: &Client,
    head: &RequestHead<'_>,
    onward: &mut Vec<u8>,
    body: &mut Decoder,
) -> Heard {
    let mut visit = Visit::begin(&client.lane, &client.watched);
    let asked_head = head.method == "HEAD";
    let refused = |visit, own, keeps| {
        Heard::Refused(Refused {
            visit,
            own,
            asked_head,
            keeps,
        })
    };
    *body = Decoder::UntilEnd;
    let facts = match facts(head) {
        Ok(facts) => facts,
        Err(error) => return refused(visit, forward::bad(client, error.to_string()), false),
    };
    *body = match facts.length {
        _ if facts.chunked => Decoder::CHUNKED,
        Some(length) => Decoder::Length(length),
        None => Decoder::Ended,
    };
    let place = match place(head, &facts) {
        Ok(place) => place,
        Err(error) => return refused(visit, forward::bad_host(client, error), false),
    };
    forward::note(client, &mut visit, head.method, &place);
    let keeps = keeps(head, &facts);
    let revision = match forward::route(client, &mut visit, head.method, &place) {
        Ok(revision) => revision,
        Err(own) => return refused(visit, own, keeps && head.method != "CONNECT"),
    };
    let switch = facts.switch().filter(|_| head.minor > 0);
    let onward_head = Onward {
        method: head.method,
        target: &place.target,
        authority: &place.authority,
        facts: &facts,
        framing: framing(head.method, *body),
        upgrade: switch,
    };
    onward.clear();
    write::request(
        onward,
        &onward_head,
        fields::of(head.headers),
        &client.origin,
    );
    Heard::Call(Call {
        visit,
        minor: head.minor,
        asked_head,
        keeps,
        chunked: facts.chunked && revision.route.protocol == Protocol::Http1,
        takes_trailers: facts.takes_trailers,
        switches: switch.is_some(),
        expects: facts.expects && head.minor > 0,
        revision,
    })
}

/// A coding in HTTP/1.0 is a framing error (RFC 9112 §6.1).
fn facts<'a>(head: &RequestHead<'a>) -> Result<Facts<'a>, FramingError> {
    let facts = fields::facts(fields::of(head.headers))?;
    if facts.chunked && head.minor == 0 {
        return Err(FramingError::Coding);
    }
    Ok(facts)
}

fn place<'a>(head: &RequestHead<'a>, facts: &Facts<'a>) -> Result<Place<'a>, host::HostError> {
    if head.method == "CONNECT" {
        return Ok(Place {
            target: head.target.into(),
            authority: facts.host.unwrap_or_default().into(),
        });
    }
    host::place(head.target, facts)
}

/// Whether another request may follow. What has two framings is the last one
/// of its connection (RFC 9112 §6.1).
fn keeps(head: &RequestHead<'_>, facts: &Facts<'_>) -> bool {
    let says = match head.minor {
        0 => facts.keep_alive && !facts.close,
        _ => !facts.close,
    };
    says && !(facts.chunked && facts.length.is_some())
}

/// An empty body is told of methods that usually have one (RFC 9110 §8.6).
fn framing(method: &str, body: Decoder) -> Framing {
    match body {
        Decoder::Chunked(_) => Framing::Chunked,
        Decoder::Length(length @ 1..) => Framing::Length(length),
        _ if matches!(method, "POST" | "PUT" | "PATCH") => Framing::Length(0),
        _ => Framing::None,
    }
}
