//! What a microVM boots from.
//!
//! ```text
//! package, folder or files ─▶ Files ─▶ examined ─▶ Kernels/HASH ─ with an agent ─▶ BootFiles
//! ```
//!
//! An install takes a kernel out of what it was given, unpacks it, looks
//! whether it has all that a guest needs, and keeps it with the modules that a
//! guest loads, in the order in which they load. With an agent, a guest's
//! first process, an initramfs is made of them.
//!
//! Invariants: what was given is hostile: no panic, no allocation beyond the
//! limits that each module names, and no name that was found there becomes a
//! name on the host. A kernel is listed only when all of it is on disk. The
//! same kernel and agent make the same initramfs.
//!
//! Entry points: [`Files`] takes what is given, [`Kernels`] keeps what is
//! installed, [`kernel`] makes an ELF file of a kernel's image. The monitor
//! uses only the last, without the feature `install`.

#[cfg(feature = "install")]
mod elf;
#[cfg(feature = "install")]
mod examine;
#[cfg(feature = "install")]
mod files;
#[cfg(feature = "install")]
mod initramfs;
pub mod kernel;
#[cfg(feature = "install")]
mod modules;
#[cfg(feature = "install")]
mod options;
#[cfg(feature = "install")]
mod package;
#[cfg(feature = "install")]
mod packed;
#[cfg(feature = "install")]
mod store;
#[cfg(all(test, feature = "install"))]
mod testing;

#[cfg(feature = "install")]
pub use elf::ElfError;
#[cfg(feature = "install")]
pub use examine::{ExamineError, Lack};
#[cfg(feature = "install")]
pub use files::{Files, FilesError};
#[cfg(feature = "install")]
pub use modules::ModuleError;
#[cfg(feature = "install")]
pub use package::PackageError;
#[cfg(feature = "install")]
pub use store::{Agent, BootFiles, InstallOptions, InstalledKernel, Kernels, StoreError, short};
