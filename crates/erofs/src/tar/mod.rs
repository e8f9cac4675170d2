//! Reads tar: ustar, GNU and PAX, and refuses what readers disagree on.
//!
//! Knows nothing of layers: names and targets are handed on as found.

mod entries;
mod files;
mod header;
mod pax;
mod source;

pub(crate) use entries::{Entries, Entry, EntryKind};
pub use files::{TarFile, TarFiles};

/// Seconds since 1970 and nanoseconds, the latter always counting forwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}
