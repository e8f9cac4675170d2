//! The answers that the gateway gives itself.
//!
//! A quota answers 429; a queue that is full or whose deadline passed, and an
//! instance that nobody can start, 503; both with Retry-After. What an
//! instance spoils is 502, what takes too long 504.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use skiff_types::ErrorKind;

use crate::body::AnswerBody;
use crate::revision::Refusal;

/// A line of text.
pub(crate) fn text(status: StatusCode, line: impl Into<String>) -> Response<AnswerBody> {
    let mut line: String = line.into();
    line.push('\n');
    let mut response = Response::new(AnswerBody::Text(Some(Bytes::from(line))));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// A line of text and when to come again.
pub(crate) fn later(
    status: StatusCode,
    seconds: u16,
    line: impl Into<String>,
) -> Response<AnswerBody> {
    let mut response = text(status, line);
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// Why a request got no slot.
pub(crate) fn refusal(refusal: Refusal) -> Response<AnswerBody> {
    match refusal {
        Refusal::Full => later(
            StatusCode::SERVICE_UNAVAILABLE,
            1,
            "the queue of this revision is full",
        ),
        Refusal::Deadline => later(
            StatusCode::SERVICE_UNAVAILABLE,
            1,
            "no instance was free within the queue's deadline",
        ),
        Refusal::Refused { message, kind } => refused(&message, kind),
    }
}

fn refused(message: &str, kind: ErrorKind) -> Response<AnswerBody> {
    let status = StatusCode::from_u16(kind.http_status());
    let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    match kind {
        ErrorKind::Exhausted | ErrorKind::Unavailable => later(status, 5, message),
        _ => text(status, message),
    }
}
