//! AWS's Runtime API behind each instance of a function, and the gateway's way
//! to it: a request becomes an event, and what the runtime posts its answer.
//!
//! ```text
//!  gateway ═in this process═▶ FunctionSandbox ─▶ Bridge ◀─ Runtime API ◀═ 127.0.0.1:9001 inside
//! ```
//!
//! To the worker and to all above it an instance of a function is a sandbox as
//! any other, whose application listens once its runtime asks for an event:
//! queues, concurrency, pauses, traces and bills need not know of functions.
//! Who may call is for the gateway and for the front to say.
//!
//! Invariants: one event at a time is in an instance; an answer reaches the
//! invocation it is for and no other; an instance whose invocation ran out of
//! time, or whose runtime ended, takes no event any more; every wait ends with
//! the invocation's time or the runtime's end.
//!
//! Entry point: [`Functions`].

mod api;
mod body;
mod bridge;
mod cloudevents;
mod extensions;
#[cfg(test)]
mod fake;
mod host;
mod invoke;
mod journal;
mod machine;
mod sandbox;
mod telemetry;
mod trailers;
mod words;

pub use host::Functions;
