//! A bounded, buffered reader that knows its place.

use std::io::{ErrorKind, Read};

use crate::error::{LayerError, Limit, Malformed};

const BUFFER_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Source<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes handed out so far.
    offset: u64,
    max_bytes: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R, max_bytes: u64) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self {
            reader,
            buffer,
            start: 0,
            end: 0,
            offset: 0,
            max_bytes,
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// What is buffered, at least one byte unless the stream has ended.
    pub(super) fn fill(&mut self) -> Result<&[u8], LayerError> {
        while self.start == self.end {
            match self.reader.read(&mut self.buffer) {
                Ok(0) => return Ok(&[]),
                Ok(count) => (self.start, self.end) = (0, count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(LayerError::Read {
                        offset: self.offset,
                        source,
                    });
                }
            }
            let buffered = u64::try_from(self.end).unwrap_or(u64::MAX);
            if self.offset.saturating_add(buffered) > self.max_bytes {
                return Err(LayerError::TooLarge {
                    limit: Limit::TarBytes,
                    bound: self.max_bytes,
                });
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Takes up to `most` bytes; none at the stream's end.
    pub(super) fn take(&mut self, most: u64) -> Result<&[u8], LayerError> {
        let available = self.fill()?.len();
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(available);
        let start = self.start;
        self.start += count;
        self.offset += u64::try_from(count).unwrap_or(u64::MAX);
        Ok(&self.buffer[start..start + count])
    }

    /// Fills `target`, or says how many bytes there were before the end.
    pub(super) fn read_up_to(&mut self, target: &mut [u8]) -> Result<usize, LayerError> {
        let mut filled = 0;
        while filled < target.len() {
            let wanted = u64::try_from(target.len() - filled).unwrap_or(u64::MAX);
            let chunk = self.take(wanted)?;
            if chunk.is_empty() {
                break;
            }
            target[filled..filled + chunk.len()].copy_from_slice(chunk);
            filled += chunk.len();
        }
        Ok(filled)
    }

    /// Passes over `count` bytes of the entry at `entry`.
    pub(super) fn skip(&mut self, mut count: u64, entry: u64) -> Result<(), LayerError> {
        while count > 0 {
            let passed = self.take(count)?.len();
            if passed == 0 {
                let problem = Malformed::Truncated;
                return Err(LayerError::Malformed {
                    offset: entry,
                    problem,
                });
            }
            count -= u64::try_from(passed).unwrap_or(count);
        }
        Ok(())
    }

    /// Reads to the end, so that who digests the stream sees all of it.
    pub(super) fn drain(&mut self) -> Result<(), LayerError> {
        while !self.take(u64::MAX)?.is_empty() {}
        Ok(())
    }
}
