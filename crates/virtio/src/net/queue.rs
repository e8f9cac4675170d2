//! The rings: packets from the link into the guest's buffers, and back.

use std::io::ErrorKind;

use vm_memory::GuestMemory;

use super::counters::Direction;
use super::link::Link;
use crate::{Chain, DeviceError, Progress, Queue, Throttle};

/// Packets for the guest.
pub(super) const RECEIVE: usize = 0;
/// Packets from the guest.
pub(super) const TRANSMIT: usize = 1;

/// The header in front of each packet: flags, kind of segments, lengths for
/// checksum and segments, and in how many buffers the packet is.
pub(super) const HEADER_BYTES: usize = 12;
const BUFFERS: std::ops::Range<usize> = 10..12;
/// The longest packet: 64 KiB of IP with an Ethernet header and a VLAN's.
pub(super) const MAX_BYTES: usize = HEADER_BYTES + 18 + (64 << 10);

/// What a packet has found in the guest's ring.
enum Delivery {
    Done,
    /// The guest has no buffers for it now.
    Waits,
    /// No buffers that the guest can have would do.
    Impossible,
}

/// From the link to the guest.
#[derive(Debug)]
pub(super) struct Receiver {
    throttle: Option<Throttle>,
    /// The next packet.
    packet: Vec<u8>,
    /// How long it is; 0 when there is none.
    bytes: usize,
    /// It has been let in by the limit.
    is_admitted: bool,
    /// The link may have more.
    has_more: bool,
    /// The driver takes a packet in several buffers.
    merges: bool,
}

impl Receiver {
    pub(super) fn new(throttle: Option<Throttle>) -> Self {
        Self {
            throttle,
            packet: vec![0; MAX_BYTES],
            bytes: 0,
            is_admitted: false,
            has_more: false,
            merges: false,
        }
    }

    pub(super) fn start(&mut self, merges: bool) {
        self.clear();
        self.merges = merges;
        self.has_more = true;
    }

    pub(super) fn clear(&mut self) {
        self.bytes = 0;
        self.is_admitted = false;
    }

    pub(super) fn may_receive(&mut self) {
        self.has_more = true;
    }

    pub(super) fn alarm_rang(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.heard();
        }
    }

    /// Gives the guest a ring's worth of packets at most.
    pub(super) fn work<M: GuestMemory>(
        &mut self,
        link: &mut dyn Link,
        counters: &Direction,
        memory: &M,
        queue: &mut Queue,
    ) -> Result<Progress, DeviceError> {
        let mut left = queue.ring().state().size;
        while self.next(link, counters) && self.is_due() {
            if left == 0 {
                return Ok(Progress::More);
            }
            match self.deliver(memory, queue)? {
                Delivery::Done => counters.add(self.bytes - HEADER_BYTES),
                Delivery::Waits => break,
                Delivery::Impossible => counters.drop_one(),
            }
            self.clear();
            left -= 1;
        }
        Ok(Progress::Done)
    }

    /// Whether there is a packet.
    fn next(&mut self, link: &mut dyn Link, counters: &Direction) -> bool {
        while self.bytes == 0 && self.has_more {
            match link.receive(&mut self.packet) {
                Ok(bytes) if bytes >= HEADER_BYTES => self.bytes = bytes.min(MAX_BYTES),
                Ok(_) => {
                    counters.drop_one();
                    self.has_more = false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // None, or a link that is down: it tells when it has one.
                Err(_) => self.has_more = false,
            }
        }
        self.bytes > 0
    }

    /// Whether the packet may go on to the guest: each is asked for once.
    fn is_due(&mut self) -> bool {
        if !self.is_admitted {
            let bytes = self.bytes - HEADER_BYTES;
            let throttle = self.throttle.as_mut();
            self.is_admitted = throttle.is_none_or(|throttle| throttle.admit(bytes));
        }
        self.is_admitted
    }

    /// Puts the packet into as many buffers as it needs, or into none.
    fn deliver<M: GuestMemory>(
        &mut self,
        memory: &M,
        queue: &mut Queue,
    ) -> Result<Delivery, DeviceError> {
        let broken = DeviceError::queue(RECEIVE);
        let most = if self.merges {
            usize::from(queue.ring().state().size)
        } else {
            1
        };
        let mut chains: Vec<Chain<'_, M>> = Vec::new();
        let mut room = 0;
        while room < self.bytes {
            if chains.len() == most {
                take_back(queue, chains.len());
                return Ok(Delivery::Impossible);
            }
            if let Some(chain) = queue.pop(memory).map_err(&broken)? {
                room += chain.writable.len();
                chains.push(chain);
            } else if !queue.listen(memory).map_err(&broken)? {
                // Asked for what comes behind these buffers.
                take_back(queue, chains.len());
                return Ok(Delivery::Waits);
            }
        }
        let used = self.fill(chains);
        queue.push_all(memory, &used).map_err(&broken)?;
        Ok(Delivery::Done)
    }

    /// Fills the buffers; tells their heads and how much is in them.
    fn fill<M: GuestMemory>(&mut self, chains: Vec<Chain<'_, M>>) -> Vec<(u16, usize)> {
        // There are fewer than a ring has places.
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        if let Some(buffers) = self.packet.get_mut(BUFFERS) {
            buffers.copy_from_slice(&count.to_le_bytes());
        }
        let mut rest = self.packet.get(..self.bytes).unwrap_or_default();
        let fill = |mut chain: Chain<'_, M>| {
            let written = chain.writable.write(rest);
            rest = rest.get(written..).unwrap_or_default();
            (chain.head, written)
        };
        chains.into_iter().map(fill).collect()
    }
}

