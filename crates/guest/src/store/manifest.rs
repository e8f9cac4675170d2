//! What is stored of a kernel.

use std::fs::{self, File};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::folder::digest;
use super::{InstalledKernel, VMLINUX, hash_of};
use crate::initramfs;
use crate::packed::read_bounded;

pub(super) const MANIFEST: &str = "manifest.json";
const MAX_BYTES: u64 = 1 << 20;

/// A kernel as it was installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub version: String,
    pub hash: String,
    pub source: String,
    pub installed_unix_ms: u64,
    pub kernel: StoredFile,
    /// By their files' names, in the order in which they load.
    pub modules: Vec<(String, StoredFile)>,
    pub notes: Vec<String>,
}

/// A file's length and hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredFile {
    pub bytes: u64,
    pub sha256: String,
}

impl StoredFile {
    pub(super) fn of(content: &[u8]) -> Self {
        Self {
            bytes: content.len() as u64,
            sha256: digest(content),
        }
    }
}

impl Manifest {
    pub(super) fn read(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(MANIFEST);
        let failed = StoreError::file("read", &path);
        let file = File::open(&path).map_err(&failed)?;
        let text = read_bounded(file, MAX_BYTES).map_err(&failed)?;
        serde_json::from_slice(&text).map_err(|source| StoreError::Manifest { path, source })
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(self).map_err(|source| StoreError::Manifest {
            path: path.to_owned(),
            source,
        })?;
        fs::write(path, text)
            .and_then(|()| File::open(path)?.sync_all())
            .map_err(StoreError::file("write", path))
    }

    /// All files but this one.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &StoredFile)> {
        let modules = self.modules.iter().map(|(name, file)| (&**name, file));
        std::iter::once((VMLINUX, &self.kernel)).chain(modules)
    }

    /// The hash of what a guest gets to see of it.
    pub(super) fn content_hash(&self) -> String {
        let recipe = format!("{} {}", initramfs::RECIPE, self.version);
        let files = self
            .files()
            .map(|(name, file)| format!("{name} {} {}", file.bytes, file.sha256));
        hash_of(std::iter::once(recipe).chain(files).map(String::into_bytes))
    }

    pub(super) fn into_installed(self, default: bool) -> InstalledKernel {
        InstalledKernel {
            size_bytes: self.files().map(|(_, file)| file.bytes).sum(),
            modules: self.modules.len(),
            version: self.version,
            hash: self.hash,
            source: self.source,
            installed_unix_ms: self.installed_unix_ms,
            notes: self.notes,
            default,
        }
    }
}
