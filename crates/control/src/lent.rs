//! A stream that comes back from who read it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Fuse, Stream, StreamExt as _};
use tokio::sync::oneshot;

/// It may be asked again after its end.
type Pieces = Fuse<BoxStream<'static, io::Result<Bytes>>>;

/// A body that is lent: its rest comes back when the borrower drops it.
pub(crate) struct Lent {
    pieces: Option<Pieces>,
    back: Option<oneshot::Sender<Pieces>>,
}

/// Where a lent body comes back.
pub(crate) struct Rest(oneshot::Receiver<Pieces>);

pub(crate) fn lend(pieces: BoxStream<'static, io::Result<Bytes>>) -> (Lent, Rest) {
    let (back, rest) = oneshot::channel();
    let lent = Lent {
        pieces: Some(pieces.fuse()),
        back: Some(back),
    };
    (lent, Rest(rest))
}

impl Stream for Lent {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.pieces {
            Some(pieces) => pieces.poll_next_unpin(context),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(pieces), Some(back)) = (self.pieces.take(), self.back.take()) {
            // Nobody may want it.
            let _unwanted = back.send(pieces);
        }
    }
}

impl Rest {
    /// Takes what still comes, for `most` at the longest, and throws it away: a
    /// client that is still sending when it is answered may find its connection
    /// broken before it has read the answer.
    pub(crate) async fn discard(self, most: Duration) {
        let discard = async {
            let Ok(mut pieces) = self.0.await else { return };
            while let Some(Ok(_)) = pieces.next().await {}
        };
        if tokio::time::timeout(most, discard).await.is_err() {
            tracing::debug!("a client went on sending after it was answered");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn what_a_borrower_leaves_is_taken() {
        let (told, taken) = std::sync::mpsc::channel();
        // One that must not be asked after its end.
        let pieces = stream::unfold(0, move |n| {
            told.send(n).ok();
            std::future::ready((n < 4).then_some((Ok(Bytes::new()), n + 1)))
        });
        let (mut lent, rest) = lend(pieces.boxed());
        assert!(lent.next().await.is_some());
        drop(lent);
        assert_eq!(taken.try_iter().count(), 1);
        rest.discard(Duration::from_secs(60)).await;
        assert_eq!(taken.try_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_borrower_may_take_all() {
        let pieces = stream::unfold(2_u32, |n| {
            std::future::ready(n.checked_sub(1).map(|left| (Ok(Bytes::new()), left)))
        });
        let (mut lent, rest) = lend(pieces.boxed());
        while lent.next().await.is_some() {}
        drop(lent);
        rest.discard(Duration::from_secs(60)).await;
    }

    #[tokio::test]
    async fn a_client_that_never_ends_is_left() {
        let (lent, rest) = lend(stream::pending().boxed());
        drop(lent);
        rest.discard(Duration::from_millis(1)).await;
    }
}
