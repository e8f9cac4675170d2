//! A client's connection of HTTP/2, by hyper, and its streams: each is one
//! request with an instance.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use skiff_base::{ByteStream, Monotonic};
use skiff_types::{Protocol, limits};
use tokio::sync::oneshot;

use crate::answer::{self, Own};
use crate::body::{AnswerBody, Download};
use crate::forward::{self, Client, INSTANCES_TRIED};
use crate::h1::body::{self, Decoder};
use crate::h1::fields::{self, Facts, Field};
use crate::h1::parse::ResponseHead;
use crate::h1::write::{self, Framing, Onward};
use crate::host::{self, Place};
use crate::lane::{Lane, Watched, Word};
use crate::link::{Link, LinkError};
use crate::revision::Revision;
use crate::visit::Visit;

/// Streams at once on one connection.
const STREAMS_MAX: u32 = 128;
/// What one stream buffers before the instance takes it.
const STREAM_WINDOW: u32 = 256 * 1024;
/// What one connection buffers before instances take it.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Without a word from a client before it is asked for one, and then before
/// it is cut.
const PING: Duration = Duration::from_secs(30);

type Answer = Response<AnswerBody>;

/// Serves a connection until it ends.
pub(crate) async fn serve(client: Arc<Client>, stream: ByteStream, watched: &Watched) {
    let streams = Streams(client.lane.clone());
    let service = service_fn(move |request| serve_stream(client.clone(), request));
    let connection = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits::HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(stream), service);
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

/// Runs streams as tasks of the lane.
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

/// A request's body on its way to an instance.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Incoming,
    /// All of it has been put.
    ended: bool,
    chunked: bool,
    /// Where they do not stand behind the chunks.
    trailers: HeaderMap,
}

/// A request under way.
#[derive(Debug)]
struct Call {
    visit: Visit,
    revision: Arc<Revision>,
    asked_head: bool,
    head: Vec<u8>,
    upload: Upload,
}

/// What came of one slot.
enum Attempt {
    Answered(Response<()>, Box<Link>, Monotonic),
    Own(Own),
    /// Nothing of the request was processed.
    Elsewhere,
}

/// Serves one request; always answers.
async fn serve_stream(
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let mut visit = Visit::begin(&client.lane, &client.watched);
    let mut head = Vec::new();
    let (parts, body) = request.into_parts();
    let framing = framing(&parts.method, &body);
    let revision = match understand(&client, &mut visit, &parts, framing, &mut head) {
        Ok(revision) => revision,
        Err(own) => return Ok(refuse(visit, own)),
    };
    let call = Call {
        visit,
        asked_head: parts.method == Method::HEAD,
        head,
        upload: Upload {
            ended: body.is_end_stream(),
            body,
            chunked: framing == Framing::Chunked && revision.route.protocol == Protocol::Http1,
            trailers: HeaderMap::new(),
        },
        revision,
    };
    Ok(run(&client, call).await)
}

fn understand(
    client: &Client,
    visit: &mut Visit,
    parts: &http::request::Parts,
    framing: Framing,
    head: &mut Vec<u8>,
) -> Result<Arc<Revision>, Own> {
    let all = all(&parts.headers);
    let all = all.iter().copied();
    let facts = fields::facts(all.clone()).map_err(|e| forward::bad(client, e.to_string()))?;
    let place = place(parts, &facts).map_err(|error| forward::bad_host(client, error))?;
    let method = parts.method.as_str();
    forward::note(client, visit, method, &place);
    let revision = forward::route(client, visit, method, &place)?;
    let onward = Onward {
        method,
        target: &place.target,
        authority: &place.authority,
        facts: &facts,
        framing,
        upgrade: None,
    };
    write::request(head, &onward, all, &client.origin);
    Ok(revision)
}

fn all(headers: &HeaderMap) -> Vec<Field<'_>> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
        .collect()
}

