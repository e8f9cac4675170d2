//! Bodies on the wire: how far one goes, and how it is written anew
//! (RFC 9112 §6 and §7).

use std::ops::Range;

use crate::h1::fields::{self, Kind};

/// Of a chunk's size line, extensions included.
const LINE_BYTES_MAX: usize = 1024;
/// Of a trailer section: as much as hyper reads at the other ends.
const TRAILER_BYTES_MAX: usize = 16 * 1024;
const TRAILERS_MAX: usize = 32;

/// A body that cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("a chunk's size is not a hexadecimal number")]
    Size,
    #[error("a chunk does not end where its size says")]
    End,
    #[error("a chunk's extensions are too long")]
    Extensions,
    #[error("the trailers are malformed or too large")]
    Trailers,
}

/// How far a body that is read goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoder {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunk),
    /// Until the connection ends.
    UntilEnd,
    Ended,
}

/// Where in a chunked body the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

/// What stands at the beginning of the bytes at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// After `skip` bytes of framing: `data` bytes of the body. They stay
    /// until [`Decoder::took`].
    Data { skip: usize, data: usize },
    /// After `skip` bytes of framing: nothing yet.
    More { skip: usize },
    /// The body has ended before byte `skip`. The trailers with their last
    /// line end, if there are any.
    End {
        skip: usize,
        trailers: Option<Range<usize>>,
    },
}

impl Decoder {
    pub(crate) const CHUNKED: Self = Self::Chunked(Chunk::Size);

    /// Nothing comes any more.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Ended)
    }

    /// Whether nothing comes behind so many bytes of data.
    pub(crate) fn is_last(&self, data: usize) -> bool {
        matches!(self, Self::Length(left) if *left == as_u64(data))
    }

    /// Looks at the bytes at hand. The caller takes `skip` of them away.
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let (skip, data) = match self {
            Self::Length(0) | Self::Ended => {
                *self = Self::Ended;
                let trailers = None;
                return Ok(Step::End { skip: 0, trailers });
            }
            Self::Length(left) => (0, at_most(*left, input.len())),
            Self::UntilEnd => (0, input.len()),
            Self::Chunked(_) => return self.step_chunked(input),
        };
        Ok(match data {
            0 => Step::More { skip },
            data => Step::Data { skip, data },
        })
    }

    /// So many bytes of data were taken away.
    pub(crate) fn took(&mut self, data: usize) {
        match self {
            Self::Length(left) => *left = left.saturating_sub(as_u64(data)),
            Self::Chunked(chunk) => {
                if let Chunk::Data(left) = chunk {
                    *left = left.saturating_sub(as_u64(data));
                    if *left == 0 {
                        *chunk = Chunk::DataEnd;
                    }
                }
            }
            Self::UntilEnd | Self::Ended => {}
        }
    }

    fn step_chunked(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let Self::Chunked(chunk) = self else {
            return Ok(Step::More { skip: 0 });
        };
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match chunk {
                Chunk::Size => match size_line(rest)? {
                    None => return Ok(Step::More { skip: at }),
                    Some((0, length)) => {
                        at += length;
                        *chunk = Chunk::Trailers;
                    }
                    Some((size, length)) => {
                        at += length;
                        *chunk = Chunk::Data(size);
                    }
                },
                Chunk::Data(left) => {
                    let data = at_most(*left, rest.len());
                    return Ok(match data {
                        0 => Step::More { skip: at },
                        data => Step::Data { skip: at, data },
                    });
                }
                Chunk::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        *chunk = Chunk::Size;
                    }
                    [] | [b'\r'] => return Ok(Step::More { skip: at }),
                    _ => return Err(BodyError::End),
                },
                Chunk::Trailers => {
                    let Some(length) = trailer_section(rest)? else {
                        return Ok(Step::More { skip: at });
                    };
                    *self = Self::Ended;
                    let end = at + length;
                    return Ok(Step::End {
                        skip: end,
                        trailers: (length > 2).then_some(at..end),
                    });
                }
            }
        }
    }
}

