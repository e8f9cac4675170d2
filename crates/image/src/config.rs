//! An image's configuration: how its process is started (image-spec, config.md).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skiff_types::Digest;
use skiff_types::limits::{ARGS_BYTES_MAX, ENV_BYTES_MAX, ENV_VARS_MAX, LAYERS_MAX};

use crate::document::{DocumentError, bounded, clipped, json, null_is_empty};
use crate::platform::Platform;

const LABELS_MAX: u64 = 4096;
const PORTS_MAX: u64 = 1024;

/// How an image wants to be run; checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the whole command without an entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Absolute; `/` when the image says nothing.
    pub working_dir: String,
    /// As the image writes it: `""`, `uid`, `uid:gid`, `name` or `name:group`.
    pub user: String,
    /// `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// `SIGTERM` when the image says nothing.
    pub stop_signal: String,
    /// Whatever the builder wrote.
    pub labels: BTreeMap<String, String>,
}

/// What of the configuration is not about running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigDocument {
    pub platform: Platform,
    pub config: ImageConfig,
    /// The layers' tars, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    config: RawConfig,
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    #[serde(deserialize_with = "null_is_empty")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_empty")]
    user: String,
    #[serde(deserialize_with = "null_is_empty")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_empty")]
    stop_signal: String,
    #[serde(deserialize_with = "null_is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_is_empty")]
    diff_ids: Vec<Digest>,
}

impl ConfigDocument {
    /// Reads and checks a configuration.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: Raw = json("the configuration", bytes)?;
        bounded(
            "layers",
            raw.rootfs.diff_ids.len() as u64,
            LAYERS_MAX as u64,
        )?;
        let platform = Platform {
            os: or_else(raw.os, "linux"),
            architecture: or_else(raw.architecture, "amd64"),
            variant: raw.variant.filter(|v| !v.is_empty()),
        };
        let text = platform.to_string();
        if text.parse::<Platform>().is_err() {
            return Err(wrong("the platform", &text, "`os/arch` is expected"));
        }
        Ok(Self {
            platform,
            config: raw.config.checked()?,
            diff_ids: raw.rootfs.diff_ids,
        })
    }
}

impl RawConfig {
    fn checked(self) -> Result<ImageConfig, DocumentError> {
        let words = self.entrypoint.iter().chain(&self.cmd);
        let args: usize = words.clone().map(|w| w.len() + 1).sum();
        bounded("bytes of arguments", args as u64, ARGS_BYTES_MAX as u64)?;
        bounded(
            "environment variables",
            self.env.len() as u64,
            ENV_VARS_MAX as u64,
        )?;
        let env: usize = self.env.iter().map(|w| w.len() + 1).sum();
        bounded("bytes of environment", env as u64, ENV_BYTES_MAX as u64)?;
        bounded("exposed ports", self.exposed_ports.len() as u64, PORTS_MAX)?;
        bounded("labels", self.labels.len() as u64, LABELS_MAX)?;
        let all = words.chain(&self.env);
        for text in all.chain([&self.working_dir, &self.user, &self.stop_signal]) {
            if text.contains('\0') {
                return Err(wrong(
                    "a text of the configuration",
                    text,
                    "it contains NUL",
                ));
            }
        }
        if let Some(nameless) = self.env.iter().find(|v| v.starts_with('=')) {
            return Err(wrong("an environment variable", nameless, "it has no name"));
        }
        let working_dir = match self.working_dir.as_str() {
            "" => "/".to_owned(),
            dir if dir.starts_with('/') => self.working_dir,
            // Docker resolves a relative one against the root.
            dir => format!("/{dir}"),
        };
        Ok(ImageConfig {
            entrypoint: self.entrypoint,
            cmd: self.cmd,
            env: self.env,
            working_dir,
            user: self.user,
            exposed_ports: self.exposed_ports.into_keys().collect(),
            stop_signal: or_else(self.stop_signal, "SIGTERM"),
            labels: self.labels,
        })
    }
}

fn or_else(text: String, default: &str) -> String {
    if text.is_empty() {
        default.to_owned()
    } else {
        text
    }
}

fn wrong(what: &'static str, value: &str, reason: &'static str) -> DocumentError {
    DocumentError::Value {
        what,
        value: clipped(value),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: &str) -> Result<ConfigDocument, String> {
        let diff_id = Digest::from_sha256([7; 32]);
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{config},
            "rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
        );
        ConfigDocument::parse(text.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_configuration_is_read_with_its_defaults() {
        let found = parse(
            r#"{"Entrypoint":["/a"],"Cmd":null,"Env":["A=1","B"],"User":"app","WorkingDir":"srv",
            "ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT","Labels":{"k":"v"},"Healthcheck":{}}"#,
        )
        .unwrap();
        assert_eq!(
            found.platform,
            Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
                variant: None
            }
        );
        assert_eq!(found.diff_ids, [Digest::from_sha256([7; 32])]);
        assert_eq!(found.config.entrypoint, ["/a"]);
        assert!(found.config.cmd.is_empty());
        assert_eq!(found.config.working_dir, "/srv");
        assert_eq!(found.config.exposed_ports, ["80/tcp"]);
        assert_eq!(found.config.stop_signal, "SIGQUIT");
        let bare = parse("null").unwrap().config;
        assert_eq!(
            (bare.working_dir.as_str(), bare.stop_signal.as_str()),
            ("/", "SIGTERM")
        );
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        assert!(
            parse(r#"{"Cmd":["a\u0000b"]}"#)
                .unwrap_err()
                .contains("NUL")
        );
        assert!(parse(r#"{"Env":["=1"]}"#).unwrap_err().contains("no name"));
        let long = format!(r#"{{"Cmd":["{}"]}}"#, "x".repeat(70_000));
        assert!(parse(&long).unwrap_err().contains("bytes of arguments"));
        assert!(parse(r#"{"Cmd":"a"}"#).unwrap_err().contains("not valid"));
        assert!(ConfigDocument::parse(br#"{"rootfs":{"diff_ids":["x"]}}"#).is_err());
        assert!(ConfigDocument::parse(br#"{"os":"a b","rootfs":{}}"#).is_err());
    }
}
