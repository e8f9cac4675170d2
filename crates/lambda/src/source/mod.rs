//! Event sources: which of their records are for a function, the event that
//! is made of them, and what its answer says of each.

mod pattern;
mod s3;
mod sqs;

pub use pattern::{EventPattern, PatternError};
pub use s3::{S3_RECORDS_MAX, S3Event, S3EventError, S3Notification, s3_arn};
pub use sqs::{SqsMessage, batch_event, batch_failures};
