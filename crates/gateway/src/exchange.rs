//! One request of an HTTP/1 client with an instance: up and down at once, in
//! one task, from buffer to buffer. It is sent again elsewhere only while no
//! byte of it can have been processed: when connecting failed, or when a kept
//! connection turned out closed before the request was begun.
//!
//! ```text
//!  slot ─▶ link ─▶ Head ─▶ Body ─▶ Flush ─▶ next request
//!    ▲      │       │  └─ 101 ─▶ tunnel
//!    └──────┴───────┘ not begun
//! ```

use std::task::{Context, Poll, ready};

use skiff_base::Monotonic;

use crate::answer::Own;
use crate::forward::{self, Client, INSTANCES_TRIED};
use crate::h1::body::{self, Decoder};
use crate::h1::fields::Facts;
use crate::h1::outbox::Outbox;
use crate::h1::parse::ResponseHead;
use crate::h1::write::{self, Framing, Reply};
use crate::http1::{Call, Conn, Then, UploadError, Waited};
use crate::lane::Word;
use crate::link::{Link, LinkError, Piece};
use crate::orphan::Orphan;
use crate::tunnel;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// A piece of a body up to this size is put behind what waits already, which
/// costs less than a write of its own.
const SMALL: usize = 4 * 1024;

/// What came of one slot.
#[derive(Debug)]
enum Attempt {
    Over(Then),
    /// The gateway answers instead.
    Own(Own),
    /// Nothing of the request was processed.
    Elsewhere,
    /// The client has gone, and the instance goes on with its request.
    Left {
        link: Box<Link>,
        has_head: bool,
        deadline: Monotonic,
    },
}

/// How the exchange on one connection ended.
#[derive(Debug)]
enum Ended {
    /// The answer was sent whole.
    Answered,
    /// Both sides go on in another protocol.
    Switched(Box<Link>),
    /// No byte of the request went out: here it is again.
    NotBegun(Vec<u8>),
    /// Before any of an answer was sent.
    Own(Own),
    /// The client has gone.
    Gone,
    /// Its answer cannot be completed.
    Broken,
}

/// Serves one request.
pub(crate) async fn run(client: &Client, conn: &mut Conn, mut call: Call) -> Then {
    let mut left = INSTANCES_TRIED;
    let own = loop {
        let slot = call.revision.slot(call.visit.arrival);
        match conn.wait(client, None, slot).await {
            Waited::Done(Ok(slot)) => call.visit.enter(slot),
            Waited::Done(Err(refusal)) => break forward::refused(client, refusal),
            Waited::Gone | Waited::Late => return Then::Cut,
        }
        match attempt(client, conn, &mut call).await {
            Attempt::Over(then) => return then,
            Attempt::Own(own) => break own,
            Attempt::Left {
                link,
                has_head,
                deadline,
            } => {
                let orphan = Orphan {
                    link,
                    visit: call.visit,
                    deadline,
                    asked_head: call.asked_head,
                    has_head,
                };
                orphan.start();
                return Then::Cut;
            }
            Attempt::Elsewhere => {
                call.visit.leave();
                left -= 1;
                if left == 0 {
                    break forward::nobody_connects();
                }
                client.lane.shared.metrics.retries.up();
            }
        }
    };
    conn.answer(client, call.refuse(own)).await
}

async fn attempt(client: &Client, conn: &mut Conn, call: &mut Call) -> Attempt {
    let Some(slot) = call.visit.slot() else {
        return Attempt::Elsewhere;
    };
    let deadline = forward::deadline(client, slot);
    client.watched.until(deadline);
    loop {
        let Some(slot) = call.visit.slot() else {
            return Attempt::Elsewhere;
        };
        let link = forward::link(client, slot);
        let (mut link, fresh) = match conn.wait(client, Some(deadline), link).await {
            Waited::Done(Some(link)) => link,
            Waited::Done(None) => return Attempt::Elsewhere,
            Waited::Gone => return Attempt::Over(Then::Cut),
            Waited::Late => return Attempt::Own(forward::too_late(&call.visit)),
        };
        link.begin(&mut conn.head);
        call.visit.reach();
        if std::mem::take(&mut call.expects) && conn.inbox.is_empty() {
            conn.outbox.bytes_mut().extend_from_slice(CONTINUE);
        }
        let uploads = !conn.has_read_body();
        let mut relay = Relay {
            client,
            conn: &mut *conn,
            call: &mut *call,
            link: Some(link),
            deadline,
            uploads,
            deaf: false,
            phase: Phase::Head,
        };
        let ended = std::future::poll_fn(|cx| relay.poll(cx)).await;
        let left = relay.left();
        match ended {
            Ended::Answered if call.keeps && conn.has_read_body() => {
                return Attempt::Over(Then::Next);
            }
            Ended::Answered => return Attempt::Over(Then::Close),
            Ended::Switched(link) => {
                let visit = &mut call.visit;
                tunnel::run(visit, conn, *link, deadline).await;
                return Attempt::Over(Then::Cut);
            }
            Ended::NotBegun(head) => {
                conn.head = head;
                if fresh {
                    return Attempt::Elsewhere;
                }
                client.lane.shared.metrics.retries.up();
            }
            Ended::Own(own) => return Attempt::Own(own),
            Ended::Gone => {
                return match left {
                    Some((link, has_head)) => Attempt::Left {
                        link,
                        has_head,
                        deadline,
                    },
                    None => Attempt::Over(Then::Cut),
                };
            }
            Ended::Broken => return Attempt::Over(Then::Cut),
        }
    }
}

