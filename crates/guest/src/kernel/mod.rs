//! From a kernel's file to an ELF file that can be loaded.
//!
//! ```text
//! vmlinux ──────────────────────────────────────────────────▶ opened
//! bzImage ─▶ header ─▶ payload ─▶ unpacked into the cache ─▶ opened
//! ```
//!
//! A bzImage unpacks itself in the guest, at every boot and in every guest.
//! Here it is unpacked once on the host.

mod bzimage;
mod cache;
mod unpack;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bzimage::BzImage;
pub use bzimage::HeaderError;
pub use cache::{Cache, CacheError};
pub use unpack::UnpackError;

/// The largest kernel file.
const MAX_IMAGE_BYTES: u64 = 256 << 20;

const ELF_MAGIC: &[u8; 4] = b"\x7fELF";

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("the kernel {} cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than any kernel.
    #[error("the kernel {} is larger than {MAX_IMAGE_BYTES} bytes", .path.display())]
    Large {
        /// The file.
        path: PathBuf,
    },
    /// It is neither of the two.
    #[error("the kernel {} is no bzImage, and no ELF file either", .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: HeaderError,
    },
    /// Its payload cannot be unpacked.
    #[error("the kernel {} cannot be unpacked", .path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: UnpackError,
    },
    /// There is no place for what is unpacked.
    #[error("the unpacked kernel cannot be kept")]
    Cache(#[from] CacheError),
}

/// Opens a kernel as an ELF file. With a cache a bzImage is unpacked once;
/// without, each time, into memory.
///
/// # Errors
/// When it is none.
pub fn open(path: &Path, cache: Option<&Cache>) -> Result<File, KernelError> {
    let read = |source| KernelError::Read {
        path: path.to_owned(),
        source,
    };
    from_file(File::open(path).map_err(read)?, path, cache)
}

/// [`open`] for a file that is open, at its beginning. The path is for
/// messages.
///
/// # Errors
/// When it is no kernel.
pub fn from_file(mut file: File, path: &Path, cache: Option<&Cache>) -> Result<File, KernelError> {
    let read = |source| KernelError::Read {
        path: path.to_owned(),
        source,
    };
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(read)?;
    if &magic == ELF_MAGIC {
        return Ok(file);
    }
    let mut image = magic.to_vec();
    file.take(MAX_IMAGE_BYTES)
        .read_to_end(&mut image)
        .map_err(read)?;
    if image.len() as u64 > MAX_IMAGE_BYTES {
        return Err(KernelError::Large {
            path: path.to_owned(),
        });
    }
    match cache {
        Some(cache) => cache.get(&image, |target| unpack(path, &image, target)),
        None => {
            let mut file = cache::in_memory()?;
            unpack(path, &image, &mut file)?;
            Ok(file)
        }
    }
}

/// Unpacks an image to its ELF file; one that is an ELF file is copied.
/// `path` is what errors call it.
///
/// # Errors
/// When it is neither, or cannot be unpacked or written.
pub fn unpack(path: &Path, image: &[u8], target: &mut dyn Write) -> Result<(), KernelError> {
    let failed = |source| KernelError::Unpack {
        path: path.to_owned(),
        source,
    };
    if image.starts_with(ELF_MAGIC) {
        return target
            .write_all(image)
            .map_err(|source| failed(UnpackError::Write(source)));
    }
    let parsed = BzImage::parse(image).map_err(|source| KernelError::Header {
        path: path.to_owned(),
        source,
    })?;
    unpack::unpack(&parsed, target).map_err(failed)
}
