//! Invocations: from an event to the revision that serves it, and back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::de::IgnoredAny;
use serde_json::json;
use skiff_lambda::{Code, FunctionRef, LambdaError, Qualifier};
use skiff_types::ProjectId;
use skiff_types::invocation::{
    EXECUTED_VERSION, FUNCTION_ERROR, LOG_BYTES_MAX, LOG_RESULT, LOG_TYPE,
};

use super::cache::View;
use super::call::{Call, Reply, invalid};
use super::links::{Link, LinkError, ended_early};
use super::policies::allows;
use super::sign::EVENT_BYTES_MAX;
use super::streamed::{Told, UNHANDLED};
use super::{Front, not_yours};
use crate::control::ServiceKey;
use crate::traffic::revision_id;

/// What a function may answer, bytes (AWS's limit).
const ANSWER_BYTES_MAX: usize = 6 * 1024 * 1024 + 100;
/// The longest timeout, twice for a slow init, the queue, and a minute for the
/// gateway to say why: it and who hands an instance its events end it earlier.
pub(crate) const DEADLINE: Duration = Duration::from_secs(900 * 2 + 30 + 60);
/// Of a role's ARN in a log.
const ROLE_CHARS_SHOWN: usize = 256;
pub(crate) const CLIENT_CONTEXT_BYTES_MAX: usize = 3583;
const PATH: &str = "/2015-03-31/functions/function/invocations";

pub(crate) const CLIENT_CONTEXT: &str = "x-amz-client-context";
pub(crate) const TRACE_ID: &str = "x-amzn-trace-id";

pub(crate) type Running = Arc<Mutex<HashMap<ServiceKey, u32>>>;

/// Where an invocation goes.
#[derive(Debug)]
pub(crate) struct Way {
    pub key: ServiceKey,
    revision: u32,
    /// `$LATEST` or a number.
    pub version: String,
    pub arn: String,
    pub timeout_s: u32,
    role: String,
    pub reserved: Option<u32>,
}

/// What an instance is told of an invocation.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub request_id: String,
    pub payload: Bytes,
    /// Headers, and what they say: the caller's, and what is asked of the gateway.
    pub told: Vec<(&'static str, String)>,
}

impl Invocation {
    /// Asks for what is told behind a streamed answer.
    pub(crate) fn with_trailers(mut self) -> Self {
        self.told.push(("te", "trailers".to_owned()));
        self
    }
}

/// The function has not answered.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub error: LambdaError,
    /// No byte of the event can have been processed.
    pub is_untouched: bool,
}

impl From<Unanswered> for LambdaError {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.error
    }
}

/// One invocation of a function with a reservation; dropping ends it.
#[derive(Debug)]
pub(crate) struct Place {
    key: ServiceKey,
    running: Running,
}

