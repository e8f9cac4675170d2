//! An agent without a machine: everything but the machine's own affairs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use skiff_base::process::command;
use support::disk::SECTOR_BYTES;
use support::{LayerDisk, Machine, connect, scenarios, until};

/// A loop device for a disk; it is let go of at the end.
struct LoopDevice(String);

impl LoopDevice {
    fn new(file: &Path, access: &[&str]) -> Self {
        let attached = command("losetup")
            // Without partitions it would have none at run time either.
            .args(["--find", "--show", "--partscan"])
            .args(access)
            .arg(file)
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        assert!(attached.status.success(), "{attached:?}");
        Self(
            String::from_utf8(attached.stdout)
                .unwrap()
                .trim()
                .to_owned(),
        )
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // It frees itself when the last user does.
        command("losetup").args(["--detach", &self.0]).status().ok();
    }
}

/// One file of all layers, each in its place.
fn lay_out(layers: &LayerDisk, folder: &Path) -> PathBuf {
    let path = folder.join("disk");
    let mut disk = File::create(&path).unwrap();
    for layer in &layers.layers {
        let offset = layer.window.first_sector * SECTOR_BYTES;
        disk.seek(SeekFrom::Start(offset)).unwrap();
        std::io::copy(&mut File::open(&layer.file).unwrap(), &mut disk).unwrap();
    }
    path
}

/// A running agent; its end is its launcher's.
struct Alone {
    agent: Child,
    machine: Option<Machine>,
    _disks: [LoopDevice; 2],
    _folder: tempfile::TempDir,
}

impl Alone {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layers = LayerDisk::new(folder.path());
        let disks = [
            LoopDevice::new(&lay_out(&layers, folder.path()), &["--read-only"]),
            LoopDevice::new(&layers.scratch.file, &[]),
        ];
        let agent = command(env!("CARGO_BIN_EXE_skiff-agent-alone"))
            .arg(folder.path())
            .args(disks.each_ref().map(|disk| &disk.0))
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut alone = Self {
            agent,
            machine: None,
            _disks: disks,
            _folder: folder,
        };
        let socket = alone._folder.path().join("vsock");
        alone.machine = Some(Machine::new(&socket, layers, 300).await);
        alone
    }

    fn machine(&self) -> &Machine {
        self.machine.as_ref().unwrap()
    }

    /// Ends it in order.
    async fn shut_down(mut self) {
        let socket = self.machine.take().unwrap().socket;
        let client = connect(&socket).await;
        client.shutdown().await.unwrap();
        drop(client);
        let status = until("its end", async || self.agent.try_wait().unwrap()).await;
        assert!(status.success());
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Its launcher ends with it.
        self.agent.kill().ok();
        self.agent.wait().ok();
    }
}

macro_rules! alone {
    ($name:ident) => {
        #[tokio::test]
        async fn $name() {
            let alone = Alone::start().await;
            scenarios::$name(alone.machine()).await;
            alone.shut_down().await;
        }
    };
}
each_scenario!(alone);
