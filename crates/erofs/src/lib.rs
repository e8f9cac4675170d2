//! Turns one image layer, an already decompressed tar stream, into one
//! uncompressed EROFS image, in a single pass.
//!
//! File contents go straight to 4 KiB-aligned blocks as they arrive; the tree
//! is kept in memory and written behind them; the superblock comes last, so a
//! file without one is an unfinished image. Linux 6.1 and later mount the
//! result, alone or as a layer of an overlayfs: whiteouts of the OCI image
//! specification become overlayfs's own.
//!
//! It does not decompress, verify digests, sync or rename: its caller does.
//! It does not merge layers either, and so can't follow a symbolic link that
//! lies in a layer below; [`LayerReport::implied_directories`] tells which
//! directories the tar took for granted.
//!
//! Invariants:
//! - No tar entry ever touches the host's file system; paths resolve in the
//!   layer's own tree.
//! - No bytes of a tar make this crate panic or allocate beyond
//!   [`LayerOptions`]. What two tar readers would read differently is refused.
//! - The same tar makes the same bytes.
//!
//! Entry points: [`write_layer`] makes an image, [`check_superblock`] looks
//! cheaply whether a stored file is one. [`TarFiles`] reads a tar that is no
//! layer as strictly.

mod build;
mod capture;
mod disk;
mod error;
mod fingerprint;
mod layout;
mod options;
mod path;
mod sink;
mod superblock;
mod tar;
mod tree;
mod write;
mod xattr;

pub use build::write_layer;
pub use error::{LayerError, Limit, Malformed, Refusal};
pub use options::{
    Captured, DEFAULT_MAX_BYTES, DEFAULT_MAX_ENTRIES, DEFAULT_MAX_METADATA_BYTES, LayerOptions,
    LayerReport, MAX_CAPTURED_BYTES, MAX_IMPLIED_REPORTED,
};
pub use superblock::{ImageError, ImageInfo, check_superblock};
pub use tar::{TarFile, TarFiles};
