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

/// A client of the service cannot mend what keeps an instance from starting,
/// so most kinds are 503 here, other than in the admin API.
fn refused(message: &str, kind: ErrorKind) -> Response<AnswerBody> {
    match kind {
        ErrorKind::Exhausted => later(StatusCode::TOO_MANY_REQUESTS, 5, message),
        ErrorKind::Timeout => text(StatusCode::GATEWAY_TIMEOUT, message),
        ErrorKind::Internal => text(StatusCode::INTERNAL_SERVER_ERROR, message),
        _ => later(StatusCode::SERVICE_UNAVAILABLE, 5, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_an_instance_from_starting_is_a_503_unless_known_better() {
        for (kind, status, retry) in [
            (ErrorKind::Exhausted, 429, true),
            (ErrorKind::Timeout, 504, false),
            (ErrorKind::Internal, 500, false),
            (ErrorKind::Failed, 503, true),
            (ErrorKind::NotFound, 503, true),
            (ErrorKind::Unavailable, 503, true),
        ] {
            let answer = refused("why", kind);
            assert_eq!(answer.status(), status, "{kind:?}");
            assert_eq!(answer.headers().contains_key(RETRY_AFTER), retry);
        }
    }
}
