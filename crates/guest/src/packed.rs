//! What kernels' packages and modules are packed with.

use std::io::{self, BufReader, Read};

/// The most that unpacking xz may hold: its largest setting, `xz -9`, takes
/// 64 MiB and a little.
const XZ_MEMORY_KIB: u32 = 128 << 10;

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Xz,
    Zstd,
}

impl Packing {
    /// Takes the ending that tells it off a file's name.
    pub(crate) fn split(name: &str) -> (&str, Self) {
        const ENDINGS: [(&str, Packing); 3] = [
            (".gz", Packing::Gzip),
            (".xz", Packing::Xz),
            (".zst", Packing::Zstd),
        ];
        ENDINGS
            .into_iter()
            .find_map(|(ending, packing)| Some((name.strip_suffix(ending)?, packing)))
            .unwrap_or((name, Self::None))
    }

    /// What is in it.
    pub(crate) fn open<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let packed = BufReader::with_capacity(64 << 10, packed);
        Ok(match self {
            Self::None => Box::new(packed),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
                packed,
                true,
                XZ_MEMORY_KIB,
            )),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
        })
    }
}

/// Reads to the end, which must come within so many bytes.
pub(crate) fn read_bounded(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{gzip, xz, zstd};

    #[test]
    fn endings_tell_the_packing() {
        assert_eq!(Packing::split("a.ko.xz"), ("a.ko", Packing::Xz));
        assert_eq!(Packing::split("a.ko.zst"), ("a.ko", Packing::Zstd));
        assert_eq!(Packing::split("data.tar.gz"), ("data.tar", Packing::Gzip));
        assert_eq!(Packing::split("a.ko"), ("a.ko", Packing::None));
    }

    #[test]
    fn each_packing_is_unpacked_and_bounded() {
        let content: Vec<u8> = (0..200_000_u32)
            .flat_map(|n| (n / 9).to_le_bytes())
            .collect();
        for (packing, packed) in [
            (Packing::None, content.clone()),
            (Packing::Gzip, gzip(&content)),
            (Packing::Xz, xz(&content)),
            (Packing::Zstd, zstd(&content)),
        ] {
            let limit = content.len() as u64;
            let unpack = |limit| read_bounded(packing.open(&*packed).unwrap(), limit);
            assert_eq!(unpack(limit).unwrap(), content, "{packing:?}");
            let error = unpack(limit - 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{packing:?}");
        }
    }

    #[test]
    fn a_dictionary_over_the_limit_is_refused() {
        // The block header's dictionary size, at its largest: 4 GiB.
        let mut packed = xz(b"content");
        assert_eq!(packed[14..16], [0x21, 1], "LZMA2 is the only filter");
        packed[16] = 40;
        let crc = testing_crc32(&packed[12..20]);
        packed[20..24].copy_from_slice(&crc.to_le_bytes());
        let error = read_bounded(Packing::Xz.open(&*packed).unwrap(), 100).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }

    fn testing_crc32(bytes: &[u8]) -> u32 {
        bytes.iter().fold(!0_u32, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
            })
        }) ^ !0
    }

    proptest! {
        #[test]
        fn no_change_of_a_stream_panics_or_grows(
            way in 0..3,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let content: Vec<u8> = (0..4_000_u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
            let (packing, mut packed) = match way {
                0 => (Packing::Gzip, gzip(&content)),
                1 => (Packing::Xz, xz(&content)),
                _ => (Packing::Zstd, zstd(&content)),
            };
            for (at, value) in changes {
                let at = at.index(packed.len());
                packed[at] = value;
            }
            packed.truncate(cut.index(packed.len()) + 1);
            let limit = 20_000;
            if let Ok(bytes) = packing.open(&*packed).and_then(|open| read_bounded(open, limit)) {
                prop_assert!(bytes.len() as u64 <= limit);
            }
        }
    }
}
