use std::time::Duration;

use skiff_types::ErrorKind;

/// Why a registry does not give what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// An address that the registry gave cannot be one.
    #[error("`{0}` is not an address")]
    Address(String),
    /// Plain HTTP is for hosts that are configured so.
    #[error("{url} is plain HTTP, and {host} is not configured as insecure")]
    Insecure {
        /// Where the registry sent us.
        url: String,
        /// Its host.
        host: String,
    },
    /// No connection, or it broke.
    #[error("no connection to {host}")]
    Connection {
        /// The host.
        host: String,
        /// What happened.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// No answer in time.
    #[error("{host} did not answer within {limit:?}")]
    Timeout {
        /// The host.
        host: String,
        /// The bound.
        limit: Duration,
    },
    /// The body stopped coming.
    #[error("{host} sent nothing for {limit:?}")]
    Stalled {
        /// The host.
        host: String,
        /// The bound.
        limit: Duration,
    },
    /// The body broke off.
    #[error("the connection to {host} broke")]
    Body {
        /// The host.
        host: String,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The body ended before its time.
    #[error("{host} sent {found} bytes of {expected}")]
    Short {
        /// The host.
        host: String,
        /// What was announced.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The body is larger than this crate reads.
    #[error("the answer of {host} is over {most} bytes")]
    TooLarge {
        /// The host.
        host: String,
        /// The bound.
        most: u64,
    },
    /// The registry does not have it.
    #[error("{host} does not have {what}")]
    NotFound {
        /// The host.
        host: String,
        /// A manifest or blob.
        what: String,
    },
    /// The registry wants credentials, or others.
    #[error("{host} denies access ({status}): {hint}")]
    Denied {
        /// The host.
        host: String,
        /// 401 or 403.
        status: u16,
        /// What can be done.
        hint: String,
    },
    /// Any other answer that is no success.
    #[error("{host} answers {status}: {message}")]
    Status {
        /// The host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What the body says, cut short.
        message: String,
    },
    /// It redirects without end.
    #[error("{host} redirects over {most} times")]
    Redirects {
        /// The first host.
        host: String,
        /// The bound.
        most: usize,
    },
    /// The answer to a request for a part is another part.
    #[error("{host} answers with another range than was asked for")]
    Range {
        /// The host.
        host: String,
    },
    /// The token service's answer has no token.
    #[error("{host} gives no token")]
    Token {
        /// The host of the token service.
        host: String,
    },
    /// It was tried again, and is tried no more.
    #[error("{host} did not give the {what} in {tries} tries")]
    GivenUp {
        /// The host.
        host: String,
        /// A manifest or blob.
        what: String,
        /// How often it was tried.
        tries: u32,
        /// What the last try met.
        #[source]
        last: Box<RegistryError>,
    },
    /// TLS cannot be used at all.
    #[error("no certificate authority is known: install ca-certificates")]
    NoRoots,
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl RegistryError {
    /// What kind of failure this is, for the API's answer.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Timeout { .. } | Self::Stalled { .. } => ErrorKind::Timeout,
            Self::Connection { .. } | Self::Body { .. } | Self::Short { .. } => {
                ErrorKind::Unavailable
            }
            Self::Status { status, .. } if *status == 429 || *status >= 500 => {
                ErrorKind::Unavailable
            }
            Self::GivenUp { last, .. } => last.kind(),
            Self::NoRoots | Self::Tls(_) => ErrorKind::Internal,
            _ => ErrorKind::Failed,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Connection { .. }
            | Self::Body { .. }
            | Self::Short { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status == 408 || *status >= 500,
            _ => false,
        }
    }
}
