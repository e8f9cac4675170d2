use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use skiff_base::ManualClock;

use super::{Block, Counts, Disk, DiskError, SectorRange, Windows};
use crate::testing::{Bench, Desc, MEMORY};
use crate::{Bucket, Limits, Progress, Throttle, Transport};

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xa000;
const SECTORS: usize = 16;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZERO: u32 = 13;

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

#[test]
fn another_file_follows_under_a_driver() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content()).unwrap();
    let disk = Disk::new(file, true, "disk-1").unwrap();
    let backing = disk.backing().unwrap();
    let mut bench = Bench::new(Box::new(Block::new(disk)), 16);
    bench.start();
    let (status, _) = request(&mut bench, READ, 3, Desc::write(DATA, 512));
    assert_eq!(status, DONE);
    bench.write(0x64, 1);
    let raised = bench.line.raised();
    let (generation, capacity) = (bench.read(0xfc), bench.read(0x100));
    assert_eq!(usize::try_from(capacity).unwrap(), SECTORS);

    let odd = tempfile::tempfile().unwrap();
    odd.set_len(1025).unwrap();
    assert!(backing.replace(odd).is_err(), "no whole number of sectors");
    let mut other = tempfile::tempfile().unwrap();
    other.write_all(&[7; 2 * 512]).unwrap();
    backing.replace(other).unwrap();
    bench.window.refresh();
    assert_eq!(bench.line.raised(), raised + 1);
    assert_eq!(bench.read(0x60), 2, "the configuration's interrupt");
    assert_eq!(bench.read(0xfc), generation + 1);
    assert_eq!(bench.read(0x100), 2);
    let (status, _) = request(&mut bench, READ, 1, Desc::write(DATA, 512));
    assert_eq!((status, bytes(&bench, DATA, 512)), (DONE, vec![7; 512]));
    let (status, _) = request(&mut bench, READ, 3, Desc::write(DATA, 512));
    assert_eq!(status, FAILED, "it is shorter");
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

/// A request with ranges of sectors: the first, how many, and flags.
fn erase(bench: &mut Bench, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
    let mut data = Vec::new();
    for (sector, sectors, flags) in ranges {
        data.extend(sector.to_le_bytes());
        data.extend(sectors.to_le_bytes());
        data.extend(flags.to_le_bytes());
    }
    let memory = &bench.driver.memory;
    memory.write_slice(&data, GuestAddress(DATA)).unwrap();
    let length = u32::try_from(data.len()).unwrap();
    request(bench, kind, 0, Desc::read(DATA, length)).0
}

fn all(file: &File) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut all, 0).unwrap();
    all
}

#[test]
fn sectors_are_erased_and_no_others() {
    for (kind, flags) in [(DISCARD, 0), (ZERO, 1)] {
        let (mut bench, file) = disk(false);
        assert_eq!(
            erase(&mut bench, kind, &[(2, 3, flags), (15, 1, flags)]),
            DONE
        );
        let mut expected = content();
        expected[2 * 512..5 * 512].fill(0);
        expected[15 * 512..].fill(0);
        assert!(all(&file) == expected);
        // Nothing to do is done.
        assert_eq!(erase(&mut bench, kind, &[(16, 0, flags)]), DONE);
        assert!(all(&file) == expected);
    }
    let (mut bench, file) = disk(false);
    // Where a file system cannot keep the room, the driver writes the zeros.
    let status = erase(&mut bench, ZERO, &[(2, 3, 0)]);
    let mut expected = content();
    match status {
        DONE => expected[2 * 512..5 * 512].fill(0),
        _ => assert_eq!(status, UNSUPPORTED),
    }
    assert!(all(&file) == expected);
}

#[test]
fn one_wrong_range_has_none_erased() {
    let good = (0, 1, 0);
    let many = [good; 17];
    for (ranges, status) in [
        (&[][..], FAILED),
        (&[good, (16, 1, 0)], FAILED),
        (&[good, (15, 2, 0)], FAILED),
        (&[good, (u64::MAX, 1, 0)], FAILED),
        (&[good, (u64::MAX / 512, u32::MAX, 0)], FAILED),
        (&[good, (0, u32::MAX, 0)], FAILED),
        (&[good, (1, 1, 2)], UNSUPPORTED),
        (&many, FAILED),
    ] {
        for kind in [DISCARD, ZERO] {
            let (mut bench, file) = disk(false);
            assert_eq!(erase(&mut bench, kind, ranges), status, "{kind} {ranges:?}");
            assert!(all(&file) == content(), "{kind} {ranges:?}");
        }
    }
    let (mut bench, file) = disk(false);
    assert_eq!(erase(&mut bench, DISCARD, &[(0, 1, 1)]), UNSUPPORTED);
    let odd = request(&mut bench, DISCARD, 0, Desc::read(DATA, 15));
    assert_eq!(odd.0, FAILED);
    assert!(all(&file) == content());

    let (mut bench, file) = disk(true);
    for kind in [DISCARD, ZERO] {
        assert_eq!(erase(&mut bench, kind, &[good]), UNSUPPORTED);
    }
    assert!(all(&file) == content());
}

