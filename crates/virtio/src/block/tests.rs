use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::{Block, Counts, Disk, DiskError, SectorRange, Windows};
use crate::testing::{Bench, Desc, MEMORY};

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xa000;
const SECTORS: usize = 16;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const DONE: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;
const UNTOUCHED: u8 = 0x7f;

fn content() -> Vec<u8> {
    (0..SECTORS * 512)
        .map(|n| (n / 512 + n).to_le_bytes()[0])
        .collect()
}

fn disk(read_only: bool) -> (Bench, File) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content()).unwrap();
    let disk = Disk::new(file.try_clone().unwrap(), read_only, "disk-1").unwrap();
    let mut bench = Bench::new(Box::new(Block::new(disk)), 16);
    bench.start();
    (bench, file)
}

fn put_header(bench: &Bench, kind: u32, sector: u64) {
    let memory = &bench.driver.memory;
    memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
    memory.write_obj(0_u32, GuestAddress(HEADER + 4)).unwrap();
    memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    memory.write_obj(UNTOUCHED, GuestAddress(STATUS)).unwrap();
}

/// One request of three descriptors; its status and what was used of it.
fn request(bench: &mut Bench, kind: u32, sector: u64, data: Desc) -> (u8, Vec<(u32, u32)>) {
    put_header(bench, kind, sector);
    let used = bench.request(&[
        Desc::read(HEADER, 16).then(1),
        data.then(2),
        Desc::write(STATUS, 1),
    ]);
    let status = bench.driver.memory.read_obj(GuestAddress(STATUS)).unwrap();
    (status, used)
}

fn bytes(bench: &Bench, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bench
        .driver
        .memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

#[test]
fn sectors_are_read() {
    let (mut bench, _) = disk(true);
    let (status, used) = request(&mut bench, READ, 3, Desc::write(DATA, 1024));
    assert_eq!((status, used), (DONE, vec![(0, 1025)]));
    assert_eq!(bytes(&bench, DATA, 1024), content()[3 * 512..5 * 512]);
    assert_eq!(bench.line.raised(), 1);
    assert_eq!(bench.read(0x60), 1);
}

#[test]
fn sectors_are_written_and_flushed() {
    let (mut bench, file) = disk(false);
    bench
        .driver
        .memory
        .write_slice(&[0xab; 512], GuestAddress(DATA))
        .unwrap();
    let (status, used) = request(&mut bench, WRITE, 15, Desc::read(DATA, 512));
    assert_eq!((status, used), (DONE, vec![(0, 1)]));
    let mut written = [0; 512];
    file.read_exact_at(&mut written, 15 * 512).unwrap();
    assert_eq!(written, [0xab; 512]);
    put_header(&bench, FLUSH, 0);
    let used = bench.request(&[Desc::read(HEADER, 16).then(1), Desc::write(STATUS, 1)]);
    assert_eq!(used, vec![(0, 1)]);
    assert_eq!(bytes(&bench, STATUS, 1), [DONE]);
}

#[test]
fn what_a_disk_does_is_counted() {
    let block = Block::new(Disk::of_windows(Windows::new(8, false), "disk"));
    let counters = block.counters();
    let mut bench = Bench::new(Box::new(block), 16);
    bench.start();
    request(&mut bench, READ, 0, Desc::write(DATA, 512));
    request(&mut bench, 99, 0, Desc::write(DATA, 512));
    request(&mut bench, GET_ID, 0, Desc::write(DATA, 20));
    let counts = Counts {
        requests: 3,
        failed: 2,
        read_bytes: 20,
        written_bytes: 0,
    };
    assert_eq!(counters.counts(), counts);

    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content()).unwrap();
    let block = Block::new(Disk::new(file, false, "disk").unwrap());
    let counters = block.counters();
    let mut bench = Bench::new(Box::new(block), 16);
    bench.start();
    request(&mut bench, READ, 0, Desc::write(DATA, 1024));
    request(&mut bench, WRITE, 0, Desc::read(DATA, 512));
    request(&mut bench, FLUSH, 0, Desc::read(DATA, 0));
    let counts = Counts {
        requests: 3,
        failed: 0,
        read_bytes: 1024,
        written_bytes: 512,
    };
    assert_eq!(counters.counts(), counts);
}

#[test]
fn a_request_may_be_in_any_pieces() {
    let (mut bench, _) = disk(true);
    put_header(&bench, READ, 1);
    let used = bench.request(&[
        Desc::read(HEADER, 1).then(1),
        Desc::read(HEADER + 1, 15).then(2),
        Desc::write(DATA, 100).then(3),
        Desc::write(DATA + 100, 0).then(4),
        // The status is the last byte of the last piece.
        Desc::write(DATA + 100, 413),
    ]);
    assert_eq!(used, vec![(0, 513)]);
    assert_eq!(bytes(&bench, DATA, 512), content()[512..1024]);
    assert_eq!(bytes(&bench, DATA + 512, 1), [DONE]);
}

