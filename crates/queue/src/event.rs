//! What is known of an event.

use std::fmt;

use serde::{Deserialize, Serialize};
use skiff_types::{ProjectId, ServiceName};

use crate::Target;

/// An event's number in its log; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventId(pub u64);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A function of a project.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FunctionKey {
    /// Whose.
    pub project: ProjectId,
    /// Which.
    pub name: ServiceName,
}

/// An event as it was accepted, beside its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Whom it is for.
    pub function: FunctionKey,
    /// The version or alias that it was sent to.
    pub qualifier: Option<String>,
    /// The function as its sender named it.
    pub arn: String,
    /// A UUID, the same for every try.
    pub request_id: String,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_unix_ms: u64,
    /// Base64 of a JSON object.
    pub client_context: Option<String>,
    /// `X-Amzn-Trace-Id`.
    pub trace_id: Option<String>,
    /// What it is, to who must not send it twice: at most one event that is
    /// not done has it.
    pub key: Option<String>,
    /// How many destinations lie between this and an event from outside.
    pub hops: u8,
}

/// What is being done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its function is invoked.
    Invoke,
    /// Its record goes to its destination of that number, from 0.
    Deliver(u8),
}

/// How far an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What is done with it.
    pub phase: Phase,
    /// Tries that have begun in this phase and count.
    pub tries: u32,
    /// Times in a row that nothing took it.
    pub setbacks: u32,
    /// Not before then, milliseconds since 1970.
    pub due_unix_ms: u64,
}

impl State {
    /// The begin of a phase.
    #[must_use]
    pub const fn begin(phase: Phase, due_unix_ms: u64) -> Self {
        Self {
            phase,
            tries: 0,
            setbacks: 0,
            due_unix_ms,
        }
    }
}

/// Why an event is not tried again (AWS, "Invocation records").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Condition {
    /// The function has answered.
    Success,
    /// It has failed as often as it may.
    RetriesExhausted,
    /// It is older than it may get.
    EventAgeExceeded,
}

impl Condition {
    /// Its name in a record.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::RetriesExhausted => "RetriesExhausted",
            Self::EventAgeExceeded => "EventAgeExceeded",
        }
    }
}

/// How the tries of an event ended, beside the function's last answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why they ended.
    pub condition: Condition,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Tries that counted.
    pub tries: u32,
    /// The version that gave the last answer; absent when there is none.
    pub version: Option<String>,
    /// `Unhandled` when that answer is an error.
    pub error: Option<String>,
    /// Who is told, one after the other.
    pub targets: Vec<Target>,
}
