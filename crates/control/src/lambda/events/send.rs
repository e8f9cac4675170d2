//! Events that come in over the admin API.

use serde::de::IgnoredAny;
use skiff_base::chain;
use skiff_lambda::Arns;
use skiff_queue::{Event, FunctionKey, PAYLOAD_BYTES_MAX};
use skiff_types::{ProjectId, ServiceName};

use super::Refused;
use crate::control::Control;
use crate::error::{ControlError, exhausted, internal, invalid, not_found, too_large, unsupported};
use crate::lambda::invoke::CLIENT_CONTEXT_BYTES_MAX;
use crate::lambda::uuid;

impl From<Refused> for ControlError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full(full) => exhausted(format!("{full}: try again later")),
            Refused::Log(error) => internal(format!(
                "the event cannot be made durable: {}",
                chain(&error)
            )),
        }
    }
}

impl Control {
    /// Takes an event for a function that AWS's API knows; its request id.
    /// An empty one is `{}`.
    ///
    /// # Errors
    /// When there is no such function, it is no JSON, or there is no room.
    pub(crate) async fn send_event(
        &self,
        project: &ProjectId,
        function: &ServiceName,
        payload: Vec<u8>,
        client_context: Option<String>,
    ) -> Result<String, ControlError> {
        let events = self.inner.events.get().ok_or_else(|| {
            unsupported(
                "there are no event invocations: set lambda.listen and start the server again",
            )
        })?;
        let payload = match payload.is_empty() {
            true => b"{}".to_vec(),
            false => payload,
        };
        check(&payload, client_context.as_deref())?;
        let name = self.function_name(project, function).await?;
        let name = name.ok_or_else(|| {
            not_found(format!(
                "no function {function} takes events: those do that were made over AWS Lambda's API"
            ))
        })?;
        let arns = Arns {
            region: events.region.clone(),
            account: project.clone(),
        };
        let request_id = uuid();
        let event = Event {
            function: FunctionKey {
                project: project.clone(),
                name: function.clone(),
            },
            qualifier: None,
            arn: arns.function(&name),
            request_id: request_id.clone(),
            accepted_unix_ms: self.inner.base.now(),
            client_context,
            trace_id: None,
            key: None,
            hops: 0,
        };
        events.accept(event, payload).await?;
        Ok(request_id)
    }
}

fn check(payload: &[u8], client_context: Option<&str>) -> Result<(), ControlError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(too_large(format!(
            "an event has at most {PAYLOAD_BYTES_MAX} bytes"
        )));
    }
    serde_json::from_slice::<IgnoredAny>(payload)
        .map_err(|error| invalid(format!("the event is not JSON: {error}")))?;
    let context = client_context.unwrap_or_default();
    let is_plain = context.bytes().all(|byte| byte.is_ascii_graphic());
    match context.len() <= CLIENT_CONTEXT_BYTES_MAX && is_plain {
        true => Ok(()),
        false => Err(invalid(format!(
            "the client context is base64 of at most {CLIENT_CONTEXT_BYTES_MAX} bytes"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use skiff_types::ErrorKind;

    use super::*;

    #[test]
    fn an_event_is_json_within_its_bounds() {
        let largest = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 2));
        let context = "x".repeat(CLIENT_CONTEXT_BYTES_MAX);
        for (payload, context) in [("1", None), (&*largest, Some(&*context))] {
            assert_eq!(check(payload.as_bytes(), context), Ok(()));
        }
        let kind = |payload: &str, context: Option<&str>| {
            check(payload.as_bytes(), context).unwrap_err().kind
        };
        assert_eq!(kind(&format!("{largest} "), None), ErrorKind::TooLarge);
        assert_eq!(kind("{", None), ErrorKind::Invalid);
        assert_eq!(kind("1", Some("a b")), ErrorKind::Invalid);
        assert_eq!(kind("1", Some(&format!("{context}x"))), ErrorKind::Invalid);
    }
}
