//! One 512-byte tar header.

use crate::error::Malformed;

use super::Timestamp;

pub(super) const BLOCK: usize = 512;
pub(super) type Block = [u8; BLOCK];

/// A header's fields as they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) type_flag: u8,
    pub(super) size: u64,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) major: u32,
    pub(super) minor: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Gnu,
    Ustar,
    /// Schily's, whose prefix is shorter.
    Star,
}

impl Header {
    pub(super) fn parse(block: &Block) -> Result<Self, Malformed> {
        verify_checksum(block)?;
        let dialect = dialect(block);
        let mut name = text(&block[0..100]);
        let prefix = match dialect {
            Dialect::Ustar => text(&block[345..500]),
            Dialect::Star => text(&block[345..476]),
            Dialect::V7 | Dialect::Gnu => Vec::new(),
        };
        if !prefix.is_empty() {
            name = [prefix, name].join(&b'/');
        }
        let (major, minor) = match dialect {
            Dialect::V7 => (0, 0),
            _ => (
                field(&block[329..337], "major")?,
                field(&block[337..345], "minor")?,
            ),
        };
        let mode: u32 = field(&block[100..108], "mode")?;
        let seconds = number(&block[136..148]).ok_or(Malformed::Number("mtime"))?;
        Ok(Self {
            name,
            link: text(&block[157..257]),
            type_flag: block[156],
            size: field(&block[124..136], "size")?,
            mode: u16::try_from(mode & 0o7777).unwrap_or(0),
            uid: field(&block[108..116], "uid")?,
            gid: field(&block[116..124], "gid")?,
            mtime: Timestamp {
                seconds,
                nanoseconds: 0,
            },
            major,
            minor,
        })
    }
}

fn dialect(block: &Block) -> Dialect {
    match (&block[257..265], &block[508..512]) {
        (b"ustar  \0", _) => Dialect::Gnu,
        (magic, b"tar\0") if magic.starts_with(b"ustar\0") => Dialect::Star,
        (magic, _) if magic.starts_with(b"ustar\0") => Dialect::Ustar,
        _ => Dialect::V7,
    }
}

/// The sum of all bytes, its own field counted as spaces. Ancient writers
/// summed signed bytes.
fn verify_checksum(block: &Block) -> Result<(), Malformed> {
    let stored = number(&block[148..156]).ok_or(Malformed::Number("checksum"))?;
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (index, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&index) {
            b' '
        } else {
            *byte
        };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    if stored == unsigned || stored == signed {
        Ok(())
    } else {
        Err(Malformed::Checksum)
    }
}

fn text(field: &[u8]) -> Vec<u8> {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    field[..end].to_vec()
}

fn field<T: TryFrom<i64>>(bytes: &[u8], name: &'static str) -> Result<T, Malformed> {
    number(bytes)
        .and_then(|value| T::try_from(value).ok())
        .ok_or(Malformed::Number(name))
}

/// Octal digits padded with spaces and NULs, or, when the first bit is set,
/// a big-endian two's complement number.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    let negative = first & 0x40 != 0;
    let top = if negative { first | 0x80 } else { first & 0x7f };
    let mut value = i64::from(top.cast_signed());
    for byte in rest {
        value = value.checked_mul(256)?.checked_add(i64::from(*byte))?;
    }
    Some(value)
}

fn octal(field: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !padding(byte))
        .unwrap_or(field.len());
    let end = field
        .iter()
        .rposition(|byte| !padding(byte))
        .map_or(start, |last| last + 1);
    let mut value = 0_i64;
    for digit in &field[start..end] {
        let digit = char::from(*digit).to_digit(8)?;
        value = value.checked_mul(8)?.checked_add(i64::from(digit))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let check = |field: &[u8], expect| assert_eq!(number(field), expect, "{field:x?}");
        check(b"0000644\0", Some(0o644));
        check(b"   644 \0", Some(0o644));
        check(b"77777777777 ", Some(0o77_777_777_777));
        check(b"\0\0\0\0", Some(0));
        check(b"        ", Some(0));
        check(b"0000648\0", None);
        check(b"-000644\0", None);
        check(b"64\x004\0", None);
        check(&[0x80, 0, 0, 0, 0, 1, 0, 0], Some(65_536));
        check(&[0xff, 0xff, 0xff, 0xff], Some(-1));
        check(&[0xff, 0xff, 0xff, 0xfe], Some(-2));
        check(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None);
    }

    fn block(edit: impl FnOnce(&mut Block)) -> Block {
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(b"name");
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[156] = b'0';
        edit(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    #[test]
    fn prefixes_count_only_where_the_dialect_has_them() {
        let named = |magic: &[u8; 8]| {
            let header = Header::parse(&block(|block| {
                block[257..265].copy_from_slice(magic);
                block[345..348].copy_from_slice(b"dir");
            }));
            String::from_utf8(header.unwrap().name).unwrap()
        };
        assert_eq!(named(b"ustar\x0000"), "dir/name");
        assert_eq!(named(b"ustar  \0"), "name");
        assert_eq!(named(b"\0\0\0\0\0\0\0\0"), "name");
    }

    #[test]
    fn a_flipped_bit_breaks_the_checksum() {
        let mut block = block(|_| {});
        assert!(Header::parse(&block).is_ok());
        block[0] ^= 1;
        assert_eq!(Header::parse(&block), Err(Malformed::Checksum));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let negative = block(|block| block[124..136].fill(0xff));
        assert_eq!(Header::parse(&negative), Err(Malformed::Number("size")));
        let large = block(|block| block[108..116].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]));
        assert_eq!(Header::parse(&large), Err(Malformed::Number("uid")));
    }
}
