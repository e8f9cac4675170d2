//! Memory for what event sources have given, of one project and of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use skiff_types::ProjectId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// For the messages and records of batches that are gathered or under way, KiB.
/// A poller that has found none waits with one receive's in its hands.
const ROOM_KIB: usize = 256 * 1024;
/// The most that one project has of it.
const SHARE_KIB: usize = ROOM_KIB / 4;

/// Who has how much of it.
#[derive(Debug)]
pub(super) struct Rooms {
    all: Arc<Semaphore>,
    /// Of the projects that hold some.
    shares: Mutex<HashMap<ProjectId, Weak<Semaphore>>>,
}

/// Memory that is taken.
#[derive(Debug)]
pub(super) struct Room {
    _share: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ROOM_KIB)),
            shares: Mutex::default(),
        }
    }
}

impl Rooms {
    /// Room for so many bytes. Who holds some waits for none: a batch grows
    /// without it by one receive.
    pub(super) async fn take(
        &self,
        project: &ProjectId,
        bytes: usize,
        waits: bool,
    ) -> Option<Arc<Room>> {
        let kib = u32::try_from(bytes / 1024 + 1).ok()?;
        let (share, all) = (self.share(project), Arc::clone(&self.all));
        let room = match waits {
            // Its own first: who waits for that holds nothing of the others'.
            true => Room {
                _share: share.acquire_many_owned(kib).await.ok()?,
                _all: all.acquire_many_owned(kib).await.ok()?,
            },
            false => Room {
                _share: share.try_acquire_many_owned(kib).ok()?,
                _all: all.try_acquire_many_owned(kib).ok()?,
            },
        };
        Some(Arc::new(room))
    }

    fn share(&self, project: &ProjectId) -> Arc<Semaphore> {
        let shares = self.shares.lock();
        let mut shares = shares.unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(project).and_then(Weak::upgrade) {
            return share;
        }
        // One that nobody holds anything of is as good as a new one.
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(SHARE_KIB));
        shares.insert(project.clone(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_project_that_takes_all_it_can_leaves_room_to_others() {
        let rooms = Rooms::default();
        let project = |number: u32| format!("{number:012}").parse::<ProjectId>().unwrap();
        let (one, other) = (project(1), project(2));
        let take = |project: &ProjectId, kib: usize, waits| {
            let taken = rooms.take(project, kib * 1024 - 1, waits).now_or_never();
            taken.flatten()
        };
        let all = take(&one, SHARE_KIB, true).unwrap();
        assert!(take(&one, 1, true).is_none() && take(&one, 1, false).is_none());
        assert!(take(&other, SHARE_KIB, true).is_some());
        drop(all);
        assert!(take(&one, SHARE_KIB, false).is_some());
        assert!(take(&other, 1, false).is_some());
        assert_eq!(
            rooms.shares.lock().unwrap().len(),
            1,
            "what is free is forgotten"
        );
    }
}
