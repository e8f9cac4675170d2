//! Files that are there whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ImageError;
use crate::limits::JSON_BYTES_MAX;

use super::lock::{Mode, try_flock};

/// Temporary files start with this; whoever writes one holds its lock, so
/// that one without a holder is known to be left over.
pub(crate) const TEMPORARY: &str = "tmp-";

/// A file without its final name; removed unless it gets one.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    file: File,
    named: bool,
}

impl Temporary {
    /// A new file in this folder, locked.
    pub fn new(folder: &Path) -> Result<Self, ImageError> {
        loop {
            let path = folder.join(format!("{TEMPORARY}{:016x}", skiff_base::random::u64()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(ImageError::io("create", &path))?;
            // Between its creation and its lock a sweep may take it for left over.
            let locked = try_flock(&file, Mode::Exclusive);
            if locked.map_err(ImageError::io("lock", &path))? && path.exists() {
                return Ok(Self {
                    path,
                    file,
                    named: false,
                });
            }
        }
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the content durable and gives it its name, replacing what had it.
    /// The name is durable once its folder is synced.
    pub fn name(mut self, target: &Path) -> Result<(), ImageError> {
        self.file
            .sync_data()
            .map_err(ImageError::io("sync", &self.path))?;
        std::fs::rename(&self.path, target).map_err(ImageError::io("rename to", target))?;
        self.named = true;
        Ok(())
    }

    /// Makes the content and its name durable.
    pub fn persist(self, target: &Path) -> Result<(), ImageError> {
        self.name(target)?;
        match target.parent() {
            Some(folder) => sync_folder(folder),
            None => Ok(()),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a temporary file stays for the next sweep");
        }
    }
}

/// Makes names in this folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), ImageError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(ImageError::io("sync", folder))
}

/// Writes a small file whole.
pub(crate) fn write_whole(ingest: &Path, target: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    temporary_file(ingest, target, bytes)?.persist(target)
}

/// Writes a record whole.
pub(crate) fn write_record<T: Serialize>(
    ingest: &Path,
    target: &Path,
    record: &T,
) -> Result<(), ImageError> {
    temporary_record(ingest, target, record)?.persist(target)
}

/// A record that has yet to get its name.
pub(crate) fn temporary_record<T: Serialize>(
    ingest: &Path,
    target: &Path,
    record: &T,
) -> Result<Temporary, ImageError> {
    let bytes = serde_json::to_vec(record).map_err(|source| ImageError::Record {
        path: target.to_owned(),
        source,
    })?;
    temporary_file(ingest, target, &bytes)
}

fn temporary_file(ingest: &Path, target: &Path, bytes: &[u8]) -> Result<Temporary, ImageError> {
    let mut temporary = Temporary::new(ingest)?;
    temporary
        .file()
        .write_all(bytes)
        .map_err(ImageError::io("write", target))?;
    Ok(temporary)
}

/// Reads a record; `None` when there is none.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    // A record holds texts of an image's documents, escaped anew.
    const RECORD_BYTES_MAX: u64 = 4 * JSON_BYTES_MAX;
    let Some(bytes) = read_bounded(path, RECORD_BYTES_MAX)? else {
        return Ok(None);
    };
    let record = serde_json::from_slice(&bytes).map_err(|source| ImageError::Record {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(record))
}

/// Reads a file, but not more than so many bytes.
pub(crate) fn read_bounded(path: &Path, most: u64) -> Result<Option<Vec<u8>>, ImageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ImageError::io("open", path)(source)),
    };
    let mut bytes = Vec::new();
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(ImageError::io("read", path))?;
    Ok(Some(bytes))
}

/// Removes a file; whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, ImageError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ImageError::io("remove", path)(source)),
    }
}

/// The files of a folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ImageError::io("read", folder))? {
        paths.push(entry.map_err(ImageError::io("read", folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("name");
        let mut temporary = Temporary::new(dir.path()).unwrap();
        temporary.file().write_all(b"half").unwrap();
        assert!(!target.exists());
        drop(temporary);
        assert_eq!(entries(dir.path()).unwrap(), Vec::<PathBuf>::new());
        write_record(dir.path(), &target, &[1, 2]).unwrap();
        assert_eq!(read_record::<Vec<u8>>(&target).unwrap(), Some(vec![1, 2]));
        assert_eq!(entries(dir.path()).unwrap(), std::slice::from_ref(&target));
        assert!(read_record::<String>(&target).is_err());
        assert_eq!(
            read_record::<String>(&dir.path().join("none")).unwrap(),
            None
        );
    }
}
