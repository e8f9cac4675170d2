//! Memory for bodies, which all projects share.
//!
//! A body takes its room as it arrives, and gives it back once it is on its
//! way to an instance, or what it asks for is done. A project has at most half
//! as much as is left free, and a URL no more than it leaves to others of its
//! project: who has much lacks it himself, and another one finds room. Large
//! bodies leave a part to small ones, which wait for none of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use skiff_lambda::LambdaError;
use skiff_types::ProjectId;
use tokio::sync::Notify;

/// What a small body has at most, bytes.
const SMALL_BYTES: usize = 64 * 1024;
/// The part of all that large ones leave to those.
const FOR_SMALL: usize = 16;
/// The part of what is left free that a project may have.
const PART: usize = 2;
/// How long a body waits for room.
const PATIENCE: Duration = Duration::from_secs(2);

/// All there is, and who has how much of it.
#[derive(Debug)]
pub(crate) struct Rooms {
    bytes: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    projects: HashMap<ProjectId, usize>,
    urls: HashMap<String, usize>,
}

/// Who a body is counted to.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub project: ProjectId,
    /// The id of the URL that it came to.
    pub url: Option<String>,
}

/// The room of one body; dropping gives it back.
#[derive(Debug)]
pub(crate) struct Room {
    of: Arc<Rooms>,
    owner: Owner,
    bytes: usize,
}

impl Rooms {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Room for a body that has yet to come.
    pub(crate) fn room(self: &Arc<Self>, owner: Owner) -> Room {
        Room {
            of: Arc::clone(self),
            owner,
            bytes: 0,
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Whether that owner may have so much more, for a body of that size.
    fn allows(&self, owner: &Owner, more: usize, spare: usize, most: usize) -> bool {
        let Some(free) = most.checked_sub(self.all + more) else {
            return false;
        };
        let project = self.projects.get(&owner.project).copied();
        let project = project.unwrap_or_default() + more;
        let free = free.saturating_sub(spare);
        let Some(left) = (free / PART).checked_sub(project) else {
            return false;
        };
        let url = owner.url.as_ref().map(|url| self.urls.get(url).copied());
        url.is_none_or(|url| url.unwrap_or_default() + more <= left)
    }

    fn add(&mut self, owner: &Owner, more: usize) {
        self.all += more;
        *self.projects.entry(owner.project.clone()).or_default() += more;
        if let Some(url) = &owner.url {
            *self.urls.entry(url.clone()).or_default() += more;
        }
    }

    fn remove(&mut self, owner: &Owner, less: usize) {
        self.all -= less;
        take(&mut self.projects, owner.project.clone(), less);
        if let Some(url) = &owner.url {
            take(&mut self.urls, url.clone(), less);
        }
    }
}

/// Who has nothing is not kept.
fn take<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, less: usize) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= less;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

impl Room {
    /// Makes it so large, after a short wait if it must.
    pub(crate) async fn fit(&mut self, bytes: usize) -> Result<(), LambdaError> {
        let of = Arc::clone(&self.of);
        let fitted = async {
            loop {
                let mut freed = pin!(of.freed.notified());
                freed.as_mut().enable();
                if self.try_fit(bytes) {
                    return;
                }
                freed.await;
            }
        };
        tokio::time::timeout(PATIENCE, fitted).await.map_err(|_| {
            let message = "Rate Exceeded: bodies that are under way take all the room there is for them: try again";
            LambdaError::throttled("CallerRateLimitExceeded", message)
        })
    }

    fn try_fit(&mut self, bytes: usize) -> bool {
        let mut taken = self.of.taken();
        if let Some(more) = bytes.checked_sub(self.bytes) {
            let spare = match bytes > SMALL_BYTES {
                true => self.of.bytes / FOR_SMALL,
                false => 0,
            };
            if more > 0 && !taken.allows(&self.owner, more, spare, self.of.bytes) {
                return false;
            }
            taken.add(&self.owner, more);
        } else {
            taken.remove(&self.owner, self.bytes - bytes);
            self.of.freed.notify_waiters();
        }
        self.bytes = bytes;
        true
    }

    /// The body, with which its room is given back.
    pub(crate) fn hold(self, body: Vec<u8>) -> Bytes {
        Bytes::from_owner(Body { body, _room: self })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.try_fit(0);
    }
}

struct Body {
    body: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use proptest::prelude::*;

    use super::*;

    const LARGE: usize = 6 * 1024 * 1024;
    const ALL: usize = 256 * 1024 * 1024;

    fn owner(project: usize, url: Option<usize>) -> Owner {
        Owner {
            project: format!("{project:012}").parse().unwrap(),
            url: url.map(|url| format!("{project} {url}")),
        }
    }

