//! The agent in a machine: Debian's stock kernel under the monitor. It takes
//! KVM, the kernel and the agent in an initramfs, which `make test-kvm` has.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType};
use skiff_base::process::command;
use skiff_base::{Clock, SystemClock};
use skiff_jail::channel;
use skiff_wire::agent::Window;
use skiff_wire::monitor;
use support::disk::Layer;
use support::{LayerDisk, Machine, connect, refusal, scenarios, until};

const DISK: &str = "layers";
const SCRATCH: &str = "scratch";

/// Where `vmlinuz` and `agent`, an initramfs, are.
fn files() -> Option<PathBuf> {
    let files = std::env::var_os("SKIFF_TEST_GUEST").map(PathBuf::from);
    if files.is_none() {
        let message = "a machine is not tested: make test-kvm does it\n";
        // A message that cannot be written changes no result.
        std::io::stderr().write_all(message.as_bytes()).ok();
    }
    files
}

/// A running monitor. A test that fails shows the guest's console.
struct Monitor {
    child: Child,
    folder: tempfile::TempDir,
}

impl Monitor {
    fn start(files: &Path, folder: tempfile::TempDir) -> Self {
        let boot = "console=ttyS0 loglevel=5 reboot=k panic=1 pci=off swiotlb=noforce";
        let config = serde_json::json!({
            "boot-source": {
                "kernel_image_path": files.join("vmlinuz"),
                "initrd_path": files.join("agent"),
                "boot_args": format!("{boot} skiff.log=info"),
            },
            "window-disks": [{"disk_id": DISK, "is_read_only": true}, {"disk_id": SCRATCH}],
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
            "vsock": {"guest_cid": 3, "uds_path": folder.path().join("vsock")},
            "entropy": {},
            "serial": {"serial_out_path": folder.path().join("console")},
        });
        let file = folder.path().join("config");
        fs::write(&file, config.to_string()).unwrap();
        let child = command("skiff-vmm")
            .args(["--no-api", "--cache-dir", "/run/kernels", "--config-file"])
            .arg(file)
            .arg("--control")
            .arg(folder.path().join("control"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// The monitor's own socket, greeted.
    async fn control(&self) -> OwnedFd {
        let path = self.folder.path().join("control");
        let address = SocketAddrUnix::new(&path).unwrap();
        let socket = until("the monitor's socket", async || {
            let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
            let socket = rustix::net::socket(family, kind, None).unwrap();
            rustix::net::connect(&socket, &address).ok()?;
            Some(socket)
        })
        .await;
        let version = monitor::VERSION;
        ask(&socket, monitor::Request::Hello { version }, &[]);
        socket
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    /// Waits for its end: whether that is a success, and its last words.
    async fn end(&mut self) -> (bool, String) {
        let status = until("the machine's end", async || self.child.try_wait().unwrap()).await;
        let said = std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap();
        (status.success(), said)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let console = fs::read(self.folder.path().join("console")).unwrap_or_default();
            let mut out = std::io::stderr();
            out.write_all(b"-- the guest's console:\n").ok();
            out.write_all(&console).ok();
        }
    }
}

fn ask(control: &OwnedFd, request: monitor::Request, files: &[&File]) {
    let frame = skiff_wire::encode(&monitor::Envelope { id: 7, request }).unwrap();
    let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    channel::send(control, &frame, &fds, SendFlags::empty()).unwrap();
    let mut buffer = vec![0; monitor::FRAME_BYTES_MAX];
    let received = channel::receive(control, &mut buffer, RecvFlags::empty()).unwrap();
    let (length, _) = received.unwrap();
    let answer: monitor::Answer = skiff_wire::decode(&buffer[..length]).unwrap();
    assert_eq!((answer.id, answer.result.map(drop)), (7, Ok(())));
}

fn map(control: &OwnedFd, layer: &Layer) {
    map_file(
        control,
        DISK,
        layer.window,
        &File::open(&layer.file).unwrap(),
    );
}

fn map_file(control: &OwnedFd, disk: &str, window: Window, file: &File) {
    let request = monitor::Request::Map {
        disk: disk.to_owned(),
        first_sector: window.first_sector,
        sectors: window.sectors,
    };
    ask(control, request, &[file]);
}

/// One boot for everything: under emulation it takes seconds.
#[tokio::test]
async fn a_machine_does_what_it_is_asked() {
    let Some(files) = files() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let layers = LayerDisk::new(folder.path());
    let mut monitor = Monitor::start(&files, folder);
    let control = monitor.control().await;
    for layer in &layers.layers {
        map(&control, layer);
    }
    let scratch = File::options()
        .read(true)
        .write(true)
        .open(&layers.scratch.file);
    map_file(&control, SCRATCH, layers.scratch.window, &scratch.unwrap());
    // Each failed attempt is an error on the console, which takes long.
    let mut machine = Machine::new(&monitor.socket(), layers, 10).await;
    macro_rules! in_turn {
        ($name:ident) => {
            let started = SystemClock.now();
            scenarios::$name(&machine).await;
            let took = SystemClock.now().since(started);
            let line = format!("{} took {took:.1?}\n", stringify!($name));
            // It tells how far a test came that fails.
            std::io::stderr().write_all(line.as_bytes()).ok();
            machine.client = connect(&machine.socket).await;
        };
    }
    each_scenario!(in_turn);
    a_layer_that_has_left_can_be_unmapped(&machine, &control).await;
    the_clock_is_set(&machine).await;
    randomness_is_taken(&machine).await;
    machine.client.shutdown().await.unwrap();
    drop(machine);
    let (success, said) = monitor.end().await;
    assert!(
        success && said.trim_end().ends_with("[power-off]"),
        "{said}"
    );
}

async fn a_layer_that_has_left_can_be_unmapped(machine: &Machine, control: &OwnedFd) {
    let layer = &machine.disk.layers[0];
    let again = || machine.client.add_layer(layer.digest.clone(), layer.window);
    machine
        .client
        .remove_layer(layer.digest.clone())
        .await
        .unwrap();
    let request = monitor::Request::Unmap {
        disk: DISK.to_owned(),
        first_sector: layer.window.first_sector,
    };
    ask(control, request, &[]);
    assert_eq!(refusal(again().await).0, "layer");
    map(control, layer);
    again().await.unwrap();
    assert_eq!(machine.run("cat /greeting").await.1, "hello from a layer\n");
}

async fn the_clock_is_set(machine: &Machine) {
    const TIME_S: u64 = 4_000_000_000;
    machine
        .client
        .set_clock(TIME_S * 1_000_000_000)
        .await
        .unwrap();
    let (_, text) = machine.run("date +%s").await;
    let now: u64 = text.trim().parse().unwrap();
    assert!((TIME_S..TIME_S + 3600).contains(&now), "{now}");
}

async fn randomness_is_taken(machine: &Machine) {
    machine.client.reseed(vec![7; 64]).await.unwrap();
    for wrong in [Vec::new(), vec![7; 513]] {
        assert_eq!(refusal(machine.client.reseed(wrong).await).0, "reseed");
    }
}
