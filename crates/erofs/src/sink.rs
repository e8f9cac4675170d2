//! The image file, written front to back in large pieces.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use crate::disk::BLOCK_BYTES;
use crate::error::{LayerError, Limit};
use crate::fingerprint::Fingerprint;

/// Large enough to make few calls, small enough to stay in a core's cache.
const BUFFER_BYTES: usize = 256 << 10;
/// Block numbers have 32 bits.
const MAX_IMAGE_BYTES: u64 = (u32::MAX as u64) * (BLOCK_BYTES as u64);

#[derive(Debug)]
pub(crate) struct Sink<'a> {
    file: &'a mut File,
    buffer: Vec<u8>,
    /// Bytes in the file, those in `buffer` left out.
    written: u64,
    max_bytes: u64,
    fingerprint: Fingerprint,
}

impl<'a> Sink<'a> {
    /// Empties `file`, and leaves room for the superblock's block.
    pub(crate) fn new(file: &'a mut File, max_bytes: u64) -> Result<Self, LayerError> {
        file.set_len(0).map_err(LayerError::Write)?;
        file.seek(SeekFrom::Start(0)).map_err(LayerError::Write)?;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        buffer.resize(BLOCK_BYTES, 0);
        let max_bytes = max_bytes.min(MAX_IMAGE_BYTES);
        Ok(Self {
            file,
            buffer,
            written: 0,
            max_bytes,
            fingerprint: Fingerprint::new(),
        })
    }

    pub(crate) fn position(&self) -> u64 {
        self.written
            .saturating_add(u64::try_from(self.buffer.len()).unwrap_or(u64::MAX))
    }

    /// The number of the block that begins here. Positions are bounded so
    /// that it fits.
    pub(crate) fn block(&self) -> u32 {
        let block = self.position() / u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX);
        u32::try_from(block).unwrap_or(u32::MAX)
    }

    /// Fails early where `bytes` more won't fit.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), LayerError> {
        if self.position().saturating_add(bytes) > self.max_bytes {
            let bound = self.max_bytes;
            return Err(LayerError::TooLarge {
                limit: Limit::ImageBytes,
                bound,
            });
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        self.reserve(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        while !bytes.is_empty() {
            let room = BUFFER_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Pads with zeros up to a multiple of `step`, a divisor of the block
    /// size.
    pub(crate) fn align(&mut self, step: usize) -> Result<(), LayerError> {
        // The buffer always begins on a block, so its length tells.
        let length = self.buffer.len().next_multiple_of(step);
        self.buffer.resize(length, 0);
        if length >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), LayerError> {
        self.file
            .write_all(&self.buffer)
            .map_err(LayerError::Write)?;
        self.fingerprint.update(&self.buffer);
        self.written = self.position();
        self.buffer.clear();
        Ok(())
    }

    /// A sum of everything flushed.
    pub(crate) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Overwrites what was flushed.
    pub(crate) fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), LayerError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(LayerError::Write)
    }

    pub(crate) fn file(&self) -> &File {
        self.file
    }
}
