//! The binary: its messages, its exit codes, its signals. Where a guest must
//! run these tests declare `/dev/kvm`, as those in `machine.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use skiff_base::process::command;
use skiff_base::{Clock, SystemClock};
use skiff_flat::Program;
use skiff_flat::testing::{deadline, has_kvm};
use skiff_wire::monitor::{Reply, Request};

#[path = "support/client.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod client;

use client::Client;

const BINARY: &str = env!("CARGO_BIN_EXE_skiff-vmm");

/// A folder with a guest and its configuration.
fn guest(program: Program, more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, skiff_flat::elf(program)).unwrap();
    let config = format!(
        r#"{{"boot-source":{{"kernel_image_path":{kernel:?},"boot_args":""}},
            "machine-config":{{"vcpu_count":1,"mem_size_mib":4}}{more}}}"#
    );
    fs::write(folder.path().join("config"), config).unwrap();
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> (Output, String) {
    let output = command(BINARY)
        .arg("--config-file")
        .arg(folder.join("config"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn the_end_and_its_reason_are_told() {
    if !has_kvm() {
        return;
    }
    for (program, code, said) in [
        (skiff_flat::HELLO, 0, "the guest asked for a reset [reset]"),
        (skiff_flat::POWER_OFF, 0, "[power-off]"),
        (skiff_flat::TRIPLE_FAULT, 3, "[triple-fault]"),
    ] {
        let folder = guest(program, "");
        let (output, text) = run(folder.path(), &["--no-api", "--id", "vm-1"]);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.starts_with("skiff-vmm vm-1: "), "{text}");
        assert!(text.trim_end().ends_with(said), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(output.stdout.is_empty(), "there is no serial port");
    }
}

#[test]
fn the_serial_port_is_standard_output_and_bounded() {
    if !has_kvm() {
        return;
    }
    let folder = guest(skiff_flat::HELLO, r#","serial":{}"#);
    let (output, _) = run(folder.path(), &["--no-api"]);
    assert_eq!(output.stdout, skiff_flat::HELLO_SAYS.as_bytes());

    let limit = r#","serial":{"rate_limiter":{"bandwidth":{"size":5,"refill_time":1000000}}}"#;
    let folder = guest(skiff_flat::HELLO, limit);
    let (output, text) = run(folder.path(), &["--no-api"]);
    assert_eq!(output.stdout, b"hello");
    assert!(
        text.contains("14 bytes of the serial port were over"),
        "{text}"
    );
}

#[test]
fn a_signal_ends_a_guest_in_order() {
    if !has_kvm() {
        return;
    }
    let folder = guest(skiff_flat::COUNT, "");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let child = command(BINARY)
            .arg("--no-api")
            .arg("--config-file")
            .arg(folder.path().join("config"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Signals wait from the first on, whether the guest runs yet or not.
        // Until then they have their usual effect, so look for the mask.
        let id = child.id();
        let started = SystemClock.now();
        while !holds_signals(id) {
            let waited = SystemClock.now().since(started);
            assert!(waited < deadline(), "signals are not held");
            std::thread::yield_now();
        }
        let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains("[stopped]"), "{text}");
    }
}

#[test]
fn a_machine_is_controlled_over_a_socket_at_a_path() {
    if !has_kvm() {
        return;
    }
    let folder = guest(
        skiff_flat::COUNT,
        r#","window-disks":[{"disk_id":"layers","is_read_only":true}]"#,
    );
    let socket = folder.path().join("control");
    let child = command(BINARY)
        .arg("--no-api")
        .arg("--config-file")
        .arg(folder.path().join("config"))
        .arg("--control")
        .arg(&socket)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = SystemClock.now();
    let mut client = Client::connect(&socket);
    let cpu_us = |client: &mut Client| match client.ask(Request::Stats, &[]) {
        Ok(Reply::Stats(stats)) => (stats.paused, stats.cpu_us),
        other => panic!("{other:?}"),
    };
    let (paused, first) = cpu_us(&mut client);
    assert!(!paused);
    while cpu_us(&mut client).1 < first + 1000 {
        assert!(SystemClock.now().since(started) < deadline(), "it idles");
    }
    assert_eq!(client.ask(Request::Pause, &[]), Ok(Reply::Done));
    assert!(cpu_us(&mut client).0);

    let file = fs::File::open(BINARY).unwrap();
    let map = || Request::Map {
        disk: "layers".into(),
        first_sector: 1 << 30,
        sectors: 1,
    };
    // Paused or not, and by whoever is there.
    assert_eq!(client.ask(map(), &[file.as_fd()]), Ok(Reply::Done));
    drop(client);
    let mut client = Client::connect(&socket);
    let refusal = client.ask(map(), &[file.as_fd()]).unwrap_err();
    assert!(refusal.message.contains("mapped already"), "{refusal}");
    let unmap = Request::Unmap {
        disk: "layers".into(),
        first_sector: 1 << 30,
    };
    assert_eq!(client.ask(unmap, &[]), Ok(Reply::Done));
    assert_eq!(client.ask(Request::Resume, &[]), Ok(Reply::Done));
    assert!(!cpu_us(&mut client).0);
    drop(client);

    Client::connect(&socket).ask(Request::Stop, &[]).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("[stopped]"), "{text}");
    assert!(!socket.exists());
}

#[test]
fn a_machine_is_controlled_over_a_socket_that_it_inherits() {
    if !has_kvm() {
        return;
    }
    let folder = guest(skiff_flat::COUNT, "");
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
    let child = command(BINARY)
        .arg("--no-api")
        .arg("--config-file")
        .arg(folder.path().join("config"))
        .arg("--control-fd")
        .arg(theirs.as_raw_fd().to_string())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(theirs);
    let mut client = Client::new(ours);
    assert_eq!(client.ask(Request::Pause, &[]), Ok(Reply::Done));
    assert_eq!(client.ask(Request::Stop, &[]), Ok(Reply::Done));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_cannot_be_a_control_socket_is_told() {
    let folder = guest(skiff_flat::HELLO, "");
    let taken = folder.path().join("config");
    let taken = taken.to_str().unwrap();
    for (arguments, code, said) in [
        (&["--control", taken][..], 1, "cannot be listened on"),
        (&["--control-fd", "2"], 1, "descriptor 2 is no connected"),
        (
            &["--control-fd", "2", "--control", "x"],
            2,
            "cannot be used with",
        ),
    ] {
        let (output, text) = run(folder.path(), &[&["--no-api"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(said), "{text}");
    }
}

/// Whether the process blocks SIGTERM.
fn holds_signals(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
    mask & (1 << (Signal::TERM.as_raw() - 1)) != 0
}

#[test]
fn what_is_wrong_is_told_with_where() {
    let folder = tempfile::tempdir().unwrap();
    let (output, text) = run(folder.path(), &["--no-api"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("config cannot be read: No such file"),
        "{text}"
    );

    fs::write(folder.path().join("config"), r#"{"boot-sauce":{}}"#).unwrap();
    let (output, text) = run(folder.path(), &["--no-api"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("unknown field `boot-sauce`"), "{text}");

    let (output, text) = run(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--no-api"), "{text}");
}

#[test]
fn a_kernel_or_a_disk_that_is_none_is_told_with_its_path() {
    if !has_kvm() {
        return;
    }
    let folder = guest(skiff_flat::HELLO, "");
    fs::write(folder.path().join("kernel"), b"#!/bin/sh\n").unwrap();
    let (output, text) = run(folder.path(), &["--no-api"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("kernel is no bzImage, and no ELF file either"),
        "{text}"
    );

    let odd = folder.path().join("odd");
    fs::write(&odd, [0; 513]).unwrap();
    for (path, said) in [
        (
            "/nonexistent/disk",
            "drive a: /nonexistent/disk cannot be opened",
        ),
        (odd.to_str().unwrap(), "is no disk"),
    ] {
        let drive = format!(
            r#","drives":[{{"drive_id":"a","path_on_host":{path:?},"is_read_only":true}}]"#
        );
        let folder = guest(skiff_flat::HELLO, &drive);
        let (output, text) = run(folder.path(), &["--no-api"]);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(said), "{text}");
    }
}
