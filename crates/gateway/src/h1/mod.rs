//! HTTP/1.1 (RFC 9112) as a proxy speaks it: what comes is decoded and what
//! goes on is written anew, with exactly one framing, straight from buffer to
//! buffer.
//!
//! ```text
//!  client ──▶ inbox ─ parse ─▶ facts ─ write ─▶ out ──▶ instance
//!  client ◀── out ◀─ write ── facts ◀─ parse ── inbox ◀── instance
//! ```
//! Nothing here waits: whoever owns a connection fills its inbox and empties
//! its outbox. Heads are bounded by [`skiff_types::limits::HEADER_BYTES_MAX`]
//! and [`parse::FIELDS_MAX`], lines of chunks and trailers by [`body`].

pub(crate) mod body;
pub(crate) mod fields;
pub(crate) mod inbox;
pub(crate) mod outbox;
pub(crate) mod parse;
pub(crate) mod write;
