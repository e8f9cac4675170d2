//! A split virtqueue, seen from the device.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::{Chain, ChainError, QueueState};

/// The available ring's entries follow its flags and its index.
const AVAILABLE_HEADER: u64 = 4;
/// And so do the used ring's.
const USED_HEADER: u64 = 4;
/// A used entry: a head and a length.
const USED_BYTES: u64 = 8;

/// What a driver did to a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A chain breaks the protocol.
    #[error("a chain breaks the protocol")]
    Chain(#[from] ChainError),
    /// More chains at once than the queue has places.
    #[error("the driver's index is {ahead} ahead in a queue of {size}")]
    Index {
        /// How far.
        ahead: u16,
        /// The queue's size.
        size: u16,
    },
    /// A ring cannot be read or written.
    #[error("a ring is outside of memory")]
    Ring(#[source] virtio_queue::Error),
}

/// A queue. The rings' arithmetic is `virtio-queue`'s, but for when the driver
/// is to be told: that one counts a packet in several buffers as one.
#[derive(Debug)]
pub struct Queue {
    ring: virtio_queue::Queue,
    /// How many were given back since the driver was last told.
    used: Wrapping<u16>,
}

impl Queue {
    /// A queue of at most `size` descriptors, a power of two.
    ///
    /// # Panics
    /// When `size` is none.
    #[must_use]
    pub fn new(size: u16) -> Self {
        let ring = virtio_queue::Queue::new(size);
        assert!(ring.is_ok(), "a queue's size is a power of two");
        Self {
            ring: ring.unwrap_or_default(),
            used: Wrapping(0),
        }
    }

    pub(crate) const fn ring(&self) -> &virtio_queue::Queue {
        &self.ring
    }

    pub(crate) const fn ring_mut(&mut self) -> &mut virtio_queue::Queue {
        &mut self.ring
    }

    /// Whether the driver set it up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ring.ready()
    }

    /// Whether its rings lie in memory.
    pub(crate) fn is_valid<M: GuestMemory>(&self, memory: &M) -> bool {
        self.ring.is_valid(memory)
    }

    pub(crate) fn reset(&mut self) {
        self.ring.reset();
        self.used = Wrapping(0);
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// When the driver breaks the protocol.
    pub fn pop<'a, M: GuestMemory>(
        &mut self,
        memory: &'a M,
    ) -> Result<Option<Chain<'a, M>>, QueueError> {
        if !self.ring.ready() {
            return Ok(None);
        }
        let size = self.ring.size();
        let next = Wrapping(self.ring.next_avail());
        let available = self
            .ring
            .avail_idx(memory, Ordering::Acquire)
            .map_err(QueueError::Ring)?;
        let ahead = (available - next).0;
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > size {
            return Err(QueueError::Index { ahead, size });
        }
        let head = self.available(memory, next.0 % size)?;
        let table = GuestAddress(self.ring.desc_table());
        let chain = Chain::walk(memory, table, size, head)?;
        self.ring.set_next_avail((next + Wrapping(1)).0);
        Ok(Some(chain))
    }

    /// Leaves the request that was taken last for later.
    pub(crate) fn undo_pop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Gives a request back with how much of it the device wrote.
    ///
    /// # Errors
    /// When the ring is outside of memory.
    pub fn push<M: GuestMemory>(
        &mut self,
        memory: &M,
        head: u16,
        written: usize,
    ) -> Result<(), QueueError> {
        // A chain is shorter than 4 GiB.
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        self.ring
            .add_used(memory, head, written)
            .map_err(QueueError::Ring)?;
        self.used += 1;
        Ok(())
    }

    /// Gives requests back all at once: a driver sees none of them before the
    /// last.
    ///
    /// # Errors
    /// When the ring is outside of memory.
    pub(crate) fn push_all<M: GuestMemory>(
        &mut self,
        memory: &M,
        used: &[(u16, usize)],
    ) -> Result<(), QueueError> {
        let Some(((head, written), others)) = used.split_last() else {
            return Ok(());
        };
        let first = Wrapping(self.ring.next_used());
        let mut place = first;
        for (head, written) in others {
            let element = [
                u32::from(*head).to_le_bytes(),
                u32::try_from(*written).unwrap_or(u32::MAX).to_le_bytes(),
            ];
            let offset = USED_HEADER + u64::from(place.0 % self.ring.size()) * USED_BYTES;
            let address = GuestAddress(self.ring.used_ring().saturating_add(offset));
            memory
                .write_slice(element.as_flattened(), address)
                .map_err(|error| QueueError::Ring(virtio_queue::Error::GuestMemory(error)))?;
            place += 1;
        }
        // The last moves the index past all of them.
        self.ring.set_next_used(place.0);
        self.used += place - first;
        self.push(memory, *head, *written)
    }

    /// Whether the driver is to be told of what was given back: with an event
    /// index when the one it waits for is among it (virtio 1.2, 2.7.10).
    ///
    /// # Errors
    /// When the ring is outside of memory.
    pub(crate) fn must_signal<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, QueueError> {
        let used = std::mem::take(&mut self.used);
        if used.0 == 0 || !self.ring.event_idx_enabled() {
            return Ok(used.0 > 0);
        }
        // Either the driver sees the used index, or its wish is seen here.
        fence(Ordering::SeqCst);
        let next = Wrapping(self.ring.next_used());
        // It follows the entries.
        let awaited = Wrapping(self.available(memory, self.ring.size())?);
        Ok(next - awaited - Wrapping(1) < used)
    }

    /// An entry of the available ring, or what is behind its last.
    fn available<M: GuestMemory>(&self, memory: &M, place: u16) -> Result<u16, QueueError> {
        let address = self
            .ring
            .avail_ring()
            .saturating_add(AVAILABLE_HEADER)
            .saturating_add(u64::from(place) * size_of::<u16>() as u64);
        let entry = memory
            .load(GuestAddress(address), Ordering::Relaxed)
            .map_err(|error| QueueError::Ring(virtio_queue::Error::GuestMemory(error)))?;
        Ok(u16::from_le(entry))
    }

    /// Asks the driver to tell of the next request. Tells whether one came
    /// meanwhile, of which it may not tell.
    ///
    /// # Errors
    /// When the ring is outside of memory.
    pub fn listen<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, QueueError> {
        self.ring
            .enable_notification(memory)
            .map_err(QueueError::Ring)
    }

    pub(crate) fn state(&self) -> QueueState {
        self.ring.state().into()
    }

    pub(crate) fn restore(state: QueueState) -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            ring: virtio_queue::Queue::try_from(virtio_queue::QueueState::from(state))?,
            used: Wrapping(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Desc, Driver, MEMORY};

    #[test]
    fn requests_come_in_order_and_go_back() {
        let mut driver = Driver::new(4);
        let mut queue = driver.queue();
        assert!(queue.pop(&driver.memory).unwrap().is_none());
        for round in 0..10_u16 {
            let head = round % 4;
            driver.describe(head, Desc::write(0x8000, 8));
            driver.offer(head);
            let chain = queue.pop(&driver.memory).unwrap().unwrap();
            assert_eq!((chain.head, chain.writable.len()), (head, 8));
            queue.push(&driver.memory, head, 3).unwrap();
            assert_eq!(driver.used(), vec![(u32::from(head), 3)]);
            assert!(queue.must_signal(&driver.memory).unwrap());
            assert!(!queue.must_signal(&driver.memory).unwrap());
        }
    }

    #[test]
    fn an_index_too_far_ahead_is_refused() {
        let driver = Driver::new(4);
        let mut queue = driver.queue();
        driver.set_available_index(5);
        assert!(matches!(
            queue.pop(&driver.memory),
            Err(QueueError::Index { ahead: 5, size: 4 })
        ));
    }

    #[test]
    fn indices_wrap() {
        let mut driver = Driver::new(4);
        let mut queue = driver.queue();
        queue.ring_mut().set_next_avail(u16::MAX);
        queue.ring_mut().set_next_used(u16::MAX);
        driver.start_at(u16::MAX);
        driver.describe(0, Desc::write(0x8000, 8));
        for _ in 0..3 {
            driver.offer(0);
            let chain = queue.pop(&driver.memory).unwrap().unwrap();
            queue.push(&driver.memory, chain.head, 1).unwrap();
            assert_eq!(driver.used(), vec![(0, 1)]);
        }
    }

    #[test]
    fn several_go_back_together_and_over_the_ends() {
        let mut driver = Driver::new(4);
        let mut queue = driver.queue();
        queue.ring_mut().set_next_used(u16::MAX - 1);
        driver.start_at(u16::MAX - 1);
        queue.push_all(&driver.memory, &[]).unwrap();
        assert_eq!(driver.used(), []);
        assert!(!queue.must_signal(&driver.memory).unwrap());
        let all = [(3, 9), (0, 8), (1, 7)];
        queue.push_all(&driver.memory, &all).unwrap();
        assert_eq!(driver.used(), [(3, 9), (0, 8), (1, 7)]);
        assert!(queue.must_signal(&driver.memory).unwrap());
        queue.push(&driver.memory, 2, 6).unwrap();
        assert_eq!(driver.used(), [(2, 6)]);
        queue
            .ring_mut()
            .set_used_ring_address(Some(u32::try_from(MEMORY).unwrap() - 4), None);
        assert!(queue.push_all(&driver.memory, &all).is_err());
    }

    #[test]
    fn a_driver_is_told_when_what_it_waits_for_is_given_back() {
        let all: Vec<(u16, usize)> = (0..4).map(|head| (head, 1)).collect();
        for first in [0, 7, u16::MAX - 1] {
            for ahead in 0..32 {
                let awaited = first.wrapping_sub(8).wrapping_add(ahead);
                let driver = Driver::new(4);
                let mut queue = driver.queue();
                queue.ring_mut().set_event_idx(true);
                queue.ring_mut().set_next_used(first);
                driver.await_used(awaited);
                // Alone, together, and after one another.
                let mut next = first;
                for batches in [&[1][..], &[3], &[2, 1], &[1, 4]] {
                    let start = next;
                    for count in batches {
                        queue.push_all(&driver.memory, &all[..*count]).unwrap();
                        next = next.wrapping_add(u16::try_from(*count).unwrap());
                    }
                    let given = awaited.wrapping_sub(start) < next.wrapping_sub(start);
                    assert_eq!(queue.must_signal(&driver.memory).unwrap(), given);
                    assert!(!queue.must_signal(&driver.memory).unwrap());
                }
            }
        }
    }

    #[test]
    fn rings_outside_of_memory_are_invalid_and_give_errors() {
        let driver = Driver::new(4);
        let mut queue = driver.queue();
        queue
            .ring_mut()
            .set_avail_ring_address(Some(u32::try_from(MEMORY).unwrap() - 2), None);
        assert!(!queue.is_valid(&driver.memory));
        assert!(queue.pop(&driver.memory).is_err());
    }

    #[test]
    fn a_state_is_the_queue() {
        let mut driver = Driver::new(4);
        let mut queue = driver.queue();
        driver.describe(0, Desc::write(0x8000, 8));
        driver.offer(0);
        queue.pop(&driver.memory).unwrap().unwrap();
        let again = Queue::restore(queue.state()).unwrap();
        assert_eq!(again.state(), queue.state());
        let mut wrong = queue.state();
        wrong.size = 3;
        assert!(Queue::restore(wrong).is_err());
    }
}
