//! The words of Skiff as types: ids, names, units, limits, revisions and the
//! bodies of the admin API.
//!
//! Nothing here does I/O, reads a clock or is async. A value of one of these
//! types has been checked: what parses is valid everywhere.

pub mod api;
mod digest;
mod error;
mod function;
mod id;
pub mod invocation;
mod launch;
pub mod limits;
mod logs;
mod name;
mod revision;

pub use digest::{Digest, ParseDigestError};
pub use error::ErrorKind;
pub use function::FunctionSpec;
pub use id::{InstanceId, ParseIdError, ServerId, WorkerId};
pub use launch::{FunctionLaunch, Launch, StartCause};
pub use logs::{
    LogEvent, LogPage, LogPosition, LogRange, LogSpan, LogStart, LogTerms, ParsePositionError,
};
pub use name::{
    HookName, ParseNameError, ProjectId, ProjectName, RevisionId, SecretName, ServiceName, Tag,
};
pub use revision::{
    ContainerSpec, CpuMode, EnvValue, EnvVar, IsolationClass, IsolationRequest, Probe, ProbeKind,
    Protocol, Resources, RevisionSpec, Scaling, SpecError, WritableLayer,
};
