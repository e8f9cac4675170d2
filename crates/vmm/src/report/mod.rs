//! What the monitor tells whoever watches it, beside its last words on
//! standard error: lines of a log and of metrics, in Firecracker's shape.

mod log;
mod metrics;
mod sink;

pub(crate) use log::Log;
pub(crate) use metrics::Metrics;
pub(crate) use sink::Sink;
