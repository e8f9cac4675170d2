//! AWS's errors: a code, a status and a shape (botocore's service model and
//! Lambda's API reference, "Common errors").

use serde_json::{Map, Value, json};
use skiff_types::ErrorKind;

/// What went wrong, by AWS's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The call is signed by a key that may not do it.
    AccessDenied,
    /// A value is not what the operation takes.
    InvalidParameterValue,
    /// The body is not what the operation takes.
    InvalidRequestContent,
    /// The signature's parts are not all there.
    IncompleteSignature,
    /// The signature is another, or too old.
    InvalidSignature,
    /// There is no signature.
    MissingAuthenticationToken,
    /// Nobody serves this operation.
    NotImplemented,
    /// The policy is larger than AWS lets it be.
    PolicyLengthExceeded,
    /// The revision id is not the newest.
    PreconditionFailed,
    /// Nothing is provisioned of a version or alias.
    ProvisionedConcurrencyConfigNotFound,
    /// The body is too large.
    RequestTooLarge,
    /// It exists already, or something is under way with it.
    ResourceConflict,
    /// It does not exist.
    ResourceNotFound,
    /// The function is not there to be invoked yet.
    ResourceNotReady,
    /// A fault of ours.
    Service,
    /// A quota or a queue is full.
    TooManyRequests,
    /// The access key is not known.
    UnrecognizedClient,
    /// The body's type is not what the operation takes.
    UnsupportedMediaType,
}

impl Code {
    /// The value of `x-amzn-ErrorType`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AccessDenied => "AccessDeniedException",
            Self::InvalidParameterValue => "InvalidParameterValueException",
            Self::InvalidRequestContent => "InvalidRequestContentException",
            Self::IncompleteSignature => "IncompleteSignatureException",
            Self::InvalidSignature => "InvalidSignatureException",
            Self::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            Self::NotImplemented => "NotImplementedException",
            Self::PolicyLengthExceeded => "PolicyLengthExceededException",
            Self::PreconditionFailed => "PreconditionFailedException",
            Self::ProvisionedConcurrencyConfigNotFound => {
                "ProvisionedConcurrencyConfigNotFoundException"
            }
            Self::RequestTooLarge => "RequestTooLargeException",
            Self::ResourceConflict => "ResourceConflictException",
            Self::ResourceNotFound => "ResourceNotFoundException",
            Self::ResourceNotReady => "ResourceNotReadyException",
            Self::Service => "ServiceException",
            Self::TooManyRequests => "TooManyRequestsException",
            Self::UnrecognizedClient => "UnrecognizedClientException",
            Self::UnsupportedMediaType => "UnsupportedMediaTypeException",
        }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidParameterValue
            | Self::InvalidRequestContent
            | Self::IncompleteSignature
            | Self::PolicyLengthExceeded => 400,
            Self::AccessDenied
            | Self::InvalidSignature
            | Self::MissingAuthenticationToken
            | Self::UnrecognizedClient => 403,
            Self::ProvisionedConcurrencyConfigNotFound | Self::ResourceNotFound => 404,
            Self::ResourceConflict => 409,
            Self::PreconditionFailed => 412,
            Self::RequestTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::TooManyRequests => 429,
            Self::Service => 500,
            Self::NotImplemented => 501,
            Self::ResourceNotReady => 502,
        }
    }
}

/// An error as a client of AWS's reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct LambdaError {
    /// What kind.
    pub code: Code,
    /// What happened, to what, and what to do.
    pub message: String,
    /// AWS's reason, for what is throttled.
    pub reason: Option<&'static str>,
}

impl LambdaError {
    /// One without a reason.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: None,
        }
    }

    /// Throttled, for one of AWS's reasons.
    #[must_use]
    pub fn throttled(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: Code::TooManyRequests,
            message: message.into(),
            reason: Some(reason),
        }
    }

    /// The body: `Type` says whose fault it is.
    #[must_use]
    pub fn body(&self) -> Value {
        let fault = if self.code.status() < 500 {
            "User"
        } else {
            "Service"
        };
        let mut body = Map::new();
        body.insert("Type".to_owned(), json!(fault));
        if let Some(reason) = self.reason {
            body.insert("Reason".to_owned(), json!(reason));
        }
        // Lambda's shapes write `Message` or `message`; clients read either.
        let key = match self.code {
            Code::AccessDenied
            | Code::IncompleteSignature
            | Code::InvalidParameterValue
            | Code::InvalidSignature
            | Code::MissingAuthenticationToken
            | Code::PolicyLengthExceeded
            | Code::RequestTooLarge
            | Code::TooManyRequests
            | Code::UnrecognizedClient
            | Code::UnsupportedMediaType => "message",
            _ => "Message",
        };
        body.insert(key.to_owned(), json!(self.message));
        Value::Object(body)
    }

    /// AWS's code for a kind of failure that has no better one.
    #[must_use]
    pub const fn code_of(kind: ErrorKind) -> Code {
        match kind {
            ErrorKind::Invalid | ErrorKind::Failed | ErrorKind::Unsupported => {
                Code::InvalidParameterValue
            }
            ErrorKind::Unauthenticated => Code::UnrecognizedClient,
            ErrorKind::Forbidden => Code::AccessDenied,
            ErrorKind::NotFound => Code::ResourceNotFound,
            ErrorKind::Conflict => Code::ResourceConflict,
            ErrorKind::TooLarge => Code::RequestTooLarge,
            ErrorKind::Exhausted => Code::TooManyRequests,
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Internal => Code::Service,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_shape() {
        let error = LambdaError::new(Code::ResourceNotFound, "no such function");
        let expected = json!({"Type": "User", "Message": "no such function"});
        assert_eq!(error.body(), expected);
        let error = LambdaError::throttled("CallerRateLimitExceeded", "slower");
        assert_eq!(error.body()["Reason"], "CallerRateLimitExceeded");
        let fault = LambdaError::new(Code::Service, "x");
        assert_eq!(
            (fault.code.status(), &fault.body()["Type"]),
            (500, &json!("Service"))
        );
    }
}
