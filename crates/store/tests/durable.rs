//! Acknowledged transactions survive the end of the process, and a full disk
//! is told as one.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use skiff_store::{Op, Range, SqliteStore, Store, StoreError, Txn};

const PATH: &str = "SKIFF_TEST_STORE";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

fn put(key: &str, value: usize) -> Txn {
    Txn {
        compares: vec![],
        ops: vec![Op::Put(key.into(), vec![7; value])],
    }
}

/// Not a test of its own: what the killed process does.
#[test]
fn child_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(PATH) else {
        return;
    };
    runtime().block_on(async {
        let store = SqliteStore::open(Path::new(&path)).unwrap();
        let begin = store.range(Range::default(), 0).await.unwrap().revision;
        let mut out = std::io::stdout().lock();
        for n in begin.. {
            store.txn(put(&format!("key-{n:08}"), 100)).await.unwrap();
            writeln!(out, "wrote {n}").unwrap();
        }
    });
}

#[test]
fn every_acknowledged_write_is_there_after_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    for round in 1..=3 {
        let mut child = skiff_base::process::command(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut seen, mut last) = (0, 0u64);
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.split("wrote ").nth(1) {
                last = n.parse().unwrap();
                seen += 1;
            }
            if seen == 50 * round {
                child.kill().unwrap();
            }
        }
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        runtime().block_on(async {
            let store = SqliteStore::open(&path).unwrap();
            let found = store.range(Range::default(), 10_000).await.unwrap();
            // Written one after the other: nothing is missing in between.
            assert!(
                found.items.len() as u64 > last,
                "{last}: {}",
                found.items.len()
            );
            assert_eq!(found.revision, found.items.len() as u64);
        });
    }
}

struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = skiff_base::process::command("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "skiff-test"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success(), "this test needs root");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let ended = skiff_base::process::command("umount")
            .arg(self.0.path())
            .status();
        assert!(ended.unwrap().success());
    }
}

#[test]
fn a_full_disk_is_told_and_what_was_written_stays() {
    let disk = SmallDisk::mount();
    runtime().block_on(async {
        let store = SqliteStore::open(&disk.0.path().join("store.db")).unwrap();
        let mut written = 0;
        let error = loop {
            match store.txn(put(&format!("key-{written}"), 20_000)).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 1000);
        };
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
        let found = store.range(Range::default(), 1000).await.unwrap();
        assert_eq!(
            (found.items.len(), found.revision),
            (written, written as u64)
        );
        // Small things still fit, or are refused in the same way.
        let small = store.txn(put("small", 1)).await;
        assert!(small.is_ok() || matches!(small, Err(StoreError::DiskFull { .. })));
    });
}
