//! CloudEvents 1.0 over HTTP, in its three modes, as the JSON event that a
//! function gets: structured and batched ones as they come, binary ones put
//! into the structured form (HTTP binding, 3.1 to 3.3).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

/// Attributes of one event: what a request's head can hold.
const PREFIX: &str = "ce-";

/// Something that says it is a CloudEvent and is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CloudEventError {
    #[error("the CloudEvent is not JSON")]
    Json,
    #[error("the CloudEvent is not an object, or the batch not an array of them")]
    Form,
    #[error("the CloudEvent's specversion is not 1.0")]
    Version,
    #[error("the CloudEvent lacks its {0}")]
    Lacks(&'static str),
    #[error("the CloudEvent's header {0} is not text")]
    Header(String),
}

/// The event of a request that carries a CloudEvent; `None` of any other.
pub(crate) fn event(headers: &HeaderMap, body: &Bytes) -> Result<Option<Bytes>, CloudEventError> {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let media = content_type.and_then(|kind| kind.split(';').next());
    let media = media.unwrap_or_default().trim().to_ascii_lowercase();
    match media.as_str() {
        "application/cloudevents+json" => {
            check(&parse(body)?)?;
            Ok(Some(body.clone()))
        }
        "application/cloudevents-batch+json" => {
            let Value::Array(events) = parse(body)? else {
                return Err(CloudEventError::Form);
            };
            events.iter().try_for_each(check)?;
            Ok(Some(body.clone()))
        }
        _ if headers.contains_key("ce-specversion") => {
            let event = structured(headers, content_type, &media, body)?;
            check(&event)?;
            let bytes = serde_json::to_vec(&event).map_err(|_never| CloudEventError::Json)?;
            Ok(Some(bytes.into()))
        }
        _ => Ok(None),
    }
}

fn parse(body: &[u8]) -> Result<Value, CloudEventError> {
    serde_json::from_slice(body).map_err(|_error| CloudEventError::Json)
}

/// The attributes that every event has.
fn check(event: &Value) -> Result<(), CloudEventError> {
    let event = event.as_object().ok_or(CloudEventError::Form)?;
    if event.get("specversion").and_then(Value::as_str) != Some("1.0") {
        return Err(CloudEventError::Version);
    }
    for name in ["id", "source", "type"] {
        let value = event.get(name).and_then(Value::as_str);
        if value.is_none_or(str::is_empty) {
            return Err(CloudEventError::Lacks(name));
        }
    }
    Ok(())
}

fn structured(
    headers: &HeaderMap,
    content_type: Option<&str>,
    media: &str,
    body: &Bytes,
) -> Result<Value, CloudEventError> {
    let mut event = Map::new();
    for (name, value) in headers {
        if let Some(attribute) = name.as_str().strip_prefix(PREFIX) {
            let text = decoded(value.as_bytes());
            let text = text.ok_or_else(|| CloudEventError::Header(name.to_string()))?;
            event.insert(attribute.to_owned(), text.into());
        }
    }
    if let Some(kind) = content_type {
        event.insert("datacontenttype".to_owned(), kind.into());
    }
    if !body.is_empty() {
        let (member, data) = data(media, body)?;
        event.insert(member.to_owned(), data);
    }
    Ok(event.into())
}

/// JSON as it is, other text as a string, anything else as base64 (JSON format, 3.1).
fn data(media: &str, body: &Bytes) -> Result<(&'static str, Value), CloudEventError> {
    if media.is_empty() || media == "application/json" || media.ends_with("+json") {
        return Ok(("data", parse(body)?));
    }
    match std::str::from_utf8(body) {
        Ok(text) if media.starts_with("text/") => Ok(("data", text.into())),
        _ => Ok(("data_base64", STANDARD.encode(body).into())),
    }
}

/// Percent-encoded UTF-8 (HTTP binding, 3.1.3.2).
fn decoded(value: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&first, after)) = rest.split_first() {
        let escape = (first == b'%').then(|| after.get(..2)).flatten();
        let byte = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(headers: &[(&'static str, &str)], body: &[u8]) -> Result<Option<Value>, CloudEventError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let event = event(&map, &Bytes::copy_from_slice(body))?;
        Ok(event.map(|event| serde_json::from_slice(&event).unwrap()))
    }

    const BINARY: [(&str, &str); 4] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-source", "/a"),
        ("ce-type", "t"),
    ];

    #[test]
    fn a_binary_event_is_put_into_its_structured_form() {
        let with = |more: &[(&'static str, &str)], body: &[u8]| {
            of(&[&BINARY[..], more].concat(), body).unwrap().unwrap()
        };
        let expected = |more: Value| {
            let mut event = json!({"specversion": "1.0", "id": "7", "source": "/a", "type": "t"});
            for (name, value) in more.as_object().unwrap() {
                event[name] = value.clone();
            }
            event
        };
        assert_eq!(with(&[], b""), expected(json!({})));
        let kind = [
            ("content-type", "application/json"),
            ("ce-subject", "a%C3%BC%zz"),
        ];
        assert_eq!(
            with(&kind, b"{\"a\":1}"),
            expected(json!({
                "datacontenttype": "application/json", "subject": "aü%zz", "data": {"a": 1}
            }))
        );
        let kind = [("content-type", "text/plain")];
        assert_eq!(
            with(&kind, b"hi"),
            expected(json!({"datacontenttype": "text/plain", "data": "hi"}))
        );
        let kind = [("content-type", "image/png")];
        assert_eq!(
            with(&kind, b"\xff"),
            expected(json!({"datacontenttype": "image/png", "data_base64": "/w=="}))
        );
    }

    #[test]
    fn structured_and_batched_events_pass_and_others_are_no_cloud_events() {
        let event = json!({"specversion": "1.0", "id": "7", "source": "/a", "type": "t"});
        let kind = [(
            "content-type",
            "application/cloudevents+json; charset=utf-8",
        )];
        assert_eq!(
            of(&kind, event.to_string().as_bytes()),
            Ok(Some(event.clone()))
        );
        let batch = json!([event, event]);
        let kind = [("content-type", "application/cloudevents-batch+json")];
        assert_eq!(of(&kind, batch.to_string().as_bytes()), Ok(Some(batch)));
        assert_eq!(of(&[("content-type", "application/json")], b"{}"), Ok(None));
        assert_eq!(of(&[], b"\xff"), Ok(None));
    }

    #[test]
    fn what_lacks_something_is_refused_by_name() {
        let kind = [("content-type", "application/cloudevents+json")];
        for (body, error) in [
            ("x", CloudEventError::Json),
            ("[]", CloudEventError::Form),
            ("{}", CloudEventError::Version),
            (r#"{"specversion":"0.3"}"#, CloudEventError::Version),
            (
                r#"{"specversion":"1.0","id":""}"#,
                CloudEventError::Lacks("id"),
            ),
            (
                r#"{"specversion":"1.0","id":"1","source":"a","type":4}"#,
                CloudEventError::Lacks("type"),
            ),
        ] {
            assert_eq!(of(&kind, body.as_bytes()), Err(error), "{body}");
        }
        assert_eq!(of(&BINARY[..3], b""), Err(CloudEventError::Lacks("type")));
        assert!(of(&[&BINARY[..], &[("ce-a", "%ff")]].concat(), b"").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..64), mode in 0..4usize) {
            let kinds = ["application/cloudevents+json", "application/cloudevents-batch+json", "text/plain", "x/y"];
            let _told = of(&[&BINARY[..], &[("content-type", kinds[mode])]].concat(), &body);
            let _text = decoded(&body);
        }
    }
}
