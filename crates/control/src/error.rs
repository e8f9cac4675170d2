use skiff_base::chain;
use skiff_store::StoreError;
use skiff_types::api::ApiError;
use skiff_types::{ErrorKind, SpecError};

use crate::port::{PortError, StartFailure};

/// The control plane refuses, or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What happened, to what, with its causes, on one line.
    pub message: String,
}

macro_rules! kinds {
    ($($name:ident $kind:ident),*) => {
        $(pub(crate) fn $name(message: impl Into<String>) -> ControlError {
            ControlError { kind: ErrorKind::$kind, message: message.into() }
        })*
    };
}

kinds!(
    invalid Invalid, unauthenticated Unauthenticated, forbidden Forbidden,
    not_found NotFound, conflict Conflict, too_large TooLarge,
    exhausted Exhausted, failed Failed, unavailable Unavailable,
    timeout Timeout, unsupported Unsupported, internal Internal
);

impl ControlError {
    /// As the API tells it.
    #[must_use]
    pub fn to_api(&self) -> ApiError {
        ApiError {
            kind: self.kind,
            message: self.message.replace(['\n', '\r'], " "),
        }
    }
}

impl From<StoreError> for ControlError {
    fn from(error: StoreError) -> Self {
        Self {
            kind: error.kind(),
            message: format!("the state is not read or kept: {}", chain(&error)),
        }
    }
}

impl From<PortError> for ControlError {
    fn from(error: PortError) -> Self {
        Self {
            kind: error.kind,
            message: error.message,
        }
    }
}

impl From<StartFailure> for ControlError {
    fn from(failure: StartFailure) -> Self {
        Self {
            kind: failure.kind,
            message: failure.message,
        }
    }
}

impl From<SpecError> for ControlError {
    fn from(error: SpecError) -> Self {
        invalid(error.to_string())
    }
}
