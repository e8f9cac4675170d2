//! Ranges of user and group ids, one for each sandbox, and their user
//! namespaces.
//!
//! Ranges are handed out in blocks, and a block belongs to who holds the lock
//! on its file: two servers of one host never share a range.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use skiff_types::ServerId;

use crate::failure::{Context, Step, refuse};
use crate::handle::Handle;
use crate::sys::{self, Cloned};

/// Ids of one sandbox: 0 to 65,535 inside.
pub(crate) const RANGE_IDS: u32 = 65_536;
/// The first id of the first range: far above people's accounts, and above
/// the ranges that distributions hand to containers (524,288 to 1,879,048,191
/// in systemd's scheme ends just below the last of ours).
const FIRST_ID: u32 = 0x6000_0000;
const BLOCK_RANGES: u32 = 64;
/// The last block ends at 0x7FFF_FFFF: ids beyond are negative to some tools.
const BLOCKS: u32 = 128;

/// The blocks that this server holds, and which of their ranges are free.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ranges {
    folder: PathBuf,
    first_block: u32,
    locks: BTreeMap<u32, Handle>,
    free: Vec<u32>,
    namespaces: BTreeMap<u32, Handle>,
}

impl Ranges {
    pub(crate) fn new(folder: PathBuf, server: ServerId) -> Self {
        // A server that starts again finds its own block first.
        let hash = server.to_string().bytes().fold(0u32, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(byte.into())
        });
        Self {
            folder,
            first_block: hash % BLOCKS,
            locks: BTreeMap::new(),
            free: Vec::new(),
            namespaces: BTreeMap::new(),
        }
    }

    /// The first id of a range.
    pub(crate) fn base(range: u32) -> u32 {
        FIRST_ID + range * RANGE_IDS
    }

    /// A range that no sandbox of this host uses.
    pub(crate) fn take(&mut self) -> Step<u32> {
        if self.free.is_empty() {
            self.lock_block()?;
        }
        let range = self
            .free
            .pop()
            .ok_or_else(|| refuse("ids", "no range of user ids is free"))?;
        if let std::collections::btree_map::Entry::Vacant(place) = self.namespaces.entry(range) {
            match make_namespace(Self::base(range)) {
                Ok(namespace) => {
                    place.insert(namespace.into());
                }
                Err(refusal) => {
                    self.free.push(range);
                    return Err(refusal);
                }
            }
        }
        Ok(range)
    }

    /// Gives a range back whose sandbox is dead.
    pub(crate) fn release(&mut self, range: u32) {
        self.free.push(range);
    }

    /// The user namespace of a range that was taken.
    pub(crate) fn namespace(&self, range: u32) -> Step<BorrowedFd<'_>> {
        self.namespaces
            .get(&range)
            .map(AsFd::as_fd)
            .ok_or_else(|| refuse("ids", format!("range {range} was never taken")))
    }

    fn lock_block(&mut self) -> Step<()> {
        std::fs::create_dir_all(&self.folder).at("ids", self.folder.display())?;
        for step in 0..BLOCKS {
            let block = (self.first_block + step) % BLOCKS;
            if self.locks.contains_key(&block) {
                continue;
            }
            let path = self.folder.join(format!("uids-{block}"));
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
                .at("ids", path.display())?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            self.locks.insert(block, file.into());
            self.free
                .extend((block * BLOCK_RANGES..(block + 1) * BLOCK_RANGES).rev());
            return Ok(());
        }
        Err(refuse(
            "ids",
            format!(
                "every block of user ids in {} is taken",
                self.folder.display()
            ),
        ))
    }
}

/// A user namespace whose ids 0 to 65,535 are those from `base` on. It lives
/// as long as its descriptor.
fn make_namespace(base: u32) -> Step<OwnedFd> {
    // SAFETY: the launcher has one thread.
    let cloned = unsafe { sys::clone3(libc::CLONE_NEWUSER, None) }.at("ids", "clone")?;
    let (pid, pidfd) = match cloned {
        Cloned::Child => loop {
            // SAFETY: ends with the launcher, whatever happens to that.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // SAFETY: waits for the signal that ends it.
            unsafe { libc::pause() };
        },
        Cloned::Parent { pid, pidfd } => (pid.as_raw_pid(), pidfd),
    };
    let made = map_namespace(pid, base);
    sys::signal(pidfd.as_fd(), libc::SIGKILL).at("ids", "kill")?;
    rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    )
    .at("ids", "wait")?;
    made
}

fn map_namespace(pid: i32, base: u32) -> Step<OwnedFd> {
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{name}");
        std::fs::write(&path, format!("0 {base} {RANGE_IDS}")).at("ids", &path)?;
    }
    let path = format!("/proc/{pid}/ns/user");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("ids", &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_never_share_a_range() {
        let folder = tempfile::tempdir().unwrap();
        let server = ServerId::from_parts(1, 1);
        let mut one = Ranges::new(folder.path().to_owned(), server);
        let mut other = Ranges::new(folder.path().to_owned(), server);
        one.lock_block().unwrap();
        other.lock_block().unwrap();
        assert!(one.free.iter().all(|range| !other.free.contains(range)));
        assert_eq!(one.free.len(), 64);
    }

    #[test]
    fn every_range_fits_below_the_sign_bit() {
        let last = BLOCKS * BLOCK_RANGES - 1;
        assert_eq!(
            Ranges::base(last).checked_add(RANGE_IDS - 1),
            Some(0x7FFF_FFFF)
        );
    }
}
