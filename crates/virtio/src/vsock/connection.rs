//! One stream between a guest's port and a host's socket.
//!
//! ```text
//! host wants ─▶ requested ─ response ─▶ ┐
//!                                       ├▶ open ─ both sides shut ─▶ reset ─▶ gone
//! guest wants ─▶ (host's socket opened) ┘
//! ```
//!
//! A reset from either side at any time ends it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;

use super::packet::{Header, NO_RECEIVE, NO_SEND, Op};

/// How much of a guest's is held for a host's socket that does not take it.
pub(super) const BUFFER_BYTES: u32 = 256 << 10;
/// A guest is told of its credit when it has not been for so much.
const CREDIT_STEP: u32 = BUFFER_BYTES / 4;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host asked, and the guest has not answered.
    Requested,
    /// Bytes go both ways.
    Open,
}

/// The ports of a connection: the host's and the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// What is to be told to the guest, at most once each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) request: bool,
    pub(super) response: bool,
    pub(super) credit: bool,
    pub(super) credit_request: bool,
    pub(super) shutdown: bool,
}

impl Pending {
    /// The next, in the order in which a guest must see them.
    pub(super) fn take(&mut self) -> Option<Op> {
        for (flag, op) in [
            (&mut self.request, Op::Request),
            (&mut self.response, Op::Response),
            (&mut self.credit, Op::CreditUpdate),
            (&mut self.credit_request, Op::CreditRequest),
            (&mut self.shutdown, Op::Shutdown),
        ] {
            if std::mem::take(flag) {
                return Some(op);
            }
        }
        None
    }

    pub(super) fn any(self) -> bool {
        self != Self::default()
    }
}

/// A stream.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) phase: Phase,
    pub(super) pending: Pending,
    /// The guest's bytes that the host's socket has not taken.
    buffer: VecDeque<u8>,
    /// How many of the guest's bytes the host's socket has taken, wrapping.
    forwarded: u32,
    /// What the guest was last told of that.
    told: u32,
    /// What the guest holds for our bytes, and how many of them it handed on.
    peer_buffer: u32,
    peer_forwarded: u32,
    /// How many bytes the guest was sent, wrapping.
    sent: u32,
    /// The guest was asked for credit, and has given none.
    asked: bool,
    /// The host's side has sent its last byte.
    pub(super) host_done: bool,
    /// The guest sends no more: the host's side is shut when it has all.
    guest_done: bool,
    /// The guest takes no more.
    pub(super) guest_deaf: bool,
    /// The host's socket may have bytes.
    pub(super) readable: bool,
    /// It is in the muxer's list of those that have something for the guest.
    pub(super) listed: bool,
}

/// What a packet of the guest's did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// All is well.
    Fine,
    /// The connection is over, and the guest is told.
    Reset,
    /// The connection is over, and the guest knows.
    Gone,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, phase: Phase) -> Self {
        Self {
            stream,
            phase,
            pending: Pending::default(),
            buffer: VecDeque::new(),
            forwarded: 0,
            told: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            sent: 0,
            asked: false,
            host_done: false,
            guest_done: false,
            guest_deaf: false,
            readable: phase == Phase::Open,
            listed: false,
        }
    }

    /// How many bytes the guest has room for. It may tell anything: then it
    /// is as if it had no room.
    pub(super) fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(under_way)
    }

    /// Whether bytes of the host's socket can go to the guest now.
    pub(super) fn can_send(&self) -> bool {
        self.phase == Phase::Open
            && self.readable
            && !self.host_done
            && !self.guest_deaf
            && self.credit() > 0
    }

    /// Whether the guest is to be given something.
    pub(super) fn has_something(&self) -> bool {
        self.pending.any() || self.can_send()
    }

    pub(super) fn count_sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Whether the host's socket is to be asked when it takes bytes again.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Our side of a header's credit. Whoever calls this sends it.
    pub(super) fn credit_fields(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        self.pending.credit = false;
        (BUFFER_BYTES, self.forwarded)
    }

    /// What the guest says of its own buffer, which every packet does.
    pub(super) fn hear_credit(&mut self, header: &Header) {
        self.peer_buffer = header.buffer;
        self.peer_forwarded = header.forwarded;
        if self.credit() > 0 {
            self.asked = false;
        }
    }

    /// Asks for credit when bytes wait for it, once: a guest that answers
    /// without giving any is not asked again.
    pub(super) fn ask_for_credit(&mut self) {
        let waits = self.phase == Phase::Open && self.readable && !self.host_done;
        if waits && !self.guest_deaf && self.credit() == 0 && !self.asked {
            self.asked = true;
            self.pending.credit_request = true;
        }
    }

    /// Bytes of the guest's.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Effect {
        let room = usize::try_from(BUFFER_BYTES).unwrap_or(usize::MAX);
        if self.phase != Phase::Open
            || self.guest_done
            || self.buffer.len().saturating_add(bytes.len()) > room
        {
            // It sends what it has no credit for.
            return Effect::Reset;
        }
        // Straight through when nothing waits.
        let mut rest = bytes;
        if self.buffer.is_empty() {
            match write_some(&mut self.stream, rest) {
                Ok(taken) => {
                    self.count_forwarded(taken);
                    rest = rest.get(taken..).unwrap_or_default();
                }
                Err(()) => return Effect::Reset,
            }
        }
        self.buffer.extend(rest);
        Effect::Fine
    }

    /// The host's socket takes bytes again.
    pub(super) fn flush(&mut self) -> Effect {
        while !self.buffer.is_empty() {
            let (front, _) = self.buffer.as_slices();
            match write_some(&mut self.stream, front) {
                Ok(0) => return Effect::Fine,
                Ok(taken) => {
                    self.buffer.drain(..taken);
                    self.count_forwarded(taken);
                }
                Err(()) => return Effect::Reset,
            }
        }
        self.shut_when_empty()
    }

    fn count_forwarded(&mut self, bytes: usize) {
        // No more than the buffer's size at once.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.forwarded = self.forwarded.wrapping_add(bytes);
        if self.forwarded.wrapping_sub(self.told) >= CREDIT_STEP {
            self.pending.credit = true;
        }
    }

    /// The guest sends or takes no more.
    pub(super) fn shut(&mut self, flags: u32) -> Effect {
        self.guest_deaf |= flags & NO_RECEIVE != 0;
        self.guest_done |= flags & NO_SEND != 0;
        self.shut_when_empty()
    }

    fn shut_when_empty(&mut self) -> Effect {
        if !self.guest_done || !self.buffer.is_empty() {
            return Effect::Fine;
        }
        if self.guest_deaf || self.host_done {
            // Neither side has more to say.
            return Effect::Reset;
        }
        match self.stream.shutdown(std::net::Shutdown::Write) {
            Ok(()) => Effect::Fine,
            Err(_) => Effect::Reset,
        }
    }

    /// The host's side has sent its last byte.
    pub(super) fn host_ended(&mut self) {
        self.host_done = true;
        self.readable = false;
        self.pending.shutdown = !self.is_over();
    }

    /// Whether neither side has more to say.
    pub(super) fn is_over(&self) -> bool {
        self.host_done && self.guest_done && self.buffer.is_empty()
    }
}

/// Writes what the socket takes at once.
fn write_some(stream: &mut UnixStream, bytes: &[u8]) -> Result<usize, ()> {
    loop {
        match stream.write(bytes) {
            Ok(taken) => return Ok(taken),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(()),
        }
    }
}
