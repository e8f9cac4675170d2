//! Messages of queues of SQS's kind: as a queue gives them, as a function's
//! event has them (Lambda, "Using Lambda with Amazon SQS"), and what the
//! function says of each ("Implementing partial batch responses").

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

const SOURCE: &str = "aws:sqs";

/// A message as `ReceiveMessage` gives it (SQS's JSON protocol).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SqsMessage {
    /// The same each time the message is received.
    pub message_id: String,
    /// What deletes it; another one each time.
    pub receipt_handle: String,
    /// What was sent.
    #[serde(default)]
    pub body: String,
    #[serde(default, rename = "MD5OfBody")]
    md5_of_body: String,
    #[serde(default, rename = "MD5OfMessageAttributes")]
    md5_of_attributes: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, Value>,
    #[serde(default)]
    message_attributes: BTreeMap<String, Attribute>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    data_type: String,
    string_value: Option<String>,
    binary_value: Option<String>,
}

impl SqsMessage {
    /// The message in an event.
    #[must_use]
    pub fn record(&self, queue_arn: &str, region: &str) -> Value {
        let attributes = self.attributes.iter().map(|(name, value)| {
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            (name.clone(), Value::String(text))
        });
        let own = self.message_attributes.iter();
        let own = own.map(|(name, attribute)| (name.clone(), attribute.shown()));
        let mut record = json!({
            "messageId": self.message_id,
            "receiptHandle": self.receipt_handle,
            "body": self.body,
            "attributes": attributes.collect::<Map<_, _>>(),
            "messageAttributes": own.collect::<Map<_, _>>(),
            "md5OfBody": self.md5_of_body,
            "eventSource": SOURCE,
            "eventSourceARN": queue_arn,
            "awsRegion": region,
        });
        if let (Some(md5), Some(fields)) = (&self.md5_of_attributes, record.as_object_mut()) {
            fields.insert("md5OfMessageAttributes".to_owned(), json!(md5));
        }
        record
    }

    /// The record as filters see it that look into the body: what it says as
    /// JSON, nothing where it is none.
    #[must_use]
    pub fn read_body(&self, mut record: Value) -> Value {
        if let Some(fields) = record.as_object_mut() {
            let body = serde_json::from_str(&self.body).unwrap_or(Value::Null);
            fields.insert("body".to_owned(), body);
        }
        record
    }
}

impl Attribute {
    fn shown(&self) -> Value {
        let mut shown = json!({
            "stringListValues": [],
            "binaryListValues": [],
            "dataType": self.data_type,
        });
        let values = [
            ("stringValue", &self.string_value),
            ("binaryValue", &self.binary_value),
        ];
        if let Some(fields) = shown.as_object_mut() {
            for (name, value) in values {
                if let Some(value) = value {
                    fields.insert(name.to_owned(), json!(value));
                }
            }
        }
        shown
    }
}

/// The event of records that are JSON already.
#[must_use]
pub fn batch_event<'a>(records: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut event = b"{\"Records\":[".to_vec();
    for (index, record) in records.into_iter().enumerate() {
        if index > 0 {
            event.push(b',');
        }
        event.extend_from_slice(record.as_bytes());
    }
    event.extend_from_slice(b"]}");
    event
}

/// Which of a batch failed, as its function's answer says
/// (`batchItemFailures`); `None` when all did, which is what AWS takes an
/// answer for that it cannot read or that names a stranger.
#[must_use]
pub fn batch_failures<'a>(
    answer: &[u8],
    batch: impl IntoIterator<Item = &'a str>,
) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        batch_item_failures: Option<Vec<Failure>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Failure {
        item_identifier: String,
    }
    let none = answer.iter().all(u8::is_ascii_whitespace);
    let answer: Option<Answer> = match none {
        true => None,
        false => serde_json::from_slice(answer).ok()?,
    };
    let failures = answer.and_then(|answer| answer.batch_item_failures);
    let failures = failures.into_iter().flatten();
    let failed: BTreeSet<String> = failures.map(|failure| failure.item_identifier).collect();
    let batch: BTreeSet<&str> = batch.into_iter().collect();
    let known = failed.iter().all(|id| batch.contains(id.as_str()));
    known.then_some(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: &str = "arn:aws:sqs:us-east-1:000000000001:jobs";

    fn message(body: &str) -> SqsMessage {
        let told = json!({
            "MessageId": "m1",
            "ReceiptHandle": "r1",
            "MD5OfBody": "aa",
            "MD5OfMessageAttributes": "bb",
            "Body": body,
            "Attributes": {"ApproximateReceiveCount": 1, "SenderId": "s"},
            "MessageAttributes": {
                "n": {"DataType": "Number", "StringValue": "5"},
                "b": {"DataType": "Binary", "BinaryValue": "AA=="},
            },
            "Extra": [],
        });
        serde_json::from_value(told).unwrap()
    }

    #[test]
    fn a_message_is_a_record_of_awss_shape() {
        let expected = json!({
            "messageId": "m1",
            "receiptHandle": "r1",
            "body": "hello",
            "attributes": {"ApproximateReceiveCount": "1", "SenderId": "s"},
            "messageAttributes": {
                "n": {"stringValue": "5", "stringListValues": [], "binaryListValues": [], "dataType": "Number"},
                "b": {"binaryValue": "AA==", "stringListValues": [], "binaryListValues": [], "dataType": "Binary"},
            },
            "md5OfBody": "aa",
            "md5OfMessageAttributes": "bb",
            "eventSource": "aws:sqs",
            "eventSourceARN": QUEUE,
            "awsRegion": "us-east-1",
        });
        assert_eq!(message("hello").record(QUEUE, "us-east-1"), expected);
        let event = batch_event(["{}", "1"]);
        assert_eq!(event, b"{\"Records\":[{},1]}");
    }

    #[test]
    fn filters_see_into_bodies_that_are_json() {
        let seen = |body: &str| {
            let message = message(body);
            let record = message.record(QUEUE, "us-east-1");
            message.read_body(record)["body"].clone()
        };
        assert_eq!(seen(r#"{"a":1}"#), json!({"a": 1}));
        assert_eq!(seen("plain"), Value::Null);
    }

    #[test]
    fn an_answer_says_which_failed() {
        let of = |answer: &str| {
            let failed = batch_failures(answer.as_bytes(), ["a", "b"])?;
            Some(failed.into_iter().collect::<Vec<_>>().join(","))
        };
        for (answer, expected) in [
            ("", Some("")),
            ("null", Some("")),
            ("{}", Some("")),
            (r#"{"batchItemFailures":null}"#, Some("")),
            (r#"{"batchItemFailures":[]}"#, Some("")),
            (
                r#"{"batchItemFailures":[{"itemIdentifier":"b"}],"x":1}"#,
                Some("b"),
            ),
            (
                r#"{"batchItemFailures":[{"itemIdentifier":"b"},{"itemIdentifier":"b"}]}"#,
                Some("b"),
            ),
            (r#"{"batchItemFailures":[{"itemIdentifier":"c"}]}"#, None),
            (r#"{"batchItemFailures":[{"itemIdentifier":""}]}"#, None),
            (r#"{"batchItemFailures":[{"itemIdentifier":null}]}"#, None),
            (r#"{"batchItemFailures":[{"id":"a"}]}"#, None),
            (r#"{"batchItemFailures":"a"}"#, None),
            ("done", None),
            ("\"done\"", None),
        ] {
            assert_eq!(of(answer).as_deref(), expected, "{answer}");
        }
    }
}
