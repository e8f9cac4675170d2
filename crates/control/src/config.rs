use std::collections::BTreeMap;
use std::path::PathBuf;

use skiff_types::{ProjectId, ProjectName, ServerId, ServiceName};

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
    /// Where AWS's clients are served, as told to clients.
    pub lambda: Option<String>,
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
    /// Bytes of one imported tar.
    pub import_bytes_max: u64,
    /// Functions' roles by their ARNs.
    pub roles: BTreeMap<String, Role>,
}

/// What the process of a function with a role is given: variables and their
/// values, which are secret. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Role(pub Vec<(String, String)>);

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Role")
    }
}

impl Config {
    /// The role of this name, if it is of that project: its ARN says so.
    pub(crate) fn role(&self, project: &ProjectId, arn: &str) -> Option<&Role> {
        let account = arn.split(':').nth(4)?;
        let role = self.roles.get(arn)?;
        (account == project.as_str()).then_some(role)
    }

    /// `NAME.DOMAIN` in the default project, else `NAME.PROJECT.DOMAIN`.
    pub(crate) fn host(
        &self,
        project: &ProjectId,
        project_name: &ProjectName,
        service: &ServiceName,
    ) -> String {
        if *project == ProjectId::default_project() {
            return format!("{service}.{}", self.domain);
        }
        format!("{service}.{project_name}.{}", self.domain)
    }

    pub(crate) fn url(&self, host: &str) -> String {
        match self.url_port {
            Some(port) => format!("{}://{host}:{port}", self.url_scheme),
            None => format!("{}://{host}", self.url_scheme),
        }
    }
}
