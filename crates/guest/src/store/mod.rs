//! Kernels that are installed, and what microVMs boot from.
//!
//! ```text
//! KERNELS/.partial-RANDOM/   (locked by who installs)
//!    │ vmlinux, modules, last of all manifest.json; all synced
//!    ▼ rename
//! KERNELS/HASH/vmlinux, NNN-NAME.ko, manifest.json
//!    │ with an agent
//!    ▼
//! KERNELS/HASH/initramfs-HASH.cpio
//! KERNELS/default            the hash of the default
//! KERNELS/lock               held while any of these names change
//! ```
//!
//! What an install leaves that was killed has no name that is listed, and
//! goes when the folder is opened next.

mod error;
mod folder;
mod manifest;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};
use skiff_base::{Clock as _, SystemClock};

use crate::elf;
use crate::examine::{Bootable, examine};
use crate::files::Files;
use crate::initramfs;
use crate::packed::read_bounded;
pub use error::StoreError;
use folder::{Lock, Partial, digest, remove_if_there, sweep, sync, write_synced};
use manifest::{MANIFEST, Manifest, StoredFile};

/// More than anybody keeps.
const MAX_KERNELS: usize = 64;
/// How many initramfses are kept of a kernel: an old server's agent may be
/// another than the new one's.
const MAX_INITRAMFS: usize = 4;
const MAX_AGENT_BYTES: u64 = 64 << 20;
const DEFAULT: &str = "default";
const VMLINUX: &str = "vmlinux";
/// The fewest digits of a hash that name a kernel.
const MIN_HASH_DIGITS: usize = 4;

/// A folder of installed kernels.
#[derive(Debug, Clone)]
pub struct Kernels {
    folder: PathBuf,
}

/// What to make of what was given.
#[derive(Debug, Default)]
pub struct InstallOptions {
    /// Which kernel, when several were given.
    pub release: Option<String>,
    /// Where it came from, for people.
    pub source: String,
    /// Leaves the default as it is, if there is one.
    pub keep_default: bool,
}

/// An installed kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstalledKernel {
    /// Its release, as `uname -r` says it in a guest.
    pub version: String,
    /// Of the kernel and its modules; 64 hexadecimal digits.
    pub hash: String,
    /// Where it came from.
    pub source: String,
    /// When it was installed, milliseconds since 1970.
    pub installed_unix_ms: u64,
    /// Of kernel and modules.
    pub size_bytes: u64,
    /// How many modules a guest loads.
    pub modules: usize,
    /// What an operator should know.
    pub notes: Vec<String>,
    /// Whether it is the default.
    pub default: bool,
}

/// The program that a guest starts as its first process.
#[derive(Debug, Clone)]
pub struct Agent {
    content: Vec<u8>,
}

/// What a microVM boots from, verified when this was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// An ELF file.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// The kernel's release.
    pub version: String,
    /// The kernel's hash.
    pub hash: String,
}

impl Agent {
    /// Reads an agent's program.
    ///
    /// # Errors
    /// When it cannot be read, or is no static program of this architecture.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::AgentRead {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let content = read_bounded(file, MAX_AGENT_BYTES).map_err(failed)?;
        elf::check_static_program(&content).map_err(|source| StoreError::Agent {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { content })
    }
}