#[derive(Debug)]
struct Relay<'a> {
    client: &'a Client,
    conn: &'a mut Conn,
    call: &'a mut Call,
    /// Until the answer has been read.
    link: Option<Box<Link>>,
    deadline: Monotonic,
    /// The request's body has not been read to its end.
    uploads: bool,
    /// The instance takes no more of the request; it may have answered.
    deaf: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The answer's head has not come.
    Head,
    Body(Framing),
    /// The answer was read and the request is recorded; the rest of it goes out.
    Flush,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if let Some(ended) = self.poll_up(cx) {
            return Poll::Ready(ended);
        }
        if let Poll::Ready(ended) = self.poll_down(cx) {
            return Poll::Ready(ended);
        }
        if !self.uploads && self.conn.poll_gone(cx) {
            return Poll::Ready(Ended::Gone);
        }
        let is_late = self.client.lane.ticked() > self.deadline;
        match self.phase {
            Phase::Head if is_late => Poll::Ready(Ended::Own(forward::too_late(&self.call.visit))),
            Phase::Body(_) if is_late => {
                forward::timed_out(&self.call.visit);
                Poll::Ready(Ended::Broken)
            }
            _ => Poll::Pending,
        }
    }

    /// What the instance goes on with when the client has gone, and whether
    /// it has begun to answer: a whole request.
    fn left(&mut self) -> Option<(Box<Link>, bool)> {
        let outlives = self.call.revision.route.outlives_client && !self.uploads;
        let link = self.link.take()?;
        outlives.then_some((link, self.phase != Phase::Head))
    }

    /// Moves the request on as far as it goes.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Option<Ended> {
        loop {
            let waits = match self.put_body(cx) {
                Ok(waits) => waits,
                Err(error) => return Some(self.no_upload(&error)),
            };
            let link = self.link.as_mut().filter(|_| !self.deaf)?;
            if !self.uploads {
                link.end(None);
            }
            match link.poll_flush(cx) {
                Poll::Ready(Ok(())) if !waits => {}
                Poll::Ready(Ok(())) | Poll::Pending => return None,
                Poll::Ready(Err(_)) => {
                    self.deaf = true;
                    return link.take_back().map(Ended::NotBegun);
                }
            }
        }
    }

    /// Puts what has come of the request's body where there is room. Whether
    /// that was all for now.
    fn put_body(&mut self, cx: &mut Context<'_>) -> Result<bool, UploadError> {
        let Some(link) = self.link.as_mut().filter(|_| !self.deaf) else {
            return Ok(true);
        };
        while self.uploads {
            if link.is_full() {
                return Ok(false);
            }
            let out = link.bytes_mut();
            match self.conn.poll_upload(cx, out, self.call.chunked) {
                Poll::Ready(Ok(Some(bytes))) => self.call.visit.add_in(bytes),
                Poll::Ready(Ok(None)) => self.uploads = false,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(true)
    }

    fn no_upload(&self, error: &UploadError) -> Ended {
        match error {
            UploadError::Bad(cause) if self.phase == Phase::Head => {
                Ended::Own(forward::bad(self.client, format!("{error}: {cause}")))
            }
            UploadError::Gone => Ended::Gone,
            UploadError::Bad(_) => Ended::Broken,
        }
    }

    /// Moves the answer on as far as it goes.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            match self.phase {
                Phase::Head => {
                    if let Some(ended) = ready!(self.poll_head(cx)) {
                        return Poll::Ready(ended);
                    }
                }
                Phase::Body(framing) => {
                    if let Some(ended) = ready!(self.poll_body(cx, framing)) {
                        return Poll::Ready(ended);
                    }
                }
                Phase::Flush => {
                    let sent = ready!(self.conn.outbox.poll_flush(&mut self.conn.io, cx));
                    let ended = sent.map_or(Ended::Gone, |()| Ended::Answered);
                    return Poll::Ready(ended);
                }
            }
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Option<Ended>> {
        let Some(link) = self.link.as_mut() else {
            return Poll::Ready(Some(Ended::Broken));
        };
        // A 100 may wait.
        let io = &mut self.conn.io;
        if let Poll::Ready(Err(_)) = self.conn.outbox.poll_flush(io, cx) {
            return Poll::Ready(Some(Ended::Gone));
        }
        let (client, call, outbox) = (self.client, &mut *self.call, &mut self.conn.outbox);
        let asked_head = call.asked_head;
        let told = link.poll_head(cx, asked_head, |head, facts, body| {
            tell_head(client, call, outbox, head, facts, body)
        });
        match ready!(told) {
            Ok(Told::Body(framing)) => self.phase = Phase::Body(framing),
            Ok(Told::Switch) => {
                return Poll::Ready(self.link.take().map(Ended::Switched));
            }
            Ok(Told::UnaskedSwitch) => {
                return Poll::Ready(Some(Ended::Own(forward::unasked_switch())));
            }
            Err(error) => {
                let again = link.take_back().map(Ended::NotBegun);
                let spoilt = || Ended::Own(forward::spoilt(&self.call.visit, &error));
                return Poll::Ready(Some(again.unwrap_or_else(spoilt)));
            }
        }
        if link.has_ended() {
            self.complete();
        }
        Poll::Ready(None)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, framing: Framing) -> Poll<Option<Ended>> {
        let conn = &mut *self.conn;
        loop {
            let Some(link) = self.link.as_mut() else {
                return Poll::Ready(Some(Ended::Broken));
            };
            if conn.outbox.is_full() && ready!(conn.outbox.poll_flush(&mut conn.io, cx)).is_err() {
                return Poll::Ready(Some(Ended::Gone));
            }
            let piece = match link.poll_piece(cx) {
                Poll::Ready(Ok(piece)) => piece,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(self.broken(&error))),
                Poll::Pending => {
                    return match ready!(conn.outbox.poll_flush(&mut conn.io, cx)) {
                        Ok(()) => Poll::Pending,
                        Err(_) => Poll::Ready(Some(Ended::Gone)),
                    };
                }
            };
            match piece {
                Piece::Data(count) => {
                    let is_last = link.is_last(count);
                    let took = if framing == Framing::Chunked {
                        body::put_chunk(conn.outbox.bytes_mut(), link.data(count));
                        count
                    } else if is_last || count <= SMALL {
                        let out = conn.outbox.bytes_mut();
                        out.extend_from_slice(link.data(count));
                        count
                    } else {
                        let data = link.data(count);
                        match ready!(conn.outbox.poll_send(&mut conn.io, cx, data)) {
                            Ok(sent) => sent,
                            Err(_) => return Poll::Ready(Some(Ended::Gone)),
                        }
                    };
                    self.call.visit.add_out(took);
                    link.took(took);
                    if !is_last {
                        continue;
                    }
                }
                Piece::End(trailers) => {
                    let section = trailers.filter(|_| self.call.takes_trailers);
                    if framing == Framing::Chunked
                        && let Err(error) =
                            body::put_end_of(conn.outbox.bytes_mut(), section.as_deref())
                    {
                        return Poll::Ready(Some(self.broken(&error.into())));
                    }
                }
            }
            self.complete();
            return Poll::Ready(None);
        }
    }

    fn broken(&self, error: &LinkError) -> Ended {
        let instance = self.call.visit.slot().map(|slot| slot.instance.id);
        tracing::debug!(?instance, %error, "an instance broke its answer off");
        Ended::Broken
    }

    /// The answer was read. The connection is kept for the next request and
    /// this one recorded, before the slot is free and the end is sent.
    fn complete(&mut self) {
        if let Some(link) = self.link.take()
            && !self.uploads
            && link.is_reusable()
            && let Some(slot) = self.call.visit.slot()
        {
            self.client.lane.park(&slot.instance, link);
        }
        self.call.visit.finish();
        self.phase = Phase::Flush;
    }
}

