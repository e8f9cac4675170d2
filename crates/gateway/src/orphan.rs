//! A request whose client has gone, where its instance goes on with it: the
//! slot stays taken until it is over, so that the next one goes elsewhere or
//! waits as for any busy instance. What the instance answers is read over.

use std::task::{Context, Poll, ready};

use skiff_base::Monotonic;

use crate::forward;
use crate::link::{Link, LinkError, Piece};
use crate::visit::Visit;

/// All of the request has been read, and is put.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) link: Box<Link>,
    pub(crate) visit: Visit,
    pub(crate) deadline: Monotonic,
    pub(crate) asked_head: bool,
    /// The answer's head was read.
    pub(crate) has_head: bool,
}

impl Orphan {
    /// Goes on with it in a task of its own.
    pub(crate) fn start(self) {
        let lane = self.visit.lane.clone();
        lane.tasks.spawn("request without a client", self.run());
    }

    async fn run(mut self) {
        let left = self.deadline.since(self.visit.lane.shared.clock.now());
        let read = std::future::poll_fn(|cx| self.poll(cx));
        let ended = tokio::time::timeout(left, read).await;
        let Self {
            link, mut visit, ..
        } = self;
        match ended {
            Ok(Ok(())) => {
                if link.is_reusable()
                    && let Some(slot) = visit.slot()
                {
                    visit.lane.park(&slot.instance, link);
                }
            }
            Ok(Err(error)) => {
                let instance = visit.slot().map(|slot| slot.instance.id);
                tracing::debug!(?instance, %error, "an instance broke off what no client waits for");
                // The work behind it ends before the slot is free.
                drop(link);
            }
            Err(_) => {
                drop(link);
                forward::timed_out(&visit);
            }
        }
        visit.finish();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let link = &mut self.link;
        if let Poll::Ready(Err(error)) = link.poll_flush(cx) {
            // It may have answered before it closed, but not what was not begun.
            if link.is_whole() {
                return Poll::Ready(Err(error));
            }
        }
        if !self.has_head {
            ready!(link.poll_head(cx, self.asked_head, |_, _, _| ()))?;
            self.has_head = true;
        }
        while !link.has_ended() {
            match ready!(link.poll_piece(cx))? {
                Piece::Data(count) => {
                    let is_last = link.is_last(count);
                    link.took(count);
                    if is_last {
                        break;
                    }
                }
                Piece::End(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
