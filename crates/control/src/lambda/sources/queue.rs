//! What is asked of a queue of SQS's kind.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use skiff_base::Backoff;
use skiff_lambda::SqsMessage;
use tokio::sync::Mutex;

use super::mapping::QueueArn;
use crate::lambda::Front;
use crate::lambda::events::CourierError;

/// Ten messages of 1 MiB, as JSON may write them.
const RECEIVED_BYTES_MAX: usize = 32 * 1024 * 1024;
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Messages that are deleted by one request (SQS's limit).
const DELETE_MAX: usize = 10;
/// For so long a queue's visibility timeout is believed, milliseconds: it may
/// be changed.
const VISIBILITY_MS: u64 = 60_000;
/// How often messages are tried to be deleted.
const DELETE_TRIES: u32 = 5;
const DELETE_FIRST: Duration = Duration::from_millis(100);
const DELETE_LONGEST: Duration = Duration::from_secs(5);

/// A queue did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    #[error("{operation}")]
    Asked {
        operation: &'static str,
        #[source]
        source: CourierError,
    },
    #[error("{operation}: the answer is not SQS's")]
    Answer {
        operation: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

/// A queue's visibility timeout as it was told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visibility {
    seconds: u64,
    told_unix_ms: u64,
}

impl Visibility {
    /// Seconds, while they are believed.
    fn believed_s(self, now_ms: u64) -> Option<u64> {
        (now_ms.saturating_sub(self.told_unix_ms) < VISIBILITY_MS).then_some(self.seconds)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Received {
    messages: Option<Vec<SqsMessage>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Deleted {
    failed: Option<Vec<NotDeleted>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NotDeleted {
    id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Attributes {
    attributes: Map<String, Value>,
}

impl Front {
    /// At most so many messages, as soon as there is one within so many
    /// seconds.
    pub(super) async fn receive(
        &self,
        queue: &QueueArn,
        most: u32,
        wait_s: u64,
    ) -> Result<Vec<SqsMessage>, QueueError> {
        let asked = json!({
            "MaxNumberOfMessages": most,
            "WaitTimeSeconds": wait_s,
            "AttributeNames": ["All"],
            "MessageAttributeNames": ["All"],
        });
        let asked = self.ask_queue("ReceiveMessage", queue, asked, RECEIVED_BYTES_MAX);
        let received: Received = read("ReceiveMessage", &asked.await?)?;
        Ok(received.messages.unwrap_or_default())
    }

    /// Deletes messages by their handles, in some tries; how many are not.
    pub(super) async fn delete(&self, queue: &QueueArn, handles: Vec<String>) -> usize {
        let mut left = handles;
        let mut backoff = Backoff::new(DELETE_FIRST, DELETE_LONGEST);
        for tries in 1..=DELETE_TRIES {
            left = self.delete_once(queue, left).await;
            if left.is_empty() || tries == DELETE_TRIES {
                break;
            }
            tokio::time::sleep(backoff.next(skiff_base::random::u32())).await;
        }
        if !left.is_empty() {
            tracing::warn!(queue = %queue.name, messages = left.len(), "messages that are done could not be deleted: they will be delivered again");
        }
        left.len()
    }

    /// Those that are not deleted.
    async fn delete_once(&self, queue: &QueueArn, handles: Vec<String>) -> Vec<String> {
        let mut left = Vec::new();
        for chunk in handles.chunks(DELETE_MAX) {
            match self.delete_batch(queue, chunk).await {
                Ok(failed) => left.extend(failed),
                Err(error) => {
                    let error = skiff_base::chain(&error);
                    tracing::warn!(queue = %queue.name, %error, "messages are not deleted yet");
                    left.extend_from_slice(chunk);
                }
            }
        }
        left
    }

    async fn delete_batch(
        &self,
        queue: &QueueArn,
        handles: &[String],
    ) -> Result<Vec<String>, QueueError> {
        const DELETE: &str = "DeleteMessageBatch";
        let entry =
            |(id, handle): (usize, &String)| json!({"Id": id.to_string(), "ReceiptHandle": handle});
        let entries: Vec<Value> = handles.iter().enumerate().map(entry).collect();
        let asked = json!({"Entries": entries});
        let answer = self
            .ask_queue(DELETE, queue, asked, ANSWER_BYTES_MAX)
            .await?;
        let deleted: Deleted = read(DELETE, &answer)?;
        let failed: BTreeSet<String> = deleted
            .failed
            .into_iter()
            .flatten()
            .map(|failed| failed.id)
            .collect();
        let handles = handles.iter().enumerate();
        let left = handles.filter(|(id, _)| failed.contains(&id.to_string()));
        Ok(left.map(|(_, handle)| handle.clone()).collect())
    }

    /// How long a message that was received is nobody else's, seconds.
    pub(super) async fn visibility_s(&self, queue: &QueueArn) -> Result<u64, QueueError> {
        const ASK: &str = "GetQueueAttributes";
        const NAME: &str = "VisibilityTimeout";
        let asked = json!({"AttributeNames": [NAME]});
        let answer = self.ask_queue(ASK, queue, asked, ANSWER_BYTES_MAX).await?;
        let told: Attributes = read(ASK, &answer)?;
        let value = told.attributes.get(NAME);
        let seconds = match value {
            Some(Value::String(text)) => text.parse().ok(),
            value => value.and_then(Value::as_u64),
        };
        let missing = || serde::de::Error::missing_field(NAME);
        seconds.ok_or_else(|| QueueError::Answer {
            operation: ASK,
            source: missing(),
        })
    }

    /// The same as it was told a short while ago, or is now.
    pub(super) async fn recent_visibility_s(
        &self,
        queue: &QueueArn,
        known: &Mutex<Option<Visibility>>,
    ) -> Result<u64, QueueError> {
        let mut known = known.lock().await;
        let told_unix_ms = self.now();
        let believed = known.and_then(|known| known.believed_s(told_unix_ms));
        if let Some(seconds) = believed {
            return Ok(seconds);
        }
        let seconds = self.visibility_s(queue).await?;
        *known = Some(Visibility {
            seconds,
            told_unix_ms,
        });
        Ok(seconds)
    }

    async fn ask_queue(
        &self,
        operation: &'static str,
        queue: &QueueArn,
        asked: Value,
        bytes_max: usize,
    ) -> Result<Bytes, QueueError> {
        let asked = match asked {
            Value::Object(asked) => asked,
            _ => Map::new(),
        };
        let place = (queue.account.as_str(), queue.name.as_str());
        let courier = &self.events.courier;
        let answer = courier.ask(operation, place, asked, bytes_max, self.now() / 1000);
        answer
            .await
            .map_err(|source| QueueError::Asked { operation, source })
    }
}

/// An answer without a body is one without fields.
fn read<T: DeserializeOwned + Default>(
    operation: &'static str,
    answer: &[u8],
) -> Result<T, QueueError> {
    if answer.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(answer).map_err(|source| QueueError::Answer { operation, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visibility_timeout_is_asked_for_again_after_a_minute() {
        let told = Visibility {
            seconds: 30,
            told_unix_ms: 1_000_000,
        };
        assert_eq!(told.believed_s(1_059_999), Some(30));
        assert_eq!(told.believed_s(1_060_000), None);
    }
}