fn place<'a>(
    parts: &'a http::request::Parts,
    facts: &Facts<'a>,
) -> Result<Place<'a>, host::HostError> {
    if parts.method == Method::CONNECT {
        return Ok(Place {
            target: "".into(),
            authority: facts.host.unwrap_or_default().into(),
        });
    }
    if parts.uri.authority().is_some() {
        return host::of_uri(&parts.uri);
    }
    let target = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    host::place(target, facts)
}

/// An empty body is told of methods that usually have one (RFC 9110 §8.6).
fn framing(method: &Method, body: &Incoming) -> Framing {
    if body.is_end_stream() {
        let usual = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        return if usual {
            Framing::Length(0)
        } else {
            Framing::None
        };
    }
    match body.size_hint().exact() {
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    }
}

/// The gateway's own answer ends the visit.
fn refuse(mut visit: Visit, own: Own) -> Answer {
    visit.status = Some(own.status.as_u16());
    visit.finish();
    own_answer(&own)
}

fn own_answer(own: &Own) -> Answer {
    let mut response = Response::new(AnswerBody::text(own));
    *response.status_mut() = own.status;
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(http::header::CONTENT_TYPE, text);
    if let Some(seconds) = own.retry_after_s {
        headers.insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}

async fn run(client: &Arc<Client>, mut call: Call) -> Answer {
    let mut left = INSTANCES_TRIED;
    let own = loop {
        match call.revision.slot(call.visit.arrival).await {
            Ok(slot) => call.visit.enter(slot),
            Err(refusal) => break forward::refused(client, refusal),
        }
        let attempted = match call.revision.route.outlives_client {
            true => match attempt_alone(client, call).await {
                Some((back, attempted)) => {
                    call = back;
                    attempted
                }
                None => return own_answer(&stopping()),
            },
            false => attempt(client, &mut call).await,
        };
        match attempted {
            Attempt::Answered(response, link, deadline) => {
                return respond(call, response, link, deadline);
            }
            Attempt::Own(own) => break own,
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
    refuse(call.visit, own)
}

/// An attempt that its client's going does not end; `None` when the gateway
/// stops.
async fn attempt_alone(client: &Arc<Client>, mut call: Call) -> Option<(Call, Attempt)> {
    let (sender, attempted) = oneshot::channel();
    let own = client.clone();
    client.lane.tasks.spawn("request", async move {
        let attempted = attempt(&own, &mut call).await;
        let unsent = sender.send((call, attempted));
        if let Err((mut call, Attempt::Answered(_, link, deadline))) = unsent {
            call.visit.status = None;
            let mut download = Download::new(link, call.upload, call.visit, deadline);
            download.read_over().await;
        }
    });
    attempted.await.ok()
}

fn stopping() -> Own {
    answer::later(
        StatusCode::SERVICE_UNAVAILABLE,
        1,
        "the gateway is stopping",
    )
}

async fn attempt(client: &Client, call: &mut Call) -> Attempt {
    let Some(slot) = call.visit.slot() else {
        return Attempt::Elsewhere;
    };
    let deadline = forward::deadline(client, slot);
    let left = Duration::from_millis(slot.revision.route.timeout_ms);
    match tokio::time::timeout(left, exchange(client, call, deadline)).await {
        Ok(attempt) => attempt,
        Err(_) => Attempt::Own(forward::too_late(&call.visit)),
    }
}

async fn exchange(client: &Client, call: &mut Call, deadline: Monotonic) -> Attempt {
    loop {
        let Some(slot) = call.visit.slot() else {
            return Attempt::Elsewhere;
        };
        let Some((mut link, fresh)) = forward::link(client, slot).await else {
            return Attempt::Elsewhere;
        };
        link.begin(&mut call.head);
        call.visit.reach();
        let told = std::future::poll_fn(|cx| poll_head(&mut link, call, cx)).await;
        match told {
            Ok(Some(response)) => return Attempt::Answered(response, link, deadline),
            Ok(None) => return Attempt::Own(forward::unasked_switch()),
            Err(LinkError::Upload) => {
                let line = "the request's body broke off".to_owned();
                return Attempt::Own(forward::bad(client, line));
            }
            Err(error) => match link.take_back() {
                Some(head) => {
                    call.head = head;
                    if fresh {
                        return Attempt::Elsewhere;
                    }
                    client.lane.shared.metrics.retries.up();
                }
                None => return Attempt::Own(forward::spoilt(&call.visit, &error)),
            },
        }
    }
}

/// Moves the request on, and waits for the answer's head; `None` when that
/// switches protocols.
fn poll_head(
    link: &mut Link,
    call: &mut Call,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Response<()>>, LinkError>> {
    if let Poll::Ready(Err(error)) = call.upload.poll(link, &mut call.visit, cx) {
        // It may have answered before it closed, but not what was not begun.
        if link.is_whole() || matches!(error, LinkError::Upload) {
            return Poll::Ready(Err(error));
        }
    }
    let visit = &mut call.visit;
    let asked_head = call.asked_head;
    link.poll_head(cx, asked_head, |head, facts, body| {
        (head.status != 101).then(|| tell(visit, asked_head, head, facts, body))
    })
}

fn tell(
    visit: &mut Visit,
    asked_head: bool,
    head: &ResponseHead<'_>,
    facts: &Facts<'_>,
    body: Decoder,
) -> Response<()> {
    visit.status = Some(head.status);
    let mut response = Response::new(());
    // httparse lets only three digits through.
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = write::headers(head, facts);
    let length = match body {
        Decoder::Length(length) => Some(length),
        Decoder::Ended if asked_head && !facts.chunked => facts.length,
        _ => None,
    };
    let headers = response.headers_mut();
    if let Some(length) = length {
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    if let Some(timing) = forward::tell_cold_start(visit)
        && let Ok(value) = HeaderValue::from_str(&timing)
    {
        headers.insert("server-timing", value);
    }
    response
}

fn respond(call: Call, response: Response<()>, link: Box<Link>, deadline: Monotonic) -> Answer {
    let lane = call.visit.lane.clone();
    let download = Download::new(link, call.upload, call.visit, deadline);
    response.map(|()| download.start(&lane))
}

impl Upload {
    /// Puts what has come where there is room, and sends it. Ready when all
    /// has gone out.
    pub(crate) fn poll(
        &mut self,
        link: &mut Link,
        visit: &mut Visit,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), LinkError>> {
        loop {
            let waits = self.put(link, visit, cx)?;
            if self.ended {
                link.end(Some(&self.trailers));
            }
            match link.poll_flush(cx)? {
                Poll::Ready(()) if self.ended => return Poll::Ready(Ok(())),
                Poll::Ready(()) if !waits => {}
                Poll::Ready(()) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether that was all for now.
    fn put(
        &mut self,
        link: &mut Link,
        visit: &mut Visit,
        cx: &mut Context<'_>,
    ) -> Result<bool, LinkError> {
        while !self.ended {
            if link.is_full() {
                return Ok(false);
            }
            let out = link.bytes_mut();
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.end(out, std::iter::empty()),
                Poll::Ready(Some(Err(_))) => return Err(LinkError::Upload),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.put_data(out, visit, &data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        let may = all(&trailers).into_iter();
                        self.end(out, may.filter(|(name, _)| body::may_trail(name)));
                    }
                },
            }
        }
        Ok(true)
    }

    fn put_data(&mut self, out: &mut Vec<u8>, visit: &mut Visit, data: &Bytes) {
        visit.add_in(data.len());
        if self.chunked && !data.is_empty() {
            body::put_chunk(out, data);
        } else {
            out.extend_from_slice(data);
        }
        if self.body.is_end_stream() {
            self.end(out, std::iter::empty());
        }
    }

    fn end<'a>(&mut self, out: &mut Vec<u8>, trailers: impl Iterator<Item = Field<'a>>) {
        if self.chunked {
            body::put_end(out, trailers);
        } else {
            self.trailers = map(trailers);
        }
        self.ended = true;
    }
}

fn map<'a>(fields: impl Iterator<Item = Field<'a>>) -> HeaderMap {
    fields
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name).ok()?;
            Some((name, HeaderValue::from_bytes(value).ok()?))
        })
        .collect()
}
