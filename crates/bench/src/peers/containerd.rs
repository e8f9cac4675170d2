//! containerd with folders and a socket of its own, and its client `ctr`.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::context::{Context, Service};
use crate::sample_image::text;
use crate::time::wait_until;

const STARTING: Duration = Duration::from_secs(30);

/// A containerd of this run's own.
#[derive(Debug)]
pub struct Containerd<'a> {
    context: &'a Context,
    address: String,
    _service: Service,
}

impl<'a> Containerd<'a> {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(context: &'a Context) -> anyhow::Result<Self> {
        let home = context.home().join("containerd");
        std::fs::create_dir_all(&home)?;
        let address = text(&home.join("containerd.sock"));
        let config = home.join("config.toml");
        std::fs::write(&config, configuration(&text(&home)))?;
        let service = context.spawn("containerd", &["--config", &text(&config)])?;
        let containerd = Self {
            context,
            address,
            _service: service,
        };
        wait_until("containerd answers", STARTING, || {
            Ok(containerd.ctr(&["version"]).is_ok())
        })?;
        Ok(containerd)
    }

    /// Runs `ctr ARGS`.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctr(&self, args: &[&str]) -> anyhow::Result<String> {
        let name = self.context.name();
        let global = ["--address", &self.address, "--namespace", &name];
        self.context.run("ctr", &[&global, args].concat())
    }

    /// Imports and unpacks a layout's image `1` as `bench/NAME:1`.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn import(&self, layout: &Path, name: &str) -> anyhow::Result<String> {
        let tar = self.context.home().join(format!("{name}-import.tar"));
        let folder = text(layout);
        self.context.run(
            "tar",
            &[
                "--create",
                "--file",
                &text(&tar),
                "--directory",
                &folder,
                ".",
            ],
        )?;
        let base = format!("bench/{name}");
        self.ctr(&["image", "import", "--base-name", &base, &text(&tar)])?;
        let image = format!("{base}:1");
        let list = self.ctr(&["image", "ls", "-q"])?;
        list.lines()
            .any(|line| line == image)
            .then_some(image)
            .with_context(|| format!("containerd does not know bench/{name}:1 but {list}"))
    }

    /// Starts `ctr run --net-host` and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, image: &str, id: &str, port: u16) -> anyhow::Result<Service> {
        let name = self.context.name();
        let port = format!("PORT={port}");
        let mark = format!("SKIFF_BENCH_HOME={}", self.context.home().display());
        let global = ["--address", &self.address, "--namespace", &name];
        let run = [
            "run",
            "--detach",
            "--net-host",
            "--env",
            &port,
            "--env",
            &mark,
            image,
            id,
        ];
        self.context.spawn("ctr", &[&global[..], &run].concat())
    }

    /// Ends and removes a container.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn remove(&self, id: &str) -> anyhow::Result<()> {
        self.ctr(&["task", "rm", "--force", id])?;
        self.ctr(&["container", "rm", id]).map(drop)
    }
}

fn configuration(home: &str) -> String {
    format!(
        "version = 2\nroot = \"{home}/root\"\nstate = \"{home}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = \"{home}/containerd.sock\"\n[ttrpc]\naddress = \"{home}/containerd.sock.ttrpc\"\n"
    )
}
