//! The plain files of a tar that is no layer.

use std::io::Read;

use crate::error::LayerError;

use super::{Entries, EntryKind};

/// Hands out the plain files of a tar, read as strictly as a layer's. Nothing
/// is made on the host's file system: what becomes of a name and a content is
/// the caller's to say.
#[derive(Debug)]
pub struct TarFiles<R>(Entries<R>);

/// A plain file in a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarFile {
    /// Its path as found; nothing in it has been judged.
    pub path: Vec<u8>,
    /// Bytes of content.
    pub size: u64,
}

impl<R: Read> TarFiles<R> {
    /// Reads at most so many bytes of tar, to its end marker.
    pub fn new(reader: R, max_bytes: u64) -> Self {
        Self(Entries::new(reader, max_bytes, true))
    }

    /// The next plain file, past what is left of the last one's content.
    ///
    /// # Errors
    /// When the stream fails, is no tar, or is too long.
    pub fn next_file(&mut self) -> Result<Option<TarFile>, LayerError> {
        while let Some(entry) = self.0.next()? {
            if entry.kind == EntryKind::File {
                return Ok(Some(TarFile {
                    path: entry.path,
                    size: entry.size,
                }));
            }
        }
        Ok(None)
    }

    /// The next piece of the file's content; empty at its end.
    ///
    /// # Errors
    /// When the stream fails or ends early.
    pub fn content(&mut self) -> Result<&[u8], LayerError> {
        self.0.content()
    }
}