#[test]
fn what_is_outside_of_the_disk_fails() {
    for read_only in [false, true] {
        let (mut bench, file) = disk(read_only);
        for (sector, length) in [
            (16, 512),
            (15, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (1 << 55, 512),
            (0, 511),
            (0, 513),
        ] {
            let (status, used) = request(&mut bench, READ, sector, Desc::write(DATA, length));
            assert_eq!(
                (status, used),
                (FAILED, vec![(0, 1)]),
                "read {sector}, {length}"
            );
            let (status, _) = request(&mut bench, WRITE, sector, Desc::read(DATA, length));
            assert_eq!(status, FAILED, "write {sector}, {length}");
        }
        assert_eq!(file.metadata().unwrap().len(), 16 * 512);
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (mut bench, file) = disk(true);
    let (status, _) = request(&mut bench, WRITE, 0, Desc::read(DATA, 512));
    assert_eq!(status, FAILED);
    let mut first = [0; 512];
    file.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, content()[..512]);
    // Flush was not offered.
    assert_eq!(
        request(&mut bench, FLUSH, 0, Desc::read(DATA, 0)).0,
        UNSUPPORTED
    );
}

#[test]
fn a_disk_tells_its_name_and_what_it_cannot() {
    let (mut bench, _) = disk(true);
    let (status, used) = request(&mut bench, GET_ID, 0, Desc::write(DATA, 20));
    assert_eq!((status, used), (DONE, vec![(0, 21)]));
    assert_eq!(
        &bytes(&bench, DATA, 20),
        b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    // Shorter than the name is not longer than the room.
    assert_eq!(
        request(&mut bench, GET_ID, 0, Desc::write(DATA, 3)).1,
        [(0, 4)]
    );
    for kind in [2, 3, 5, 11, 13, u32::MAX] {
        assert_eq!(
            request(&mut bench, kind, 0, Desc::write(DATA, 512)).0,
            UNSUPPORTED
        );
    }
}

#[test]
fn a_file_that_became_shorter_fails_and_nothing_else() {
    let (mut bench, file) = disk(true);
    file.set_len(512).unwrap();
    assert_eq!(
        request(&mut bench, READ, 0, Desc::write(DATA, 1024)).0,
        FAILED
    );
    assert_eq!(request(&mut bench, READ, 0, Desc::write(DATA, 512)).0, DONE);
}

#[test]
fn a_request_without_a_header_or_a_status_needs_a_reset() {
    for chain in [
        vec![Desc::read(HEADER, 15).then(1), Desc::write(STATUS, 1)],
        vec![Desc::write(STATUS, 1)],
        vec![Desc::read(HEADER, 16)],
        vec![Desc::read(HEADER, 16).then(1), Desc::write(STATUS, 0)],
        vec![Desc::read(HEADER, 16).then(1), Desc::write(MEMORY, 1)],
        vec![Desc::read(HEADER, 16).then(0)],
    ] {
        let (mut bench, _) = disk(false);
        put_header(&bench, READ, 0);
        assert_eq!(bench.request(&chain), []);
        assert_eq!(bench.status(), 15 | 0x40, "{chain:?}");
        assert_eq!(bench.read(0x60) & 2, 2, "the driver is told");
        assert!(bench.window.take_failure().is_some());
        // It is deaf until it is reset, and then as new.
        assert_eq!(request(&mut bench, READ, 0, Desc::write(DATA, 512)).1, []);
        bench.start();
        assert_eq!(request(&mut bench, READ, 0, Desc::write(DATA, 512)).0, DONE);
    }
}

#[test]
fn a_full_ring_is_worked_off_in_turns() {
    let (mut bench, _) = disk(true);
    put_header(&bench, READ, 0);
    let chain = [
        Desc::read(HEADER, 16).then(1),
        Desc::write(DATA, 512).then(2),
        Desc::write(STATUS, 1),
    ];
    for (index, desc) in (0..).zip(chain) {
        bench.driver.describe(index, desc);
    }
    for _ in 0..16 {
        bench.driver.offer(0);
    }
    assert_eq!(
        crate::Transport::notify(&mut bench.window, 0),
        crate::Progress::More
    );
    assert_eq!(bench.driver.used().len(), 16);
    assert_eq!(
        crate::Transport::notify(&mut bench.window, 0),
        crate::Progress::Done
    );
    assert_eq!(bench.line.raised(), 1);
}

#[test]
fn a_disk_is_a_whole_number_of_sectors() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(513).unwrap();
    let error = Disk::new(file, true, "x").unwrap_err();
    assert!(matches!(error, DiskError::Sectors { bytes: 513 }));
}

/// A disk of 1,000 sectors, of which 10 to 17 and 100 to 107 are mapped.
fn windows(read_only: bool) -> (Bench, Windows, [File; 2]) {
    let windows = Windows::new(1000, read_only);
    let files = [10, 100].map(|first_sector| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content()).unwrap();
        let range = SectorRange {
            first_sector,
            sectors: 8,
        };
        windows.map(range, file.try_clone().unwrap()).unwrap();
        file
    });
    let disk = Disk::of_windows(windows.clone(), "layers");
    let mut bench = Bench::new(Box::new(Block::new(disk)), 16);
    bench.start();
    (bench, windows, files)
}

