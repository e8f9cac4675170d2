//! The header of a bzImage (`Documentation/x86/boot.rst`). Its bytes are
//! hostile.

/// Where the header's fields are.
const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The first version whose header says where the payload is.
const FIRST_VERSION: u16 = 0x0208;
const SECTOR: usize = 512;
/// What no sectors means.
const DEFAULT_SETUP_SECTORS: usize = 4;
/// The largest kernel that is unpacked.
const MAX_UNPACKED_BYTES: u32 = 512 << 20;
/// The build appends the unpacked length to the payload.
const LENGTH_BYTES: usize = 4;

/// What is wrong with a header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// It ends early.
    #[error("it ends within its header")]
    Short,
    /// It is something else.
    #[error("it has no boot sector of a kernel")]
    Magic,
    /// It is older than Linux 2.6.24.
    #[error("its boot protocol is {0:#x}, and {FIRST_VERSION:#x} is the first with a payload")]
    Version(u16),
    /// The payload is not in the file.
    #[error("its payload, {length} bytes at {offset}, is outside of it")]
    Payload {
        /// Where it begins.
        offset: usize,
        /// Its length.
        length: usize,
    },
    /// It says it is larger than any kernel.
    #[error("its payload has {0} bytes unpacked, and {MAX_UNPACKED_BYTES} is the most")]
    Large(u32),
}

/// What matters of a bzImage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BzImage<'a> {
    /// The compressed ELF file, with what the build appends.
    pub(super) payload: &'a [u8],
    /// How long it is unpacked.
    pub(super) unpacked_bytes: u32,
}

impl<'a> BzImage<'a> {
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, HeaderError> {
        if u16_at(image, BOOT_FLAG)? != 0xaa55 || u32_at(image, MAGIC)? != 0x5372_6448 {
            return Err(HeaderError::Magic);
        }
        let version = u16_at(image, VERSION)?;
        if version < FIRST_VERSION {
            return Err(HeaderError::Version(version));
        }
        let sectors = match array_at(image, SETUP_SECTORS)? {
            [0] => DEFAULT_SETUP_SECTORS,
            [sectors] => usize::from(sectors),
        };
        // These are numbers of 32 bits, whose sum a usize holds.
        let offset = (sectors + 1) * SECTOR + length_at(image, PAYLOAD_OFFSET)?;
        let length = length_at(image, PAYLOAD_LENGTH)?;
        let payload = image
            .get(offset..)
            .and_then(|rest| rest.get(..length))
            .ok_or(HeaderError::Payload { offset, length })?;
        let tail = length
            .checked_sub(LENGTH_BYTES)
            .ok_or(HeaderError::Payload { offset, length })?;
        let unpacked_bytes = u32_at(payload, tail)?;
        if unpacked_bytes > MAX_UNPACKED_BYTES {
            return Err(HeaderError::Large(unpacked_bytes));
        }
        Ok(Self {
            payload,
            unpacked_bytes,
        })
    }

    /// The payload without what the build appends. A gzip stream ends with
    /// the same number by itself, and is read to its own end.
    pub(super) fn compressed(&self) -> &'a [u8] {
        let end = self.payload.len() - LENGTH_BYTES;
        self.payload.get(..end).unwrap_or_default()
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], HeaderError> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or(HeaderError::Short)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, HeaderError> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, HeaderError> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn length_at(bytes: &[u8], at: usize) -> Result<usize, HeaderError> {
    u32_at(bytes, at).map(|length| usize::try_from(length).unwrap_or(usize::MAX))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bzImage with this payload.
    pub(in super::super) fn image(compressed: &[u8], unpacked: usize) -> Vec<u8> {
        let mut bytes = vec![0; 2 * SECTOR + 0x100];
        bytes[SETUP_SECTORS] = 1;
        bytes[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        bytes[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        bytes[VERSION..VERSION + 2].copy_from_slice(&[0x0f, 0x02]);
        bytes[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&0x100_u32.to_le_bytes());
        let length = u32::try_from(compressed.len() + 4).unwrap();
        bytes[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        bytes.extend(compressed);
        bytes.extend(u32::try_from(unpacked).unwrap().to_le_bytes());
        bytes
    }

    #[test]
    fn the_payload_is_found() {
        let image = image(b"payload", 1234);
        let parsed = BzImage::parse(&image).unwrap();
        assert_eq!(parsed.compressed(), b"payload");
        assert_eq!(parsed.unpacked_bytes, 1234);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = image(b"payload", 7);
        let change = |at: usize, bytes: &[u8]| {
            let mut image = good.clone();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            BzImage::parse(&image).unwrap_err()
        };
        assert_eq!(BzImage::parse(&[]), Err(HeaderError::Short));
        assert_eq!(BzImage::parse(&good[..0x200]), Err(HeaderError::Short));
        assert_eq!(change(BOOT_FLAG, &[0]), HeaderError::Magic);
        assert_eq!(change(MAGIC, b"hdrs"), HeaderError::Magic);
        assert_eq!(change(VERSION, &[7, 2]), HeaderError::Version(0x207));
        assert!(matches!(
            change(PAYLOAD_OFFSET, &[0xff; 4]),
            HeaderError::Payload { .. }
        ));
        assert!(matches!(
            change(PAYLOAD_LENGTH, &[0xff; 4]),
            HeaderError::Payload { .. }
        ));
        assert!(matches!(
            change(PAYLOAD_LENGTH, &[3, 0, 0, 0]),
            HeaderError::Payload { length: 3, .. }
        ));
        let end = good.len() - 4;
        assert_eq!(change(end, &[0xff; 4]), HeaderError::Large(u32::MAX));
    }

    proptest! {
        #[test]
        fn no_change_of_a_header_panics(
            changes in prop::collection::vec((0x1f0_usize..0x270, any::<u8>()), 0..8),
            length in 0_usize..0x600,
        ) {
            let mut image = image(b"payload", 7);
            for (at, value) in changes {
                image[at] = value;
            }
            image.truncate(length);
            if let Ok(parsed) = BzImage::parse(&image) {
                prop_assert!(parsed.compressed().len() < image.len());
            }
        }
    }
}
