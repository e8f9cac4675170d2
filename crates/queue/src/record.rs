//! What a destination gets (AWS, "Capturing records of Lambda asynchronous
//! invocations"): version 1.0.

use serde_json::json;
use skiff_base::UtcTime;

use crate::{Condition, Event, Outcome};

/// The record of how an event ended, JSON. Payloads stand in it as they are;
/// one that is no JSON as text. `response` is absent when there was no
/// answer, or one too large to keep.
#[must_use]
pub fn record(
    event: &Event,
    outcome: &Outcome,
    payload: &[u8],
    response: Option<&[u8]>,
) -> Vec<u8> {
    let function = match event.qualifier {
        Some(_) => event.arn.clone(),
        None => format!("{}:$LATEST", event.arn),
    };
    let context = json!({
        "requestId": event.request_id,
        "functionArn": function,
        "condition": outcome.condition.name(),
        "approximateInvokeCount": outcome.tries,
    });
    let mut text = format!(
        "{{\"version\":\"1.0\",\"timestamp\":\"{}\",\"requestContext\":{context},\"requestPayload\":",
        UtcTime::of_unix_ms(outcome.unix_ms)
    )
    .into_bytes();
    push_json(&mut text, payload);
    if let Some(version) = &outcome.version {
        let mut context = json!({"statusCode": 200, "executedVersion": version});
        if let (Some(error), Some(fields)) = (&outcome.error, context.as_object_mut()) {
            fields.insert("functionError".to_owned(), json!(error));
        }
        text.extend(format!(",\"responseContext\":{context},\"responsePayload\":").bytes());
        match response {
            Some(response) => push_json(&mut text, response),
            None => text.extend(b"null"),
        }
    }
    text.push(b'}');
    text
}

/// What went wrong, for a dead letter's `ErrorCode` and `ErrorMessage`; the
/// message has at most a kilobyte (AWS's bound).
#[must_use]
pub fn complaint(outcome: &Outcome, response: Option<&[u8]>) -> (&'static str, String) {
    let code = match (outcome.condition, &outcome.version) {
        (Condition::EventAgeExceeded, _) => "429",
        (_, None) => "500",
        _ => "200",
    };
    let told = response.and_then(|response| {
        let answer: serde_json::Value = serde_json::from_slice(response).ok()?;
        Some(answer.get("errorMessage")?.as_str()?.to_owned())
    });
    let told = told.unwrap_or_else(|| outcome.condition.name().to_owned());
    let mut message = String::new();
    for c in told.chars().filter(|c| !c.is_control()) {
        if message.len() + c.len_utf8() > 1024 {
            break;
        }
        message.push(c);
    }
    (code, message)
}

fn push_json(text: &mut Vec<u8>, payload: &[u8]) {
    match serde_json::from_slice::<serde::de::IgnoredAny>(payload) {
        Ok(_) => text.extend(payload),
        Err(_) => text.extend(json!(String::from_utf8_lossy(payload)).to_string().bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FunctionKey;
    use serde_json::Value;

    fn event() -> Event {
        Event {
            function: FunctionKey {
                project: "000000000001".parse().unwrap(),
                name: "a".parse().unwrap(),
            },
            qualifier: None,
            arn: "arn:aws:lambda:us-east-1:000000000001:function:a".to_owned(),
            request_id: "id".to_owned(),
            accepted_unix_ms: 0,
            client_context: None,
            trace_id: None,
            key: None,
            hops: 0,
        }
    }

    fn outcome(condition: Condition, version: Option<&str>) -> Outcome {
        Outcome {
            condition,
            unix_ms: 1_369_353_600_007,
            tries: 3,
            version: version.map(str::to_owned),
            error: version.map(|_| "Unhandled".to_owned()),
            targets: Vec::new(),
        }
    }

    #[test]
    fn a_record_has_awss_shape() {
        let outcome = outcome(Condition::RetriesExhausted, Some("$LATEST"));
        let text = record(&event(), &outcome, b"{\"a\":1}", Some(b"no json"));
        let told: Value = serde_json::from_slice(&text).unwrap();
        let expected = json!({
            "version": "1.0",
            "timestamp": "2013-05-24T00:00:00.007Z",
            "requestContext": {
                "requestId": "id",
                "functionArn": "arn:aws:lambda:us-east-1:000000000001:function:a:$LATEST",
                "condition": "RetriesExhausted",
                "approximateInvokeCount": 3,
            },
            "requestPayload": {"a": 1},
            "responseContext": {
                "statusCode": 200,
                "executedVersion": "$LATEST",
                "functionError": "Unhandled",
            },
            "responsePayload": "no json",
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn without_an_answer_there_is_no_response() {
        let outcome = outcome(Condition::EventAgeExceeded, None);
        let text = record(&event(), &outcome, b"1", None);
        let told: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(told.get("responseContext"), None);
        assert_eq!(told.get("responsePayload"), None);
        assert_eq!(
            complaint(&outcome, None),
            ("429", "EventAgeExceeded".to_owned())
        );
    }

    #[test]
    fn a_complaint_is_bounded_and_without_control_characters() {
        let outcome = outcome(Condition::RetriesExhausted, Some("1"));
        let long = json!({"errorMessage": format!("a\n{}", "ä".repeat(2000))}).to_string();
        let (code, message) = complaint(&outcome, Some(long.as_bytes()));
        assert_eq!(code, "200");
        assert!(message.len() <= 1024 && message.starts_with("aä"));
    }
}
