//! What an operator may set, with defaults that need no setting.

use std::fs::File;
use std::time::Duration;

/// How the gateway treats clients and instances.
#[derive(Debug)]
pub struct GatewayConfig {
    /// From a connection's start to the end of its first request's head.
    pub header_timeout: Duration,
    /// How long a client connection may be without a request.
    pub idle_timeout: Duration,
    /// How long connecting to an instance may take before it counts as dead.
    pub connect_timeout: Duration,
    /// How long a paused instance may take to wake.
    pub wake_timeout: Duration,
    /// How long an unused connection to an instance is kept.
    pub upstream_idle_timeout: Duration,
    /// How long a request may be expected to wait for a slot while more is
    /// offered than its revision can take; nothing is no bound.
    pub overload_wait: Duration,
    /// Client connections at once; `None` derives it from RLIMIT_NOFILE.
    pub max_connections: Option<u64>,
    /// Of these, those of one instance to the services of its project.
    pub inner_connections: usize,
    /// A trusted proxy stands in front: `Forwarded` and `X-Forwarded-*` of
    /// the client are kept and appended to. Otherwise they are replaced.
    pub trust_forwarded: bool,
    /// One line for each request; `None` writes none.
    pub access_log: Option<File>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            connect_timeout: Duration::from_secs(5),
            wake_timeout: Duration::from_secs(5),
            upstream_idle_timeout: Duration::from_secs(30),
            overload_wait: Duration::from_millis(300),
            max_connections: None,
            inner_connections: 1024,
            trust_forwarded: false,
            access_log: None,
        }
    }
}

/// A connection needs a descriptor for the client and one for the instance;
/// the rest of the process keeps its share.
const DESCRIPTORS_RESERVED: u64 = 256;

impl GatewayConfig {
    pub(crate) fn connection_bound(&self) -> u64 {
        self.max_connections.unwrap_or_else(|| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let open = limit.current.unwrap_or(1 << 20).min(1 << 20);
            (open.saturating_sub(DESCRIPTORS_RESERVED) / 2).max(16)
        })
    }
}