impl Kernels {
    /// Opens a folder of kernels, made if it is not there, and removes what
    /// installs left that were killed.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(StoreError::file("make", folder))?;
        sweep(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// A folder of kernels as it is, without making or sweeping it.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Installs a kernel of what was given. One that is there already is
    /// verified, and not written again.
    ///
    /// # Errors
    /// When it cannot be a guest's, or not be kept.
    pub fn install(
        &self,
        files: &Files,
        options: &InstallOptions,
    ) -> Result<InstalledKernel, StoreError> {
        let bootable = examine(files, options.release.as_deref())?;
        let partial = Partial::new(&self.folder)?;
        let manifest = write(&bootable, &options.source, partial.path())?;
        let target = self.folder.join(&manifest.hash);
        let lock = Lock::take(&self.folder)?;
        let installed = self.manifests()?;
        let known = installed.iter().any(|known| known.hash == manifest.hash);
        if !known && installed.len() >= MAX_KERNELS {
            return Err(StoreError::Many { most: MAX_KERNELS });
        }
        if !(known && verify(&target, &manifest).is_ok()) {
            self.take_away(&target)?;
            partial.name(&target)?;
        }
        if !options.keep_default || self.default_hash(&installed)?.is_none() {
            self.set_default(&manifest.hash)?;
        }
        drop(lock);
        self.get(&manifest.hash)
    }

    /// All that is installed, the oldest first. A folder that is not there has
    /// none.
    ///
    /// # Errors
    /// When the folder or a manifest cannot be read.
    pub fn list(&self) -> Result<Vec<InstalledKernel>, StoreError> {
        let manifests = self.manifests()?;
        let default = self.default_hash(&manifests)?;
        let mut kernels: Vec<_> = manifests
            .into_iter()
            .map(|manifest| {
                let is_default = default.as_ref() == Some(&manifest.hash);
                manifest.into_installed(is_default)
            })
            .collect();
        kernels.sort_by(|one, other| {
            (one.installed_unix_ms, &one.hash).cmp(&(other.installed_unix_ms, &other.hash))
        });
        Ok(kernels)
    }

    /// The kernel that microVMs boot when nothing else is said.
    ///
    /// # Errors
    /// As [`Kernels::list`].
    pub fn default(&self) -> Result<Option<InstalledKernel>, StoreError> {
        Ok(self.list()?.into_iter().find(|kernel| kernel.default))
    }

    /// The kernel of this version, or whose hash begins like this.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn get(&self, name: &str) -> Result<InstalledKernel, StoreError> {
        let is_hash = name.len() >= MIN_HASH_DIGITS;
        let all = self.list()?;
        let mut found = all
            .iter()
            .filter(|kernel| kernel.version == name || is_hash && kernel.hash.starts_with(name));
        match (found.next(), found.next()) {
            (Some(kernel), None) => Ok(kernel.clone()),
            (None, _) => Err(StoreError::NoSuch { name: name.into() }),
            (Some(one), Some(other)) => Err(StoreError::Ambiguous {
                name: name.into(),
                one: short(&one.hash).into(),
                other: short(&other.hash).into(),
            }),
        }
    }

    /// Makes a kernel the default.
    ///
    /// # Errors
    /// When there is no such kernel, or the choice cannot be kept.
    pub fn make_default(&self, name: &str) -> Result<InstalledKernel, StoreError> {
        self.get(name)?;
        let _lock = Lock::take(&self.folder)?;
        let kernel = self.get(name)?;
        self.set_default(&kernel.hash)?;
        self.get(&kernel.hash)
    }

    /// Removes a kernel. A guest that runs has it in its memory.
    ///
    /// # Errors
    /// When there is no such kernel, or it is the default and not the last.
    pub fn remove(&self, name: &str) -> Result<InstalledKernel, StoreError> {
        self.get(name)?;
        let _lock = Lock::take(&self.folder)?;
        let kernel = self.get(name)?;
        if kernel.default {
            if self.manifests()?.len() > 1 {
                return Err(StoreError::Default {
                    version: kernel.version,
                });
            }
            let path = self.folder.join(DEFAULT);
            remove_if_there(&path).map_err(StoreError::file("remove", &path))?;
        }
        self.take_away(&self.folder.join(&kernel.hash))?;
        Ok(kernel)
    }

    /// Whether a kernel's files have the lengths that they should have.
    ///
    /// # Errors
    /// When they have not.
    pub fn check(&self, kernel: &InstalledKernel) -> Result<(), StoreError> {
        let folder = self.folder.join(&kernel.hash);
        let manifest = Manifest::read(&folder)?;
        for (name, stored) in manifest.files() {
            let path = folder.join(name);
            let metadata = fs::metadata(&path).map_err(StoreError::file("look at", &path))?;
            if metadata.len() != stored.bytes {
                return Err(StoreError::Damaged { path });
            }
        }
        Ok(())
    }

    /// What a microVM boots from with this kernel and this agent. Every byte
    /// is verified, which takes as long as reading some 60 MB: ask once, not
    /// for each microVM.
    ///
    /// # Errors
    /// When a file is not what was installed, or the initramfs cannot be kept.
    pub fn boot_files(
        &self,
        kernel: &InstalledKernel,
        agent: &Agent,
    ) -> Result<BootFiles, StoreError> {
        let folder = self.folder.join(&kernel.hash);
        let manifest = Manifest::read(&folder)?;
        let modules = verify(&folder, &manifest)?;
        let archive = initramfs::build(&modules, &agent.content);
        let name = format!("initramfs-{}.cpio", digest(&archive));
        let initramfs = folder.join(name);
        if !has_content(&initramfs, &archive)? {
            let _lock = Lock::take(&self.folder)?;
            write_synced(&initramfs, &folder.join(".initramfs.partial"), &archive)?;
            make_room(&folder, &initramfs)?;
        }
        Ok(BootFiles {
            kernel: folder.join(VMLINUX),
            initramfs,
            version: manifest.version,
            hash: manifest.hash,
        })
    }

