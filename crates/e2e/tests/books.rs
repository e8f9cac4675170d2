//! The bill adds up, and the check finds what does not.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use skiff_e2e::{at_once, good};
use skiff_testkit::{Server, ServerOptions, run, wait_for};

fn row(server: &Server, name: &str) -> Value {
    let usage = server.json(&["usage", name]);
    usage["rows"][0].clone()
}

#[test]
fn known_requests_make_a_known_bill() {
    let server = Server::start(
        ServerOptions::with(&["testapp"])
            .set("meter.prices.million_requests=1000000")
            .set("meter.prices.gib_hour=0")
            .set("meter.prices.cpu_hour=0"),
    );
    let host = server.deploy("counted", &["--keep-alive", "1", "--concurrency", "10"]);
    server.wait_for_instances("counted", 0);
    // One cold, then ten with bodies of a known length.
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let _bodies = at_once(10, |_| {
        good(server.curl(&host, "/bytes/10000", &["--data", "12345"]))
    });
    assert_eq!(good(server.get(&host, "/burn/2000")), "burnt\n");
    server.wait_for_instances("counted", 0);
    let bill = wait_for("the bill has the instance's end", 20, || {
        let bill = row(&server, "counted");
        (bill["cpu_s"].as_f64()? > 0.2).then_some(bill)
    });
    assert_eq!(
        (&bill["requests"], &bill["cold_starts"]),
        (&12.into(), &1.into()),
        "{bill}"
    );
    let (sent, received) = (
        bill["bytes_out"].as_u64().unwrap(),
        bill["bytes_in"].as_u64().unwrap(),
    );
    assert!((100_000..110_000).contains(&sent), "{bill}");
    assert!((50..10_000).contains(&received), "{bill}");
    assert!(bill["request_ms"].as_u64().unwrap() >= 2000, "{bill}");
    assert!(bill["cpu_s"].as_f64().unwrap() < 5.0, "{bill}");
    // Two lives of at least a second at 64 MiB.
    assert!(bill["memory_mib_s"].as_f64().unwrap() > 64.0, "{bill}");
    assert!(
        (bill["cost"].as_f64().unwrap() - 12.0).abs() < 0.000_001,
        "{bill}"
    );
    let check = server.cli(&["usage", "--check"]);
    assert_eq!(check.code, 0, "{}{}", check.out, check.err);
    let nothing = server.json(&["usage", "--since", "2020-01-01", "--until", "2020-01-02"]);
    assert_eq!(nothing["rows"], Value::Array(Vec::new()));
    let told = server.cli(&["usage", "--since", "yesterday"]).failed();
    assert!(told.contains("yesterday"), "{told}");
}

#[test]
fn a_fall_back_is_billed_with_its_reason_also_by_the_next_server() {
    // No kernel is installed, so there are no virtual machines.
    let mut server = Server::start(ServerOptions::with(&["testapp"]));
    for (name, flags) in [
        ("unasked", &["--keep-alive", "1"][..]),
        ("asked", &["--keep-alive", "1", "--isolation", "container"]),
    ] {
        let host = server.deploy(name, flags);
        assert!(good(server.get(&host, "/")).starts_with("hello"));
        server.wait_for_instances(name, 0);
    }
    let told = |server: &Server, name: &str| {
        wait_for("the bill has the instance", 20, || {
            let row = row(server, name);
            (row["memory_mib_s"].as_f64()? > 0.0).then(|| row["fell_back"].clone())
        })
    };
    let why = told(&server, "unasked");
    let text = why[0].as_str().unwrap();
    assert!(
        text.contains("skiff-vmm") || text.contains("kernel"),
        "{why}"
    );
    assert_eq!(told(&server, "asked"), Value::Array(Vec::new()));
    server.signal(Signal::KILL);
    let _code = server.wait();
    server.launch(&[]);
    assert_eq!(told(&server, "unasked"), why);
    assert_eq!(told(&server, "asked"), Value::Array(Vec::new()));
    let check = server.cli(&["usage", "--check"]);
    assert_eq!(check.code, 0, "{}{}", check.out, check.err);
}

/// Offsets and lengths of a segment's records.
fn records(segment: &[u8]) -> Vec<(usize, usize)> {
    const HEADER: usize = 56;
    const FRAME: usize = 8;
    let mut found = Vec::new();
    let mut at = HEADER;
    while let Some(length) = segment.get(at..at + 4) {
        let length = u32::from_le_bytes(length.try_into().unwrap());
        let whole = usize::try_from(length).unwrap() + FRAME;
        found.push((at, whole));
        at += whole;
    }
    found
}

fn segment(server: &Server) -> PathBuf {
    let files = std::fs::read_dir(server.data_dir().join("ledger")).unwrap();
    let mut segments: Vec<_> = files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    segments.sort();
    segments.remove(0)
}

#[test]
fn one_entry_dropped_doubled_or_edited_is_found() {
    let mut server = Server::start(ServerOptions::with(&["testapp"]));
    let host = server.deploy("books", &["--keep-alive", "1"]);
    for _ in 0..10 {
        assert!(good(server.get(&host, "/")).starts_with("hello"));
    }
    server.wait_for_instances("books", 0);
    assert_eq!(server.cli(&["usage", "--check"]).code, 0);
    server.signal(Signal::TERM);
    let _code = server.wait();
    let path = segment(&server);
    let whole = std::fs::read(&path).unwrap();
    let all = records(&whole);
    assert!(all.len() > 10, "{} records", all.len());
    let (at, length) = all[all.len() / 2];

    let mut dropped = whole.clone();
    dropped.drain(at..at + length);
    let mut doubled = whole.clone();
    doubled.splice(at..at, whole[at..at + length].to_vec());
    let mut edited = whole.clone();
    edited[at + length - 1] ^= 1;
    let ledger = server.data_dir().join("ledger");
    let saved = server.data_dir().join("ledger.saved");
    let copy = |from: &Path, to: &Path| {
        let _out = run("rm", ["-rf".as_ref(), to.as_os_str()]).ok();
        let _out = run("cp", ["-a".as_ref(), from.as_os_str(), to.as_os_str()]).ok();
    };
    copy(&ledger, &saved);
    for (what, bytes, holds) in [
        ("untouched", &whole, true),
        ("dropped", &dropped, false),
        ("doubled", &doubled, false),
        ("edited", &edited, false),
        ("untouched again", &whole, true),
    ] {
        copy(&saved, &ledger);
        std::fs::write(&path, bytes).unwrap();
        server.launch(&[]);
        let check = server.cli(&["usage", "--check"]);
        assert_eq!(check.code == 0, holds, "{what}: {}{}", check.out, check.err);
        assert_eq!(check.out.contains("FAIL"), !holds, "{what}: {}", check.out);
        server.signal(Signal::TERM);
        let _code = server.wait();
    }
}