/// The size and the length of its line; `None` while the line is not whole.
fn size_line(input: &[u8]) -> Result<Option<(u64, usize)>, BodyError> {
    let window = &input[..input.len().min(LINE_BYTES_MAX)];
    let Some(end) = window.iter().position(|&b| b == b'\n') else {
        return match window.len() {
            LINE_BYTES_MAX => Err(BodyError::Extensions),
            _ => Ok(None),
        };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(BodyError::Size)?;
    let (size, extensions) = match line.iter().position(|&b| b == b';') {
        Some(at) => line.split_at(at),
        None => (line, &[][..]),
    };
    if extensions
        .iter()
        .any(|b| b.is_ascii_control() && *b != b'\t')
    {
        return Err(BodyError::Size);
    }
    let digits = size.trim_ascii_end();
    if digits.is_empty() || digits.len() > 16 {
        return Err(BodyError::Size);
    }
    let mut value = 0u64;
    for digit in digits {
        let digit = char::from(*digit).to_digit(16).ok_or(BodyError::Size)?;
        value = value << 4 | u64::from(digit);
    }
    Ok(Some((value, end + 1)))
}

/// The length of the section with the empty line that ends it.
fn trailer_section(input: &[u8]) -> Result<Option<usize>, BodyError> {
    match input {
        [b'\r', b'\n', ..] => return Ok(Some(2)),
        [] | [b'\r'] => return Ok(None),
        _ => {}
    }
    let window = &input[..input.len().min(TRAILER_BYTES_MAX)];
    match window.windows(4).position(|four| four == b"\r\n\r\n") {
        Some(at) => Ok(Some(at + 4)),
        None if window.len() == TRAILER_BYTES_MAX => Err(BodyError::Trailers),
        None => Ok(None),
    }
}

/// Appends data as one chunk.
pub(crate) fn put_chunk(out: &mut Vec<u8>, data: &[u8]) {
    put_hexadecimal(out, data.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the chunk that ends a body, and what may be said behind it.
pub(crate) fn put_end<'a>(out: &mut Vec<u8>, trailers: impl Iterator<Item = fields::Field<'a>>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        fields::put(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// The same for trailers as they came, of which only those pass that may.
pub(crate) fn put_end_of(out: &mut Vec<u8>, section: Option<&[u8]>) -> Result<(), BodyError> {
    match section {
        None => put_end(out, std::iter::empty()),
        Some(section) => trailers(section, |fields| put_end(out, fields))?,
    }
    Ok(())
}

/// Reads a trailer section, with the empty line that ends it, and lets those
/// fields through that may stand in one (RFC 9110 §6.5.1).
pub(crate) fn trailers<T>(
    section: &[u8],
    then: impl FnOnce(&mut dyn Iterator<Item = fields::Field<'_>>) -> T,
) -> Result<T, BodyError> {
    let mut headers = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(section, &mut headers) {
        Ok(httparse::Status::Complete((_, found))) => {
            let mut found = fields::of(found).filter(|(name, _)| may_trail(name));
            Ok(then(&mut found))
        }
        _ => Err(BodyError::Trailers),
    }
}

/// Not what frames, routes, authenticates or describes the message.
pub(crate) fn may_trail(name: &[u8]) -> bool {
    const NEVER: [&[u8]; 10] = [
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"max-forwards",
        b"proxy-authorization",
        b"set-cookie",
        b"trailer",
        b"www-authenticate",
    ];
    fields::kind(name) == Kind::Plain && !NEVER.iter().any(|n| n.eq_ignore_ascii_case(name))
}

fn put_hexadecimal(out: &mut Vec<u8>, mut value: usize) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[value & 15];
        value >>= 4;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn at_most(left: u64, count: usize) -> usize {
    usize::try_from(left).map_or(count, |left| left.min(count))
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
