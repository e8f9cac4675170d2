//! The gateway's side: each request on a connection is an invocation.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER, TE, TRAILER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use skiff_base::Tasks;
use skiff_types::limits::EVENT_BYTES_MAX;
use skiff_types::{FunctionSpec, invocation};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};

use crate::body::{BodyRefusal, whole};
use crate::bridge::{Bridge, Event, Invocation, Outcome, Reply};
use crate::trailers::{Ending, StreamError};
use crate::{cloudevents, words};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const CLIENT_CONTEXT: HeaderName = HeaderName::from_static("x-amz-client-context");
const LOG_TYPE: HeaderName = HeaderName::from_static(invocation::LOG_TYPE);
const LOG_RESULT: HeaderName = HeaderName::from_static(invocation::LOG_RESULT);
const TRACE: HeaderName = HeaderName::from_static("x-amzn-trace-id");
const INVOKED_ARN: HeaderName = HeaderName::from_static("x-amz-invoked-arn");
const FUNCTION_ERROR: HeaderName = HeaderName::from_static(invocation::FUNCTION_ERROR);
const EXECUTED_VERSION: HeaderName = HeaderName::from_static(invocation::EXECUTED_VERSION);
const RETURN_EVENT: HeaderName = HeaderName::from_static(invocation::RETURN_EVENT);

/// A client context, decoded (AWS's bound).
const CONTEXT_BYTES_MAX: usize = 3583;

