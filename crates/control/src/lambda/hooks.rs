//! Hooks: events of servers of S3's kind, as webhooks.
//!
//! ```text
//!  request ─ hook and token? ─ body ─ event of S3's kind? ─ policy? ─ room? ─▶ log, synced ─▶ 202
//!                 403           413           400             403      429
//! ```
//! What was answered 202 is an event like any other. Who looks whether
//! somebody listens, by HEAD, GET, OPTIONS or a test event, gets a 200.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use skiff_lambda::{
    Code, FunctionRef, LambdaError, Qualifier, S3EventError, S3Notification, s3_arn,
};
use skiff_queue::{Event, FunctionKey, PAYLOAD_BYTES_MAX};
use skiff_types::{HookName, ProjectId};

use super::Front;
use super::call::Reply;
use super::policies::allows_s3;
use super::record::FunctionRecord;
use super::room::Owner;
use super::sign::read_into;
use super::state::missing;
use crate::record::HookRecord;

/// Where hooks are: the project's id and the hook's name follow.
pub(crate) const HOOK_PATH: &str = "/skiff/hook/";

/// The hook that a request is for; `None` is one that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HookPlace(Option<(ProjectId, HookName)>);

impl HookPlace {
    pub(crate) fn of(path: &str) -> Option<Self> {
        let rest = path.strip_prefix(HOOK_PATH)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let named = rest.split_once('/').and_then(|(project, name)| {
            let (project, name) = (project.parse().ok()?, name.parse().ok()?);
            Some((project, name))
        });
        Some(Self(named))
    }
}

