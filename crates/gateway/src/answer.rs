//! The answers that the gateway gives itself.
//!
//! A quota answers 429; a queue that is full, too slow or whose deadline
//! passed, and an instance that nobody can start, 503; both with Retry-After.
//! What an instance spoils is 502, what takes too long 504.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use skiff_types::ErrorKind;

use crate::revision::Refusal;

/// A line of text, and when to come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) status: StatusCode,
    pub(crate) retry_after_s: Option<u16>,
    pub(crate) line: Cow<'static, str>,
}

/// A line of text.
pub(crate) fn text(status: StatusCode, line: impl Into<Cow<'static, str>>) -> Own {
    Own {
        status,
        retry_after_s: None,
        line: line.into(),
    }
}

/// A line of text and when to come again.
pub(crate) fn later(status: StatusCode, seconds: u16, line: impl Into<Cow<'static, str>>) -> Own {
    Own {
        retry_after_s: Some(seconds),
        ..text(status, line)
    }
}

/// Why a request got no slot.
pub(crate) fn refusal(refusal: Refusal) -> Own {
    match refusal {
        Refusal::Full => later(
            StatusCode::SERVICE_UNAVAILABLE,
            1,
            "the queue of this revision is full",
        ),
        Refusal::Late { expected } => later(
            StatusCode::SERVICE_UNAVAILABLE,
            whole_seconds(expected),
            format!(
                "more is asked of this revision than it can answer: a request would wait {} ms",
                expected.as_millis()
            ),
        ),
        Refusal::Deadline => later(
            StatusCode::SERVICE_UNAVAILABLE,
            1,
            "no instance was free within the queue's deadline",
        ),
        Refusal::Refused { message, kind } => refused(message, kind),
    }
}

/// Rounded up: who comes sooner comes in vain.
fn whole_seconds(wait: Duration) -> u16 {
    let up = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    u16::try_from(up).unwrap_or(u16::MAX).max(1)
}

/// A client of the service cannot mend what keeps an instance from starting,
/// so most kinds are 503 here, other than in the admin API.
fn refused(message: String, kind: ErrorKind) -> Own {
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
    fn a_wait_is_told_in_whole_seconds() {
        for (millis, seconds) in [
            (0, 1),
            (300, 1),
            (1000, 1),
            (1001, 2),
            (7200, 8),
            (1 << 40, 65535),
        ] {
            let expected = Duration::from_millis(millis);
            let answer = refusal(Refusal::Late { expected });
            assert_eq!(answer.status, 503);
            assert_eq!(answer.retry_after_s, Some(seconds), "{millis} ms");
        }
    }

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
            let answer = refused("why".to_owned(), kind);
            assert_eq!(answer.status, status, "{kind:?}");
            assert_eq!(answer.retry_after_s.is_some(), retry);
        }
    }
}
