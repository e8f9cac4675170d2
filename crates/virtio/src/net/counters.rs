use std::sync::atomic::{AtomicU64, Ordering};

/// What one direction has carried.
#[derive(Debug, Default)]
pub(super) struct Direction {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    pub(super) fn add(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> (u64, u64, u64) {
        (
            self.packets.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
            self.dropped.load(Ordering::Relaxed),
        )
    }
}

/// What an interface has carried, for those who look at it from outside.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) received: Direction,
    pub(super) sent: Direction,
}

/// What an interface had carried at some moment. Bytes are those of packets,
/// without virtio's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that the guest received.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets for which it has no buffers that would do.
    pub received_dropped: u64,
    /// Packets that the guest sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets of the guest's that are none, or that the host does not take.
    pub sent_dropped: u64,
}

impl Counters {
    /// What it has carried so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (received_packets, received_bytes, received_dropped) = self.received.counts();
        let (sent_packets, sent_bytes, sent_dropped) = self.sent.counts();
        Counts {
            received_packets,
            received_bytes,
            received_dropped,
            sent_packets,
            sent_bytes,
            sent_dropped,
        }
    }
}