fn take_back(queue: &mut Queue, chains: usize) {
    for _ in 0..chains {
        queue.undo_pop();
    }
}

/// From the guest to the link.
#[derive(Debug)]
pub(super) struct Transmitter {
    throttle: Option<Throttle>,
    packet: Vec<u8>,
}

impl Transmitter {
    pub(super) fn new(throttle: Option<Throttle>) -> Self {
        Self {
            throttle,
            packet: vec![0; MAX_BYTES],
        }
    }

    pub(super) fn alarm_rang(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.heard();
        }
    }

    /// Sends a ring's worth of packets at most.
    pub(super) fn work<M: GuestMemory>(
        &mut self,
        link: &mut dyn Link,
        counters: &Direction,
        memory: &M,
        queue: &mut Queue,
    ) -> Result<Progress, DeviceError> {
        let broken = DeviceError::queue(TRANSMIT);
        let mut left = queue.ring().state().size;
        loop {
            while let Some(chain) = queue.pop(memory).map_err(&broken)? {
                let bytes = chain.readable.len().saturating_sub(HEADER_BYTES);
                let throttle = self.throttle.as_mut();
                if throttle.is_some_and(|throttle| !throttle.admit(bytes)) {
                    // It goes on when the alarm rings.
                    queue.undo_pop();
                    return Ok(Progress::Done);
                }
                let head = chain.head;
                if self.send(link, chain) {
                    counters.add(bytes);
                } else {
                    counters.drop_one();
                }
                queue.push(memory, head, 0).map_err(&broken)?;
                left -= 1;
                if left == 0 {
                    return Ok(Progress::More);
                }
            }
            if !queue.listen(memory).map_err(&broken)? {
                return Ok(Progress::Done);
            }
        }
    }

    /// Sends one packet. Tells whether it was one, and the link took it.
    fn send<M: GuestMemory>(&mut self, link: &mut dyn Link, mut chain: Chain<'_, M>) -> bool {
        let length = chain.readable.len();
        let Some(packet) = self.packet.get_mut(..length) else {
            return false;
        };
        length > HEADER_BYTES && chain.readable.read(packet) == length && link.send(packet).is_ok()
    }
}