/// Serves one connection of the gateway's.
pub(crate) async fn serve(stream: DuplexStream, bridge: Arc<Bridge>, tasks: Tasks) {
    let serving = bridge.clone();
    let service = hyper::service::service_fn(move |request| {
        let (bridge, tasks) = (serving.clone(), tasks.clone());
        async move { Ok::<_, Infallible>(answer(request, bridge, &tasks).await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        // An idle connection closes; a request in it is still answered.
        () = bridge.takes_no_more() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a request of a function broke off");
    }
}

type Answered = Response<Either<Full<Bytes>, Pieces>>;

async fn answer(request: Request<Incoming>, bridge: Arc<Bridge>, tasks: &Tasks) -> Answered {
    if request.method() != Method::POST {
        let mut refused = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "a function takes its events by POST",
        );
        let post = HeaderValue::from_static("POST");
        refused.headers_mut().insert(ALLOW, post);
        return refused;
    }
    let takes_trailers = takes_trailers(request.headers());
    let takes_back = request.headers().contains_key(RETURN_EVENT);
    let invocation = match invocation(request, &bridge.function.spec, bridge.unix_s()).await {
        Ok(invocation) => invocation,
        Err(refused) => return *refused,
    };
    let id = invocation.event.id.clone();
    let is_cloud_event = invocation.is_cloud_event;
    let version = bridge.function.spec.version.clone();
    let (reply, outcome) = oneshot::channel();
    tasks.spawn("invocation", async move {
        bridge.invoke(invocation, reply).await;
    });
    let mut response = match outcome.await {
        // What a CloudEvent has become is not what was sent.
        Ok(Outcome {
            reply: Reply::Gone(event),
            ..
        }) if takes_back && !is_cloud_event => returned(event),
        // Whoever sends CloudEvents knows no end of an answer but a break.
        Ok(outcome) => told(outcome, takes_trailers && !is_cloud_event),
        Err(_cut_off) => gone(),
    };
    if is_cloud_event && response.headers().contains_key(FUNCTION_ERROR) {
        // Its sender knows no other sign to send it again by.
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    if let Ok(version) = HeaderValue::from_str(&version) {
        headers.insert(EXECUTED_VERSION, version);
    }
    response
}

async fn invocation(
    request: Request<Incoming>,
    spec: &FunctionSpec,
    unix_s: u64,
) -> Result<Invocation, Box<Answered>> {
    let (head, body) = request.into_parts();
    let headers = &head.headers;
    let id = given(headers, &REQUEST_ID).filter(|id| words::is_uuid(id));
    // Whoever may call may call by any of the function's own names, so that
    // nobody needs to be trusted with more than that.
    let trace = headers.get(TRACE).cloned();
    let arn = given(headers, &INVOKED_ARN).filter(|arn| spec.is_named_by(arn));
    let event = Event {
        id: id.map_or_else(words::uuid, str::to_owned),
        body: Bytes::new(),
        deadline_unix_ms: 0,
        arn: arn.unwrap_or(&spec.arn).to_owned(),
        trace: trace.unwrap_or_else(|| words::trace(unix_s)),
        client_context: client_context(headers)?,
    };
    let wants_log = given(headers, &LOG_TYPE).is_some_and(|kind| kind == "Tail");
    let body = whole(body, EVENT_BYTES_MAX).await.map_err(not_taken)?;
    let cloud_event = cloudevents::event(headers, &body)
        .map_err(|error| Box::new(text(StatusCode::BAD_REQUEST, &error.to_string())))?;
    let is_cloud_event = cloud_event.is_some();
    let body = cloud_event.unwrap_or(body);
    if body.len() > EVENT_BYTES_MAX {
        return Err(Box::new(too_large()));
    }
    Ok(Invocation {
        event: Event { body, ..event },
        wants_log,
        is_cloud_event,
    })
}

/// As the gateway says it on. Anything else hyper would not take for that.
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get(TE).is_some_and(|te| te == "trailers")
}

fn given<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The context as JSON, which is what a runtime is told.
fn client_context(headers: &HeaderMap) -> Result<Option<HeaderValue>, Box<Answered>> {
    let Some(encoded) = headers.get(&CLIENT_CONTEXT) else {
        return Ok(None);
    };
    let decoded = STANDARD.decode(encoded.as_bytes()).ok();
    let json = decoded.filter(|json| json.len() <= CONTEXT_BYTES_MAX);
    let json = json.and_then(|json| serde_json::from_slice::<Value>(&json).ok());
    // Written anew: it may have come in lines, which no header has.
    let json = json.filter(Value::is_object).map(|json| json.to_string());
    let value = json.and_then(|json| HeaderValue::from_bytes(json.as_bytes()).ok());
    match value {
        Some(value) => Ok(Some(value)),
        None => Err(Box::new(text(
            StatusCode::BAD_REQUEST,
            "x-amz-client-context is not the base64 of a JSON object of at most 3583 bytes",
        ))),
    }
}

fn not_taken(refusal: BodyRefusal) -> Box<Answered> {
    Box::new(match refusal {
        BodyRefusal::TooLarge(_) => too_large(),
        BodyRefusal::Truncated => text(StatusCode::BAD_REQUEST, "the event broke off"),
    })
}

fn too_large() -> Answered {
    let line = format!("an event has at most {EVENT_BYTES_MAX} bytes");
    let mut refused = text(StatusCode::PAYLOAD_TOO_LARGE, &line);
    close(&mut refused);
    refused
}

fn told(outcome: Outcome, takes_trailers: bool) -> Answered {
    let mut response = match outcome.reply {
        Reply::Payload { body, content_type } => of(Either::Left(Full::new(body)), content_type),
        Reply::Stream {
            pieces,
            content_type,
            ending,
        } => {
            let pieces = Pieces {
                pieces,
                ending: Some(ending),
                takes_trailers,
            };
            let mut response = of(Either::Right(pieces), content_type);
            if takes_trailers {
                response.headers_mut().insert(TRAILER, Ending::names());
            }
            response
        }
        Reply::Failed(body) => {
            let mut response = of(Either::Left(Full::new(body)), None);
            let unhandled = HeaderValue::from_static("Unhandled");
            response.headers_mut().insert(FUNCTION_ERROR, unhandled);
            response
        }
        Reply::Gone(_) => gone(),
    };
    if let Some(log) = outcome.log
        && let Ok(log) = HeaderValue::from_str(&STANDARD.encode(log))
    {
        response.headers_mut().insert(LOG_RESULT, log);
    }
    if outcome.last {
        close(&mut response);
    }
    response
}

fn of(body: Either<Full<Bytes>, Pieces>, content_type: Option<HeaderValue>) -> Answered {
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(json));
    response
}

/// The event reached no runtime: it can be sent again.
fn gone() -> Answered {
    let line = "the function's instance ended before the event reached it";
    unreached(text(StatusCode::SERVICE_UNAVAILABLE, line))
}

/// The same to who wants it back.
fn returned(event: Bytes) -> Answered {
    let mut response = of(Either::Left(Full::new(event)), None);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(RETURN_EVENT, HeaderValue::from_static("true"));
    unreached(response)
}

fn unreached(mut response: Answered) -> Answered {
    let soon = HeaderValue::from_static("1");
    response.headers_mut().insert(RETRY_AFTER, soon);
    close(&mut response);
    response
}

fn text(status: StatusCode, line: &str) -> Answered {
    let body = Bytes::from(format!("{line}\n"));
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

fn close(response: &mut Answered) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
}

/// A streamed answer. Its ending is told in trailers to who takes them; for
/// anybody else an error breaks it off where it stands.
#[derive(Debug)]
pub(crate) struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    /// Until it is known.
    ending: Option<oneshot::Receiver<Ending>>,
    takes_trailers: bool,
}

/// Why a streamed answer breaks off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenOff {
    #[error(transparent)]
    Failed(StreamError),
    #[error("what served the invocation has ended")]
    CutOff,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if let Some(piece) = ready!(self.pieces.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(ending) = &mut self.ending else {
            return Poll::Ready(None);
        };
        let ended = ready!(Pin::new(ending).poll(cx));
        self.ending = None;
        Poll::Ready(match ended {
            Ok(ending) if self.takes_trailers => {
                let trailers = Some(ending.trailers()).filter(|told| !told.is_empty());
                trailers.map(|trailers| Ok(Frame::trailers(trailers)))
            }
            Ok(ending) => ending.error.map(|error| Err(BrokenOff::Failed(error))),
            Err(_dropped) => Some(Err(BrokenOff::CutOff)),
        })
    }
}

#[cfg(test)]
mod tests;