#[test]
fn windows_are_read_and_written_where_they_are() {
    let (mut bench, _, files) = windows(false);
    assert_eq!(bench.read(0x100), 1000, "the capacity is the disk's");
    for first in [10, 100] {
        let (status, used) = request(&mut bench, READ, first + 3, Desc::write(DATA, 1024));
        assert_eq!((status, used), (DONE, vec![(0, 1025)]));
        assert_eq!(bytes(&bench, DATA, 1024), content()[3 * 512..5 * 512]);
    }
    let memory = &bench.driver.memory;
    memory
        .write_slice(&[0xab; 512], GuestAddress(DATA))
        .unwrap();
    let (status, _) = request(&mut bench, WRITE, 107, Desc::read(DATA, 512));
    assert_eq!(status, DONE);
    assert_eq!(request(&mut bench, FLUSH, 0, Desc::read(DATA, 0)).0, DONE);
    let mut written = [0; 512];
    files[1].read_exact_at(&mut written, 7 * 512).unwrap();
    assert_eq!(written, [0xab; 512]);
    files[0].read_exact_at(&mut written, 7 * 512).unwrap();
    assert_eq!(written, content()[7 * 512..8 * 512]);
}

#[test]
fn what_is_in_no_window_or_in_two_fails_and_changes_nothing() {
    for read_only in [false, true] {
        let (mut bench, windows, files) = windows(read_only);
        for (sector, length) in [
            (0, 512),
            (9, 512),
            (9, 1024),
            (17, 1024),
            (18, 512),
            (0, 0),
            (10, 9 * 512),
            (10, 511),
            (107, 1024),
            (999, 512),
            (1000, 512),
            (u64::MAX, 512),
            (u64::MAX / 512 + 10, 512),
        ] {
            bench
                .driver
                .memory
                .write_slice(&[0xab; 512], GuestAddress(DATA))
                .unwrap();
            let (status, used) = request(&mut bench, READ, sector, Desc::write(DATA, length));
            assert_eq!((status, used), (FAILED, vec![(0, 1)]), "{sector}, {length}");
            assert_eq!(bytes(&bench, DATA, 512), [0xab; 512]);
            let (status, _) = request(&mut bench, WRITE, sector, Desc::read(DATA, length));
            assert_eq!(status, FAILED, "{sector}, {length}");
        }
        if read_only {
            let (status, _) = request(&mut bench, WRITE, 10, Desc::read(DATA, 512));
            assert_eq!(status, FAILED);
        }
        for mut file in files {
            let mut now = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut now).unwrap();
            assert!(now == content());
        }
        windows.unmap(10, Duration::ZERO).unwrap();
        let (status, _) = request(&mut bench, READ, 10, Desc::write(DATA, 512));
        assert_eq!(status, FAILED);
        let (status, _) = request(&mut bench, READ, 100, Desc::write(DATA, 512));
        assert_eq!(status, DONE);
    }
}

#[test]
fn a_request_sees_one_file_or_none_while_windows_come_and_go() {
    let (mut bench, windows, _) = windows(true);
    let done = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&done);
    let mapper = std::thread::spawn(move || {
        let files = [1_u8, 2].map(|number| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![number; 512 * SECTORS]).unwrap();
            file
        });
        let range = SectorRange {
            first_sector: 500,
            sectors: 16,
        };
        let mut rounds = 0;
        while !theirs.load(Ordering::SeqCst) || rounds == 0 {
            for file in &files {
                windows.map(range, file.try_clone().unwrap()).unwrap();
                windows.unmap(500, Duration::from_secs(600)).unwrap();
            }
            rounds += 1;
        }
    });
    for _ in 0..2000 {
        bench
            .driver
            .memory
            .write_slice(&[9; 4096], GuestAddress(DATA))
            .unwrap();
        let (status, _) = request(&mut bench, READ, 504, Desc::write(DATA, 4096));
        let read = bytes(&bench, DATA, 4096);
        match status {
            DONE => assert!(read == vec![1; 4096] || read == vec![2; 4096]),
            _ => assert!(status == FAILED && read == vec![9; 4096]),
        }
    }
    done.store(true, Ordering::SeqCst);
    mapper.join().unwrap();
}

#[test]
fn a_state_of_windows_is_taken_where_the_same_are_mapped() {
    let (bench, _, _) = windows(true);
    let text = serde_json::to_string(&bench.window.state()).unwrap();
    let state = serde_json::from_str(&text).unwrap();
    let (mut other, windows, _) = self::windows(true);
    other.window.restore(&state).unwrap();
    assert_eq!(other.window.state(), state);
    windows.unmap(100, Duration::ZERO).unwrap();
    let error = other.window.restore(&state).unwrap_err().to_string();
    assert!(error.contains("2 windows"), "{error}");
}