impl Place {
    pub(crate) fn take(running: &Running, way: &Way) -> Result<Option<Self>, LambdaError> {
        let Some(most) = way.reserved else {
            return Ok(None);
        };
        let mut counts = running.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(way.key.clone()).or_default();
        if *count >= most {
            let reason = "ReservedFunctionConcurrentInvocationLimitExceeded";
            let message = format!("Rate Exceeded: {most} invocations at once are reserved");
            return Err(LambdaError::throttled(reason, message));
        }
        *count += 1;
        Ok(Some(Self {
            key: way.key.clone(),
            running: Arc::clone(running),
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

impl Front {
    pub(crate) async fn invoke(&self, call: &mut Call, text: &str) -> Result<Reply, LambdaError> {
        let way = self.way(call, text).await?;
        match call.header("x-amz-invocation-type") {
            None | Some("RequestResponse") => {}
            Some("Event") => return self.accept_event(call, way, text).await,
            Some("DryRun") => {
                let mut reply = Reply::empty();
                set(&mut reply.headers, EXECUTED_VERSION, &way.version);
                return Ok(reply);
            }
            Some(_) => {
                return Err(invalid(
                    "X-Amz-Invocation-Type: RequestResponse, Event and DryRun are served",
                ));
            }
        }
        let _place = Place::take(&self.running, &way)?;
        let invocation = invocation(call, EVENT_BYTES_MAX)?;
        Ok(self.answered(&way, invocation).await?)
    }

    /// The function's answer, whatever it is.
    pub(crate) async fn answered(
        &self,
        way: &Way,
        invocation: Invocation,
    ) -> Result<Reply, Unanswered> {
        let id = invocation.request_id.clone();
        let invocation = invocation.with_trailers();
        let invoked = tokio::time::timeout(DEADLINE, async {
            let (response, link) = self.send(way, invocation).await?;
            let (parts, body) = response.into_parts();
            let read = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            if read.is_ok() {
                self.links.keep(link);
            }
            Ok::<_, Unanswered>((parts, read))
        });
        let (parts, read) = match invoked.await {
            Ok(answered) => answered?,
            Err(_) => return Ok(timed_out(&id, way)),
        };
        let read = match read {
            Ok(read) => read,
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return Ok(failed(
                    way,
                    &json!({
                        "errorType": "Function.ResponseSizeTooLarge",
                        "errorMessage": format!(
                            "Response payload size exceeded maximum allowed payload size ({ANSWER_BYTES_MAX} bytes)."
                        ),
                    }),
                ));
            }
            Err(_) => return Ok(exited(&id, way, "its answer ended early")),
        };
        let told = read.trailers().map(Told::of).unwrap_or_default();
        let body = read.to_bytes();
        if parts.status != StatusCode::OK {
            return refused(&id, way, &parts, &body);
        }
        let mut reply = Reply {
            status: StatusCode::OK,
            headers: function_headers(&parts.headers, way),
            body: Body::from(body),
        };
        told.tell(&mut reply);
        let json = HeaderValue::from_static("application/json");
        reply.headers.insert(http::header::CONTENT_TYPE, json);
        self.warn_of_role(way, &mut reply.headers);
        Ok(reply)
    }

    pub(crate) async fn send(
        &self,
        way: &Way,
        invocation: Invocation,
    ) -> Result<(Response<Incoming>, Link), Unanswered> {
        let request = request(invocation, way).map_err(|error| Unanswered {
            error,
            is_untouched: true,
        })?;
        let sent = self.links.hand_in(&*self.revisions, request).await;
        sent.map_err(broken)
    }

    /// Says at a log's end that its function has no credentials.
    fn warn_of_role(&self, way: &Way, headers: &mut HeaderMap) {
        let log = headers.get(LOG_RESULT).and_then(|log| log.to_str().ok());
        if let Some(log) = log
            && let Some(warning) = self.warning_of_role(way)
            && let Some(log) = with_warning(log, &warning)
        {
            set(headers, LOG_RESULT, &log);
        }
    }

    /// What a log says of a function that has no credentials.
    pub(crate) fn warning_of_role(&self, way: &Way) -> Option<String> {
        let config = &self.control.inner.base.config;
        if config.role(&way.key.0, &way.role).is_some() {
            return None;
        }
        let role: String = way.role.chars().take(ROLE_CHARS_SHOWN).collect();
        Some(format!(
            "WARN no credentials for the role {role}: [roles.\"ARN\"] in the server's configuration gives a role of this project some\n"
        ))
    }

    /// Which revision an invocation is for, if the caller may make it.
    pub(crate) async fn way(&self, call: &Call, text: &str) -> Result<Way, LambdaError> {
        let target = self.named(call, text)?;
        let owner = target
            .account
            .clone()
            .unwrap_or_else(|| call.project.id.clone());
        let is_own = owner == call.project.id;
        let view = self.control.function_view(&owner, &target.name).await;
        let view = match view {
            Err(error) if !is_own && error.code == Code::ResourceNotFound => {
                return Err(not_yours());
            }
            view => view?,
        };
        if !is_own && !allows(&view.record, target.qualifier.as_ref(), &call.project.id) {
            return Err(not_yours());
        }
        self.way_to(owner, target, &view)
    }

    /// Which revision serves a function of this project now.
    pub(crate) fn way_to(
        &self,
        owner: ProjectId,
        target: FunctionRef,
        view: &View,
    ) -> Result<Way, LambdaError> {
        let chosen = choose(view, &target)?;
        let arns = self.arns(&owner);
        let arn = arns.named(&target.name, target.qualifier.as_ref());
        Ok(Way {
            key: (owner, target.name.service().clone()),
            revision: chosen.revision,
            version: chosen.version,
            arn,
            timeout_s: chosen.timeout_s,
            role: chosen.role,
            reserved: view.record.reserved_concurrency,
        })
    }
}

/// What serves an invocation.
struct Chosen {
    version: String,
    revision: u32,
    timeout_s: u32,
    role: String,
}

/// The version and the revision that a qualifier leads to, by weight.
fn choose(view: &View, target: &FunctionRef) -> Result<Chosen, LambdaError> {
    let missing = || super::state::missing(&target.name);
    let inactive = || {
        let message = format!("the function {} is not Active yet", target.name);
        LambdaError::new(Code::ResourceConflict, message)
    };
    let latest = || {
        let revision = view.latest.ok_or_else(inactive)?;
        Ok(Chosen {
            version: "$LATEST".to_owned(),
            revision,
            timeout_s: view.record.latest.timeout_s,
            role: view.record.latest.role.clone(),
        })
    };
    let number = match &target.qualifier {
        None | Some(Qualifier::Latest) => return latest(),
        Some(Qualifier::Version(number)) => *number,
        Some(Qualifier::Alias(name)) => {
            let alias = view.record.aliases.get(name).ok_or_else(missing)?;
            let drawn = f64::from(skiff_base::random::u32()) / (f64::from(u32::MAX) + 1.0);
            match (alias.second, alias.version.parse()) {
                (Some((second, weight)), _) if drawn < weight => second,
                (_, Ok(number)) => number,
                (_, Err(_)) => return latest(),
            }
        }
    };
    let version = match view.record.versions.get(&number) {
        Some(version) => version,
        None if view.record.publishing == Some(number) => return Err(inactive()),
        None => return Err(missing()),
    };
    Ok(Chosen {
        version: number.to_string(),
        revision: version.revision,
        timeout_s: version.timeout_s,
        role: version.role.clone(),
    })
}

/// What a call tells an instance, whose payload has a limit and keeps its room.
pub(crate) fn invocation(call: &mut Call, bytes_max: usize) -> Result<Invocation, LambdaError> {
    if call.body.len() > bytes_max {
        let message = format!("Request must be smaller than {bytes_max} bytes");
        return Err(LambdaError::new(Code::RequestTooLarge, message));
    }
    let payload = match std::mem::take(&mut call.body) {
        none if none.is_empty() => Bytes::from_static(b"{}"),
        body => match call.room.take() {
            Some(room) => room.hold(body),
            None => Bytes::from(body),
        },
    };
    serde_json::from_slice::<IgnoredAny>(&payload).map_err(|error| {
        let message = format!("Could not parse request body into json: {error}");
        LambdaError::new(Code::InvalidRequestContent, message)
    })?;
    let mut told = Vec::new();
    for name in [LOG_TYPE, CLIENT_CONTEXT, TRACE_ID] {
        let Some(value) = call.headers.get(name) else {
            continue;
        };
        if value.len() > CLIENT_CONTEXT_BYTES_MAX {
            return Err(invalid(format!(
                "{name} is over {CLIENT_CONTEXT_BYTES_MAX} bytes"
            )));
        }
        let text = value.to_str();
        let text = text.map_err(|_| invalid(format!("{name} is not visible ASCII")))?;
        told.push((name, text.to_owned()));
    }
    Ok(Invocation {
        request_id: call.request_id.clone(),
        payload,
        told,
    })
}

/// The event as an instance gets it.
fn request(invocation: Invocation, way: &Way) -> Result<Request<Full<Bytes>>, LambdaError> {
    let id = revision_id(&way.key.0, &way.key.1, way.revision);
    let mut request = Request::builder()
        .method("POST")
        .uri(PATH)
        .header("host", format!("{}.{}", id.name(), way.key.0))
        .header("content-type", "application/json")
        .header("x-amz-request-id", &invocation.request_id)
        .header("x-amz-invoked-arn", &way.arn);
    for (name, value) in invocation.told {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(invocation.payload));
    request.map_err(|error| LambdaError::new(Code::Service, format!("no event: {error}")))
}

fn broken(error: LinkError) -> Unanswered {
    let message = skiff_base::chain(&error).to_string();
    tracing::error!(error = %message, "an event did not reach the gateway");
    Unanswered {
        error: LambdaError::new(Code::Service, message),
        is_untouched: matches!(error, LinkError::Connect(_)),
    }
}

/// A log's end, base 64, and a line behind it.
pub(crate) fn with_warning(log: &str, warning: &str) -> Option<String> {
    let mut log = STANDARD.decode(log).ok()?;
    log.extend_from_slice(warning.as_bytes());
    let from = log.len().saturating_sub(LOG_BYTES_MAX);
    Some(STANDARD.encode(&log[from..]))
}

/// What the function's answer says beside its body.
fn function_headers(answered: &HeaderMap, way: &Way) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in [FUNCTION_ERROR, LOG_RESULT] {
        if let Some(value) = answered.get(name) {
            headers.insert(name, value.clone());
        }
    }
    set(&mut headers, EXECUTED_VERSION, &way.version);
    headers
}

/// Values are ours, and visible ASCII.
pub(crate) fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A function's answer is 200: everything else is the gateway's own, or of who
/// hands an instance its events.
pub(crate) fn refused(id: &str, way: &Way, head: &Parts, text: &[u8]) -> Result<Reply, Unanswered> {
    let status = head.status;
    let text: String = String::from_utf8_lossy(text)
        .trim()
        .chars()
        .take(500)
        .collect();
    let error = match status {
        StatusCode::GATEWAY_TIMEOUT => return Ok(timed_out(id, way)),
        StatusCode::BAD_GATEWAY => return Ok(exited(id, way, &text)),
        _ if ended_early(status, &head.headers) => LambdaError::new(Code::Service, text),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let reason = match way.reserved {
                Some(_) => "ReservedFunctionConcurrentInvocationLimitExceeded",
                None => "ConcurrentInvocationLimitExceeded",
            };
            LambdaError::throttled(reason, format!("Rate Exceeded: {text}"))
        }
        StatusCode::BAD_REQUEST => LambdaError::new(Code::InvalidRequestContent, text),
        StatusCode::PAYLOAD_TOO_LARGE => LambdaError::new(Code::RequestTooLarge, text),
        _ => {
            let message = format!("the function was not reached ({}): {text}", status.as_u16());
            LambdaError::new(Code::Service, message)
        }
    };
    let is_untouched = matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    Err(Unanswered {
        error,
        is_untouched,
    })
}

fn timed_out(id: &str, way: &Way) -> Reply {
    let message = format!("{id} Task timed out after {}.00 seconds", way.timeout_s);
    failed(
        way,
        &json!({"errorType": "Sandbox.Timedout", "errorMessage": message}),
    )
}

fn exited(id: &str, way: &Way, why: &str) -> Reply {
    let message = format!("RequestId: {id} Error: Runtime exited: {why}");
    failed(
        way,
        &json!({"errorType": "Runtime.ExitError", "errorMessage": message}),
    )
}

fn failed(way: &Way, body: &serde_json::Value) -> Reply {
    let mut reply = Reply::json(StatusCode::OK, body.clone());
    set(&mut reply.headers, FUNCTION_ERROR, UNHANDLED);
    set(&mut reply.headers, EXECUTED_VERSION, &way.version);
    reply
}
