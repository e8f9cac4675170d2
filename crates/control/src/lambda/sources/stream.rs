//! What is asked of a stream of DynamoDB's kind.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::mapping::StreamArn;
use crate::error::ControlError;
use crate::lambda::Front;
use crate::lambda::events::CourierError;

/// A page is of 1 MiB (DynamoDB's limit), which others may not keep.
const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Shards of one stream that are known.
const SHARDS_MAX: usize = 10_000;
/// The longest shard id, bytes (DynamoDB's model).
const SHARD_BYTES_MAX: usize = 65;

/// A stream did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("{operation}")]
    Asked {
        operation: &'static str,
        #[source]
        source: CourierError,
    },
    #[error("{operation}: the answer is not DynamoDB's")]
    Answer {
        operation: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("it has over {SHARDS_MAX} shards")]
    TooMany,
    #[error("how far it is cannot be read or stored")]
    Store(#[from] ControlError),
}

/// A part of a stream whose records are in order.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Shard {
    pub shard_id: String,
    pub parent_shard_id: Option<String>,
}

/// Some records, and where the next are unless the shard has ended.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Page {
    #[serde(default)]
    pub records: Vec<Value>,
    pub next_shard_iterator: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    stream_description: Description,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    #[serde(default)]
    shards: Vec<Shard>,
    last_evaluated_shard_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Iterator {
    shard_iterator: String,
}

impl StreamError {
    /// Whether what was asked for is not kept any more.
    pub(super) fn is_trimmed(&self) -> bool {
        match self {
            Self::Asked {
                source: CourierError::Refused { text, .. },
                ..
            } => text.contains("TrimmedDataAccess"),
            _ => false,
        }
    }
}

/// An answer that lacks something, or has something else there.
pub(super) fn wrong(operation: &'static str, field: &'static str) -> StreamError {
    StreamError::Answer {
        operation,
        source: serde::de::Error::missing_field(field),
    }
}

impl Front {
    /// All shards, the oldest first.
    pub(super) async fn shards(&self, stream: &StreamArn) -> Result<Vec<Shard>, StreamError> {
        const ASK: &str = "DescribeStream";
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let is_id = |id: &str| id.len() <= SHARD_BYTES_MAX && id.bytes().all(good);
        let mut shards: Vec<Shard> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut asked = json!({"StreamArn": stream.text});
            if let (Some(after), Some(fields)) = (&after, asked.as_object_mut()) {
                fields.insert("ExclusiveStartShardId".to_owned(), json!(after));
            }
            let told: Described = self.ask_stream(ASK, asked, ANSWER_BYTES_MAX).await?;
            let told = told.stream_description;
            if !told.shards.iter().all(|shard| is_id(&shard.shard_id)) {
                return Err(wrong(ASK, "ShardId"));
            }
            let is_last = told.shards.is_empty();
            shards.extend(told.shards);
            if shards.len() > SHARDS_MAX {
                return Err(StreamError::TooMany);
            }
            after = told.last_evaluated_shard_id;
            if after.is_none() || is_last {
                return Ok(shards);
            }
        }
    }

    /// Where a shard's records begin: behind one, or with the oldest.
    pub(super) async fn iterator(
        &self,
        stream: &StreamArn,
        shard: &str,
        after: Option<&str>,
    ) -> Result<String, StreamError> {
        let mut asked = json!({
            "StreamArn": stream.text,
            "ShardId": shard,
            "ShardIteratorType": "TRIM_HORIZON",
        });
        if let (Some(after), Some(fields)) = (after, asked.as_object_mut()) {
            fields.insert(
                "ShardIteratorType".to_owned(),
                json!("AFTER_SEQUENCE_NUMBER"),
            );
            fields.insert("SequenceNumber".to_owned(), json!(after));
        }
        let told: Iterator = self
            .ask_stream("GetShardIterator", asked, ANSWER_BYTES_MAX)
            .await?;
        Ok(told.shard_iterator)
    }

    /// At most so many records.
    pub(super) async fn records(&self, from: &str, most: usize) -> Result<Page, StreamError> {
        let asked = json!({"ShardIterator": from, "Limit": most});
        self.ask_stream("GetRecords", asked, PAGE_BYTES_MAX).await
    }

    async fn ask_stream<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        asked: Value,
        bytes_max: usize,
    ) -> Result<T, StreamError> {
        let asked = match asked {
            Value::Object(asked) => asked,
            _ => Map::new(),
        };
        let courier = &self.events.courier;
        let answer = courier.ask_streams(operation, asked, bytes_max, self.now() / 1000);
        let answer: Result<Bytes, CourierError> = answer.await;
        let answer = answer.map_err(|source| StreamError::Asked { operation, source })?;
        serde_json::from_slice(&answer).map_err(|source| StreamError::Answer { operation, source })
    }
}
