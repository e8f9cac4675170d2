//! What `skiff-vmm --probe` says of this machine, whatever it is: with a
//! processor's KVM, a program's, or none.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use skiff_base::process::command;

const BINARY: &str = env!("CARGO_BIN_EXE_skiff-vmm");

fn run(arguments: &[&str]) -> Output {
    command(BINARY)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap()
}

#[test]
fn a_machine_is_judged_by_what_it_does() {
    let output = run(&["--probe"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    // Past the capture of a test's output, for whoever looks at a log.
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    let verdict: Value = serde_json::from_str(&said).unwrap();
    let took = verdict["took_us"].as_u64();
    let there = Path::new("/dev/kvm").exists();
    let (expected, code) = match verdict["kvm"].as_str().unwrap() {
        "usable" => (there && took.is_some_and(|took| took <= 20_000), 0),
        "emulated" => (there && took.is_none_or(|took| took > 20_000), 1),
        "absent" => (verdict["reason"].is_string(), 1),
        other => panic!("{other}: {said}"),
    };
    assert!(expected, "{said}");
    assert_eq!(output.status.code(), Some(code), "{said}");
}

#[test]
fn a_probe_runs_no_machine_of_the_users() {
    let output = run(&["--probe", "--no-api"]);
    assert_eq!(output.status.code(), Some(2));
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("--config-file"), "{said}");
}
