//! Messages of a queue as they become a batch, and a batch as it becomes
//! events.

use std::sync::Arc;

use skiff_lambda::SqsMessage;
use tokio::sync::watch;

use super::mapping::{QueueArn, RECEIVE_MAX};
use super::queue::QueueError;
use super::room::Room;
use super::{Mapping, count};
use crate::lambda::Front;
use crate::lambda::sign::EVENT_BYTES_MAX;

/// How long a queue is asked to wait for a message, seconds (SQS's longest).
const WAIT_S: u64 = 20;
/// What an event has beside its records, bytes.
const AROUND_BYTES: usize = 16;

/// A message, as the event has it.
#[derive(Debug)]
pub(super) struct Record {
    pub id: String,
    /// What deletes it.
    pub handle: String,
    pub json: String,
    /// Of what was received together with it.
    _room: Option<Arc<Room>>,
}

/// Messages that go to the function together.
#[derive(Debug)]
pub(super) struct Batch {
    pub records: Vec<Record>,
    bytes: usize,
    /// When the first of them was received.
    pub received_unix_ms: u64,
}

impl Batch {
    /// As events, each within what a function takes.
    pub(super) fn events(self) -> Vec<Vec<Record>> {
        let mut events: Vec<Vec<Record>> = Vec::new();
        let mut bytes = usize::MAX;
        for record in self.records {
            let more = record.json.len() + 1;
            match events.last_mut() {
                Some(event) if bytes + more <= EVENT_BYTES_MAX => {
                    bytes += more;
                    event.push(record);
                }
                _ => {
                    bytes = AROUND_BYTES + more;
                    events.push(vec![record]);
                }
            }
        }
        events
    }
}

impl Front {
    /// A batch: what one receive gives, or what comes within the mapping's
    /// window.
    pub(super) async fn gather(
        &self,
        mapping: &Mapping,
        queue: &QueueArn,
        wanted: &watch::Receiver<Option<Arc<Mapping>>>,
    ) -> Result<Batch, QueueError> {
        let size = mapping.record.batch_size;
        let messages = self.receive(queue, size.min(RECEIVE_MAX), WAIT_S).await?;
        let received_unix_ms = self.now();
        let mut batch = Batch {
            records: Vec::new(),
            bytes: 0,
            received_unix_ms,
        };
        self.add(mapping, queue, &mut batch, messages).await;
        let until = received_unix_ms + u64::from(mapping.record.window_s) * 1000;
        let is_as_wanted = || wanted.has_changed().is_ok_and(|changed| !changed);
        while !batch.records.is_empty() && batch.bytes < EVENT_BYTES_MAX && is_as_wanted() {
            let gathered = u32::try_from(batch.records.len()).unwrap_or(u32::MAX);
            let most = size.saturating_sub(gathered).min(RECEIVE_MAX);
            let left_ms = until.saturating_sub(self.now());
            if most == 0 || left_ms == 0 {
                break;
            }
            let wait_s = (left_ms / 1000).min(WAIT_S);
            match self.receive(queue, most, wait_s).await {
                Ok(messages) if messages.is_empty() && wait_s == 0 => break,
                Ok(messages) => self.add(mapping, queue, &mut batch, messages).await,
                Err(error) => {
                    // The next turn meets it, too, and tells it.
                    let error = skiff_base::chain(&error);
                    tracing::debug!(queue = %queue.name, %error, "a batch is not gathered further");
                    break;
                }
            }
        }
        Ok(batch)
    }

    /// Adds what is for the function; the rest is deleted.
    async fn add(
        &self,
        mapping: &Mapping,
        queue: &QueueArn,
        batch: &mut Batch,
        messages: Vec<SqsMessage>,
    ) {
        let counts = &self.sources().counts;
        count(&counts.received, messages.len());
        let (mut taken, mut others) = (Vec::new(), Vec::new());
        for message in messages {
            let record = message.record(&mapping.record.source, &queue.region);
            match mapping.takes(&message, &record) {
                true => taken.push((message, record.to_string())),
                false => others.push(message.receipt_handle),
            }
        }
        count(&counts.filtered, others.len());
        let _left = self.delete(queue, others).await;
        let bytes = taken.iter().map(|(_, json)| json.len()).sum();
        let (rooms, project) = (&self.sources().rooms, &mapping.project);
        let room = rooms.take(project, bytes, batch.records.is_empty()).await;
        batch.bytes += bytes;
        batch
            .records
            .extend(taken.into_iter().map(|(message, json)| Record {
                id: message.message_id,
                handle: message.receipt_handle,
                json,
                _room: room.clone(),
            }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(bytes: &[usize]) -> Vec<usize> {
        let record = |bytes: &usize| Record {
            id: String::new(),
            handle: String::new(),
            json: "x".repeat(*bytes),
            _room: None,
        };
        let batch = Batch {
            records: bytes.iter().map(record).collect(),
            bytes: 0,
            received_unix_ms: 0,
        };
        batch.events().iter().map(Vec::len).collect()
    }

    #[test]
    fn an_event_is_within_what_a_function_takes() {
        let mib = 1024 * 1024;
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1, 2, 3]), [3]);
        assert_eq!(sizes(&[mib; 10]), [5, 5]);
        assert_eq!(sizes(&[mib, 7 * mib, mib]), [1, 1, 1]);
        let last = EVENT_BYTES_MAX - AROUND_BYTES - mib - 2;
        assert_eq!(sizes(&[mib, last, 1]), [2, 1]);
        assert_eq!(sizes(&[mib, last + 1]), [1, 1]);
    }
}
