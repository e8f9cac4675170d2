use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skiff_base::Tasks;
use skiff_types::{ErrorKind, Launch, ProjectId, ProjectName, RevisionId, ServerId};

use crate::port::Ports;

/// What the control plane is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server's version.
    pub version: String,
    /// The data folder's id.
    pub server_id: ServerId,
    /// Services are hosts under it.
    pub domain: String,
    /// `http` or `https`, for URLs.
    pub url_scheme: String,
    /// The gateway's port, for URLs; absent is the scheme's own.
    pub url_port: Option<u16>,
    /// Where the gateway listens, as told to clients.
    pub gateway: Vec<String>,
    /// The data folder: the key may not be in it.
    pub data_dir: PathBuf,
    /// The file of the key that encrypts secrets; made when it is absent.
    pub secret_key_file: PathBuf,
    /// Whether revisions may ask for the null class.
    pub allow_null: bool,
    /// Requests that wait for an instance of one revision.
    pub queue_requests: u32,
    /// How long one waits, milliseconds.
    pub queue_ms: u64,
}

/// The control plane refuses, or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What happened, to what, with its causes, on one line.
    pub message: String,
}

/// Answers what instances are made of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Resolver {}

impl Resolver {
    // pub async fn open(config: Config, store: Arc<dyn Store>, images: Arc<dyn Images>) -> Result<Self, ControlError>

    /// Everything a worker needs to start one instance.
    ///
    /// # Errors
    /// When the revision or its image is gone, or a secret cannot be read.
    pub async fn launch(&self, _revision: &RevisionId) -> Result<Launch, ControlError> {
        Err(ControlError {
            kind: ErrorKind::Unavailable,
            message: "the store is not open".to_owned(),
        })
    }

    /// A project's name, for bills.
    pub async fn project_name(&self, _project: &ProjectId) -> Option<ProjectName> {
        None
    }
}

/// The control plane. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    ports: Ports,
    tasks: Tasks,
}

impl Control {
    /// Repairs what a crash interrupted, tells the gateway and the fleet all
    /// desired state, and is ready to serve the API.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(_resolver: Resolver, ports: Ports) -> Result<Self, ControlError> {
        Ok(Self {
            ports,
            tasks: Tasks::new(),
        })
    }

    /// Serves the API to whoever the socket's permissions let in: the
    /// operator. Returns after [`Self::stop`].
    pub async fn serve_unix(&self, _listener: tokio::net::UnixListener) {}

    /// Serves the API over TCP to bearers of tokens.
    pub async fn serve_tcp(
        &self,
        _listener: tokio::net::TcpListener,
        _tls: Option<Arc<rustls::ServerConfig>>,
    ) {
    }

    /// Accepts nothing new, lets calls and deployments end until the
    /// deadline, then cuts off the rest.
    pub async fn stop(&self, deadline: Duration) {
        let _ended = self.tasks.drain(deadline).await;
        let _ = &self.ports;
    }
}
