//! Frames over a byte stream: each behind its length, a little-endian `u32`.

use serde::Serialize;

use crate::frame::{FRAME_BYTES_MAX, FrameError, encode};

const LENGTH_BYTES: usize = 4;

/// The message as a frame behind its length.
///
/// # Errors
/// When the message is over the limit.
pub fn framed<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let frame = encode(message)?;
    let length = u32::try_from(frame.len()).map_err(|_| FrameError::TooLong(frame.len()))?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(frame);
    Ok(bytes)
}

/// Puts the frames of a stream together. It holds no more than what has come
/// of one frame, and asks for no byte behind it: what follows a frame may be
/// anything.
#[derive(Debug)]
pub struct FrameReader {
    limit: usize,
    held: Vec<u8>,
}

impl FrameReader {
    /// For frames of at most `limit` bytes, [`FRAME_BYTES_MAX`] in any case.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(FRAME_BYTES_MAX),
            held: Vec::new(),
        }
    }

    /// How many bytes to read next; never none.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match self.announced() {
            None => LENGTH_BYTES - self.held.len(),
            Some(length) => LENGTH_BYTES + length - self.held.len(),
        }
    }

    /// Whether a frame has begun and is not whole.
    #[must_use]
    pub fn is_within(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes at most [`Self::wanted`] bytes that were read; the frame, once it
    /// is whole.
    ///
    /// # Errors
    /// When the length is none, over the limit, or less than what is given.
    /// The stream cannot be read any further.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, FrameError> {
        if bytes.len() > self.wanted() {
            return Err(FrameError::Trailing(bytes.len() - self.wanted()));
        }
        self.held.extend_from_slice(bytes);
        let Some(length) = self.announced() else {
            return Ok(None);
        };
        if length == 0 {
            return Err(FrameError::Empty);
        }
        if length > self.limit {
            return Err(FrameError::TooLong(length));
        }
        if self.held.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        let frame = self.held.split_off(LENGTH_BYTES);
        self.held = Vec::new();
        Ok(Some(frame))
    }

    fn announced(&self) -> Option<usize> {
        let (length, _) = self.held.split_first_chunk::<LENGTH_BYTES>()?;
        Some(usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;

    /// Every frame of the stream, read in pieces of at most `piece` bytes.
    fn read(mut stream: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        let mut frames = Vec::new();
        while !stream.is_empty() {
            let (now, later) = stream.split_at(reader.wanted().min(piece).min(stream.len()));
            stream = later;
            frames.extend(reader.push(now)?);
        }
        assert!(!reader.is_within());
        Ok(frames)
    }

    #[test]
    fn frames_are_put_together_whatever_the_pieces() {
        let messages = ["", "one", &"long".repeat(1000)].map(str::to_owned);
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|message| framed(message).unwrap())
            .collect();
        for piece in [1, 2, 3, 5, 64, 10_000] {
            let frames = read(&stream, piece).unwrap();
            let back: Vec<String> = frames.iter().map(|frame| decode(frame).unwrap()).collect();
            assert_eq!(back, messages);
        }
    }

    #[test]
    fn a_length_is_refused_before_anything_is_held_for_it() {
        let refused = |limit: usize, length: u32| {
            let mut reader = FrameReader::new(limit);
            reader.push(&length.to_le_bytes()).unwrap_err()
        };
        assert!(matches!(refused(16, 0), FrameError::Empty));
        assert!(matches!(refused(16, 17), FrameError::TooLong(17)));
        assert!(matches!(
            refused(usize::MAX, u32::MAX),
            FrameError::TooLong(_)
        ));
    }

    #[test]
    fn bytes_behind_a_frame_are_not_taken() {
        let mut reader = FrameReader::new(16);
        assert!(matches!(
            reader.push(&[1, 0, 0, 0, 1]),
            Err(FrameError::Trailing(1))
        ));
    }
}
