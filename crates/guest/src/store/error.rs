//! Why a kernel cannot be installed, found or booted.

use std::io;
use std::path::{Path, PathBuf};

use crate::elf::ElfError;
use crate::examine::ExamineError;
use crate::files::FilesError;

/// Why a kernel cannot be installed, found or booted.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder of the store.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else changes the store, and does not come to an end.
    #[error("another command has held {} for {waited_s} s: wait for it, or end it", .path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
        /// How long was waited, seconds.
        waited_s: u64,
    },
    /// What is stored is not what was installed.
    #[error("{} is not what was installed: install the kernel again", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// A manifest cannot be read.
    #[error("{} is no manifest of this version: remove its folder, and install the kernel again", .path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// There is no such kernel.
    #[error("no kernel `{name}` is installed: see `skiff kernel ls`")]
    NoSuch {
        /// What was asked for.
        name: String,
    },
    /// There is more than one.
    #[error("`{name}` is more than one kernel, {one} and {other}: name one of them by that")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// One's hash.
        one: String,
        /// Another's hash.
        other: String,
    },
    /// The default is needed.
    #[error("{version} is the default: make another the default first, with `skiff kernel use`")]
    Default {
        /// Its version.
        version: String,
    },
    /// More than anybody keeps.
    #[error("{most} kernels are installed, which is the most: remove one first")]
    Many {
        /// How many there can be.
        most: usize,
    },
    /// The agent cannot be read.
    #[error("the agent {} cannot be read", .path.display())]
    AgentRead {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The agent is no program for a guest.
    #[error("the agent {} cannot be a guest's first process", .path.display())]
    Agent {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ElfError,
    },
    /// It cannot be a guest's kernel.
    #[error(transparent)]
    Examine(#[from] ExamineError),
    /// What was given cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl StoreError {
    pub(super) fn file(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File {
            what,
            path: path.clone(),
            source,
        }
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
