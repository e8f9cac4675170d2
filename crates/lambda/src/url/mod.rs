//! Function URLs: an HTTP request as an event in payload format 2.0, and what a
//! function answers as an HTTP reply (AWS, "Invoking Lambda function URLs" and
//! "Working with AWS Lambda proxy integrations for HTTP APIs").
//!
//! ```text
//!  request ─▶ UrlRequest::event ─▶ JSON ─▶ function ─▶ UrlReply::read     ─▶ reply
//!                                                  └─▶ Prelude::push ─▶ streamed reply
//! ```
//! What either side sends is hostile: every size is bounded.

mod event;
mod reply;

pub use event::{UrlCaller, UrlContext, UrlEventTooLarge, UrlRequest};
pub use reply::{Prelude, STREAM_TYPE, UrlHead, UrlReply, UrlReplyError};
