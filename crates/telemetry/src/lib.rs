//! The server's own log.
//!
//! It does not hold the logs of instances, nor the access log.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("`{filter}` is not a log level or filter")]
    Filter {
        /// What was given.
        filter: String,
        /// Why not.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// There is one already.
    #[error("the log is set up already")]
    Twice,
}

/// Sends events to standard error, as text or one JSON object a line.
///
/// # Errors
/// When the filter cannot be read, or when it is called twice.
pub fn init(filter: &str, json: bool) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let writer = BoxMakeWriter::new(std::io::stderr);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false);
    let result = if json {
        log.json().try_init()
    } else {
        log.with_target(false).try_init()
    };
    result.map_err(|_| TelemetryError::Twice)
}
