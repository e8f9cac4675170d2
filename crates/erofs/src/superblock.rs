//! The superblock: written last, checked when a stored image is used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;

use crate::disk::BLOCK_BYTES;

pub(crate) const SUPERBLOCK_OFFSET: u64 = 1024;
/// What the checksum covers: the first block from the superblock on.
const CHECKED_BYTES: usize = BLOCK_BYTES - 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_BITS: u8 = 12;
/// Checksum present, times are modification times.
const COMPATIBLE_FEATURES: u32 = 0x1 | 0x2;

const AT_CHECKSUM: usize = 4;
const AT_BLOCK_BITS: usize = 12;
const AT_ROOT: usize = 14;
const AT_INODES: usize = 16;
const AT_BLOCKS: usize = 36;
const AT_INODE_BLOCK: usize = 40;
const AT_UUID: usize = 48;
const AT_INCOMPATIBLE: usize = 80;

/// `erofs_super_block`'s fields that we use; all others are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) root_slot: u16,
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) inode_block: u32,
    pub(crate) uuid: [u8; 16],
}

impl Superblock {
    pub(crate) fn encode(&self) -> [u8; CHECKED_BYTES] {
        let mut bytes = [0; CHECKED_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_le_bytes());
        put(8, &COMPATIBLE_FEATURES.to_le_bytes());
        put(AT_BLOCK_BITS, &[BLOCK_BITS]);
        put(AT_ROOT, &self.root_slot.to_le_bytes());
        put(AT_INODES, &self.inodes.to_le_bytes());
        put(AT_BLOCKS, &self.blocks.to_le_bytes());
        put(AT_INODE_BLOCK, &self.inode_block.to_le_bytes());
        put(AT_UUID, &self.uuid);
        let checksum = crc32c(&bytes);
        bytes[AT_CHECKSUM..AT_CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// What a stored image says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its length.
    pub bytes: u64,
    /// Files of all kinds in it.
    pub inodes: u64,
    /// Derived from its content.
    pub uuid: [u8; 16],
}

/// Why a file is not an image that this crate has finished.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file can't be read.
    #[error("cannot read the image")]
    Read(#[source] io::Error),
    /// The file is too short for a superblock, or has none.
    #[error("not an erofs image, or an unfinished one")]
    NotAnImage,
    /// The superblock was changed.
    #[error("the superblock's checksum is wrong")]
    Checksum,
    /// An image that somebody else wrote.
    #[error("the image uses features that skiff does not write")]
    Foreign,
    /// The file has another length than its superblock says.
    #[error("the image has {found} bytes instead of {expected}")]
    Length {
        /// By the superblock.
        expected: u64,
        /// The file's.
        found: u64,
    },
}

/// Checks that `file` is a whole image: magic, superblock checksum, format
/// and length. Reads one block, and so can't see damage further behind.
pub fn check_superblock(file: &File) -> Result<ImageInfo, ImageError> {
    let found = file.metadata().map_err(ImageError::Read)?.len();
    let mut bytes = [0; CHECKED_BYTES];
    match file.read_exact_at(&mut bytes, SUPERBLOCK_OFFSET) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ImageError::NotAnImage);
        }
        Err(error) => return Err(ImageError::Read(error)),
    }
    if bytes[..4] != MAGIC.to_le_bytes() {
        return Err(ImageError::NotAnImage);
    }
    let stored = u32::from_le_bytes(field(&bytes, AT_CHECKSUM));
    bytes[AT_CHECKSUM..AT_CHECKSUM + 4].fill(0);
    if stored != crc32c(&bytes) {
        return Err(ImageError::Checksum);
    }
    if bytes[AT_BLOCK_BITS] != BLOCK_BITS || field(&bytes, AT_INCOMPATIBLE) != [0; 4] {
        return Err(ImageError::Foreign);
    }
    let expected = u64::from(u32::from_le_bytes(field(&bytes, AT_BLOCKS))) << BLOCK_BITS;
    if found != expected {
        return Err(ImageError::Length { expected, found });
    }
    let inodes = u64::from_le_bytes(field(&bytes, AT_INODES));
    Ok(ImageInfo {
        bytes: found,
        inodes,
        uuid: field(&bytes, AT_UUID),
    })
}

fn field<const LENGTH: usize>(bytes: &[u8; CHECKED_BYTES], at: usize) -> [u8; LENGTH] {
    std::array::from_fn(|index| bytes[at + index])
}

/// CRC-32C as the kernel counts it here: all ones at the start, not inverted
/// at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        let index = usize::from(sum.to_le_bytes()[0] ^ byte);
        (sum >> 8) ^ CRC32C_TABLE[index]
    })
}

const CRC32C_TABLE: [u32; 256] = crc32c_table();

const fn crc32c_table() -> [u32; 256] {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0_u32; 256];
    let mut index = 0;
    let mut seed = 0_u32;
    while index < 256 {
        let mut sum = seed;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 {
                (sum >> 1) ^ REVERSED_POLYNOMIAL
            } else {
                sum >> 1
            };
            bit += 1;
        }
        table[index] = sum;
        index += 1;
        seed += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUPERBLOCK: Superblock = Superblock {
        root_slot: 2,
        inodes: 3,
        blocks: 2,
        inode_block: 1,
        uuid: [7; 16],
    };

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of the CRC catalogue, whose final inversion is undone.
        assert_eq!(crc32c(b"123456789"), !0xe306_9283);
    }

    fn check(edit: impl FnOnce(&mut Vec<u8>)) -> Result<ImageInfo, ImageError> {
        let mut bytes = vec![0; 2 * BLOCK_BYTES];
        bytes[1024..BLOCK_BYTES].copy_from_slice(&SUPERBLOCK.encode());
        edit(&mut bytes);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        check_superblock(&file)
    }

    #[test]
    fn only_whole_images_pass() {
        let info = check(|_| {}).unwrap();
        assert_eq!(
            info,
            ImageInfo {
                bytes: 8192,
                inodes: 3,
                uuid: [7; 16]
            }
        );
        assert!(matches!(
            check(|bytes| bytes.truncate(4000)),
            Err(ImageError::NotAnImage)
        ));
        assert!(matches!(
            check(|bytes| bytes[1024] = 0),
            Err(ImageError::NotAnImage)
        ));
        assert!(matches!(
            check(|bytes| bytes[1100] ^= 1),
            Err(ImageError::Checksum)
        ));
        assert!(matches!(
            check(|bytes| bytes[4095] ^= 1),
            Err(ImageError::Checksum)
        ));
        let short = check(|bytes| bytes.truncate(4096));
        assert!(matches!(
            short,
            Err(ImageError::Length {
                expected: 8192,
                found: 4096
            })
        ));
    }
}
