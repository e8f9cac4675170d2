//! What a caller may choose, and what it learns.

use std::collections::BTreeMap;

/// Bytes of a layer's tar stream, and of the image made from it.
pub const DEFAULT_MAX_BYTES: u64 = 32 << 30;
/// Entries of a layer, directories the tar takes for granted included.
pub const DEFAULT_MAX_ENTRIES: u64 = 1_000_000;
/// Memory for names, attributes, link targets and extended attributes.
pub const DEFAULT_MAX_METADATA_BYTES: u64 = 384 << 20;
/// The longest file whose content is captured.
pub const MAX_CAPTURED_BYTES: u64 = 1 << 20;
/// How many implied directories are reported by name.
pub const MAX_IMPLIED_REPORTED: usize = 1024;

/// Bounds on a layer, and what to remember of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerOptions {
    /// Longest tar stream read, and longest image written.
    pub max_bytes: u64,
    /// Most entries, directories the tar takes for granted included.
    pub max_entries: u64,
    /// Most memory used for the tree, all entries ever made counted.
    pub max_metadata_bytes: u64,
    /// Refuse a stream that ends between two entries without the end marker.
    /// POSIX demands the marker, but some builders leave it out and other
    /// engines don't mind; who verifies the stream's digest may say `false`.
    pub require_end_marker: bool,
    /// Paths, relative to the layer's root, to report the final state of. The
    /// image file must then be open for reading too.
    pub capture: Vec<String>,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self {
            max_bytes: DEFAULT_MAX_BYTES,
            max_entries: DEFAULT_MAX_ENTRIES,
            max_metadata_bytes: DEFAULT_MAX_METADATA_BYTES,
            require_end_marker: true,
            capture: Vec::new(),
        }
    }
}

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerReport {
    /// Length of the image.
    pub bytes: u64,
    /// Tar entries read.
    pub entries: u64,
    /// Final state of the wanted paths this layer speaks of; a path it leaves
    /// to the layers below is absent.
    pub captured: BTreeMap<String, Captured>,
    /// The layer hides everything below it. Overlayfs always merges roots, so
    /// the caller must leave the lower layers out.
    pub opaque_root: bool,
    /// Directories the tar has entries in but none for, made 0755 and root's,
    /// nearest to the root first, at most [`MAX_IMPLIED_REPORTED`]. Where a
    /// lower layer has one of them, this layer hides its attributes.
    pub implied_directories: Vec<String>,
    /// How many there are in all.
    pub implied_count: u64,
    /// Extended attributes left out: `trusted.*` and all others an image has
    /// no business setting.
    pub dropped_xattrs: u64,
}

/// A captured path's state in this layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Captured {
    /// A regular file with this content.
    File(Vec<u8>),
    /// A regular file longer than [`MAX_CAPTURED_BYTES`].
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// A symbolic link, or a path whose named parent is one.
    Symlink {
        /// The link's own path.
        link: String,
        /// Where it points.
        target: Vec<u8>,
    },
    /// The layer hides whatever lower layers have here.
    Whiteout,
    /// A directory, device or pipe.
    Other,
}
