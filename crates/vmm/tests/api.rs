//! The binary over its API. Where a guest must run these tests declare
//! `/dev/kvm`, as those in `machine.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use skiff_base::process::command;
use skiff_base::{Clock, SystemClock};
use skiff_flat::Program;
use skiff_flat::testing::{deadline, has_kvm};

#[path = "support/http.rs"]
mod client;

use client::Client;

const START: &str = r#"{"action_type":"InstanceStart"}"#;

/// A monitor with an API.
struct Monitor {
    folder: tempfile::TempDir,
    child: Child,
}

impl Monitor {
    fn start(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        let child = command(env!("CARGO_BIN_EXE_skiff-vmm"))
            .arg("--api-sock")
            .arg(folder.path().join("api"))
            .args(["--id", "vm-1"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { folder, child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self) -> Client {
        Client::connect(&self.path("api"))
    }

    /// Waits for its end: its code, and what it said on both streams.
    fn end(&mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        stdout.unwrap().read_to_string(&mut out).unwrap();
        stderr.unwrap().read_to_string(&mut err).unwrap();
        let status = self.child.wait().unwrap();
        assert!(!self.path("api").exists());
        (status.code(), out, err)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It has ended, unless its test failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn folder(program: Program) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kernel"), skiff_flat::elf(program)).unwrap();
    folder
}

fn boot_source(folder: &Path) -> String {
    json!({"kernel_image_path": folder.join("kernel"), "boot_args": ""}).to_string()
}

#[test]
fn a_machine_is_configured_and_started_over_the_api() {
    if !has_kvm() {
        return;
    }
    let mut monitor = Monitor::start(folder(skiff_flat::HELLO), &[]);
    let mut client = monitor.client();
    assert_eq!(client.ask("GET", "/", "").1["state"], "Not started");
    client.tell("PUT", "/boot-source", &boot_source(monitor.folder.path()));
    client.tell(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":1,"mem_size_mib":4}"#,
    );
    client.tell("PUT", "/actions", START);
    let (code, out, err) = monitor.end();
    assert_eq!(
        (code, out.as_str()),
        (Some(0), skiff_flat::HELLO_SAYS),
        "{err}"
    );
    assert!(err.trim_end().ends_with("[reset]"), "{err}");
}

#[test]
fn a_machine_has_the_devices_that_were_put() {
    if !has_kvm() {
        return;
    }
    let mut monitor = Monitor::start(folder(skiff_flat::BLOCK), &[]);
    let mut content = vec![0; 8 * 512];
    content[512..528].copy_from_slice(b"this is sector 1");
    fs::write(monitor.path("disk"), content).unwrap();
    let mut client = monitor.client();
    client.tell("PUT", "/boot-source", &boot_source(monitor.folder.path()));
    client.tell(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":1,"mem_size_mib":4}"#,
    );
    let drive = json!({
        "drive_id": "disk", "path_on_host": monitor.path("disk"), "is_root_device": false,
        "rate_limiter": {"ops": {"size": 1, "refill_time": 3_600_000}},
    });
    client.tell("PUT", "/drives/disk", &drive.to_string());
    let vsock = json!({"guest_cid": 3, "uds_path": monitor.path("vsock")});
    client.tell("PUT", "/vsock", &vsock.to_string());
    client.tell("PUT", "/entropy", "{}");
    let metrics = json!({"metrics_path": monitor.path("metrics")});
    client.tell("PUT", "/metrics", &metrics.to_string());
    let serial = json!({"serial_out_path": monitor.path("serial")});
    client.tell("PUT", "/serial", &serial.to_string());
    client.tell("PUT", "/actions", START);
    assert!(monitor.path("vsock").exists());
    client.tell("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
    // Until then its second request waits.
    let lift = r#"{"drive_id":"disk","rate_limiter":{"ops":{"size":0,"refill_time":0}}}"#;
    client.tell("PATCH", "/drives/disk", lift);
    let (code, _, err) = monitor.end();
    assert_eq!(code, Some(0), "{err}");
    let said = fs::read_to_string(monitor.path("serial")).unwrap();
    assert_eq!(said, format!("this is sector 1{}", skiff_flat::BLOCK_SAYS));
    assert!(!monitor.path("vsock").exists());
    let metrics = fs::read_to_string(monitor.path("metrics")).unwrap();
    let read = metrics.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["block_disk"]["read_bytes"].as_u64().unwrap()
    });
    let read: Vec<u64> = read.collect();
    assert_eq!(
        (read.len(), read.iter().sum::<u64>()),
        (2, 512),
        "{metrics}"
    );
}

#[test]
fn another_file_is_put_behind_a_disk_while_the_machine_runs() {
    if !has_kvm() {
        return;
    }
    let mut monitor = Monitor::start(folder(skiff_flat::COUNT), &[]);
    let mut client = monitor.client();
    client.tell("PUT", "/boot-source", &boot_source(monitor.folder.path()));
    let change = |name: &str| {
        let path = monitor.path(name);
        format!(r#"{{"drive_id":"disk","path_on_host":{path:?}}}"#)
    };
    for (name, bytes) in [("one", 512), ("two", 1024), ("odd", 100)] {
        fs::write(monitor.path(name), vec![0; bytes]).unwrap();
    }
    client.tell("PUT", "/drives/disk", &change("one"));
    client.tell("PUT", "/actions", START);
    client.tell("PATCH", "/drives/disk", &change("two"));
    for (name, part) in [
        ("none", "No such file"),
        ("odd", "is no disk"),
        ("", "Is a directory"),
    ] {
        let (status, answer) = client.ask("PATCH", "/drives/disk", &change(name));
        let fault = answer["fault_message"].as_str().unwrap();
        assert!(status == 400 && fault.contains(part), "{answer}");
    }
    let (_, config) = client.ask("GET", "/vm/config", "");
    assert_eq!(
        config["drives"][0]["path_on_host"],
        json!(monitor.path("two"))
    );
    monitor.signal(Signal::TERM);
    let (code, _, err) = monitor.end();
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn a_machine_that_cannot_be_made_is_told_and_made_otherwise() {
    if !has_kvm() {
        return;
    }
    let mut monitor = Monitor::start(folder(skiff_flat::HELLO), &[]);
    fs::write(monitor.path("text"), "#!/bin/sh\n").unwrap();
    let mut client = monitor.client();
    let text = json!({"kernel_image_path": monitor.path("text"), "boot_args": ""});
    client.tell("PUT", "/boot-source", &text.to_string());
    let vsock = json!({"guest_cid": 3, "uds_path": monitor.path("vsock")});
    client.tell("PUT", "/vsock", &vsock.to_string());
    let odd =
        json!({"drive_id": "odd", "path_on_host": monitor.path("text"), "is_read_only": true});
    let (status, answer) = client.ask("PUT", "/actions", START);
    let fault = answer["fault_message"].as_str().unwrap();
    assert!(status == 400 && fault.contains("is no kernel"), "{answer}");
    assert_eq!(client.ask("GET", "/", "").1["state"], "Not started");
    client.tell("PUT", "/boot-source", &boot_source(monitor.folder.path()));
    client.tell(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":1,"mem_size_mib":4}"#,
    );
    // Nothing of a machine that was half made stays in the way.
    client.tell("PUT", "/drives/odd", &odd.to_string());
    for _ in 0..2 {
        let (_, answer) = client.ask("PUT", "/actions", START);
        let fault = answer["fault_message"].as_str().unwrap();
        assert!(fault.contains("is no disk"), "{answer}");
    }
    fs::write(monitor.path("text"), [0; 512]).unwrap();
    client.tell("PUT", "/actions", START);
    assert_eq!(monitor.end().1, skiff_flat::HELLO_SAYS);
}

#[test]
fn a_machine_of_a_file_boots_at_once_and_has_an_api() {
    if !has_kvm() {
        return;
    }
    let folder = folder(skiff_flat::COUNT);
    let kernel = folder.path().join("kernel");
    let config = json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": ""},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 4},
    });
    let path = folder.path().join("config");
    fs::write(&path, config.to_string()).unwrap();
    let mut monitor = Monitor::start(folder, &["--config-file", path.to_str().unwrap()]);
    let mut client = monitor.client();
    assert_eq!(client.ask("GET", "/", "").1["state"], "Running");
    let (status, whole) = client.ask("GET", "/vm/config", "");
    assert_eq!(status, 200);
    assert_eq!(whole["boot-source"]["kernel_image_path"], json!(kernel));
    assert_eq!(whole["machine-config"]["mem_size_mib"], 4);
    assert_eq!(client.ask("PUT", "/actions", START).0, 400);

    // The guest counts for ever: its thread waits for nothing but a pause.
    let pid = monitor.child.id();
    wait_for("a guest that counts", || (vcpu(pid)?.1 > 0).then_some(()));
    client.tell("PATCH", "/vm", r#"{"state":"Paused"}"#);
    assert_eq!(client.ask("GET", "/", "").1["state"], "Paused");
    wait_for("a vCPU that waits", || (vcpu(pid)?.0 == 'S').then_some(()));
    for _ in 0..1000 {
        client.ask("GET", "/", "");
        assert_eq!(vcpu(pid).unwrap().0, 'S');
    }
    client.tell("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    wait_for("a vCPU that runs", || (vcpu(pid)?.0 == 'R').then_some(()));
    monitor.signal(Signal::TERM);
    let (code, _, err) = monitor.end();
    assert!(code == Some(0) && err.contains("[stopped]"), "{err}");
}

/// The state of the vCPU's thread and how many of the clock's ticks it has
/// run, once it has its name.
fn vcpu(pid: u32) -> Option<(char, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut stats =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("stat")).unwrap());
    let stat = stats.find(|stat| stat.contains("(vcpu0)"))?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks = times.map(|ticks| ticks.parse::<u64>().unwrap());
    Some((fields.chars().next()?, ticks.sum()))
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = SystemClock.now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let waited = SystemClock.now().since(started);
        assert!(waited < deadline(), "in vain waited for: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn each_thread_is_behind_its_filter() {
    if !has_kvm() {
        return;
    }
    let mut monitor = Monitor::start(folder(skiff_flat::HALT), &[]);
    let mut client = monitor.client();
    client.tell("PUT", "/boot-source", &boot_source(monitor.folder.path()));
    client.tell(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":1,"mem_size_mib":4}"#,
    );
    client.tell("PUT", "/actions", START);
    client.tell("PATCH", "/vm", r#"{"state":"Paused"}"#);
    let pid = monitor.child.id();
    let unfiltered = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let status = |task: std::io::Result<fs::DirEntry>| {
            fs::read_to_string(task.unwrap().path().join("status")).unwrap()
        };
        let statuses = tasks.map(status);
        statuses
            .filter(|status| !status.contains("Seccomp:\t2"))
            .collect::<Vec<_>>()
    };
    // A thread that has not run yet has no filter yet.
    wait_for("every thread's filter", || {
        unfiltered().is_empty().then_some(())
    });
    monitor.signal(Signal::INT);
    assert_eq!(monitor.end().0, Some(0));
}

#[test]
fn a_log_and_metrics_tell_of_a_machine_with_an_api_and_without() {
    if !has_kvm() {
        return;
    }
    let folder = folder(skiff_flat::HELLO);
    let path = |name| folder.path().join(name);
    let config = json!({
        "boot-source": {"kernel_image_path": path("kernel"), "boot_args": ""},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 4},
        "serial": {"rate_limiter": {"bandwidth": {"size": 5, "refill_time": 1_000_000}}},
        "logger": {"log_path": path("log"), "show_level": true},
        "metrics": {"metrics_path": path("metrics")},
    });
    fs::write(path("config"), config.to_string()).unwrap();
    let api = path("api");
    for arguments in [&["--no-api"][..], &["--api-sock", api.to_str().unwrap()]] {
        let output = command(env!("CARGO_BIN_EXE_skiff-vmm"))
            .args(arguments)
            .args(["--id", "vm-1", "--config-file"])
            .arg(path("config"))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{err}");
        let log = fs::read_to_string(path("log")).unwrap();
        assert!(
            log.ends_with("[vm-1:INFO] the guest asked for a reset [reset]\n"),
            "{log}"
        );
        let metrics = fs::read_to_string(path("metrics")).unwrap();
        let last: serde_json::Value =
            serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        let dropped = skiff_flat::HELLO_SAYS.len() - 5;
        assert_eq!(last["uart"]["rate_limiter_dropped_bytes"], dropped);
    }
    assert_eq!(
        fs::read_to_string(path("metrics")).unwrap().lines().count(),
        2
    );

    let nowhere = json!({"metrics_path": "/nonexistent/metrics"});
    let wrong = json!({"boot-source": config["boot-source"], "metrics": nowhere});
    fs::write(path("config"), wrong.to_string()).unwrap();
    let output = command(env!("CARGO_BIN_EXE_skiff-vmm"))
        .args(["--no-api", "--config-file"])
        .arg(path("config"))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("/nonexistent/metrics cannot be opened"),
        "{err}"
    );
}

#[test]
fn a_signal_ends_a_monitor_that_waits_to_be_told_what_to_run() {
    if !has_kvm() {
        return;
    }
    let mut monitor = Monitor::start(folder(skiff_flat::HELLO), &[]);
    assert_eq!(monitor.client().ask("GET", "/version", "").0, 200);
    monitor.signal(Signal::TERM);
    let (code, _, err) = monitor.end();
    assert!(code == Some(0) && err.contains("[stopped]"), "{err}");
}

#[test]
fn what_cannot_be_is_told() {
    let folder = folder(skiff_flat::HELLO);
    let taken = folder.path().join("kernel");
    let run = |arguments: &[&str]| {
        let output = command(env!("CARGO_BIN_EXE_skiff-vmm"))
            .args(arguments)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = run(&["--api-sock", taken.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot be listened on"), "{said}");
    let (code, said) = run(&["--api-sock", "x", "--no-api", "--config-file", "y"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = run(&["--no-api"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--config-file"), "{said}");
}
