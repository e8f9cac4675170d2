//! Bytes that are to go out on a connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// What waits before no more is put in.
pub(crate) const FULL_BYTES: usize = 16 * 1024;
/// What an idle connection keeps at most.
const KEPT_BYTES: usize = 4 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// What the socket has taken of `bytes`.
    sent: usize,
    /// It has taken some since [`Outbox::begin`].
    begun: bool,
}

impl Outbox {
    /// Where to put more.
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Enough waits.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() - self.sent >= FULL_BYTES
    }

    /// Whether nothing has gone out since [`Outbox::begin`].
    pub(crate) fn is_whole(&self) -> bool {
        !self.begun
    }

    /// Takes over a head that was written elsewhere, and gives its own memory.
    pub(crate) fn begin(&mut self, head: &mut Vec<u8>) {
        self.empty();
        self.begun = false;
        std::mem::swap(&mut self.bytes, head);
    }

    /// What `begin` took over and what was put behind it, for another
    /// connection; `None` when some of it has gone out.
    pub(crate) fn take_back(&mut self) -> Option<Vec<u8>> {
        (!self.begun).then(|| std::mem::take(&mut self.bytes))
    }

    /// Sends until nothing is left.
    pub(crate) fn poll_flush(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let wrote = ready!(Pin::new(&mut *io).poll_write(cx, &self.bytes[self.sent..]))?;
            self.sent += none_is_an_error(wrote)?;
            self.begun = true;
        }
        self.empty();
        Poll::Ready(Ok(()))
    }

    /// Sends what is here and then some of `more`: how much of that.
    pub(crate) fn poll_send(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
        more: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let ours = &self.bytes[self.sent..];
            if ours.is_empty() {
                self.empty();
                let wrote = ready!(Pin::new(&mut *io).poll_write(cx, more))?;
                return Poll::Ready(none_is_an_error(wrote));
            }
            let both = [IoSlice::new(ours), IoSlice::new(more)];
            let wrote = ready!(Pin::new(&mut *io).poll_write_vectored(cx, &both))?;
            let wrote = none_is_an_error(wrote)?;
            if wrote > ours.len() {
                let of_more = wrote - ours.len();
                self.empty();
                return Poll::Ready(Ok(of_more));
            }
            self.sent += wrote;
        }
    }

    /// Lets go of memory that a large message took.
    pub(crate) fn shrink(&mut self) {
        if self.is_empty() && self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }

    fn empty(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }
}

fn none_is_an_error(wrote: usize) -> io::Result<usize> {
    if wrote == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(wrote)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes at most five bytes at once.
    #[derive(Default)]
    struct Narrow(Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(5);
            self.0.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }
        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            self.poll_write(cx, &all)
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn bytes_go_out_in_order_however_few_are_taken() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut socket = Narrow::default();
        let mut outbox = Outbox::default();
        outbox.bytes_mut().extend_from_slice(b"a head, ");
        let more = b"and a body";
        let mut sent = 0;
        while sent < more.len() {
            match outbox.poll_send(&mut socket, &mut cx, &more[sent..]) {
                Poll::Ready(Ok(count)) => sent += count,
                other => panic!("{other:?}"),
            }
        }
        outbox.bytes_mut().extend_from_slice(b", and more");
        assert!(outbox.poll_flush(&mut socket, &mut cx).is_ready());
        assert_eq!(socket.0, b"a head, and a body, and more");
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_has_not_gone_out_can_be_taken_back() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut outbox = Outbox::default();
        outbox.begin(&mut b"head".to_vec());
        outbox.bytes_mut().extend_from_slice(b" and body");
        assert_eq!(outbox.take_back().as_deref(), Some(&b"head and body"[..]));
        outbox.begin(&mut b"head".to_vec());
        let sent = outbox.poll_flush(&mut Narrow::default(), &mut cx);
        assert!(sent.is_ready());
        assert_eq!(outbox.take_back(), None);
    }
}
