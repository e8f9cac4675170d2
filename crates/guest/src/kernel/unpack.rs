//! A kernel's payload, unpacked. Its bytes are hostile: no more is written
//! than the header says, and no more is held than a block.

use std::io::{Read, Write};

use super::bzimage::BzImage;

const GZIP: &[u8] = &[0x1f, 0x8b];
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What kernels can be packed with besides.
const OTHERS: [(&[u8], &str); 3] = [
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "lzma"),
    (&[0x89, b'L', b'Z', b'O'], "lzo"),
];

/// A block of an LZ4 legacy frame, unpacked.
const LZ4_BLOCK: usize = 8 << 20;
/// The furthest that zstd may look back: 2^27 bytes, what the kernel's build
/// uses at most.
const ZSTD_WINDOW_LOG: u32 = 27;
/// The most that unpacking xz may hold: the kernel's build looks back 128 MiB.
const XZ_MEMORY_KIB: u32 = 160 << 10;
/// How much is moved at once.
const PIECE: usize = 64 << 10;

/// Why a payload cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Another way of packing.
    #[error("it is packed with {0}; gzip, LZ4, xz and zstd can be unpacked")]
    Method(&'static str),
    /// It is not what its first bytes say.
    #[error("its {method} stream is broken")]
    Broken {
        /// How it is packed.
        method: &'static str,
        /// What is wrong.
        #[source]
        source: std::io::Error,
    },
    /// Its length is another than its header says.
    #[error("it has {found} bytes or more unpacked, and its header says {said}")]
    Length {
        /// How long it is, at least.
        found: u64,
        /// What the header says.
        said: u32,
    },
    /// It cannot be written.
    #[error("it cannot be written")]
    Write(#[source] std::io::Error),
}

/// Unpacks to exactly the length that the header says.
pub(super) fn unpack(image: &BzImage<'_>, target: &mut dyn Write) -> Result<(), UnpackError> {
    let packed = image.compressed();
    let mut sink = Sink {
        target,
        written: 0,
        said: image.unpacked_bytes,
    };
    if packed.starts_with(LZ4_LEGACY) {
        lz4(
            packed.get(LZ4_LEGACY.len()..).unwrap_or_default(),
            &mut sink,
        )?;
    } else if packed.starts_with(ZSTD) {
        let stream = zstd::stream::read::Decoder::with_buffer(packed).and_then(|mut stream| {
            stream.window_log_max(ZSTD_WINDOW_LOG)?;
            Ok(stream.single_frame())
        });
        let stream = stream.map_err(broken("zstd"))?;
        copy(stream, "zstd", &mut sink)?;
    } else if packed.starts_with(XZ) {
        let stream = lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY_KIB);
        copy(stream, "xz", &mut sink)?;
    } else if packed.starts_with(GZIP) {
        // Its own end has the last four bytes.
        copy(
            flate2::bufread::GzDecoder::new(image.payload),
            "gzip",
            &mut sink,
        )?;
    } else {
        let other = OTHERS.iter().find(|(magic, _)| packed.starts_with(magic));
        return Err(UnpackError::Method(
            other.map_or("something unknown", |(_, name)| name),
        ));
    }
    sink.finish()
}

/// Takes no more than it was told.
struct Sink<'a> {
    target: &'a mut dyn Write,
    written: u64,
    said: u32,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let found = self.written + bytes.len() as u64;
        if found > u64::from(self.said) {
            return Err(UnpackError::Length {
                found,
                said: self.said,
            });
        }
        self.target.write_all(bytes).map_err(UnpackError::Write)?;
        self.written = found;
        Ok(())
    }

    fn finish(self) -> Result<(), UnpackError> {
        if self.written != u64::from(self.said) {
            return Err(UnpackError::Length {
                found: self.written,
                said: self.said,
            });
        }
        self.target.flush().map_err(UnpackError::Write)
    }
}

fn copy(
    mut stream: impl Read,
    method: &'static str,
    sink: &mut Sink<'_>,
) -> Result<(), UnpackError> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = stream.read(&mut piece).map_err(broken(method))?;
        if length == 0 {
            return Ok(());
        }
        sink.put(piece.get(..length).unwrap_or_default())?;
    }
}