#[test]
fn windows_are_erased_in_themselves_only() {
    let (mut bench, _, files) = windows(false);
    assert_eq!(erase(&mut bench, DISCARD, &[(10, 8, 0), (101, 1, 0)]), DONE);
    let zeros = |file: &File| all(file).chunks(512).map(|one| one == [0; 512]).collect();
    let erased: [Vec<bool>; 2] = [zeros(&files[0]), zeros(&files[1])];
    assert_eq!(erased[0][..8], [true; 8]);
    assert!(all(&files[0])[8 * 512..] == content()[8 * 512..]);
    assert!(erased[1][1]);
    for range in [(9, 2, 0), (17, 2, 0), (50, 1, 0)] {
        assert_eq!(erase(&mut bench, DISCARD, &[(100, 1, 0), range]), FAILED);
        assert!(all(&files[1])[..512] == content()[..512]);
    }
}

#[test]
fn a_driver_is_told_what_can_be_erased_at_once() {
    let (mut bench, _) = disk(false);
    for (offset, value) in [
        (36, 1 << 18),
        (40, 16),
        (44, 8),
        (48, 1 << 18),
        (52, 16),
        (56, 1),
    ] {
        assert_eq!(bench.read(0x100 + offset), value, "at {offset}");
    }
    bench.write(0x14, 0);
    assert_eq!(bench.read(0x10) & (1 << 13 | 1 << 14), 1 << 13 | 1 << 14);
    let (mut bench, _) = disk(true);
    bench.write(0x14, 0);
    assert_eq!(bench.read(0x10) & (1 << 13 | 1 << 14), 0);
}

#[test]
fn requests_over_the_limit_wait_for_their_time() {
    let bucket = |size| Bucket {
        size,
        one_time_burst: 0,
        refill: Duration::from_secs(1),
    };
    for limits in [
        Limits {
            bytes: Some(bucket(1024)),
            operations: None,
        },
        Limits {
            bytes: None,
            operations: Some(bucket(2)),
        },
    ] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content()).unwrap();
        let clock = ManualClock::default();
        let throttle = Throttle::new(limits, Arc::new(clock.clone())).unwrap();
        let block = Block::new(Disk::new(file, true, "disk").unwrap()).limited(throttle);
        let mut bench = Bench::new(Box::new(block), 16);
        bench.start();
        for _ in 0..2 {
            let (status, _) = request(&mut bench, READ, 0, Desc::write(DATA, 512));
            assert_eq!(status, DONE);
        }
        let (status, used) = request(&mut bench, READ, 0, Desc::write(DATA, 512));
        assert_eq!((status, used), (UNTOUCHED, vec![]));
        // The doorbell makes no time.
        assert_eq!(bench.window.notify(0), Progress::Done);
        assert_eq!(bench.window.host_ready(), Progress::Done);
        assert_eq!(bench.driver.used(), []);
        clock.advance(Duration::from_millis(500));
        assert_eq!(bench.window.host_ready(), Progress::Done);
        assert_eq!(bench.driver.used(), [(0, 513)]);
        assert_eq!(bytes(&bench, STATUS, 1), [DONE]);
    }
}

#[test]
fn a_request_larger_than_the_limit_is_served_and_paid_for() {
    let limits = Limits {
        bytes: Some(Bucket {
            size: 512,
            one_time_burst: 0,
            refill: Duration::from_secs(1),
        }),
        operations: None,
    };
    let clock = ManualClock::default();
    let throttle = Throttle::new(limits, Arc::new(clock.clone())).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content()).unwrap();
    let block = Block::new(Disk::new(file, true, "disk").unwrap()).limited(throttle);
    let mut bench = Bench::new(Box::new(block), 16);
    bench.start();
    let large = Desc::write(DATA, 4096);
    assert_eq!(request(&mut bench, READ, 0, large).0, DONE);
    assert_eq!(request(&mut bench, READ, 0, large).0, UNTOUCHED);
    clock.advance(Duration::from_millis(7000));
    assert_eq!(bench.window.host_ready(), Progress::Done);
    assert_eq!(bench.driver.used(), []);
    clock.advance(Duration::from_millis(2));
    assert_eq!(bench.window.host_ready(), Progress::Done);
    assert_eq!(bench.driver.used(), [(0, 4097)]);
}
