//! Every device against drivers that do their worst: whatever lies in guest
//! memory and whatever is written to registers, a call returns after a ring's
//! worth of work, nothing is written where the driver did not say, and a
//! reset makes the device as new.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use skiff_base::ManualClock;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::block::{Block, Disk, SectorRange, Windows};
use crate::entropy::Entropy;
use crate::testing::{Bench, Desc, MEMORY, put_descriptors};
use crate::{Bucket, Device, Limits, Progress, Throttle, Transport};

const SIZE: u16 = 8;
const DISK_BYTES: u64 = 16 * 512;
/// A place that no descriptor names.
const UNTOUCHED: u64 = 0x3_f000;

#[derive(Debug, Clone, Copy)]
enum Which {
    ReadOnly,
    ReadWrite,
    Layers,
    Scratch,
    Limited,
    Entropy,
}

/// A device, and the file behind it. Its limits go by the clock.
fn device(which: Which, clock: &ManualClock) -> (Box<dyn Device<GuestMemoryMmap>>, File) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0x5a; usize::try_from(DISK_BYTES).unwrap()])
        .unwrap();
    let disk = |read_only| {
        let file = file.try_clone().unwrap();
        Box::new(Block::new(Disk::new(file, read_only, "disk").unwrap()))
    };
    // The same file in two windows with a gap between them.
    let windows = |read_only| {
        let windows = Windows::new(100, read_only);
        for (first_sector, sectors) in [(0, 6), (8, 16)] {
            let range = SectorRange {
                first_sector,
                sectors,
            };
            windows.map(range, file.try_clone().unwrap()).unwrap();
        }
        Box::new(Block::new(Disk::of_windows(windows, "disk")))
    };
    let device: Box<dyn Device<GuestMemoryMmap>> = match which {
        Which::ReadOnly => disk(true),
        Which::ReadWrite => disk(false),
        Which::Layers => windows(true),
        Which::Scratch => windows(false),
        Which::Limited => {
            let bucket = Bucket {
                size: 4,
                one_time_burst: 0,
                refill: Duration::from_millis(1),
            };
            let limits = Limits {
                bytes: Some(Bucket {
                    size: 2048,
                    ..bucket
                }),
                operations: Some(bucket),
            };
            let throttle = Throttle::new(limits, Arc::new(clock.clone())).unwrap();
            let disk = Disk::new(file.try_clone().unwrap(), false, "disk").unwrap();
            Box::new(Block::new(disk).limited(throttle))
        }
        Which::Entropy => Box::new(Entropy),
    };
    (device, file)
}

fn which() -> impl Strategy<Value = Which> {
    prop_oneof![
        Just(Which::ReadOnly),
        Just(Which::ReadWrite),
        Just(Which::Layers),
        Just(Which::Scratch),
        Just(Which::Limited),
        Just(Which::Entropy),
    ]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        // Where the requests' parts are, the rings among them.
        8 => 0..UNTOUCHED - 0x1000,
        1 => MEMORY - 16..MEMORY + 16,
        1 => u64::MAX - 16..=u64::MAX,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(16),
        Just(512),
        0_u32..0x1000,
        u32::MAX - 16..=u32::MAX,
    ]
}

pub(crate) fn descriptor() -> impl Strategy<Value = Desc> {
    let next = prop_oneof![4 => 0_u16..SIZE, 1 => any::<u16>()];
    let flags = prop_oneof![Just(0_u16), Just(1), Just(2), Just(3), any::<u16>()];
    (address(), length(), flags, next).prop_map(|(address, bytes, flags, next)| Desc {
        address,
        bytes,
        flags,
        next,
    })
}

