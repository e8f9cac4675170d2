use std::os::fd::BorrowedFd;

/// What a side takes that is not finished: the other then leaves it to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Packets whose checksum is still to be put in.
    pub checksum: bool,
    /// TCP over IPv4 in pieces that are still to be cut.
    pub tcp4: bool,
    /// TCP over IPv6 likewise.
    pub tcp6: bool,
    /// UDP likewise.
    pub udp: bool,
}

/// What an interface is connected to. A packet has virtio's header of 12
/// bytes in front (virtio 1.3, 5.1.6).
pub trait Link: Send + std::fmt::Debug {
    /// What it takes, and may give when it is asked to.
    fn offloads(&self) -> Offloads;

    /// Has it give packets that are not finished in these ways.
    ///
    /// # Errors
    /// When it cannot.
    fn set_offloads(&mut self, offloads: Offloads) -> std::io::Result<()>;

    /// The next packet, without waiting for one: how long it is.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn receive(&mut self, packet: &mut [u8]) -> std::io::Result<usize>;

    /// Sends a packet, without waiting.
    ///
    /// # Errors
    /// When it cannot be sent, now or ever.
    fn send(&mut self, packet: &[u8]) -> std::io::Result<()>;

    /// What becomes readable when there are packets.
    fn source(&self) -> Option<BorrowedFd<'_>>;
}
