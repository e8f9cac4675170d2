//! The least that a container and an application cost: `runc run` of a
//! prepared bundle, and the application as a plain process.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::context::{Context, Service};
use crate::sample_image::text;

/// An image unpacked for runc, with the host's network.
#[derive(Debug)]
pub struct Bundle<'a> {
    context: &'a Context,
    folder: PathBuf,
}

impl<'a> Bundle<'a> {
    /// Unpacks a layout's image `1`.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn unpack(context: &'a Context, layout: &Path, name: &str) -> anyhow::Result<Self> {
        let folder = context.home().join(format!("bundle-{name}"));
        let image = format!("{}:1", layout.display());
        context.run("umoci", &["unpack", "--image", &image, &text(&folder)])?;
        Ok(Self { context, folder })
    }

    pub fn root(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    /// Makes the next container serve on this port; part of the preparation.
    ///
    /// # Errors
    /// When the bundle cannot be changed.
    pub fn prepare(&self, id: &str, port: u16) -> anyhow::Result<()> {
        let path = self.folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let env = config["process"]["env"]
            .as_array_mut()
            .context("no process.env")?;
        env.retain(|value| !value.as_str().unwrap_or_default().starts_with("PORT="));
        env.push(json!(format!("PORT={port}")));
        env.push(json!(format!(
            "SKIFF_BENCH_HOME={}",
            self.context.home().display()
        )));
        config["process"]["terminal"] = json!(false);
        let linux = &mut config["linux"];
        linux["cgroupsPath"] = json!(format!("/{}/{id}", self.context.name()));
        if let Some(namespaces) = linux["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
        // The host's network belongs to the host's sysfs.
        if let Some(mounts) = config["mounts"].as_array_mut() {
            for mount in mounts
                .iter_mut()
                .filter(|mount| mount["destination"] == "/sys")
            {
                *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                    "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
            }
        }
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(())
    }

    /// Starts `runc run` and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, id: &str) -> anyhow::Result<Service> {
        let (state, bundle) = (self.state(), text(&self.folder));
        let args = ["--root", &state, "run", "--detach", "--bundle", &bundle, id];
        self.context.spawn("runc", &args)
    }

    /// Ends and removes a container.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn remove(&self, id: &str) -> anyhow::Result<()> {
        self.context
            .run("runc", &["--root", &self.state(), "delete", "--force", id])
            .map(drop)
    }

    fn state(&self) -> String {
        text(&self.context.home().join("runc"))
    }
}

/// The Python sample in its unpacked root, as a process without any walls.
///
/// # Errors
/// When it cannot be started.
pub fn bare_python(context: &Context, root: &Path, port: u16) -> anyhow::Result<Service> {
    let root = text(root);
    let env = [
        ("PORT", port.to_string()),
        ("PYTHONUNBUFFERED", "1".to_owned()),
    ];
    let env: Vec<(&str, &str)> = env
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    context.spawn_with("chroot", &[&root, "/usr/bin/python3", "/app/app.py"], &env)
}
