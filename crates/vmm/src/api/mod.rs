//! Firecracker's API: HTTP over a Unix socket, by which a machine is
//! configured, started, and controlled while it runs.
//!
//! ```text
//! configuring (the main thread, before any other) ── InstanceStart ─▶ running
//!    ▲                      │ it cannot be made                        (a thread of its own,
//!    └──────────────────────┘                                         behind its filter)
//! ```
//!
//! Paths, bodies, status codes and the shape of faults are Firecracker's, so
//! that its clients drive this monitor. What it has and this monitor has not
//! is refused, never ignored. Files are opened before the machine starts, and
//! none after.

mod action;
mod bodies;
mod configure;
mod counted;
mod fault;
mod guest;
mod http;
mod look;
mod run;
mod server;
#[cfg(test)]
mod tests;
mod thread;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::SocketType;
use serde_json::json;
use skiff_base::SystemClock;

use self::action::Question;
use self::fault::Fault;
use self::http::{Request, Response};
use self::server::Server;
use crate::Config;
use crate::config::{self, Level};
use crate::listener::Listener;
use crate::report::{Log, Metrics, Sink};

pub use guest::Guest;
pub use thread::ApiThread;

/// There is no API.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Its socket cannot be made.
    #[error("{} cannot be listened on: remove what is there, or name another path", .path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The log or the metrics cannot go where they should.
    #[error("{} cannot be opened for a log or metrics", .path.display())]
    Report {
        /// Where that is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The system cannot wait for clients.
    #[error("the API's clients cannot be waited for")]
    Wait(#[source] Errno),
    /// Its thread cannot be started.
    #[error("the API's thread cannot be started")]
    Start(#[source] std::io::Error),
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The API and what it knows of its machine.
#[derive(Debug)]
pub struct Api {
    server: Server,
    id: String,
    config: Config,
    log: Log,
    metrics: Metrics,
}

impl Api {
    /// Listens at a path, for this user only, or for whoever reaches it. The
    /// machine's name is `id`.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn listen(path: &Path, id: &str, for_all: bool) -> Result<Self, ApiError> {
        let listener = Listener::bind(path, SocketType::STREAM, for_all);
        let listener = listener.map_err(|source| ApiError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::new(Some(listener), id))
    }

    /// One that nobody reaches, for a machine that has a log or metrics.
    #[must_use]
    pub fn unreachable(id: &str) -> Self {
        Self::new(None, id)
    }

    fn new(listener: Option<Listener>, id: &str) -> Self {
        let clock = Arc::new(SystemClock);
        let mut metrics = Metrics::new(clock.clone());
        counted::begin(&mut metrics);
        Self {
            server: Server::new(listener),
            id: id.into(),
            config: Config::unsaid(),
            log: Log::new(id, clock),
            metrics,
        }
    }

    /// What its machine is, when that is not said over it.
    ///
    /// # Errors
    /// When the log or the metrics cannot go where they should.
    pub fn set_config(&mut self, config: &Config) -> Result<(), ApiError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| ApiError::Report { path, source }
        };
        if let Some(logger) = &config.logger {
            let path = logger.log_path.as_deref().unwrap_or(Path::new(""));
            self.log.set(logger).map_err(failed(path))?;
        }
        if let Some(config::Metrics { metrics_path }) = &config.metrics {
            let sink = Sink::open(metrics_path).map_err(failed(metrics_path))?;
            self.metrics.tell(sink);
        }
        self.config = config.clone();
        Ok(())
    }

    /// Counts, logs and answers a request.
    fn answer(&mut self, request: &Request, result: Result<Response, Fault>) {
        counted::count(&mut self.metrics, request, result.is_ok());
        let what = format!("{} {}", request.method.word(), request.path);
        let response = match result {
            Ok(response) => {
                self.log.say(Level::Info, &format!("{what}: done"));
                response
            }
            Err(fault) => {
                let said = format!("{what}: {}", skiff_base::chain(&fault));
                self.log.say(Level::Error, &said);
                fault.response()
            }
        };
        self.server.answer(&response);
    }

    /// Tells something that can always be told.
    fn tell(&self, question: Question, state: &str) -> Response {
        let config = &self.config;
        Response::json(&match question {
            Question::Instance => json!({
                "id": self.id,
                "state": state,
                "vmm_version": VERSION,
                "app_name": "skiff-vmm",
            }),
            // Firecracker's clients look for it under this name.
            Question::Version => json!({ "firecracker_version": VERSION }),
            Question::Config => json!(config),
            Question::MachineConfig => json!(config.machine_config),
        })
    }
}
