//! Files and folders that are there whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use skiff_base::{Clock as _, SystemClock};

use super::error::StoreError;

const PARTIAL: &str = ".partial-";
const SPOOL: &str = ".spool-";
const LOCK: &str = "lock";
/// How long another command may hold the lock: it renames and removes files.
const LOCK_WAIT: Duration = Duration::from_secs(60);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Held while names in the store change.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(store: &Path) -> Result<Self, StoreError> {
        let path = store.join(LOCK);
        let failed = StoreError::file("lock", &path);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(&failed)?;
        let clock = SystemClock;
        let start = clock.now();
        while !try_lock(&file).map_err(&failed)? {
            if clock.now().since(start) >= LOCK_WAIT {
                return Err(StoreError::Busy {
                    path,
                    waited_s: LOCK_WAIT.as_secs(),
                });
            }
            std::thread::sleep(LOCK_POLL);
        }
        Ok(Self { _file: file })
    }
}

/// A folder without its final name; removed unless it gets one.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    /// Holds its lock, which tells a sweep that somebody works in it.
    _open: File,
    named: bool,
}

impl Partial {
    pub(super) fn new(store: &Path) -> Result<Self, StoreError> {
        loop {
            let path = store.join(format!("{PARTIAL}{:016x}", skiff_base::random::u64()));
            let failed = StoreError::file("make", &path);
            fs::create_dir(&path).map_err(&failed)?;
            // Between its creation and its lock a sweep may take it for left
            // over.
            let open = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                open => open.map_err(&failed)?,
            };
            if try_lock(&open).map_err(&failed)? && path.exists() {
                return Ok(Self {
                    path,
                    _open: open,
                    named: false,
                });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, durably.
    pub(super) fn name(mut self, target: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, target).map_err(StoreError::file("make", target))?;
        self.named = true;
        target.parent().map_or(Ok(()), sync)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.named {
            // What cannot be removed now is removed by the next sweep.
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

/// Removes what nobody works in any more.
pub(super) fn sweep(store: &Path) -> Result<(), StoreError> {
    let failed = StoreError::file("read", store);
    for entry in fs::read_dir(store).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let starts = |with| name.is_some_and(|name| name.starts_with(with));
        if starts(SPOOL) {
            remove_if_there(&path).map_err(StoreError::file("remove", &path))?;
        } else if starts(PARTIAL) {
            match remove_left_over(&path) {
                // Another sweep was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(StoreError::file("remove", &path))?,
            }
        }
    }
    Ok(())
}

fn remove_left_over(partial: &Path) -> io::Result<()> {
    // Held until it is gone, so that nobody begins to work in it.
    let open = File::open(partial)?;
    if try_lock(&open)? {
        fs::remove_dir_all(partial)?;
    }
    Ok(())
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Writes a file whole, by way of a name that only the holder of the store's
/// lock uses.
pub(super) fn write_synced(
    target: &Path,
    partial: &Path,
    content: &[u8],
) -> Result<(), StoreError> {
    fs::write(partial, content)
        .and_then(|()| File::open(partial)?.sync_all())
        .and_then(|()| fs::rename(partial, target))
        .map_err(StoreError::file("write", target))?;
    target.parent().map_or(Ok(()), sync)
}

/// Makes names in a folder durable.
pub(super) fn sync(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|open| open.sync_all())
        .map_err(StoreError::file("sync", folder))
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// SHA-256, hexadecimal.
pub(super) fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
