//! The monitor's figures that take no kernel in the guest, on this machine's
//! own KVM: guests are flat programs, so that a KVM that interprets serves. A
//! sample a line, as [`crate::kvm`] reads them.
//!
//! It takes a network namespace of its own, in which it makes a tap
//! (`unshare --net skiff-bench native MONITOR`).

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use skiff_base::process::command;
use skiff_flat::{HELLO, LOAD_REQUESTS, LOAD_SAYS, Program};

use crate::stats::{median, quantile};
use crate::time::now;

/// Starts of a round.
const STARTS: usize = 40;
const MEMORY_MIB: u32 = 128;
/// For a guest to say what it has to.
const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};
const TAP: &str = "bench0";
/// Sectors of a disk.
const DISK_BYTES: u64 = 1 << 20;
/// Whose work requests of a guest are.
const DEVICES_THREAD: &str = "devices";

/// Prints the samples of so many rounds.
///
/// # Errors
/// When a monitor does not run its guest as it must.
pub fn run(monitor: &Path) -> anyhow::Result<bool> {
    let rounds = std::env::var("BENCH_ROUNDS").map_or(Ok(5), |text| text.parse())?;
    let bench = Native::new(monitor)?;
    let tap = make_tap();
    if let Err(error) = &tap {
        eprintln!("bench: no tap, and so no figure of the network: {error:#}");
    }
    for _ in 0..rounds {
        let starts = (0..STARTS)
            .map(|_| bench.start())
            .collect::<anyhow::Result<Vec<f64>>>()?;
        sample("first_instruction_p50_us", median(&starts));
        sample("first_instruction_p99_us", quantile(&starts, 990));
        sample("block_op_ns", bench.block()?);
        if tap.is_ok() {
            sample("net_op_ns", bench.net()?);
        }
    }
    Ok(true)
}

fn sample(what: &str, value: f64) {
    println!("sample native {what} {value:.1}");
}

/// A monitor and what its guests are made of.
#[derive(Debug)]
struct Native<'a> {
    monitor: &'a Path,
    folder: tempfile::TempDir,
}

/// A monitor that runs; ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended, and was waited for.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl<'a> Native<'a> {
    fn new(monitor: &'a Path) -> anyhow::Result<Self> {
        let native = Self {
            monitor,
            folder: tempfile::tempdir()?,
        };
        let disk = std::fs::File::create(native.path("disk"))?;
        disk.set_len(DISK_BYTES)?;
        let disk = json!([{
            "drive_id": "disk", "path_on_host": native.path("disk"),
            "is_root_device": false, "is_read_only": false,
        }]);
        let net = json!([{"iface_id": "net", "host_dev_name": TAP}]);
        native.write("hello", HELLO, &json!({}))?;
        native.write("block", skiff_flat::BLOCK_LOAD, &json!({ "drives": disk }))?;
        native.write(
            "net",
            skiff_flat::NET_LOAD,
            &json!({ "network-interfaces": net }),
        )?;
        Ok(native)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, program: Program, more: &Value) -> anyhow::Result<()> {
        let kernel = self.path(&format!("{name}.elf"));
        std::fs::write(&kernel, skiff_flat::elf(program))?;
        let mut config = json!({
            "boot-source": {"kernel_image_path": kernel, "boot_args": ""},
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
            "serial": {},
        });
        if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
            config.extend(more.clone());
        }
        std::fs::write(self.path(name), config.to_string())?;
        Ok(())
    }

    fn spawn(&self, name: &str) -> anyhow::Result<Running> {
        let child = command(self.monitor)
            .args(["--no-api", "--config-file"])
            .arg(self.path(name))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| self.monitor.display().to_string())?;
        Ok(Running(child))
    }

    /// Microseconds from before the monitor's process to what its guest's first
    /// instructions do.
    fn start(&self) -> anyhow::Result<f64> {
        let begun = now();
        let mut running = self.spawn("hello")?;
        hear(&mut running, &skiff_flat::HELLO_SAYS[..1])?;
        Ok(now().since(begun).as_secs_f64() * 1e6)
    }

    /// Nanoseconds of the devices' thread for each request of a guest's to read
    /// a sector.
    fn block(&self) -> anyhow::Result<f64> {
        let mut running = self.spawn("block")?;
        hear(&mut running, LOAD_SAYS)?;
        per_request(&running)
    }

    /// The same for each packet of 60 bytes that it sends.
    fn net(&self) -> anyhow::Result<f64> {
        let before = taken_by_tap()?;
        let mut running = self.spawn("net")?;
        hear(&mut running, LOAD_SAYS)?;
        let arrived = taken_by_tap()? - before;
        if arrived < u64::from(LOAD_REQUESTS) {
            bail!("of {LOAD_REQUESTS} packets {arrived} have arrived");
        }
        per_request(&running)
    }
}

/// Reads what a guest says to begin with, which it must.
fn hear(running: &mut Running, expected: &str) -> anyhow::Result<()> {
    let mut said = vec![0; expected.len()];
    let output = running.0.stdout.as_mut().context("it has no output")?;
    let mut length = 0;
    while length < said.len() {
        let mut polled = [PollFd::new(output, PollFlags::IN)];
        if poll(&mut polled, Some(&LIMIT))? == 0 {
            bail!("the guest says nothing for {} s", LIMIT.tv_sec);
        }
        let read = output.read(&mut said[length..])?;
        if read == 0 {
            bail!("the guest has ended early");
        }
        length += read;
    }
    if said != expected.as_bytes() {
        bail!("the guest says {:?}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

/// Of a guest that has made all of its requests and halts. What the thread did
/// before them is a few of its own.
fn per_request(running: &Running) -> anyhow::Result<f64> {
    let tasks = format!("/proc/{}/task", running.0.id());
    for task in std::fs::read_dir(tasks)? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim() == DEVICES_THREAD {
            let times = std::fs::read_to_string(task.join("schedstat"))?;
            let ns = times.split(' ').next().unwrap_or_default();
            return Ok(ns.parse::<f64>()? / f64::from(LOAD_REQUESTS));
        }
    }
    bail!("the monitor has no thread called {DEVICES_THREAD}")
}

/// In this network namespace, which ends with this process.
fn make_tap() -> anyhow::Result<()> {
    for words in [
        &["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"][..],
        &["link", "set", TAP, "up"],
    ] {
        let status = command("ip").args(words).status()?;
        if !status.success() {
            bail!("ip {} fails", words.join(" "));
        }
    }
    Ok(())
}

/// Packets. Of /proc, since /sys is the network namespace's that mounted it.
fn taken_by_tap() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/net/dev")?;
    let mut lines = text.lines().map(str::trim);
    let line = lines.find_map(|line| line.strip_prefix(TAP)?.strip_prefix(':'));
    let packets = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(packets.context("the tap has gone")?.parse()?)
}
