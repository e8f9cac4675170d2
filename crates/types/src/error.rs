//! What kinds of failure there are, and how each is told to a client.

use serde::{Deserialize, Serialize};

/// The kind of a failure, independent of which part it happened in.
///
/// This is the one table that maps failures to HTTP statuses: crates carry
/// their own error types and answer `kind()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong; sending it again changes nothing.
    Invalid,
    /// No credential was given, or it is not known.
    Unauthenticated,
    /// The credential is known and may not do this.
    Forbidden,
    /// What the request names does not exist.
    NotFound,
    /// It exists already, or a precondition does not hold.
    Conflict,
    /// The body or an image is larger than a stated limit.
    TooLarge,
    /// A quota, a rate or a queue is full.
    Exhausted,
    /// It was understood and could not be carried out (a bad revision, an image that cannot be pulled).
    Failed,
    /// A part that is needed does not answer now; a later try may succeed.
    Unavailable,
    /// A deadline passed.
    Timeout,
    /// Understood, and not built.
    Unsupported,
    /// A fault of Skiff's own.
    Internal,
}

impl ErrorKind {
    /// The HTTP status (RFC 9110) that tells this kind to a client.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Failed => 422,
            Self::Exhausted => 429,
            Self::Internal => 500,
            Self::Unsupported => 501,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_written_in_snake_case() {
        let text = format!("{:?}", ErrorKind::NotFound);
        assert_eq!(text, "NotFound");
        assert_eq!(ErrorKind::NotFound.http_status(), 404);
    }
}