    /// As many bodies as this owner gets in.
    fn fill(rooms: &Arc<Rooms>, owner: &Owner, bytes: usize) -> Vec<Room> {
        let mut held = Vec::new();
        loop {
            let mut room = rooms.room(owner.clone());
            if !room.try_fit(bytes) {
                return held;
            }
            held.push(room);
        }
    }

    #[test]
    fn no_project_and_no_url_keeps_another_out() {
        for projects in [1, 2, 4] {
            let rooms = Rooms::new(ALL);
            let mut held = Vec::new();
            for project in 1..=projects {
                let got = fill(&rooms, &owner(project, None), LARGE);
                assert!(!got.is_empty(), "project {project} of {projects}");
                held.push(got);
            }
            assert!(!fill(&rooms, &owner(100, None), LARGE).is_empty());
            assert!(held[0].len() >= 13, "{}", held[0].len());
        }
        let rooms = Rooms::new(ALL);
        let first = fill(&rooms, &owner(1, Some(1)), LARGE);
        assert!(first.len() >= 7, "{}", first.len());
        let second = fill(&rooms, &owner(1, Some(2)), LARGE);
        assert!(!second.is_empty(), "another URL of the same project");
        assert!(!fill(&rooms, &owner(2, Some(1)), LARGE).is_empty());
    }

    #[test]
    fn large_bodies_leave_room_for_small_ones() {
        let rooms = Rooms::new(ALL);
        let _large = fill(&rooms, &owner(1, Some(1)), LARGE);
        let _middle = fill(&rooms, &owner(1, Some(1)), SMALL_BYTES + 1);
        assert!(fill(&rooms, &owner(1, Some(1)), SMALL_BYTES).len() >= 50);
        let _others: Vec<_> = (2..20)
            .map(|project| fill(&rooms, &owner(project, None), SMALL_BYTES + 1))
            .collect();
        assert!(fill(&rooms, &owner(100, None), SMALL_BYTES).len() >= 50);
    }

    #[tokio::test]
    async fn a_body_waits_a_moment_for_room_and_is_then_refused_as_throttled() {
        let rooms = Rooms::new(ALL);
        let mut held = fill(&rooms, &owner(1, None), LARGE);
        let mut room = rooms.room(owner(1, None));
        let refused = room.fit(LARGE).await.unwrap_err();
        assert_eq!(refused.code.status(), 429, "{refused}");
        let mut waits = Box::pin(room.fit(LARGE));
        let begun = std::future::poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx)));
        assert!(begun.await.is_pending());
        // A small one passes it.
        rooms.room(owner(1, None)).fit(1000).await.unwrap();
        held.pop();
        waits.await.unwrap();
    }

    #[test]
    fn a_bodys_room_is_given_back_with_its_last_piece() {
        let rooms = Rooms::new(ALL);
        let mut room = rooms.room(owner(1, Some(1)));
        assert!(room.try_fit(3));
        let mut body = room.hold(vec![1, 2, 3]);
        let piece = body.split_off(1);
        drop(body);
        assert_eq!((piece.as_ref(), rooms.taken().all), (&[2, 3][..], 3));
        drop(piece);
        let taken = rooms.taken();
        assert!(taken.all == 0 && taken.projects.is_empty() && taken.urls.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_taken_is_never_more_than_there_is_and_comes_back(
            steps in prop::collection::vec((0..6_usize, 0..4_usize, 0..LARGE), 1..200),
        ) {
            let rooms = Rooms::new(64 * 1024 * 1024);
            let mut held: Vec<Option<Room>> = (0..6).map(|_| None).collect();
            for (slot, url, bytes) in steps {
                let room = held[slot].take();
                let mut room = room.unwrap_or_else(|| rooms.room(owner(slot % 3, Some(url))));
                let before = room.bytes;
                let fitted = room.try_fit(bytes);
                prop_assert_eq!(room.bytes, if fitted { bytes } else { before });
                prop_assert!(fitted || bytes > before);
                held[slot] = (bytes % 5 > 0).then_some(room);
                let sum: usize = held.iter().flatten().map(|room| room.bytes).sum();
                let taken = rooms.taken();
                prop_assert_eq!(taken.all, sum);
                prop_assert!(taken.all <= rooms.bytes);
                prop_assert_eq!(taken.projects.values().sum::<usize>(), sum);
                prop_assert_eq!(taken.urls.values().sum::<usize>(), sum);
            }
            drop(held);
            prop_assert_eq!(rooms.taken().all, 0);
        }
    }
}