/// What a head that was passed on leads to.
enum Told {
    Body(Framing),
    Switch,
    UnaskedSwitch,
}

fn tell_head(
    client: &Client,
    call: &mut Call,
    outbox: &mut Outbox,
    head: &ResponseHead<'_>,
    facts: &Facts<'_>,
    body: Decoder,
) -> Told {
    let switches = head.status == 101;
    if switches && !call.switches {
        return Told::UnaskedSwitch;
    }
    let framing = framing(call, facts, body);
    call.keeps &= framing != Framing::UntilClose && client.watched.word() == Word::GoOn;
    call.visit.status = Some(head.status);
    let timing = forward::tell_cold_start(&call.visit);
    let reply = Reply {
        close: !call.keeps,
        keep_alive: call.minor == 0 && call.keeps,
        upgrade: facts.upgrade.filter(|_| switches),
        is_own: false,
        timing: timing.as_deref(),
        unix_s: client.lane.unix_s(),
    };
    write::response(outbox.bytes_mut(), head, facts, framing, reply);
    if switches {
        Told::Switch
    } else {
        Told::Body(framing)
    }
}

/// How the answer's body is framed for the client.
fn framing(call: &Call, facts: &Facts<'_>, body: Decoder) -> Framing {
    match body {
        Decoder::Length(length) => Framing::Length(length),
        // What the body would have been, had it been asked for.
        Decoder::Ended if call.asked_head && !facts.chunked => {
            facts.length.map_or(Framing::None, Framing::Length)
        }
        Decoder::Ended => Framing::None,
        Decoder::Chunked(_) | Decoder::UntilEnd if call.minor > 0 => Framing::Chunked,
        Decoder::Chunked(_) | Decoder::UntilEnd => Framing::UntilClose,
    }
}