/// What a hostile driver does once its device runs.
#[derive(Debug, Clone)]
enum Act {
    Describe(Vec<Desc>),
    Header {
        address: u64,
        kind: u32,
        sector: u64,
    },
    Available {
        index: u16,
        heads: Vec<u16>,
    },
    /// A request that is right but for what it asks.
    Request {
        kind: u32,
        sector: u64,
        data: Desc,
    },
    /// What a request to erase sectors has for data.
    Range {
        sector: u64,
        sectors: u32,
        flags: u32,
    },
    Notify(usize),
    /// Time goes on, and the alarm may ring.
    Wait {
        millis: u64,
    },
    Register {
        offset: u64,
        value: u32,
    },
    Odd {
        offset: u64,
        bytes: Vec<u8>,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let sector = prop_oneof![0_u64..20, any::<u64>()];
    let kind = prop_oneof![
        Just(0_u32),
        Just(1),
        Just(4),
        Just(8),
        Just(11),
        Just(13),
        any::<u32>()
    ];
    let index = prop_oneof![4 => 0_u16..SIZE + 2, 1 => any::<u16>()];
    let head = prop_oneof![8 => 0_u16..SIZE, 1 => any::<u16>()];
    let asked = prop_oneof![
        Just(Desc::read(0x9000, 512)),
        Just(Desc::write(0x9000, 512)),
        descriptor(),
    ];
    let request = (kind.clone(), sector.clone(), asked)
        .prop_map(|(kind, sector, data)| Act::Request { kind, sector, data });
    let range = (
        sector.clone(),
        prop_oneof![0_u32..20, any::<u32>()],
        prop_oneof![3 => 0_u32..2, 1 => any::<u32>()],
    )
        .prop_map(|(sector, sectors, flags)| Act::Range {
            sector,
            sectors,
            flags,
        });
    prop_oneof![
        4 => request,
        1 => range,
        3 => prop::collection::vec(descriptor(), 1..usize::from(SIZE)).prop_map(Act::Describe),
        2 => (0..UNTOUCHED - 0x1000, kind, sector)
            .prop_map(|(address, kind, sector)| Act::Header { address, kind, sector }),
        3 => (index, prop::collection::vec(head, usize::from(SIZE)))
            .prop_map(|(index, heads)| Act::Available { index, heads }),
        4 => (0_usize..4).prop_map(Act::Notify),
        1 => (0_u64..20).prop_map(|millis| Act::Wait { millis }),
        1 => (0_u64..0x110, any::<u32>()).prop_map(|(offset, value)| Act::Register { offset, value }),
        1 => (any::<u64>(), prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(offset, bytes)| Act::Odd { offset, bytes }),
    ]
}

fn perform(bench: &mut Bench, clock: &ManualClock, act: Act) {
    let memory = &bench.driver.memory;
    match act {
        Act::Describe(all) => put_descriptors(memory, GuestAddress(0), &all),
        Act::Header {
            address,
            kind,
            sector,
        } => {
            memory.write_obj(kind, GuestAddress(address)).unwrap();
            memory.write_obj(sector, GuestAddress(address + 8)).unwrap();
        }
        Act::Available { index, heads } => {
            for (place, head) in (0x2004..).step_by(2).zip(heads) {
                memory.write_obj(head, GuestAddress(place)).unwrap();
            }
            memory.write_obj(index, GuestAddress(0x2002)).unwrap();
        }
        Act::Request { kind, sector, data } => {
            memory.write_obj(kind, GuestAddress(0x8000)).unwrap();
            memory.write_obj(sector, GuestAddress(0x8008)).unwrap();
            let chain = [
                Desc::read(0x8000, 16).then(1),
                data.then(2),
                Desc::write(0xa000, 1),
            ];
            put_descriptors(memory, GuestAddress(0), &chain);
            let index: u16 = memory.read_obj(GuestAddress(0x2002)).unwrap();
            let place = 0x2004 + 2 * u64::from(index % SIZE);
            memory.write_obj(0_u16, GuestAddress(place)).unwrap();
            memory
                .write_obj(index.wrapping_add(1), GuestAddress(0x2002))
                .unwrap();
            perform(bench, clock, Act::Notify(0));
        }
        Act::Range {
            sector,
            sectors,
            flags,
        } => {
            memory.write_obj(sector, GuestAddress(0x9000)).unwrap();
            memory.write_obj(sectors, GuestAddress(0x9008)).unwrap();
            memory.write_obj(flags, GuestAddress(0x900c)).unwrap();
            for kind in [11, 13] {
                let data = Desc::read(0x9000, 16);
                perform(bench, clock, Act::Request { kind, sector, data });
            }
        }
        Act::Notify(queue) => {
            // A device writes into the rings when it is told so, and makes
            // itself work: each call is bounded, their number is the driver's.
            let mut calls = 0;
            while bench.window.notify(queue) == Progress::More && calls < 4 {
                calls += 1;
            }
        }
        Act::Wait { millis } => {
            clock.advance(Duration::from_millis(millis));
            let _more = bench.window.host_ready();
        }
        Act::Register { offset, value } => bench.write(offset, value),
        Act::Odd { offset, bytes } => {
            let mut data = bytes.clone();
            bench.window.read(offset, &mut data);
            bench.window.write(offset, &bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_driver_can_at_most_have_its_device_reset(
        which in which(),
        acts in prop::collection::vec(act(), 1..40),
    ) {
        let clock = ManualClock::default();
        let (device, file) = device(which, &clock);
        let mut bench = Bench::new(device, SIZE);
        bench.start();
        bench.driver.memory.write_slice(&[0x77; 64], GuestAddress(UNTOUCHED)).unwrap();
        for act in acts {
            perform(&mut bench, &clock, act);
        }

        let mut untouched = [0; 64];
        bench.driver.memory.read_slice(&mut untouched, GuestAddress(UNTOUCHED)).unwrap();
        prop_assert_eq!(untouched, [0x77; 64]);
        prop_assert_eq!(file.metadata().unwrap().len(), DISK_BYTES);
        if !matches!(which, Which::ReadWrite | Which::Scratch | Which::Limited) {
            let mut content = vec![0; usize::try_from(DISK_BYTES).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            prop_assert!(content.iter().all(|byte| *byte == 0x5a));
        }

        // Every limit's time is over.
        clock.advance(Duration::from_secs(1000));
        // As new: a request of its kind is served.
        bench.start();
        let memory = &bench.driver.memory;
        memory.write_slice(&[0; 16], GuestAddress(0x8000)).unwrap();
        let used = bench.request(&[
            Desc::read(0x8000, 16).then(1),
            Desc::write(0x9000, 513),
        ]);
        prop_assert_eq!(used, vec![(0, 513)]);
        prop_assert_eq!(bench.status(), 15);
    }
}
