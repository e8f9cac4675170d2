//! Which server of a host uses which part of the address pool.
//!
//! A claim is a file named after the part, with the server's id in it and
//! locked (flock) for as long as the launcher lives, also across its execve.
//! A claim that is not locked belongs to nobody that lives. Claims are made
//! and ended under one more lock, so that their files can be removed.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use skiff_base::{Clock, SystemClock};
use skiff_types::ServerId;

use crate::error::NetError;

/// A part of the pool has 4,096 addresses.
const SHARE_PREFIX: u8 = 20;
/// The smallest pool that makes sense.
const POOL_PREFIX_MAX: u8 = 28;
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// A part of the pool that is this server's.
#[derive(Debug)]
pub(crate) struct Share {
    net: Ipv4Net,
    claim: OwnedFd,
}

impl Share {
    /// Claims a part: the one this server had, else one that nobody claimed,
    /// else one whose server is dead. Parts that `in_use` are left alone.
    pub(crate) fn claim(
        folder: &Path,
        pool: Ipv4Net,
        server: ServerId,
        in_use: impl Fn(Ipv4Net) -> bool,
    ) -> Result<Self, NetError> {
        let parts = parts(pool)?;
        let _lock = lock(folder)?;
        let mut candidates = Vec::new();
        for net in parts.filter(|net| !in_use(*net)) {
            let path = folder.join(file_name(net));
            candidates.push((owner(&path)?.rank(server), net));
        }
        candidates.sort_by_key(|(rank, _)| *rank);
        for (_, net) in candidates {
            if let Some(claim) = take(&folder.join(file_name(net)), server)? {
                return Ok(Self { net, claim });
            }
        }
        Err(NetError::PoolTaken { pool })
    }

    /// Puts together what [`Self::into_parts`] took apart.
    pub(crate) fn from_parts(net: Ipv4Net, claim: OwnedFd) -> Self {
        Self { net, claim }
    }

    pub(crate) fn into_parts(self) -> (Ipv4Net, OwnedFd) {
        (self.net, self.claim)
    }

    pub(crate) fn net(&self) -> Ipv4Net {
        self.net
    }

    /// Gives the part back.
    pub(crate) fn end(self, folder: &Path) -> Result<(), NetError> {
        let _lock = lock(folder)?;
        remove(&folder.join(file_name(self.net)))
    }
}

/// Removes the claims of a server that no process holds, and says how many.
pub(crate) fn sweep(folder: &Path, server: ServerId) -> Result<usize, NetError> {
    if !folder.exists() {
        return Ok(0);
    }
    let _lock = lock(folder)?;
    let failed = |source| file_error("read", folder, source);
    let mut swept = 0;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if owner(&path)? == Owner::Server(server) && take(&path, server)?.is_some() {
            remove(&path)?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Whether any server of this host lives and has a claim. The caller has the
/// lock.
pub(crate) fn any_alive(folder: &Path) -> Result<bool, NetError> {
    let failed = |source| file_error("read", folder, source);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !matches!(owner(&path)?, Owner::Server(_)) {
            continue;
        }
        match flock(open(&path)?, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(true),
            Err(error) => return Err(file_error("lock", &path, error.into())),
        }
    }
    Ok(false)
}

/// The parts of a pool; a pool smaller than a part is one itself.
fn parts(pool: Ipv4Net) -> Result<impl Iterator<Item = Ipv4Net>, NetError> {
    if pool.prefix_len() > POOL_PREFIX_MAX {
        return Err(NetError::PoolTooSmall {
            pool,
            limit: POOL_PREFIX_MAX,
        });
    }
    let prefix = pool.prefix_len().max(SHARE_PREFIX);
    pool.trunc()
        .subnets(prefix)
        .map_err(|_| NetError::PoolTooSmall {
            pool,
            limit: POOL_PREFIX_MAX,
        })
}

fn file_name(net: Ipv4Net) -> String {
    format!("{}-{}", net.network(), net.prefix_len())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    Server(ServerId),
    Unknown,
}

impl Owner {
    /// The order in which parts are tried.
    fn rank(self, server: ServerId) -> u8 {
        match self {
            Self::Server(owner) if owner == server => 0,
            Self::Nobody => 1,
            Self::Server(_) | Self::Unknown => 2,
        }
    }
}

fn owner(path: &Path) -> Result<Owner, NetError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Owner::Nobody),
        Err(error) => return Err(file_error("open", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(64)
        .read_to_end(&mut bytes)
        .map_err(|error| file_error("read", path, error))?;
    let id = str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.parse().ok());
    Ok(id.map_or(Owner::Unknown, Owner::Server))
}

