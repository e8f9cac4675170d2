use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use skiff_base::ManualClock;
use vm_memory::{Bytes, GuestAddress};

use super::queue::{HEADER_BYTES, MAX_BYTES};
use super::{Counters, Link, Net, Offloads, Settings};
use crate::testing::{Bench, Desc, put_descriptors};
use crate::{Bucket, Limits, Progress, Throttle, Transport};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const DATA: u64 = 0x9000;
const TRANSMIT_RINGS: u64 = 0x4000;

const GUEST_CSUM: u32 = 1 << 1;
const GUEST_TSO4: u32 = 1 << 7;
const MRG_RXBUF: u32 = 1 << 15;

/// What is on the other side of a fake link.
#[derive(Debug, Default)]
struct Far {
    /// For the guest.
    waiting: VecDeque<Vec<u8>>,
    /// From the guest.
    arrived: Vec<Vec<u8>>,
    /// It takes nothing.
    is_down: bool,
    offloads: Offloads,
}

#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Far>>);

impl Fake {
    fn far<T>(&self, look: impl FnOnce(&mut Far) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    /// A packet of this length, whose bytes say which it is.
    fn send(&self, number: u8, bytes: usize) {
        let mut packet = vec![number; HEADER_BYTES + bytes];
        packet[..HEADER_BYTES].fill(0xee);
        self.far(|far| far.waiting.push_back(packet));
    }

    fn arrived(&self) -> Vec<Vec<u8>> {
        self.far(|far| std::mem::take(&mut far.arrived))
    }
}

impl Link for Fake {
    fn offloads(&self) -> Offloads {
        Offloads {
            checksum: true,
            tcp4: true,
            tcp6: true,
            udp: false,
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<()> {
        self.far(|far| far.offloads = offloads);
        Ok(())
    }

    fn receive(&mut self, packet: &mut [u8]) -> Result<usize> {
        let next = self.far(|far| far.waiting.pop_front());
        let next = next.ok_or(ErrorKind::WouldBlock)?;
        let length = next.len().min(packet.len());
        packet[..length].copy_from_slice(&next[..length]);
        Ok(length)
    }

    fn send(&mut self, packet: &[u8]) -> Result<()> {
        self.far(|far| {
            if far.is_down {
                return Err(Error::from(ErrorKind::WouldBlock));
            }
            far.arrived.push(packet.to_vec());
            Ok(())
        })
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct Guest {
    bench: Bench,
    link: Fake,
    counters: Arc<Counters>,
}

impl Guest {
    fn new(size: u16, settings: Settings) -> Self {
        let link = Fake::default();
        let net = Net::new(Box::new(link.clone()), settings).unwrap();
        let counters = net.counters();
        Self {
            bench: Bench::new(Box::new(net), size),
            link,
            counters,
        }
    }

    fn started() -> Self {
        let mut guest = Self::new(16, Settings::default());
        guest.bench.start();
        guest
    }

    /// Offers buffers for packets, each of one descriptor.
    fn offer(&mut self, buffers: &[(u16, u64, u32)]) -> Progress {
        for (index, address, bytes) in buffers {
            self.bench
                .driver
                .describe(*index, Desc::write(*address, *bytes));
            self.bench.driver.offer(*index);
        }
        self.bench.window.notify(0)
    }

    fn received(&mut self) -> Vec<(u32, u32)> {
        self.bench.driver.used()
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let memory = &self.bench.driver.memory;
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Sends one chain of the guest's.
    fn transmit(&mut self, chain: &[Desc]) -> Vec<(u32, u32)> {
        let memory = &self.bench.driver.memory;
        put_descriptors(memory, GuestAddress(TRANSMIT_RINGS), chain);
        self.bench.others[0].offer(0);
        assert_eq!(self.bench.window.notify(1), Progress::Done);
        self.bench.others[0].used()
    }
}

fn throttle(size: u64, clock: &ManualClock) -> Throttle {
    let limits = Limits {
        bytes: None,
        operations: Some(Bucket {
            size,
            one_time_burst: 0,
            refill: Duration::from_secs(1),
        }),
    };
    Throttle::new(limits, Arc::new(clock.clone())).unwrap()
}

#[test]
fn a_driver_is_told_what_it_has() {
    let mut guest = Guest::new(
        16,
        Settings {
            mac: Some(MAC),
            mtu: Some(9000),
            ..Settings::default()
        },
    );
    assert_eq!(guest.bench.read(0x08), 1);
    let mut config = [0; 12];
    guest.bench.window.read(0x100, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..], [0, 0, 1, 0, 0x28, 0x23]);
    guest.bench.write(0x14, 0);
    let ours = guest.bench.read(0x10) & !(1 << 29);
    let bits = [0, 1, 3, 5, 7, 8, 11, 12, 15];
    assert_eq!(ours, bits.iter().fold(0, |all, bit| all | 1 << bit));
    let mut plain = Guest::new(16, Settings::default());
    plain.bench.write(0x14, 0);
    assert_eq!(plain.bench.read(0x10) & (1 << 5 | 1 << 3), 0);
}

#[test]
fn the_link_finishes_what_the_driver_does_not_take() {
    let mut guest = Guest::started();
    let taken = Offloads {
        checksum: true,
        tcp4: true,
        tcp6: true,
        udp: false,
    };
    assert_eq!(guest.link.far(|far| far.offloads), taken);
    guest.bench.start_without(GUEST_CSUM | GUEST_TSO4);
    let taken = Offloads {
        checksum: false,
        tcp4: false,
        ..taken
    };
    assert_eq!(guest.link.far(|far| far.offloads), taken);
}

#[test]
fn a_packet_goes_into_one_buffer() {
    let mut guest = Guest::started();
    guest.link.send(1, 60);
    assert_eq!(guest.offer(&[(3, DATA, 2000)]), Progress::Done);
    assert_eq!(guest.received(), [(3, 72)]);
    let mut header = [0xee; HEADER_BYTES];
    header[10..].copy_from_slice(&[1, 0]);
    assert_eq!(guest.bytes(DATA, HEADER_BYTES), header);
    assert_eq!(guest.bytes(DATA + 12, 61), [&[1; 60][..], &[0]].concat());
    let counts = guest.counters.counts();
    assert_eq!((counts.received_packets, counts.received_bytes), (1, 60));
}

#[test]
fn a_packet_goes_into_many_buffers_at_once() {
    let mut guest = Guest::started();
    guest.link.send(1, 88);
    let waits = guest.offer(&[(0, DATA, 40), (1, DATA + 40, 40)]);
    assert_eq!(waits, Progress::Done);
    // None of it is there before all of it is.
    assert_eq!(guest.received(), []);
    assert_eq!(guest.offer(&[(2, DATA + 80, 40)]), Progress::Done);
    assert_eq!(guest.received(), [(0, 40), (1, 40), (2, 20)]);
    assert_eq!(guest.bytes(DATA + 10, 2), [3, 0]);
    assert_eq!(guest.bytes(DATA + 12, 88), [1; 88]);
}

#[test]
fn a_driver_that_takes_one_buffer_a_packet_loses_what_is_larger() {
    let mut guest = Guest::new(16, Settings::default());
    guest.bench.start_without(MRG_RXBUF);
    guest.link.send(1, 88);
    guest.link.send(2, 28);
    let buffers = [(0, DATA, 40), (1, DATA + 40, 40)];
    assert_eq!(guest.offer(&buffers), Progress::Done);
    assert_eq!(guest.received(), [(0, 40)]);
    assert_eq!(guest.bytes(DATA + 10, 3), [1, 0, 2]);
    let counts = guest.counters.counts();
    assert_eq!((counts.received_dropped, counts.received_packets), (1, 1));
}

#[test]
fn packets_wait_for_buffers_in_order() {
    let mut guest = Guest::started();
    for number in 1..5 {
        guest.link.send(number, 10);
    }
    assert_eq!(guest.bench.window.host_ready(), Progress::Done);
    assert_eq!(guest.received(), []);
    for number in 1..5_u8 {
        let index = u16::from(number);
        assert_eq!(guest.offer(&[(index, DATA, 100)]), Progress::Done);
        assert_eq!(guest.received(), [(u32::from(index), 22)]);
        assert_eq!(guest.bytes(DATA + 12, 1), [number]);
    }
}

#[test]
fn a_ring_that_can_never_hold_a_packet_loses_it() {
    let mut guest = Guest::new(4, Settings::default());
    guest.bench.start();
    guest.link.send(1, 88);
    guest.link.send(2, 8);
    let buffers: Vec<_> = (0..4).map(|index| (index, DATA, 20)).collect();
    assert_eq!(guest.offer(&buffers), Progress::Done);
    assert_eq!(guest.received(), [(0, 20)]);
    assert_eq!(guest.bytes(DATA + 12, 1), [2]);
    assert_eq!(guest.counters.counts().received_dropped, 1);
}

#[test]
fn many_packets_come_in_turns() {
    let mut guest = Guest::new(4, Settings::default());
    guest.bench.start();
    guest.bench.driver.describe(0, Desc::write(DATA, 100));
    for number in 0..9 {
        guest.link.send(number, 1);
    }
    for (more, count) in [
        (Progress::More, 4),
        (Progress::More, 4),
        (Progress::Done, 1),
    ] {
        for _ in 0..4 {
            guest.bench.driver.offer(0);
        }
        assert_eq!(guest.bench.window.notify(0), more);
        assert_eq!(guest.received().len(), count);
    }
}

#[test]
fn packets_are_sent_whole() {
    let mut guest = Guest::started();
    let packet: Vec<u8> = (0..112).collect();
    let memory = &guest.bench.driver.memory;
    memory.write_slice(&packet, GuestAddress(DATA)).unwrap();
    let used = guest.transmit(&[
        Desc::read(DATA, 5).then(1),
        Desc::read(DATA + 5, 100).then(2),
        Desc::read(DATA + 105, 7),
    ]);
    assert_eq!(used, [(0, 0)]);
    assert_eq!(guest.link.arrived(), [packet]);
    let longest = u32::try_from(MAX_BYTES).unwrap();
    guest.transmit(&[Desc::read(DATA, longest)]);
    assert_eq!(guest.link.arrived()[0].len(), MAX_BYTES);
    let counts = guest.counters.counts();
    assert_eq!(counts.sent_packets, 2);
    assert_eq!(counts.sent_bytes, 100 + (MAX_BYTES - HEADER_BYTES) as u64);
}

#[test]
fn what_is_no_packet_or_is_not_taken_is_dropped_and_counted() {
    let mut guest = Guest::started();
    let longer = u32::try_from(MAX_BYTES + 1).unwrap();
    for chain in [
        Desc::read(DATA, 0),
        Desc::read(DATA, 12),
        Desc::read(DATA, longer),
        Desc::write(DATA, 100),
    ] {
        assert_eq!(guest.transmit(&[chain]), [(0, 0)]);
    }
    guest.link.far(|far| far.is_down = true);
    assert_eq!(guest.transmit(&[Desc::read(DATA, 100)]), [(0, 0)]);
    assert_eq!(guest.link.arrived(), Vec::<Vec<u8>>::new());
    let counts = guest.counters.counts();
    assert_eq!((counts.sent_dropped, counts.sent_packets), (5, 0));
    assert_eq!(guest.bench.status(), 15);
}

#[test]
fn each_direction_waits_for_its_own_limit() {
    let clock = ManualClock::default();
    let settings = Settings {
        receive: Some(throttle(2, &clock)),
        transmit: Some(throttle(4, &clock)),
        ..Settings::default()
    };
    let mut guest = Guest::new(16, settings);
    guest.bench.start();
    for number in 0..5 {
        guest.link.send(number, 10);
    }
    let buffers: Vec<_> = (0..8).map(|index| (index, DATA, 100)).collect();
    assert_eq!(guest.offer(&buffers), Progress::Done);
    assert_eq!(guest.received().len(), 2);
    let sent = |guest: &mut Guest| guest.transmit(&[Desc::read(DATA, 100)]).len();
    let sent: Vec<_> = (0..6).map(|_| sent(&mut guest)).collect();
    assert_eq!(sent, [1, 1, 1, 1, 0, 0]);
    // The alarms ring, or somebody else does.
    clock.advance(Duration::from_millis(500));
    assert_eq!(guest.bench.window.host_ready(), Progress::Done);
    assert_eq!(guest.received().len(), 1);
    assert_eq!(guest.bench.others[0].used().len(), 2);
    clock.advance(Duration::from_secs(1));
    assert_eq!(guest.bench.window.host_ready(), Progress::Done);
    assert_eq!(guest.received().len(), 2);
    assert_eq!(guest.bytes(DATA + 12, 1), [4]);
    assert_eq!(guest.link.arrived().len(), 6);
}

#[test]
fn a_reset_loses_the_packet_that_waits() {
    let mut guest = Guest::started();
    guest.link.send(1, 10);
    guest.link.send(2, 10);
    assert_eq!(guest.bench.window.host_ready(), Progress::Done);
    guest.bench.start();
    assert_eq!(guest.offer(&[(0, DATA, 100)]), Progress::Done);
    assert_eq!(guest.bytes(DATA + 12, 1), [2]);
}

#[test]
fn a_state_is_an_interfaces_with_the_same_address() {
    let settings = |mac| Settings {
        mac,
        ..Settings::default()
    };
    let mut guest = Guest::new(16, settings(Some(MAC)));
    guest.bench.start();
    let text = serde_json::to_string(&guest.bench.window.state()).unwrap();
    let state = serde_json::from_str(&text).unwrap();
    let mut other = Guest::new(16, settings(Some(MAC)));
    other.bench.window.restore(&state).unwrap();
    assert_eq!(other.bench.window.state(), state);
    let mut wrong = Guest::new(16, settings(None));
    assert!(wrong.bench.window.restore(&state).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_driver_can_at_most_have_it_reset(
        merges in any::<bool>(),
        is_limited in any::<bool>(),
        rounds in prop::collection::vec(
            (
                0..2_u64,
                prop::collection::vec(crate::hostile_tests::descriptor(), 1..8),
                prop::collection::vec(0_u16..9, 8),
                0_u16..10,
                0..3000_usize,
                any::<bool>(),
            ),
            1..20,
        ),
    ) {
        let clock = ManualClock::default();
        let settings = Settings {
            receive: is_limited.then(|| throttle(3, &clock)),
            transmit: is_limited.then(|| throttle(3, &clock)),
            ..Settings::default()
        };
        let mut guest = Guest::new(8, settings);
        let without = if merges { 0 } else { MRG_RXBUF };
        guest.bench.start_without(without);
        let memory = guest.bench.driver.memory.clone();
        memory.write_slice(&[0x77; 64], GuestAddress(0x3_f000)).unwrap();
        for (queue, descriptors, heads, index, bytes, waits) in rounds {
            let base = TRANSMIT_RINGS * queue;
            put_descriptors(&memory, GuestAddress(base), &descriptors);
            for (place, head) in (base + 0x2004..).step_by(2).zip(heads) {
                memory.write_obj(head, GuestAddress(place)).unwrap();
            }
            memory.write_obj(index, GuestAddress(base + 0x2002)).unwrap();
            guest.link.send(1, bytes);
            if waits {
                clock.advance(Duration::from_millis(300));
            }
            for queue in 0..3 {
                // The number of calls is the driver's; each is bounded.
                let _again = guest.bench.window.notify(queue) == Progress::More;
            }
            let _again = guest.bench.window.host_ready() == Progress::More;
            for packet in guest.link.arrived() {
                prop_assert!((HEADER_BYTES + 1..=MAX_BYTES).contains(&packet.len()));
            }
        }
        let mut untouched = [0; 64];
        memory.read_slice(&mut untouched, GuestAddress(0x3_f000)).unwrap();
        prop_assert_eq!(untouched, [0x77; 64]);

        // As new: packets go both ways.
        clock.advance(Duration::from_secs(1000));
        guest.link.far(|far| far.waiting.clear());
        guest.bench.start();
        guest.link.send(9, 10);
        prop_assert_eq!(guest.offer(&[(0, DATA, 100)]), Progress::Done);
        prop_assert_eq!(guest.received(), vec![(0, 22)]);
        prop_assert_eq!(guest.transmit(&[Desc::read(DATA, 100)]), vec![(0, 0)]);
        prop_assert_eq!(guest.link.arrived().len(), 1);
    }
}