/// The token, as whoever sends it can: `Bearer TOKEN`, `TOKEN`, or as the
/// password of a URL.
fn token(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let Some((scheme, rest)) = text.split_once(' ') else {
        return Some(text.to_owned());
    };
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(rest.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    Some(decoded.split_once(':')?.1.to_owned())
}

fn no_event(error: &S3EventError) -> LambdaError {
    let message = skiff_base::chain(error).to_string();
    LambdaError::new(Code::InvalidRequestContent, message)
}

/// There is no such hook, or this is not its token.
fn not_let_in() -> LambdaError {
    let message = "there is no such hook, or the Authorization is not its token";
    LambdaError::new(Code::AccessDenied, message)
}

fn too_large() -> LambdaError {
    let message = format!("an event has at most {PAYLOAD_BYTES_MAX} bytes");
    LambdaError::new(Code::RequestTooLarge, message)
}

/// Every bucket that the policy does not let in is a reason to take nothing.
fn check_policy(
    record: &FunctionRecord,
    hook: &HookRecord,
    project: &ProjectId,
    buckets: &BTreeSet<String>,
) -> Result<(), LambdaError> {
    let place = hook.qualifier.as_deref().unwrap_or_default();
    let mut buckets = buckets.iter();
    let Some(refused) = buckets.find(|bucket| !allows_s3(record, place, project, bucket)) else {
        return Ok(());
    };
    let function = record.name_of(&hook.function);
    let qualifier = match place {
        "" => String::new(),
        place => format!(" --qualifier {place}"),
    };
    let message = format!(
        "the policy of the function {function} does not let in events of the bucket {refused}: \
         aws lambda add-permission --function-name {function}{qualifier} --statement-id {refused} \
         --action lambda:InvokeFunction --principal s3.amazonaws.com --source-arn {}",
        s3_arn(refused)
    );
    Err(LambdaError::new(Code::AccessDenied, message))
}

impl Front {
    /// Takes a notification in; it is answered once its event is on the disk.
    pub(crate) async fn answer_hook(
        &self,
        place: HookPlace,
        request: axum::extract::Request,
        request_id: &str,
    ) -> Response {
        let (parts, body) = request.into_parts();
        let taken = self.take_notification(place, &parts, body, request_id);
        let mut response = match taken.await {
            Ok(status) => status.into_response(),
            Err(error) => Reply::error(&error).into_response(),
        };
        if let Ok(id) = HeaderValue::from_str(request_id) {
            response.headers_mut().insert("x-amzn-requestid", id);
        }
        response
    }

    async fn take_notification(
        &self,
        place: HookPlace,
        parts: &Parts,
        body: Body,
        request_id: &str,
    ) -> Result<StatusCode, LambdaError> {
        let (project, name) = place.0.ok_or_else(not_let_in)?;
        let token = token(&parts.headers).ok_or_else(not_let_in)?;
        let hook = self.control.hook(&project, &name, &token).await?;
        let hook = hook.ok_or_else(not_let_in)?;
        match parts.method {
            Method::POST => {}
            Method::HEAD | Method::GET | Method::OPTIONS => return Ok(StatusCode::OK),
            _ => {
                let message = "a hook takes events by POST";
                return Err(LambdaError::new(Code::InvalidRequestContent, message));
            }
        }
        let owner = Owner {
            project: project.clone(),
            url: None,
        };
        let room = self.bodies.room(owner);
        let (body, mut room) = read_into(room, parts, body, PAYLOAD_BYTES_MAX).await?;
        if body.len() > PAYLOAD_BYTES_MAX {
            return Err(too_large());
        }
        let read = S3Notification::read(&body, &self.region);
        let S3Notification::Event(event) = read.map_err(|error| no_event(&error))? else {
            return Ok(StatusCode::OK);
        };
        drop(body);
        if event.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(too_large());
        }
        // Held until its event is on the disk.
        room.fit(event.payload.len()).await?;
        let view = self.control.service_view(&project, &hook.function).await?;
        let view = view.ok_or_else(|| missing(&hook.function.clone().into()))?;
        check_policy(&view.record, &hook, &project, &event.buckets).inspect_err(|error| {
            tracing::info!(hook = %name, %error, "a notification is refused");
        })?;
        let qualifier = hook.qualifier.as_deref().map(str::parse::<Qualifier>);
        let qualifier = qualifier.transpose();
        let target = FunctionRef {
            region: None,
            account: Some(project.clone()),
            name: view.record.name_of(&hook.function),
            qualifier: qualifier
                .map_err(|error| LambdaError::new(Code::Service, error.to_string()))?,
        };
        let way = self.way_to(project, target, &view)?;
        let accepted = Event {
            function: FunctionKey {
                project: way.key.0,
                name: way.key.1,
            },
            qualifier: hook.qualifier,
            arn: way.arn,
            request_id: request_id.to_owned(),
            accepted_unix_ms: self.now(),
            client_context: None,
            trace_id: None,
            key: None,
            hops: 0,
        };
        self.events.accept(accepted, event.payload).await?;
        Ok(StatusCode::ACCEPTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_named_by_its_path() {
        let place = HookPlace(Some((
            ProjectId::default_project(),
            "uploads".parse().unwrap(),
        )));
        for (path, expected) in [
            ("/skiff/hook/000000000001/uploads", Some(&place)),
            ("/skiff/hook/000000000001/uploads/", Some(&place)),
            ("/skiff/hook/000000000001/up/loads", Some(&HookPlace(None))),
            ("/skiff/hook/000000000001/", Some(&HookPlace(None))),
            ("/skiff/hook/1/uploads", Some(&HookPlace(None))),
            ("/skiff/hooks/000000000001/uploads", None),
            ("/skiff/hook", None),
        ] {
            assert_eq!(HookPlace::of(path).as_ref(), expected, "{path}");
        }
    }

    #[test]
    fn a_token_is_borne_as_senders_can() {
        let basic = STANDARD.encode("any:abc");
        for (header, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc", Some("abc")),
            ("abc", Some("abc")),
            (&*format!("Basic {basic}"), Some("abc")),
            ("Basic %", None),
            (&*format!("Basic {}", STANDARD.encode("abc")), None),
            ("Digest abc", None),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
            assert_eq!(token(&headers).as_deref(), expected, "{header}");
        }
        assert_eq!(token(&HeaderMap::new()), None);
    }
}
