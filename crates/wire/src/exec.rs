//! The stream of a process that a client runs in an instance: what follows the
//! answer `101 Switching Protocols` to the admin API's `POST …/exec`.
//!
//! Made for clients in any language. A frame is a byte for its kind, its
//! payload's length as a big-endian `u32`, and the payload, at most
//! [`PAYLOAD_BYTES_MAX`]. Numbers are big-endian.
//!
//! | kind | from | payload |
//! |---|---|---|
//! | 0 | client | bytes for standard input |
//! | 1 | client | none: the input's end |
//! | 2 | client | `u16` columns, `u16` rows: the terminal's new size |
//! | 16 | server | bytes of standard output, or of the terminal |
//! | 17 | server | bytes of standard error |
//! | 18 | server | `u32`: so many bytes of input have been taken |
//! | 19 | server | `i32`: the process has exited with this code |
//! | 20 | server | `i32`: the process was ended by this signal |
//! | 21 | server | UTF-8: why there is no more to come |
//! | 22 | server | none: the connection is alive |
//!
//! A client has at most [`WINDOW_BYTES`] of input on the way that the server
//! has not taken. A frame of kind 19, 20 or 21 is the last one. The process
//! ends with its connection.

/// The word of the `Upgrade` header.
pub const PROTOCOL: &str = "skiff-exec";
/// Bytes of a frame before its payload.
pub const HEAD_BYTES: usize = 5;
/// Bytes of one payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of input that have been sent and not taken.
pub const WINDOW_BYTES: usize = 256 * 1024;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// For standard input.
    Input(Vec<u8>),
    /// Its end.
    InputEnd,
    /// The terminal's new size.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Of standard output, or of the terminal.
    Output(Vec<u8>),
    /// Of standard error.
    Errors(Vec<u8>),
    /// So many bytes of input have been taken.
    Taken(u32),
    /// The process has exited with this code.
    Exited(i32),
    /// The process was ended by this signal.
    Killed(i32),
    /// Why there is no more to come.
    Broken(String),
    /// The connection is alive.
    Alive,
}

/// A frame that cannot be read, or not be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecFrameError {
    /// Its payload is too long.
    #[error("a payload of {0} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    TooLong(usize),
    /// Its kind is not known, or its payload is not of its kind.
    #[error("a frame of kind {kind} with {length} bytes is not known")]
    Unknown {
        /// Its kind.
        kind: u8,
        /// Its payload's length.
        length: usize,
    },
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    kind: u8,
    /// Bytes of the payload that follows.
    pub length: usize,
}

impl Head {
    /// Reads it.
    ///
    /// # Errors
    /// When the payload would be too long.
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Self, ExecFrameError> {
        let [kind, length @ ..] = bytes;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > PAYLOAD_BYTES_MAX {
            return Err(ExecFrameError::TooLong(length));
        }
        Ok(Self { kind, length })
    }
}

impl Frame {
    /// The frame of this head and payload.
    ///
    /// # Errors
    /// When they are not of a kind that is known.
    pub fn decode(head: Head, payload: Vec<u8>) -> Result<Self, ExecFrameError> {
        let unknown = ExecFrameError::Unknown {
            kind: head.kind,
            length: payload.len(),
        };
        let four = <[u8; 4]>::try_from(&*payload);
        Ok(match (head.kind, four) {
            (0, _) => Self::Input(payload),
            (1, _) if payload.is_empty() => Self::InputEnd,
            (2, Ok([a, b, c, d])) => Self::Resize {
                columns: u16::from_be_bytes([a, b]),
                rows: u16::from_be_bytes([c, d]),
            },
            (16, _) => Self::Output(payload),
            (17, _) => Self::Errors(payload),
            (18, Ok(bytes)) => Self::Taken(u32::from_be_bytes(bytes)),
            (19, Ok(bytes)) => Self::Exited(i32::from_be_bytes(bytes)),
            (20, Ok(bytes)) => Self::Killed(i32::from_be_bytes(bytes)),
            (21, _) => Self::Broken(String::from_utf8(payload).map_err(|_| unknown)?),
            (22, _) if payload.is_empty() => Self::Alive,
            _ => return Err(unknown),
        })
    }

    /// The frame's bytes.
    ///
    /// # Errors
    /// When its payload is too long.
    pub fn encode(&self) -> Result<Vec<u8>, ExecFrameError> {
        let four;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Input(bytes) => (0, bytes),
            Self::InputEnd => (1, &[]),
            Self::Resize { columns, rows } => {
                let ([a, b], [c, d]) = (columns.to_be_bytes(), rows.to_be_bytes());
                four = [a, b, c, d];
                (2, &four)
            }
            Self::Output(bytes) => (16, bytes),
            Self::Errors(bytes) => (17, bytes),
            Self::Taken(count) => {
                four = count.to_be_bytes();
                (18, &four)
            }
            Self::Exited(code) => {
                four = code.to_be_bytes();
                (19, &four)
            }
            Self::Killed(signal) => {
                four = signal.to_be_bytes();
                (20, &four)
            }
            Self::Broken(why) => (21, why.as_bytes()),
            Self::Alive => (22, &[]),
        };
        let too_long = || ExecFrameError::TooLong(payload.len());
        let length = u32::try_from(payload.len()).map_err(|_| too_long())?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(too_long());
        }
        let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
        bytes.push(kind);
        bytes.extend(length.to_be_bytes());
        bytes.extend(payload);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Frame, ExecFrameError> {
        let (head, payload) = bytes.split_first_chunk::<HEAD_BYTES>().unwrap();
        Frame::decode(Head::parse(*head)?, payload.to_vec())
    }

    #[test]
    fn every_frame_reads_back() {
        for (frame, bytes) in [
            (Frame::Input(b"ab".to_vec()), &b"\x00\0\0\0\x02ab"[..]),
            (Frame::InputEnd, b"\x01\0\0\0\0"),
            (
                Frame::Resize {
                    columns: 80,
                    rows: 258,
                },
                b"\x02\0\0\0\x04\0\x50\x01\x02",
            ),
            (Frame::Output(vec![]), b"\x10\0\0\0\0"),
            (Frame::Errors(b"e".to_vec()), b"\x11\0\0\0\x01e"),
            (Frame::Taken(7), b"\x12\0\0\0\x04\0\0\0\x07"),
            (Frame::Exited(255), b"\x13\0\0\0\x04\0\0\0\xff"),
            (Frame::Killed(9), b"\x14\0\0\0\x04\0\0\0\x09"),
            (Frame::Broken("no".to_owned()), b"\x15\0\0\0\x02no"),
            (Frame::Alive, b"\x16\0\0\0\0"),
        ] {
            assert_eq!(frame.encode().unwrap(), bytes, "{frame:?}");
            assert_eq!(decode(bytes).unwrap(), frame);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            &b"\x01\0\0\0\x01a"[..],
            b"\x02\0\0\0\x03abc",
            b"\x03\0\0\0\0",
            b"\x12\0\0\0\0",
            b"\x15\0\0\0\x01\xff",
            b"\xff\0\0\0\0",
        ] {
            let error = decode(bytes).unwrap_err();
            assert!(matches!(error, ExecFrameError::Unknown { .. }), "{error}");
        }
        let long = Frame::Output(vec![0; PAYLOAD_BYTES_MAX + 1]);
        assert_eq!(long.encode(), Err(ExecFrameError::TooLong(65_537)));
        let head = Head::parse(*b"\x10\0\x01\0\x01");
        assert_eq!(head, Err(ExecFrameError::TooLong(65_537)));
        assert!(Head::parse(*b"\x10\0\x01\0\0").is_ok());
    }
}
