//! Locks between processes: flock(2), which the kernel ends with its holder.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::error::ImageError;
use crate::limits::LOCK_POLL;

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// A held lock whose file goes with it.
#[derive(Debug)]
pub(crate) struct Turn {
    path: PathBuf,
    _lock: Lock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

impl Lock {
    /// Takes the lock, waiting for others at most this long.
    pub async fn take(path: &Path, mode: Mode, limit: Duration) -> Result<Self, ImageError> {
        let wait = async {
            loop {
                if let Some(lock) = Self::try_take(path, mode)? {
                    return Ok(lock);
                }
                tokio::time::sleep(LOCK_POLL).await;
            }
        };
        tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| {
            Err(ImageError::Busy {
                path: path.to_owned(),
                waited: limit,
            })
        })
    }

    /// Takes the lock if nobody is in the way. The file is made if it is
    /// missing; a file that was removed in between is not mistaken for it.
    pub fn try_take(path: &Path, mode: Mode) -> Result<Option<Self>, ImageError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(ImageError::io("open", path))?;
        let locked = try_flock(&file, mode).map_err(ImageError::io("lock", path))?;
        if !locked {
            return Ok(None);
        }
        let held = file.metadata().map_err(ImageError::io("read", path))?;
        match std::fs::metadata(path) {
            Ok(named) if named.ino() == held.ino() && named.dev() == held.dev() => {
                Ok(Some(Self { _file: file }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ImageError::io("read", path)(source)),
        }
    }
}

impl Turn {
    /// Waits for it at most this long.
    pub async fn take(path: &Path, limit: Duration) -> Result<Self, ImageError> {
        Ok(Self {
            _lock: Lock::take(path, Mode::Exclusive, limit).await?,
            path: path.to_owned(),
        })
    }
}

impl Drop for Turn {
    /// While it is still locked: who waits for it sees that it is another file.
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a lock stays for the next sweep");
        }
    }
}

/// Whether the lock was taken.
pub(crate) fn try_flock(file: &File, mode: Mode) -> io::Result<bool> {
    let operation = match mode {
        Mode::Shared => FlockOperation::NonBlockingLockShared,
        Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_may_share_and_one_may_have_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::try_take(&path, Mode::Shared).unwrap().unwrap();
        let second = Lock::try_take(&path, Mode::Shared).unwrap();
        assert!(second.is_some());
        assert!(Lock::try_take(&path, Mode::Exclusive).unwrap().is_none());
        let limit = Duration::from_millis(1);
        let busy = Lock::take(&path, Mode::Exclusive, limit).await.unwrap_err();
        assert!(matches!(busy, ImageError::Busy { .. }));
        drop((first, second));
        assert!(Lock::try_take(&path, Mode::Exclusive).unwrap().is_some());
    }
}
