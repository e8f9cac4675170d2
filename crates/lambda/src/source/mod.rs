//! Event sources: which of their records are for a function, the event that
//! is made of them, and what its answer says of each.

mod pattern;
mod sqs;

pub use pattern::{EventPattern, PatternError};
pub use sqs::{SqsMessage, batch_event, batch_failures};
