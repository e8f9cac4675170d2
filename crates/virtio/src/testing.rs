//! The driver's side of a queue, for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::mmio::Window;
use crate::{Device, Line, Progress, Queue, Transport};

/// How much memory the tests' guests have.
pub(crate) const MEMORY: u64 = 0x4_0000;
/// How far a queue's rings are from the next one's.
const RINGS: u64 = 0x4000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

pub(crate) fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(MEMORY).unwrap())]).unwrap()
}

/// A descriptor as a driver writes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Desc {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Desc {
    pub(crate) const fn read(address: u64, bytes: u32) -> Self {
        Self {
            address,
            bytes,
            flags: 0,
            next: 0,
        }
    }

    pub(crate) const fn write(address: u64, bytes: u32) -> Self {
        Self {
            flags: 2,
            ..Self::read(address, bytes)
        }
    }

    pub(crate) const fn indirect(address: u64, bytes: u32) -> Self {
        Self {
            flags: 4,
            ..Self::read(address, bytes)
        }
    }

    pub(crate) const fn then(self, next: u16) -> Self {
        Self {
            flags: self.flags | 1,
            next,
            ..self
        }
    }
}

pub(crate) fn put_descriptors<M: GuestMemory>(memory: &M, table: GuestAddress, all: &[Desc]) {
    for (address, desc) in (table.0..).step_by(16).zip(all) {
        memory
            .write_obj(desc.address, GuestAddress(address))
            .unwrap();
        memory
            .write_obj(desc.bytes, GuestAddress(address + 8))
            .unwrap();
        memory
            .write_obj(desc.flags, GuestAddress(address + 12))
            .unwrap();
        memory
            .write_obj(desc.next, GuestAddress(address + 14))
            .unwrap();
    }
}

/// A driver of one queue.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap,
    /// Where its rings are.
    base: u64,
    size: u16,
    available: u16,
    seen: u16,
}

impl Driver {
    pub(crate) fn new(size: u16) -> Self {
        Self::of(memory(), 0, size)
    }

    fn of(memory: GuestMemoryMmap, index: u64, size: u16) -> Self {
        Self {
            memory,
            base: index * RINGS,
            size,
            available: 0,
            seen: 0,
        }
    }

    /// The queue, as its registers would make it.
    pub(crate) fn queue(&self) -> Queue {
        let mut queue = Queue::new(256);
        self.set_up(queue.ring_mut());
        queue
    }

    fn low(&self, offset: u64) -> u32 {
        u32::try_from(self.base + offset).unwrap()
    }

    pub(crate) fn set_up(&self, ring: &mut virtio_queue::Queue) {
        ring.set_size(self.size);
        ring.set_desc_table_address(Some(self.low(0)), Some(0));
        ring.set_avail_ring_address(Some(self.low(AVAILABLE)), Some(0));
        ring.set_used_ring_address(Some(self.low(USED)), Some(0));
        ring.set_ready(true);
    }

    pub(crate) fn describe(&self, index: u16, desc: Desc) {
        put_descriptors(
            &self.memory,
            GuestAddress(self.base + 16 * u64::from(index)),
            &[desc],
        );
    }

    /// Forgets what was offered, as after a reset.
    fn rewind(&mut self) {
        self.start_at(0);
        self.set_available_index(0);
    }

    pub(crate) fn start_at(&mut self, index: u16) {
        self.available = index;
        self.seen = index;
        self.memory
            .write_obj(index, GuestAddress(self.base + USED + 2))
            .unwrap();
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(self.base + AVAILABLE + 2))
            .unwrap();
    }

    /// Wants to be told when the device uses this index.
    pub(crate) fn await_used(&self, index: u16) {
        let place = AVAILABLE + 4 + 2 * u64::from(self.size);
        self.memory
            .write_obj(index, GuestAddress(self.base + place))
            .unwrap();
    }

    /// Offers a chain.
    pub(crate) fn offer(&mut self, head: u16) {
        let place = u64::from(self.available % self.size) * 2;
        self.memory
            .write_obj(head, GuestAddress(self.base + AVAILABLE + 4 + place))
            .unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    /// What came back since the last time: heads and lengths.
    pub(crate) fn used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(self.base + USED + 2))
            .unwrap();
        let mut all = Vec::new();
        while self.seen != index {
            let place = self.base + USED + 4 + u64::from(self.seen % self.size) * 8;
            let head = self.memory.read_obj(GuestAddress(place)).unwrap();
            let bytes = self.memory.read_obj(GuestAddress(place + 4)).unwrap();
            all.push((head, bytes));
            self.seen = self.seen.wrapping_add(1);
        }
        all
    }
}

/// A line that counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct CountingLine(Arc<AtomicUsize>);

impl CountingLine {
    pub(crate) fn raised(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Line for CountingLine {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A device behind its window, with a driver's way through it.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Of the first queue.
    pub(crate) driver: Driver,
    /// Of the others.
    pub(crate) others: Vec<Driver>,
    pub(crate) window: Window<GuestMemoryMmap>,
    pub(crate) line: CountingLine,
}

impl Bench {
    pub(crate) fn new(device: Box<dyn Device<GuestMemoryMmap>>, size: u16) -> Self {
        let driver = Driver::new(size);
        let line = CountingLine::default();
        let window = Window::new(
            device,
            Arc::new(driver.memory.clone()),
            Box::new(line.clone()),
        );
        let others = (1..window.core().queue_count())
            .map(|index| Driver::of(driver.memory.clone(), index as u64, size))
            .collect();
        Self {
            driver,
            others,
            window,
            line,
        }
    }

    pub(crate) fn read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.window.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, register: u64, value: u32) {
        self.window.write(register, &value.to_le_bytes());
    }

    pub(crate) fn status(&mut self) -> u32 {
        self.read(0x70)
    }

    /// Takes the device through its initialisation (virtio 1.3, 3.1.1).
    pub(crate) fn start(&mut self) {
        self.start_without(0);
    }

    /// The same, with some of the first 32 features not taken.
    pub(crate) fn start_without(&mut self, features: u32) {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        for page in 0..2 {
            self.write(0x14, page);
            let offered = self.read(0x10);
            self.write(0x24, page);
            // Without event indices every batch is an interrupt.
            self.write(
                0x20,
                if page == 0 {
                    offered & !(1 << 29) & !features
                } else {
                    offered
                },
            );
        }
        self.write(0x70, 11);
        assert_eq!(self.status(), 11);
        for queue in 0..=self.others.len() {
            self.write(0x30, u32::try_from(queue).unwrap());
            self.write(0x38, u32::from(self.driver.size));
            for (register, offset) in [(0x80, 0), (0x90, AVAILABLE), (0xa0, USED)] {
                self.write(register, self.ring(queue).low(offset));
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
            assert_eq!(self.read(0x44), 1);
            self.ring_mut(queue).rewind();
        }
        self.write(0x70, 15);
    }

    fn ring(&self, queue: usize) -> &Driver {
        queue
            .checked_sub(1)
            .map_or(&self.driver, |other| &self.others[other])
    }

    pub(crate) fn ring_mut(&mut self, queue: usize) -> &mut Driver {
        match queue.checked_sub(1) {
            Some(other) => &mut self.others[other],
            None => &mut self.driver,
        }
    }

    /// Offers a chain at descriptor 0 and lets the device work on it.
    pub(crate) fn request(&mut self, chain: &[Desc]) -> Vec<(u32, u32)> {
        put_descriptors(&self.driver.memory, GuestAddress(0), chain);
        self.driver.offer(0);
        assert_eq!(self.window.notify(0), Progress::Done);
        self.driver.used()
    }
}
