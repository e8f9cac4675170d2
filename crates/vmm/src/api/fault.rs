use std::path::{Path, PathBuf};

use super::http::{Response, Status};
use crate::MachineError;
use crate::config::ConfigError;

/// Why a request is not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{method} {path} is no request of this API")]
    Unknown { method: &'static str, path: String },
    #[error("this monitor has no {0}")]
    Absent(&'static str),
    #[error("a GET request has no body")]
    Body,
    #[error("a {0} request has a body")]
    NoBody(&'static str),
    #[error("the body is wrong")]
    Json(#[source] serde_json::Error),
    #[error("the path names {path:?} and the body {body:?}: they must be the same")]
    Names { path: String, body: String },
    #[error("metrics are told already: where to is said once")]
    Told,
    #[error("the metrics had no room: nobody empties the pipe that they go to")]
    Full,
    #[error("nothing is to be changed")]
    Nothing,
    #[error("this can only be done once the machine is started")]
    BeforeStart,
    #[error("this can only be done before the machine is started")]
    AfterStart,
    #[error("boot-source is missing: without a kernel nothing starts")]
    NoKernel,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("{field}: {} cannot be opened", .path.display())]
    Open {
        field: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Fault {
    pub(super) fn open(field: &str, path: &Path, source: std::io::Error) -> Self {
        Self::Open {
            field: field.into(),
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn response(&self) -> Response {
        let message = skiff_base::chain(self).to_string();
        Response::fault(Status::BadRequest, &message)
    }
}
