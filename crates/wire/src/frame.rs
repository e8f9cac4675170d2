use serde::Serialize;
use serde::de::DeserializeOwned;

/// The protocol's version: a frame of another one is refused.
pub const VERSION: u8 = 1;
/// Bytes of one frame. An environment and arguments at their limits, twice, fit.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Descriptors beside one frame.
pub const FRAME_FDS_MAX: usize = 64;

/// A frame cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It is longer than [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// It has no bytes.
    #[error("a frame is empty")]
    Empty,
    /// Its first byte is another version.
    #[error("the other side speaks version {0}, this one {VERSION}")]
    Version(u8),
    /// Its bytes are not the message.
    #[error("a frame does not hold the message that is due")]
    Malformed(#[source] postcard::Error),
    /// Bytes are left over behind the message.
    #[error("a frame has {0} bytes behind its message")]
    Trailing(usize),
}

/// The frame that carries this message.
///
/// # Errors
/// When the message is over the limit.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let frame = postcard::to_extend(message, vec![VERSION]).map_err(FrameError::Malformed)?;
    if frame.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(frame.len()));
    }
    Ok(frame)
}

/// The message that this frame carries.
///
/// # Errors
/// Whenever [`encode`] cannot have made it.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(frame.len()));
    }
    let (&version, body) = frame.split_first().ok_or(FrameError::Empty)?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let (message, rest) = postcard::take_from_bytes(body).map_err(FrameError::Malformed)?;
    if !rest.is_empty() {
        return Err(FrameError::Trailing(rest.len()));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back() {
        let frame = encode(&("hello".to_owned(), 7u32)).unwrap();
        assert_eq!(
            decode::<(String, u32)>(&frame).unwrap(),
            ("hello".to_owned(), 7)
        );
    }

    #[test]
    fn what_is_not_a_whole_frame_is_refused() {
        let frame = encode(&("hello".to_owned(), 7u32)).unwrap();
        let mut longer = frame.clone();
        longer.push(0);
        let mut other = frame.clone();
        other[0] = 9;
        type Message = (String, u32);
        assert!(matches!(
            decode::<Message>(&longer),
            Err(FrameError::Trailing(1))
        ));
        assert!(matches!(
            decode::<Message>(&other),
            Err(FrameError::Version(9))
        ));
        assert!(matches!(
            decode::<Message>(&frame[..3]),
            Err(FrameError::Malformed(_))
        ));
        assert!(matches!(decode::<Message>(&[]), Err(FrameError::Empty)));
        assert!(matches!(
            encode(&vec![0u8; FRAME_BYTES_MAX]),
            Err(FrameError::TooLong(_))
        ));
    }
}
