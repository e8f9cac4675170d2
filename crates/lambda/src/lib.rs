//! What AWS Lambda's API says and how: function names and ARNs, errors,
//! Signature Version 4, event streams, function URLs' events and replies, and
//! event sources' patterns, events and answers.
//!
//! It serves nothing, knows no function and reads no clock: who asks gives the
//! time and the bytes. Bytes of clients are hostile: nothing here panics on
//! them or keeps more than a named bound.
//!
//! Entry points: [`FunctionRef::parse`], [`FunctionName`], [`LambdaError`],
//! [`Signature::of`], [`Replays`], [`event_stream`], [`UrlRequest::event`], [`UrlReply::read`],
//! [`EventPattern`], [`SqsMessage::record`], [`S3Notification::read`].

mod arn_like;
mod error;
pub mod event_stream;
mod function_name;
mod layer;
mod log_filter;
mod log_name;
mod name;
mod percent;
mod replay;
mod runtime;
mod sigv4;
mod source;
mod streamed;
mod upload;
mod url;

pub use arn_like::arn_like;
pub use error::{Code, LambdaError};
pub use function_name::{FunctionName, NotAName};
pub use layer::{LayerNameError, LayerRef};
pub use log_filter::{FilterError, parse_filter};
pub use log_name::{LogGroup, log_group, log_stream, log_stream_instance};
pub use name::{Arns, FunctionRef, NameError, Qualifier};
pub use percent::{decode, decode_query};
pub use replay::{Replayed, Replays};
pub use runtime::{Runtime, UnknownRuntime, is_handler};
pub use sigv4::{
    Request, Scope, Secret, Signature, SignatureError, payload_sha256, presigned_query, sign,
};
pub use source::{
    EventPattern, PatternError, S3_RECORDS_MAX, S3Event, S3EventError, S3Notification, SqsMessage,
    batch_event, batch_failures, s3_arn,
};
pub use upload::{JSON_BYTES_MAX, Upload, UploadError};
pub use url::{
    Prelude, STREAM_TYPE, UrlCaller, UrlContext, UrlEventTooLarge, UrlHead, UrlReply,
    UrlReplyError, UrlRequest,
};