/// A legacy frame is blocks of at most 8 MiB, each with its packed length in
/// front. Concatenated frames begin with the magic number again.
fn lz4(mut packed: &[u8], sink: &mut Sink<'_>) -> Result<(), UnpackError> {
    let short = || broken("LZ4")(std::io::ErrorKind::UnexpectedEof.into());
    let mut block = vec![0; LZ4_BLOCK];
    while !packed.is_empty() {
        let (length, rest) = packed.split_first_chunk().ok_or_else(short)?;
        packed = rest;
        if length == LZ4_LEGACY {
            continue;
        }
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (input, rest) = packed.split_at_checked(length).ok_or_else(short)?;
        packed = rest;
        let unpacked = lz4_flex::block::decompress_into(input, &mut block)
            .map_err(|error| broken("LZ4")(std::io::Error::other(error)))?;
        sink.put(block.get(..unpacked).unwrap_or_default())?;
    }
    Ok(())
}

fn broken(method: &'static str) -> impl Fn(std::io::Error) -> UnpackError {
    move |source| UnpackError::Broken { method, source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bzimage::tests::image;
    use super::*;

    fn content() -> Vec<u8> {
        (0..100_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect()
    }

    fn pack_lz4(content: &[u8]) -> Vec<u8> {
        let mut packed = LZ4_LEGACY.to_vec();
        for block in content.chunks(LZ4_BLOCK) {
            let block = lz4_flex::block::compress(block);
            packed.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            packed.extend(block);
        }
        packed
    }

    fn pack_gzip(content: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(content).unwrap();
        let mut packed = packed.finish().unwrap();
        // The image appends the length, which gzip has at its own end.
        packed.truncate(packed.len() - 4);
        packed
    }

    fn pack_zstd(content: &[u8]) -> Vec<u8> {
        zstd::encode_all(content, 1).unwrap()
    }

    /// As `scripts/xz_wrap.sh` of the kernel's build does.
    fn pack_xz(content: &[u8]) -> Vec<u8> {
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.prepend_pre_filter(lzma_rust2::filter::FilterType::BcjX86, 0);
        let mut packed = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        packed.write_all(content).unwrap();
        packed.finish().unwrap()
    }

    fn unpacked(packed: &[u8], said: usize) -> Result<Vec<u8>, UnpackError> {
        let image = image(packed, said);
        let parsed = BzImage::parse(&image).unwrap();
        let mut out = Vec::new();
        unpack(&parsed, &mut out).map(|()| out)
    }

    #[test]
    fn each_way_of_packing_is_unpacked() {
        let content = content();
        for pack in [pack_lz4, pack_gzip, pack_xz, pack_zstd] {
            let packed = pack(&content);
            assert_eq!(unpacked(&packed, content.len()).unwrap(), content);
        }
    }

    #[test]
    fn blocks_follow_each_other() {
        let content = vec![7; LZ4_BLOCK + 1000];
        let packed = pack_lz4(&content);
        assert_eq!(unpacked(&packed, content.len()).unwrap(), content);
    }

    #[test]
    fn another_length_than_the_header_says_is_refused() {
        let content = content();
        // A gzip stream's own length would be wrong as well.
        for pack in [pack_lz4, pack_xz, pack_zstd] {
            let packed = pack(&content);
            for said in [0, content.len() - 1, content.len() + 1] {
                let error = unpacked(&packed, said).unwrap_err();
                assert!(matches!(error, UnpackError::Length { .. }), "{error}");
            }
        }
    }

    #[test]
    fn other_ways_are_named() {
        for (magic, name) in OTHERS {
            let error = unpacked(magic, 10).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(unpacked(b"nothing", 10).is_err());
    }

    proptest! {
        #[test]
        fn no_change_of_a_stream_panics_or_grows(
            way in 0..4,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let content = &content()[..20_000];
            let mut packed = match way {
                0 => pack_lz4(content),
                1 => pack_gzip(content),
                2 => pack_xz(content),
                _ => pack_zstd(content),
            };
            for (at, value) in changes {
                let at = at.index(packed.len());
                packed[at] = value;
            }
            packed.truncate(4 + cut.index(packed.len() - 3));
            if let Ok(out) = unpacked(&packed, content.len()) {
                prop_assert_eq!(out.len(), content.len());
            }
        }
    }
}
