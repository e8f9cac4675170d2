//! Credentials for registries, from Docker's configuration file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use skiff_types::api::RegistryAuth;

use crate::document::null_is_empty;
use crate::limits::DOCKER_CONFIG_BYTES_MAX;

/// The user name that stands for an identity token, as in Docker's tools.
pub(crate) const IDENTITY_TOKEN_USER: &str = "<token>";
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Why Docker's configuration gives no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not Docker's configuration.
    #[error("{path} is not a Docker configuration")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// An entry is not what `docker login` writes.
    #[error("{path}: the credentials for {host} are not base64 of `user:password`")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The registry.
        host: String,
    },
    /// The credentials are in another program, which is not run.
    #[error(
        "{path} keeps the credentials for {host} in the credential helper `{helper}`, which is not run: write them into `auths`, or give user and password"
    )]
    Helper {
        /// The file.
        path: PathBuf,
        /// The registry.
        host: String,
        /// The program's name behind `docker-credential-`.
        helper: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    #[serde(deserialize_with = "null_is_empty")]
    auths: BTreeMap<String, Entry>,
    #[serde(deserialize_with = "null_is_empty")]
    creds_store: String,
    #[serde(deserialize_with = "null_is_empty")]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(deserialize_with = "null_is_empty")]
    auth: String,
    #[serde(deserialize_with = "null_is_empty")]
    username: String,
    #[serde(deserialize_with = "null_is_empty")]
    password: String,
    #[serde(deserialize_with = "null_is_empty")]
    identitytoken: String,
    #[serde(deserialize_with = "null_is_empty")]
    registrytoken: String,
}

/// The credentials that `docker login` left for a registry: in
/// `$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`. `host` is
/// [`crate::Reference::registry`].
///
/// # Errors
/// The file is there and cannot be used, or names a credential helper.
pub fn docker_credentials(host: &str) -> Result<Option<RegistryAuth>, CredentialsError> {
    let folder = match std::env::var_os("DOCKER_CONFIG").filter(|f| !f.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => match std::env::var_os("HOME").filter(|h| !h.is_empty()) {
            Some(home) => PathBuf::from(home).join(".docker"),
            None => return Ok(None),
        },
    };
    docker_credentials_in(&folder.join("config.json"), host)
}

/// As [`docker_credentials`], from the file of this path.
///
/// # Errors
/// As there.
pub fn docker_credentials_in(
    path: &Path,
    host: &str,
) -> Result<Option<RegistryAuth>, CredentialsError> {
    let read = |source| CredentialsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let mut bytes = Vec::new();
    file.take(DOCKER_CONFIG_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    let config: DockerConfig =
        serde_json::from_slice(&bytes).map_err(|source| CredentialsError::Json {
            path: path.to_owned(),
            source,
        })?;
    config.credentials(path, host)
}

impl DockerConfig {
    fn credentials(
        &self,
        path: &Path,
        host: &str,
    ) -> Result<Option<RegistryAuth>, CredentialsError> {
        let wanted = hostname(host);
        let of_host = |(name, _): &(&String, &Entry)| hostname(name) == wanted;
        let entry = self.auths.iter().find(of_host).map(|(_, entry)| entry);
        if let Some(auth) = entry.and_then(Entry::tokens) {
            return Ok(Some(auth));
        }
        if let Some(entry) = entry.filter(|entry| !entry.auth.is_empty()) {
            let decoded = decode(&entry.auth).ok_or_else(|| CredentialsError::Encoding {
                path: path.to_owned(),
                host: host.to_owned(),
            })?;
            return Ok(Some(decoded));
        }
        // With a store, `docker login` leaves an empty entry behind.
        let own = self
            .cred_helpers
            .iter()
            .find(|(n, _)| hostname(n) == wanted);
        let store = (entry.is_some() && !self.creds_store.is_empty()).then_some(&self.creds_store);
        match own.map(|(_, helper)| helper).or(store) {
            Some(helper) => Err(CredentialsError::Helper {
                path: path.to_owned(),
                host: host.to_owned(),
                helper: helper.chars().take(100).collect(),
            }),
            None => Ok(None),
        }
    }
}

impl Entry {
    fn tokens(&self) -> Option<RegistryAuth> {
        let auth = |username: &str, password: &str| {
            Some(RegistryAuth {
                username: username.to_owned(),
                password: password.to_owned(),
            })
        };
        if !self.registrytoken.is_empty() {
            return auth("", &self.registrytoken);
        }
        if !self.identitytoken.is_empty() {
            return auth(IDENTITY_TOKEN_USER, &self.identitytoken);
        }
        if !self.username.is_empty() {
            return auth(&self.username, &self.password);
        }
        None
    }
}

fn decode(auth: &str) -> Option<RegistryAuth> {
    let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (username, password) = text.trim_end_matches('\0').split_once(':')?;
    Some(RegistryAuth {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

/// Entries may be URLs; Docker's own registry has its historical one.
fn hostname(name: &str) -> &str {
    if matches!(
        name,
        DOCKER_HUB | "index.docker.io" | "registry-1.docker.io"
    ) {
        return "docker.io";
    }
    let bare = name
        .strip_prefix("https://")
        .or_else(|| name.strip_prefix("http://"))
        .unwrap_or(name);
    bare.split('/').next().unwrap_or(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_up(config: &str, host: &str) -> Result<Option<(String, String)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        docker_credentials_in(&path, host)
            .map(|auth| auth.map(|a| (a.username, a.password)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn credentials_are_found_as_docker_login_writes_them() {
        let found = |user: &str, password: &str| Ok(Some((user.to_owned(), password.to_owned())));
        let config = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"bWU6czpl"},
            "localhost:5000":{"username":"u","password":"p"},
            "https://ghcr.io":{"identitytoken":"i"},
            "quay.io":{"registrytoken":"r"},
            "broken.io":{"auth":"%"},
            "kept.io":{}},
            "credsStore":"desktop","credHelpers":{"ecr.io":"ecr-login"}}"#;
        assert_eq!(look_up(config, "docker.io"), found("me", "s:e"));
        assert_eq!(look_up(config, "localhost:5000"), found("u", "p"));
        assert_eq!(look_up(config, "ghcr.io"), found(IDENTITY_TOKEN_USER, "i"));
        assert_eq!(look_up(config, "quay.io"), found("", "r"));
        assert_eq!(look_up(config, "localhost"), Ok(None));
        assert!(
            look_up(config, "broken.io")
                .unwrap_err()
                .contains("broken.io")
        );
        assert!(
            look_up(config, "kept.io")
                .unwrap_err()
                .contains("`desktop`")
        );
        assert!(
            look_up(config, "ecr.io")
                .unwrap_err()
                .contains("`ecr-login`")
        );
        assert_eq!(look_up(r#"{"auths":null}"#, "a.io"), Ok(None));
        assert!(look_up("[", "a.io").is_err());
    }

    #[test]
    fn without_a_file_there_are_none() {
        let none = docker_credentials_in(Path::new("/nonexistent/config.json"), "a.io");
        assert!(none.unwrap().is_none());
    }
}
