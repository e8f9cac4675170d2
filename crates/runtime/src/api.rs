//! The Runtime API, the Extensions API and the Telemetry API, as AWS documents
//! them: HTTP/1.1 under `/2018-06-01`, `/2020-01-01` and `/2022-07-01`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::json;
use skiff_base::{Backoff, ByteStream, Listener, Tasks};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::body::{BodyRefusal, whole_from_inside};
use crate::bridge::{Answer, Bridge, Event, ExtensionEvent, SubscribeRefusal};
use crate::machine::{Refusal, Wants};
use crate::trailers::{ERROR_TYPE, StreamError};
use crate::words::{self, ANSWER_BYTES_MAX};

/// Connections of one instance: its runtime's, its extensions', and more.
const CONNECTIONS_MAX: usize = 64;
/// Bodies that are not answers.
const SMALL_BYTES_MAX: usize = 256 * 1024;
/// Pieces of a streamed answer that wait for a slow caller.
const PIECES_MAX: usize = 4;

const RUNTIME: &str = "/2018-06-01/runtime/";
const EXTENSION: &str = "/2020-01-01/extension/";
const TELEMETRY: &str = "/2022-07-01/telemetry";
const LOGS: &str = "/2020-08-15/logs";

const REQUEST_ID: HeaderName = HeaderName::from_static("lambda-runtime-aws-request-id");
const DEADLINE: HeaderName = HeaderName::from_static("lambda-runtime-deadline-ms");
const ARN: HeaderName = HeaderName::from_static("lambda-runtime-invoked-function-arn");
const TRACE: HeaderName = HeaderName::from_static("lambda-runtime-trace-id");
const CLIENT_CONTEXT: HeaderName = HeaderName::from_static("lambda-runtime-client-context");
const RESPONSE_MODE: HeaderName = HeaderName::from_static("lambda-runtime-function-response-mode");
const EXTENSION_NAME: HeaderName = HeaderName::from_static("lambda-extension-name");
const EXTENSION_ID: HeaderName = HeaderName::from_static("lambda-extension-identifier");
const ACCEPT_FEATURE: HeaderName = HeaderName::from_static("lambda-extension-accept-feature");
const EXTENSION_EVENT: HeaderName = HeaderName::from_static("lambda-extension-event-identifier");
const EXTENSION_ERROR: HeaderName = HeaderName::from_static("lambda-extension-function-error-type");

type Answered = Response<Full<Bytes>>;

