//! Bytes that have come on a connection and were not yet taken.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// What most heads fit in.
const FIRST_BYTES: usize = 4 * 1024;
/// What an idle connection keeps at most.
const KEPT_BYTES: usize = 16 * 1024;
/// A body's bytes are read this many at once.
pub(crate) const BODY_BYTES: usize = 64 * 1024;

/// A buffer that grows with what comes, within the bound of each reading.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// All of it is initialised.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The last reading took all the room there was.
    filled: bool,
}

impl Inbox {
    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Forgets the first bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count.min(self.len());
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once; 0 is the end of the stream. Holds at most `most` bytes:
    /// when these are there already, that is an error of the caller's, told
    /// as `OutOfMemory`.
    pub(crate) fn poll_fill(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        if !self.make_room(most) {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let mut room = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(io).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.filled = room.remaining() == 0;
        self.end += read;
        Poll::Ready(Ok(read))
    }

    /// Lets go of memory that a large message took.
    pub(crate) fn shrink(&mut self) {
        if self.is_empty() && self.buffer.len() > KEPT_BYTES {
            self.buffer = Vec::new();
            self.filled = false;
        }
    }

    fn make_room(&mut self, most: usize) -> bool {
        let grow = self.end == self.buffer.len() || self.filled;
        if grow && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if grow && self.buffer.len() < most {
            let length = (self.buffer.len() * 2).clamp(FIRST_BYTES, most);
            self.buffer.resize(length, 0);
            self.filled = false;
        }
        self.end < self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn fill(inbox: &mut Inbox, mut from: &[u8], most: usize) -> io::Result<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        match inbox.poll_fill(&mut from, &mut cx, most) {
            Poll::Ready(read) => read,
            Poll::Pending => panic!("a slice never waits"),
        }
    }

    #[test]
    fn it_grows_to_its_bound_and_no_further() {
        let mut inbox = Inbox::default();
        let all: Vec<u8> = (0..20_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut at = 0;
        while inbox.len() < 10_000 {
            at += fill(&mut inbox, &all[at..], 10_000).unwrap();
        }
        assert_eq!(inbox.bytes(), &all[..10_000]);
        let full = fill(&mut inbox, &all[at..], 10_000).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::OutOfMemory);
        inbox.consume(9_000);
        while at < all.len() && inbox.len() < 5_000 {
            at += fill(&mut inbox, &all[at..], 10_000).unwrap();
        }
        assert_eq!(inbox.bytes(), &all[9_000..at]);
    }

    #[test]
    fn an_end_is_told_and_memory_given_back() {
        let mut inbox = Inbox::default();
        let large = vec![1; 100_000];
        let mut at = 0;
        while at < large.len() {
            at += fill(&mut inbox, &large[at..], usize::MAX / 4).unwrap();
        }
        assert_eq!(fill(&mut inbox, &[], usize::MAX / 4).unwrap(), 0);
        inbox.shrink();
        assert_eq!(inbox.len(), 100_000, "what is there stays");
        inbox.consume(100_000);
        inbox.shrink();
        assert_eq!(inbox.buffer.capacity(), 0);
    }
}
