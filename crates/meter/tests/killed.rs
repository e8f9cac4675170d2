//! What was appended survives the end of the process.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;

use skiff_base::SystemClock;
use skiff_meter::{Entry, Fold, Ledger, LedgerWriter, Sources, check};
use skiff_types::ServerId;

const FOLDER: &str = "SKIFF_TEST_LEDGER";

/// Not a test of its own: what the killed process does.
#[test]
fn child_appends_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let server = ServerId::from_parts(1, 1);
    let writer = LedgerWriter::open(folder.as_ref(), server, Arc::new(SystemClock)).unwrap();
    let mut out = std::io::stdout().lock();
    for unix_ms in 0.. {
        let seq = writer.append(&Entry::ServerStop { unix_ms }).unwrap();
        writeln!(out, "appended {seq}").unwrap();
    }
}

#[test]
fn every_acknowledged_entry_is_there_after_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    for round in 1..=3u64 {
        let mut child = skiff_base::process::command(std::env::current_exe().unwrap())
            .args(["--exact", "child_appends_until_it_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        while acknowledged < 500 * round {
            let line = lines.next().unwrap().unwrap();
            let seq = line.split("appended ").nth(1).and_then(|n| n.parse().ok());
            acknowledged = seq.unwrap_or(acknowledged);
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        // What it still said before it died counts as well.
        for line in lines.map_while(Result::ok) {
            let seq = line.split("appended ").nth(1).and_then(|n| n.parse().ok());
            acknowledged = seq.unwrap_or(acknowledged);
        }
        let ledger = Ledger::new(folder.path());
        let last = ledger.segments().unwrap().pop().unwrap();
        let mut next = 0;
        let report = ledger.read(&last, 0, |record| {
            assert_eq!(record.seq, next);
            next += 1;
        });
        assert!(report.unwrap().damage.is_empty());
        assert!(
            next > acknowledged,
            "{acknowledged} acknowledged and {next} found"
        );
    }
    Fold::default()
        .refresh(&Ledger::new(folder.path()))
        .unwrap();
    // Stop marks in the midst are this test's own; nothing else is wrong.
    let found = check(&Ledger::new(folder.path()), &Sources::default()).unwrap();
    let wrong: Vec<_> = found
        .checks
        .iter()
        .filter(|c| !c.ok)
        .map(|c| &c.name)
        .collect();
    assert_eq!(wrong, ["entries are numbered without a gap"]);
}