/// Serves one instance's calls until it is dropped or the bridge was left.
pub(crate) async fn serve(listener: Listener, bridge: Arc<Bridge>) {
    let acceptor = match listener.into_acceptor() {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::error!(%error, "a runtime's socket cannot be served");
            return;
        }
    };
    let connections = Tasks::new();
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    let accepting = async {
        loop {
            // Those beyond the bound wait in the socket's queue.
            let Ok(seat) = seats.clone().acquire_owned().await else {
                return;
            };
            match acceptor.accept().await {
                Ok((stream, _)) => {
                    backoff.reset();
                    let bridge = bridge.clone();
                    connections.spawn("runtime", async move {
                        let _seat = seat;
                        connection(stream, bridge).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "no runtime can be accepted for now");
                    tokio::time::sleep(backoff.next(skiff_base::random::u32())).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = bridge.is_left() => {}
    }
}

async fn connection(stream: ByteStream, bridge: Arc<Bridge>) {
    if let Err(error) = stream.set_nodelay() {
        tracing::debug!(%error, "a runtime's socket has no TCP_NODELAY");
    }
    let service = hyper::service::service_fn(move |request| {
        let bridge = bridge.clone();
        async move { Ok::<_, Infallible>(answer(request, &bridge).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a runtime's connection broke off");
    }
}

async fn answer(request: Request<Incoming>, bridge: &Arc<Bridge>) -> Answered {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if let Some(call) = path.strip_prefix(RUNTIME) {
        return runtime(request, method, call, bridge).await;
    }
    if let Some(call) = path.strip_prefix(EXTENSION) {
        return extension(request, method, call, bridge).await;
    }
    match (method, path.strip_suffix('/').unwrap_or(&path)) {
        (Method::PUT, TELEMETRY) => subscribe(request, bridge).await,
        // Extensions that can do without it go on.
        (Method::PUT, LOGS) => error(
            StatusCode::ACCEPTED,
            "Logs.NotSupported",
            "the Logs API is not served: subscribe to the Telemetry API",
        ),
        (Method::GET, "/ping") => plain(StatusCode::OK, "pong"),
        _ => nothing_there(),
    }
}

async fn runtime(
    request: Request<Incoming>,
    method: Method,
    call: &str,
    bridge: &Arc<Bridge>,
) -> Answered {
    match (method, call) {
        (Method::GET, "invocation/next") => next(bridge).await,
        (Method::POST, "init/error") => {
            let body = match whole_from_inside(request.into_body(), SMALL_BYTES_MAX).await {
                Ok(body) => body,
                Err(refusal) => return not_taken(refusal),
            };
            match bridge.init_error(body).await {
                Ok(()) => accepted(),
                Err(refusal) => refused(refusal),
            }
        }
        (Method::POST, call) => {
            let Some((id, end)) = call
                .strip_prefix("invocation/")
                .and_then(|rest| rest.split_once('/'))
            else {
                return nothing_there();
            };
            match end {
                "response" => respond(request, id, bridge).await,
                "error" => fail(request, id, bridge).await,
                _ => nothing_there(),
            }
        }
        _ => nothing_there(),
    }
}

async fn next(bridge: &Arc<Bridge>) -> Answered {
    let call = match bridge.next() {
        Ok(call) => call,
        Err(refusal) => return refused(refusal),
    };
    match call.event().await {
        Some(event) => of_event(event),
        // The instance ends, or another server takes it over.
        None => closing(StatusCode::GONE, "Runtime.Gone", "no event will come"),
    }
}

fn of_event(event: Event) -> Answered {
    let mut response = Response::new(Full::new(event.body));
    let headers = response.headers_mut();
    // Whatever its sender called it: an event is JSON, and awslambdaric hands
    // anything else to the handler as bytes.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    put(headers, REQUEST_ID, &event.id);
    put(headers, DEADLINE, &event.deadline_unix_ms.to_string());
    put(headers, ARN, &event.arn);
    headers.insert(TRACE, event.trace);
    if let Some(context) = event.client_context {
        headers.insert(CLIENT_CONTEXT, context);
    }
    response
}

/// What was checked when it came in; anything else is left out.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

async fn respond(request: Request<Incoming>, id: &str, bridge: &Arc<Bridge>) -> Answered {
    let streams = match request
        .headers()
        .get(RESPONSE_MODE)
        .map(HeaderValue::as_bytes)
    {
        None => false,
        Some(b"streaming") => true,
        Some(_) => {
            let message = "the response mode is not streaming";
            return error(
                StatusCode::BAD_REQUEST,
                "InvalidFunctionResponseMode",
                message,
            );
        }
    };
    let place = match bridge.begin_answer(id) {
        Ok(place) => place,
        Err(refusal) => return refused(refusal),
    };
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    if streams {
        return stream(request.into_body(), content_type, place).await;
    }
    let (answer, told) = match whole_from_inside(request.into_body(), ANSWER_BYTES_MAX).await {
        Ok(body) => (Answer::Payload { body, content_type }, accepted()),
        Err(BodyRefusal::TooLarge(bytes)) => (
            Answer::Failed(words::too_large(bytes)),
            not_taken(BodyRefusal::TooLarge(bytes)),
        ),
        Err(BodyRefusal::Truncated) => (
            Answer::Failed(words::truncated(id)),
            not_taken(BodyRefusal::Truncated),
        ),
    };
    give(place, answer);
    told
}

async fn fail(request: Request<Incoming>, id: &str, bridge: &Arc<Bridge>) -> Answered {
    let kind = request.headers().get(ERROR_TYPE).cloned();
    let place = match bridge.begin_answer(id) {
        Ok(place) => place,
        Err(refusal) => return refused(refusal),
    };
    let (body, told) = match whole_from_inside(request.into_body(), ANSWER_BYTES_MAX).await {
        Ok(body) => (body, accepted()),
        Err(refusal) => (Bytes::new(), not_taken(refusal)),
    };
    let kind = kind.as_ref().and_then(|kind| kind.to_str().ok());
    let body = match body.is_empty() {
        true => words::error(kind.unwrap_or("Runtime.Unknown"), ""),
        false => body,
    };
    give(place, Answer::Failed(body));
    told
}

/// Passes a streamed answer on, piece by piece. What nobody wants any more is
/// read all the same: the function goes on.
async fn stream(
    mut body: Incoming,
    content_type: Option<HeaderValue>,
    place: Option<oneshot::Sender<Answer>>,
) -> Answered {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let (done, whole) = oneshot::channel();
    let answer = Answer::Stream {
        pieces,
        content_type,
        whole,
    };
    give(place, answer);
    let (ended, told) = pass(&mut body, &sender).await;
    drop(sender);
    if let Some(ended) = ended {
        let _gone = done.send(ended);
    }
    told
}

/// How the answer ended, unless it broke off, and what the runtime is told.
async fn pass(
    body: &mut Incoming,
    pieces: &mpsc::Sender<Bytes>,
) -> (Option<Result<(), StreamError>>, Answered) {
    let mut ended = Ok(());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return (None, not_taken(BodyRefusal::Truncated));
        };
        match frame.into_data() {
            Ok(data) => {
                let _gone = pieces.send(data).await;
            }
            Err(frame) => {
                let failed = frame.trailers_ref().and_then(StreamError::of_runtime);
                ended = failed.map_or(Ok(()), Err);
            }
        }
    }
    (Some(ended), accepted())
}

/// To an invocation that may have run out of time by now.
fn give(place: Option<oneshot::Sender<Answer>>, answer: Answer) {
    if let Some(place) = place {
        let _late = place.send(answer);
    }
}

#[derive(Debug, Deserialize)]
struct Registration {
    #[serde(default)]
    events: Vec<String>,
}

async fn extension(
    request: Request<Incoming>,
    method: Method,
    call: &str,
    bridge: &Arc<Bridge>,
) -> Answered {
    match (method, call) {
        (Method::POST, "register") => register(request, bridge).await,
        (Method::GET, "event/next") => {
            let number = match identifier(request.headers()) {
                Ok(number) => number,
                Err(answer) => return *answer,
            };
            match bridge.extension_next(number) {
                Ok(event) => match event.await {
                    Ok(event) => of_extension_event(event, bridge),
                    Err(_ended) => {
                        closing(StatusCode::GONE, "Extension.Gone", "no event will come")
                    }
                },
                Err(refusal) => refused(refusal),
            }
        }
        (Method::POST, "init/error" | "exit/error") => {
            let number = match identifier(request.headers()) {
                Ok(number) => number,
                Err(answer) => return *answer,
            };
            let kind = match call {
                "init/error" => "Extension.InitError",
                _ => "Extension.ExitError",
            };
            let words = request.headers().get(EXTENSION_ERROR).cloned();
            let words = words.as_ref().and_then(|words| words.to_str().ok());
            let failed = bridge.extension_error(number, kind, words.unwrap_or("unknown"));
            match failed.await {
                Ok(()) => accepted(),
                Err(refusal) => refused(refusal),
            }
        }
        _ => nothing_there(),
    }
}

async fn register(request: Request<Incoming>, bridge: &Arc<Bridge>) -> Answered {
    let name = request.headers().get(EXTENSION_NAME);
    let name = name.and_then(|name| name.to_str().ok()).map(str::to_owned);
    let Some(name) = name.filter(|name| (1..=128).contains(&name.len())) else {
        let message = "the header Lambda-Extension-Name is missing or no name";
        return error(
            StatusCode::FORBIDDEN,
            "Extension.InvalidExtensionName",
            message,
        );
    };
    let features = request.headers().get(ACCEPT_FEATURE);
    let features = features.and_then(|features| features.to_str().ok());
    let mut features = features.unwrap_or_default().split(',');
    let wants_account = features.any(|feature| feature.trim() == "accountId");
    let body = match whole_from_inside(request.into_body(), SMALL_BYTES_MAX).await {
        Ok(body) => body,
        Err(refusal) => return not_taken(refusal),
    };
    let Ok(registration) = serde_json::from_slice::<Registration>(&body) else {
        return error(
            StatusCode::BAD_REQUEST,
            "InvalidRequestFormat",
            "the body is no JSON of events",
        );
    };
    let mut wants = Wants::default();
    for event in &registration.events {
        match event.as_str() {
            "INVOKE" => wants.invoke = true,
            "SHUTDOWN" => wants.shutdown = true,
            _ => {
                let message = "events are INVOKE and SHUTDOWN";
                return error(
                    StatusCode::BAD_REQUEST,
                    "Extension.InvalidEventType",
                    message,
                );
            }
        }
    }
    match bridge.register(&name, wants) {
        Ok(number) => {
            let spec = &bridge.function.spec;
            let mut told = json!({
                "functionName": spec.name,
                "functionVersion": spec.version,
                "handler": spec.handler.as_deref().unwrap_or_default(),
            });
            // arn:aws:lambda:REGION:ACCOUNT:function:NAME
            if wants_account && let Some(account) = spec.arn.split(':').nth(4) {
                told["accountId"] = json!(account);
            }
            let mut response = json_of(StatusCode::OK, &told);
            put(response.headers_mut(), EXTENSION_ID, &id_of(number));
            response
        }
        Err(refusal) => refused(refusal),
    }
}

async fn subscribe(request: Request<Incoming>, bridge: &Arc<Bridge>) -> Answered {
    let number = match identifier(request.headers()) {
        Ok(number) => number,
        Err(answer) => return *answer,
    };
    let body = match whole_from_inside(request.into_body(), SMALL_BYTES_MAX).await {
        Ok(body) => body,
        Err(refusal) => return not_taken(refusal),
    };
    match bridge.subscribe(number, &body) {
        Ok(()) => plain(StatusCode::OK, "OK"),
        Err(SubscribeRefusal::Call(refusal)) => refused(refusal),
        Err(SubscribeRefusal::Closed) => error(
            StatusCode::FORBIDDEN,
            "Telemetry.SubscriptionClosed",
            "extensions subscribe before the first event",
        ),
        Err(SubscribeRefusal::Body(why)) => {
            error(StatusCode::BAD_REQUEST, "ValidationError", &why.to_string())
        }
    }
}

/// An extension's number as a UUID.
fn id_of(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

fn identifier(headers: &HeaderMap) -> Result<u64, Box<Answered>> {
    let refuse = |kind, message| Box::new(error(StatusCode::FORBIDDEN, kind, message));
    let Some(id) = headers.get(EXTENSION_ID) else {
        let message = "the header Lambda-Extension-Identifier is missing";
        return Err(refuse("Extension.MissingExtensionIdentifier", message));
    };
    let id = id.to_str().ok();
    let number = id
        .and_then(|id| id.strip_prefix("00000000-0000-4000-8000-"))
        .and_then(|number| u64::from_str_radix(number, 16).ok());
    number.ok_or_else(|| {
        let message = "the header Lambda-Extension-Identifier is not what register answered";
        refuse("Extension.InvalidExtensionIdentifier", message)
    })
}

fn of_extension_event(event: ExtensionEvent, bridge: &Bridge) -> Answered {
    let (body, id) = match event {
        ExtensionEvent::Invoke(event) => {
            let trace = event.trace.to_str().unwrap_or_default();
            let body = json!({
                "eventType": "INVOKE",
                "deadlineMs": event.deadline_unix_ms,
                "requestId": event.id,
                "invokedFunctionArn": event.arn,
                "tracing": {"type": "X-Amzn-Trace-Id", "value": trace},
            });
            (body, event.id)
        }
        ExtensionEvent::Shutdown {
            reason,
            deadline_unix_ms,
        } => (
            json!({
                "eventType": "SHUTDOWN",
                "shutdownReason": reason.name(),
                "deadlineMs": deadline_unix_ms,
            }),
            words::uuid(),
        ),
    };
    tracing::trace!(instance = %bridge.sandbox.id(), %id, "an extension is told");
    let mut response = json_of(StatusCode::OK, &body);
    put(response.headers_mut(), EXTENSION_EVENT, &id);
    response
}

fn not_taken(refusal: BodyRefusal) -> Answered {
    match refusal {
        BodyRefusal::TooLarge(bytes) => error(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            &format!("Exceeded maximum allowed payload size ({bytes} bytes)."),
        ),
        BodyRefusal::Truncated => closing(
            StatusCode::BAD_REQUEST,
            "TruncatedHTTPRequest",
            "the request's body broke off",
        ),
    }
}

#[derive(Debug, Serialize)]
struct ApiError<'a> {
    #[serde(rename = "errorType")]
    kind: &'a str,
    #[serde(rename = "errorMessage")]
    message: &'a str,
}

fn refused(refusal: Refusal) -> Answered {
    let (status, kind) = match refusal {
        Refusal::RequestId => (StatusCode::BAD_REQUEST, "InvalidRequestID"),
        Refusal::Transition => (StatusCode::FORBIDDEN, "InvalidStateTransition"),
        Refusal::ExtensionId => (
            StatusCode::FORBIDDEN,
            "Extension.UnknownExtensionIdentifier",
        ),
        Refusal::ExtensionRegistration => (StatusCode::FORBIDDEN, "Extension.AlreadyRegistered"),
    };
    error(status, kind, &refusal.to_string())
}

fn error(status: StatusCode, kind: &str, message: &str) -> Answered {
    json_of(status, &ApiError { kind, message })
}

/// An error behind which the connection cannot be used.
fn closing(status: StatusCode, kind: &str, message: &str) -> Answered {
    let mut response = error(status, kind, message);
    let close = HeaderValue::from_static("close");
    response
        .headers_mut()
        .insert(http::header::CONNECTION, close);
    response
}

fn accepted() -> Answered {
    json_of(StatusCode::ACCEPTED, &json!({"status": "OK"}))
}

fn nothing_there() -> Answered {
    plain(StatusCode::NOT_FOUND, "404 page not found")
}

fn plain(status: StatusCode, text: &'static str) -> Answered {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

fn json_of(status: StatusCode, body: &impl Serialize) -> Answered {
    // Maps of strings and numbers always become JSON.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests;
