//! The last changes, from which every watch reads at its own pace.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::{Commit, Event, Range};

/// What is remembered while somebody watches.
const WATCHED: Bound = Bound {
    commits: 10_000,
    bytes: 16 * 1024 * 1024,
};
/// What is remembered for nobody: enough for whoever has read a range and is
/// about to watch it.
const UNWATCHED: Bound = Bound {
    commits: 256,
    bytes: 256 * 1024,
};

/// How much is remembered at most.
#[derive(Debug)]
struct Bound {
    /// Transactions.
    commits: usize,
    /// Their keys and values.
    bytes: usize,
}

/// The watch has missed changes: read the range again and watch from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchLost {
    /// The changes since this revision are no longer remembered.
    #[error("changes since revision {since} are no longer known; the oldest known is {oldest}")]
    Compacted {
        /// Up to where the watch had come.
        since: u64,
        /// The first revision that is still known.
        oldest: u64,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

#[derive(Debug)]
struct Recent {
    commits: VecDeque<Arc<Commit>>,
    bytes: usize,
    /// Changes up to this one are no longer known.
    forgotten: u64,
}

#[derive(Debug)]
struct Shared {
    recent: Mutex<Recent>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last changes. Dropping it ends the watches.
#[derive(Debug)]
pub(crate) struct History {
    shared: Arc<Shared>,
    latest: watch::Sender<u64>,
}

impl History {
    /// From this revision on.
    pub(crate) fn new(revision: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                recent: Mutex::new(Recent {
                    commits: VecDeque::new(),
                    bytes: 0,
                    forgotten: revision,
                }),
            }),
            latest: watch::Sender::new(revision),
        }
    }

    pub(crate) fn add(&self, commit: Commit) {
        let revision = commit.revision;
        let bound = match self.latest.receiver_count() {
            0 => UNWATCHED,
            _ => WATCHED,
        };
        {
            let mut recent = self.shared.lock();
            let known = recent
                .commits
                .back()
                .map_or(recent.forgotten, |c| c.revision);
            if revision != known + 1 {
                // Another process has written in between.
                recent.commits.clear();
                recent.bytes = 0;
                recent.forgotten = revision - 1;
            }
            recent.bytes += commit.events.iter().map(Event::bytes).sum::<usize>();
            recent.commits.push_back(Arc::new(commit));
            while recent.commits.len() > bound.commits || recent.bytes > bound.bytes {
                let Some(oldest) = recent.commits.pop_front() else {
                    break;
                };
                recent.bytes -= oldest.events.iter().map(Event::bytes).sum::<usize>();
                recent.forgotten = oldest.revision;
            }
        }
        self.latest.send_replace(revision);
    }

    pub(crate) fn watch(&self, range: Range, since: u64) -> Watch {
        Watch {
            shared: Arc::clone(&self.shared),
            latest: self.latest.subscribe(),
            range,
            since,
        }
    }
}

/// Changes of one range, in order.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    latest: watch::Receiver<u64>,
    range: Range,
    since: u64,
}

impl Watch {
    /// Waits for the next transaction that changes something in the range, and
    /// gives those of its changes. May be cut off and called again.
    ///
    /// It has no deadline of its own: silence is no error.
    ///
    /// # Errors
    /// When changes have been missed, or the store is closed.
    pub async fn next(&mut self) -> Result<Commit, WatchLost> {
        loop {
            self.latest.borrow_and_update();
            if let Some(commit) = self.known()? {
                return Ok(commit);
            }
            if self.latest.changed().await.is_err() {
                return self.known()?.ok_or(WatchLost::Closed);
            }
        }
    }

    /// The next change that is known already.
    fn known(&mut self) -> Result<Option<Commit>, WatchLost> {
        let recent = self.shared.lock();
        if self.since < recent.forgotten {
            return Err(WatchLost::Compacted {
                since: self.since,
                oldest: recent.forgotten + 1,
            });
        }
        let start = recent.commits.partition_point(|c| c.revision <= self.since);
        for commit in recent.commits.iter().skip(start) {
            self.since = commit.revision;
            let inside = |event: &&Event| self.range.contains(event.key());
            let events: Vec<_> = commit.events.iter().filter(inside).cloned().collect();
            if !events.is_empty() {
                let revision = commit.revision;
                return Ok(Some(Commit { revision, events }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyValue;

    fn commit(revision: u64, key: &str, bytes: usize) -> Commit {
        Commit {
            revision,
            events: vec![Event::Put(KeyValue {
                key: key.into(),
                value: vec![0; bytes],
                mod_revision: revision,
            })],
        }
    }

    #[tokio::test]
    async fn a_watch_gives_its_own_range_from_its_revision_on() {
        let history = History::new(0);
        for (revision, key) in [(1, "a/1"), (2, "b/1"), (3, "a/2")] {
            history.add(commit(revision, key, 1));
        }
        let mut watch = history.watch(Range::prefix("a/"), 1);
        assert_eq!(watch.next().await.unwrap().revision, 3);
        let next = tokio::join!(watch.next(), async { history.add(commit(4, "a/3", 1)) }).0;
        assert_eq!(next.unwrap().revision, 4);
        drop(history);
        assert_eq!(watch.next().await, Err(WatchLost::Closed));
    }

    #[tokio::test]
    async fn memory_is_bounded_and_a_late_watch_is_told() {
        let history = History::new(0);
        let _slow = history.watch(Range::prefix("a"), 0);
        for revision in 1..=100 {
            history.add(commit(revision, "a", 1024 * 1024));
        }
        assert!(history.shared.lock().bytes <= WATCHED.bytes);
        let mut late = history.watch(Range::prefix("a"), 1);
        assert!(matches!(
            late.next().await,
            Err(WatchLost::Compacted {
                since: 1,
                oldest: 86..
            })
        ));
        for revision in 101..=u64::try_from(WATCHED.commits).unwrap() + 200 {
            history.add(commit(revision, "a", 1));
        }
        assert_eq!(history.shared.lock().commits.len(), WATCHED.commits);
    }

    #[tokio::test]
    async fn without_a_watch_only_the_newest_changes_are_kept() {
        let history = History::new(0);
        for revision in 1..=1000 {
            history.add(commit(revision, "a", 1));
        }
        assert_eq!(history.shared.lock().commits.len(), UNWATCHED.commits);
        history.add(commit(1001, "a", UNWATCHED.bytes));
        assert!(history.shared.lock().bytes <= UNWATCHED.bytes);
        for revision in 1002..=1010 {
            history.add(commit(revision, "a", 1));
        }
        // Who has just read misses nothing.
        let mut watch = history.watch(Range::prefix("a"), 1009);
        assert_eq!(watch.next().await.unwrap().revision, 1010);
        for revision in 1011..=2000 {
            history.add(commit(revision, "a", 1));
        }
        assert_eq!(watch.next().await.unwrap().revision, 1011);
        drop(watch);
        history.add(commit(2001, "a", 1));
        assert_eq!(history.shared.lock().commits.len(), UNWATCHED.commits);
    }

    #[tokio::test]
    async fn changes_by_another_process_are_not_passed_over() {
        let history = History::new(0);
        history.add(commit(1, "a", 1));
        let mut watch = history.watch(Range::prefix("a"), 1);
        history.add(commit(5, "a", 1));
        assert!(watch.next().await.is_err());
    }
}