/// Locks a claim and writes this server's id into it, unless it is locked.
fn take(path: &Path, server: ServerId) -> Result<Option<OwnedFd>, NetError> {
    let mut file = open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(file_error("lock", path, error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(server.to_string().as_bytes()))
        .map_err(|error| file_error("write", path, error))?;
    Ok(Some(file.into()))
}

/// The lock under which claims are made and ended.
pub(crate) fn lock(folder: &Path) -> Result<File, NetError> {
    std::fs::create_dir_all(folder).map_err(|error| file_error("make", folder, error))?;
    let path = folder.join("lock");
    let file = open(&path)?;
    let start = SystemClock.now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(file_error("lock", &path, error.into())),
        }
        if SystemClock.now().since(start) > LOCK_DEADLINE {
            return Err(NetError::LockBusy { path });
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

fn open(path: &Path) -> Result<File, NetError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| file_error("open", path, error))
}

fn remove(path: &Path) -> Result<(), NetError> {
    std::fs::remove_file(path).map_err(|error| file_error("remove", path, error))
}

fn file_error(step: &'static str, path: &Path, source: io::Error) -> NetError {
    NetError::File {
        step,
        path: PathBuf::from(path),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Ipv4Net {
        "100.96.0.0/19".parse().unwrap()
    }

    fn server(number: u32) -> ServerId {
        ServerId::from_parts(1, number)
    }

    #[test]
    fn servers_get_disjoint_parts_until_none_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let claim = |number| Share::claim(folder.path(), pool(), server(number), |_| false);
        let (first, second) = (claim(1).unwrap(), claim(2).unwrap());
        assert_ne!(first.net(), second.net());
        assert!(matches!(claim(3), Err(NetError::PoolTaken { .. })));
        let freed = first.net();
        first.end(folder.path()).unwrap();
        assert_eq!(claim(3).unwrap().net(), freed);
    }

    #[test]
    fn a_dead_servers_part_is_its_own_first_and_anybodys_last() {
        let folder = tempfile::tempdir().unwrap();
        let claim = |number| Share::claim(folder.path(), pool(), server(number), |_| false);
        let dead = claim(1).unwrap().net();
        let second = claim(2).unwrap();
        assert_ne!(second.net(), dead);
        assert_eq!(claim(1).unwrap().net(), dead);
        assert_eq!(claim(3).unwrap().net(), dead);
    }

    #[test]
    fn a_part_that_the_host_uses_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let used: Ipv4Net = "100.96.0.0/20".parse().unwrap();
        let share = Share::claim(folder.path(), pool(), server(1), |net| net == used).unwrap();
        assert_eq!(share.net(), "100.96.16.0/20".parse().unwrap());
    }

    #[test]
    fn sweeping_removes_dead_claims_of_this_server_only() {
        let folder = tempfile::tempdir().unwrap();
        drop(Share::claim(folder.path(), pool(), server(1), |_| false).unwrap());
        let other = Share::claim(folder.path(), pool(), server(2), |_| false).unwrap();
        assert_eq!(sweep(folder.path(), server(1)).unwrap(), 1);
        assert_eq!(sweep(folder.path(), server(2)).unwrap(), 0);
        drop(other);
        assert_eq!(sweep(folder.path(), server(2)).unwrap(), 1);
    }

    #[test]
    fn a_pool_of_a_few_addresses_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let tiny = "100.96.0.0/30".parse().unwrap();
        let claimed = Share::claim(folder.path(), tiny, server(1), |_| false);
        assert!(matches!(claimed, Err(NetError::PoolTooSmall { .. })));
    }
}
