//! What the gateway has counted by itself, beside the ledger.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skiff_types::{ProjectId, ServiceName};

use crate::RequestEntry;

/// Requests of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    /// How many.
    pub requests: u64,
    /// How many of them waited for an instance.
    pub cold_starts: u64,
    /// How many were answered with 500 or above.
    pub errors: u64,
    /// Sum of their durations.
    pub duration_us: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

impl RequestCounts {
    /// Counts one request.
    pub fn add(&mut self, request: &RequestEntry) {
        self.requests += 1;
        self.cold_starts += u64::from(request.cold);
        self.errors += u64::from(request.status >= 500);
        self.duration_us = self.duration_us.saturating_add(request.duration_us);
        self.bytes_in = self.bytes_in.saturating_add(request.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(request.bytes_out);
    }
}

/// What one writer says it has appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterSummary {
    /// The writer.
    pub writer: u64,
    /// How many entries.
    pub entries: u64,
    /// The sum of their checksums.
    pub digest: u64,
}

/// What the gateway has counted while one writer was open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayCounts {
    /// The writer of that time.
    pub summary: WriterSummary,
    /// Whether these are the last counts of the writer's life; of one that
    /// was killed they are what was saved before, and the ledger has more.
    pub exact: bool,
    /// By project and service.
    pub services: BTreeMap<(ProjectId, ServiceName), RequestCounts>,
}

/// Counts cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CountsError {
    /// A file failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is damaged.
    #[error("{path} is no file of counts or is damaged")]
    Damaged {
        /// Which.
        path: PathBuf,
    },
}

/// Writes `bytes` and their checksum so that the file is whole or the old one.
pub(crate) fn save_whole(path: &Path, bytes: &[u8]) -> Result<(), CountsError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&crc32fast::hash(bytes).to_le_bytes())?;
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|source| CountsError::Io {
        action: "save",
        path: path.to_owned(),
        source,
    })
}

/// What [`save_whole`] has saved, or nothing when there is no file.
pub(crate) fn load_whole(path: &Path) -> Result<Option<Vec<u8>>, CountsError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CountsError::Io {
                action: "load",
                path: path.to_owned(),
                source,
            });
        }
    };
    let damaged = || CountsError::Damaged {
        path: path.to_owned(),
    };
    let (crc, body) = bytes.split_at_checked(4).ok_or_else(damaged)?;
    if crc != crc32fast::hash(body).to_le_bytes() {
        return Err(damaged());
    }
    Ok(Some(body.to_vec()))
}

impl GatewayCounts {
    fn path(directory: &Path, writer: u64) -> PathBuf {
        directory.join(format!("{writer:016x}.counts"))
    }

    /// Counts one request.
    pub fn add(&mut self, request: &RequestEntry) {
        let key = (request.project.clone(), request.service.clone());
        self.services.entry(key).or_default().add(request);
    }

    /// Saves it in the folder, in the place of this writer's earlier counts.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, directory: &Path) -> Result<(), CountsError> {
        let path = Self::path(directory, self.summary.writer);
        std::fs::create_dir_all(directory).map_err(|source| CountsError::Io {
            action: "make",
            path: directory.to_owned(),
            source,
        })?;
        let bytes =
            postcard::to_stdvec(self).map_err(|_| CountsError::Damaged { path: path.clone() })?;
        save_whole(&path, &bytes)
    }

    /// All that is saved in the folder.
    ///
    /// # Errors
    /// When the folder cannot be read or a file is damaged.
    pub fn load_all(directory: &Path) -> Result<Vec<Self>, CountsError> {
        let io = |source| CountsError::Io {
            action: "list",
            path: directory.to_owned(),
            source,
        };
        if !directory.exists() {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for file in std::fs::read_dir(directory).map_err(io)? {
            let path = file.map_err(io)?.path();
            if path.extension().is_none_or(|e| e != "counts") {
                continue;
            }
            if let Some(bytes) = load_whole(&path)? {
                let counts = postcard::from_bytes(&bytes);
                all.push(counts.map_err(|_| CountsError::Damaged { path })?);
            }
        }
        all.sort_by_key(|counts: &Self| counts.summary.writer);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_saved_whole_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(GatewayCounts::load_all(folder.path()).unwrap(), []);
        let counts = GatewayCounts {
            summary: WriterSummary {
                writer: 7,
                entries: 1,
                digest: 2,
            },
            exact: true,
            services: BTreeMap::from([(
                (ProjectId::default_project(), "hello".parse().unwrap()),
                RequestCounts::default(),
            )]),
        };
        counts.save(folder.path()).unwrap();
        assert_eq!(GatewayCounts::load_all(folder.path()).unwrap(), [counts]);
        let path = GatewayCounts::path(folder.path(), 7);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(GatewayCounts::load_all(folder.path()).is_err());
    }
}