    fn manifests(&self) -> Result<Vec<Manifest>, StoreError> {
        let failed = StoreError::file("read", &self.folder);
        let mut manifests = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(manifests),
            entries => entries.map_err(&failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(&failed)?;
            let name = entry.file_name();
            if name.to_str().is_some_and(is_hash) {
                match Manifest::read(&entry.path()) {
                    // Somebody removes it at this moment.
                    Err(error) if error.is_not_found() => {}
                    manifest => manifests.push(manifest?),
                }
            }
        }
        Ok(manifests)
    }

    fn default_hash(&self, installed: &[Manifest]) -> Result<Option<String>, StoreError> {
        let path = self.folder.join(DEFAULT);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(StoreError::file("read", &path))?,
        };
        let hash = text.trim();
        let known = installed.iter().any(|known| known.hash == hash);
        Ok(known.then(|| hash.to_owned()))
    }

    fn set_default(&self, hash: &str) -> Result<(), StoreError> {
        let text = format!("{hash}\n");
        write_synced(
            &self.folder.join(DEFAULT),
            &self.folder.join(".default.partial"),
            text.as_bytes(),
        )
    }

    /// Takes a kernel's name away at once, and then its files.
    fn take_away(&self, path: &Path) -> Result<(), StoreError> {
        let partial = Partial::new(&self.folder)?;
        // Onto an empty folder, which the rename replaces.
        match fs::rename(path, partial.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(StoreError::file("remove", path))?,
        }
        sync(&self.folder)
    }
}

/// Whether this is a kernel's folder.
fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// As much of a hash as people need.
#[must_use]
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Writes a kernel's files and, when all are synced, its manifest.
fn write(bootable: &Bootable, source: &str, folder: &Path) -> Result<Manifest, StoreError> {
    let put = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, content)
            .and_then(|()| File::open(&path)?.sync_all())
            .map_err(StoreError::file("write", &path))?;
        Ok::<_, StoreError>(StoredFile::of(content))
    };
    let kernel = put(VMLINUX, &bootable.kernel)?;
    let mut modules = Vec::new();
    for (number, module) in bootable.modules.iter().enumerate() {
        let file = format!("{number:03}-{}.ko", module.name);
        let stored = put(&file, &module.content)?;
        modules.push((file, stored));
    }
    let mut manifest = Manifest {
        version: bootable.release.clone(),
        hash: String::new(),
        source: source.to_owned(),
        installed_unix_ms: SystemClock.unix_ms(),
        kernel,
        modules,
        notes: bootable.notes.clone(),
    };
    manifest.hash = manifest.content_hash();
    manifest.write(&folder.join(MANIFEST))?;
    sync(folder)?;
    Ok(manifest)
}

/// Reads all files of a kernel and compares them with the manifest. Gives the
/// modules.
fn verify(folder: &Path, manifest: &Manifest) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let mut modules = Vec::new();
    for (name, stored) in manifest.files() {
        let path = folder.join(name);
        let failed = StoreError::file("read", &path);
        let file = File::open(&path).map_err(&failed)?;
        if file.metadata().map_err(&failed)?.len() != stored.bytes {
            return Err(StoreError::Damaged { path });
        }
        let content = read_bounded(file, stored.bytes).map_err(&failed)?;
        if StoredFile::of(&content) != *stored {
            return Err(StoreError::Damaged { path });
        }
        if name != VMLINUX {
            modules.push((name.to_owned(), content));
        }
    }
    if manifest.content_hash() != manifest.hash {
        return Err(StoreError::Damaged {
            path: folder.join(MANIFEST),
        });
    }
    Ok(modules)
}

fn has_content(path: &Path, content: &[u8]) -> Result<bool, StoreError> {
    let failed = StoreError::file("read", path);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(&failed)?,
    };
    let length = content.len() as u64;
    if file.metadata().map_err(&failed)?.len() != length {
        return Ok(false);
    }
    Ok(read_bounded(file, length).map_err(&failed)? == content)
}

/// Removes the oldest initramfses that are over the limit.
fn make_room(folder: &Path, keep: &Path) -> Result<(), StoreError> {
    let failed = StoreError::file("read", folder);
    let mut others = Vec::new();
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if path != keep && name.is_some_and(|name| name.starts_with("initramfs-")) {
            let made = fs::metadata(&path).and_then(|metadata| metadata.modified());
            others.push((made.map_err(&failed)?, path));
        }
    }
    others.sort();
    let surplus = (others.len() + 1).saturating_sub(MAX_INITRAMFS);
    for (_, path) in others.into_iter().take(surplus) {
        remove_if_there(&path).map_err(StoreError::file("remove", &path))?;
    }
    Ok(())
}

/// The hash of what is written the same way for the same content.
fn hash_of(parts: impl IntoIterator<Item = Vec<u8>>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    folder::hex(&hash.finalize())
}

#[cfg(test)]
mod tests;
