//! Why a layer was not written.

use std::fmt;
use std::io;

use thiserror::Error;

/// Why a layer was not written. The image file's content is then undefined.
#[derive(Debug, Error)]
pub enum LayerError {
    /// The caller's stream failed.
    #[error("cannot read the layer's tar stream at byte {offset}")]
    Read {
        /// Bytes read before.
        offset: u64,
        /// What the stream said.
        #[source]
        source: io::Error,
    },
    /// The image file failed.
    #[error("cannot write the layer's image")]
    Write(#[source] io::Error),
    /// The image file can't be read back for what was to be captured.
    #[error("cannot read back {path:?} from the layer's image")]
    Capture {
        /// The wanted path.
        path: String,
        /// What the file said.
        #[source]
        source: io::Error,
    },
    /// The stream is no tar, or an ambiguous one.
    #[error("tar entry at byte {offset}: {problem}")]
    Malformed {
        /// Where its header begins.
        offset: u64,
        /// What is wrong.
        problem: Malformed,
    },
    /// A well-formed entry asks for something a layer may not have.
    #[error("tar entry {path:?}: {problem}")]
    Refused {
        /// The entry's path, unprintable bytes replaced.
        path: String,
        /// What it asks for.
        problem: Refusal,
    },
    /// The layer is larger than the options allow.
    #[error("layer exceeds {bound} {limit}")]
    TooLarge {
        /// Which bound.
        limit: Limit,
        /// Its value.
        bound: u64,
    },
}

/// What is wrong with a tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The stream ends inside an entry.
    #[error("the stream is truncated")]
    Truncated,
    /// The stream ends without the two zero blocks.
    #[error("the end marker is missing")]
    NoEndMarker,
    /// One zero block, then more headers.
    #[error("a lone zero block stands between entries")]
    LoneZeroBlock,
    /// The header's sum differs.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// A numeric field can't be read.
    #[error("the header's {0} is not a number in range")]
    Number(&'static str),
    /// A type nobody unpacks.
    #[error("entry type {0:#04x} is not supported")]
    Type(u8),
    /// Sparse files, in any of their forms.
    #[error("sparse files are not supported")]
    Sparse,
    /// A directory, link or device that claims content.
    #[error("an entry that has no content claims a size")]
    UnexpectedContent,
    /// An extension header longer than anyone needs.
    #[error("an extension header is longer than {0} bytes")]
    ExtensionTooLong(u64),
    /// Extension headers with no entry behind them.
    #[error("an extension header has no entry")]
    DanglingExtension,
    /// The same extension twice for one entry.
    #[error("an extension header is repeated")]
    RepeatedExtension,
    /// A PAX record that doesn't parse.
    #[error("a PAX record is malformed")]
    PaxRecord,
    /// The same PAX key twice.
    #[error("a PAX record is repeated")]
    RepeatedPaxRecord,
    /// A PAX value that doesn't parse.
    #[error("the PAX record {0} has a bad value")]
    PaxValue(&'static str),
    /// A PAX size that contradicts the header's.
    #[error("the PAX size contradicts the header's size")]
    SizeMismatch,
    /// A global header that would rename or resize all entries.
    #[error("a global PAX header sets {0}")]
    GlobalPax(&'static str),
    /// A PAX and a GNU name that differ.
    #[error("the PAX name contradicts the GNU name")]
    NameMismatch,
}

/// What a layer may not ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// `..` in a path.
    #[error("the path has a .. component")]
    Traversal,
    /// No path at all.
    #[error("the path is empty")]
    EmptyPath,
    /// A NUL in a path or target.
    #[error("the path has a NUL byte")]
    Nul,
    /// A path component over 255 bytes.
    #[error("a path component is longer than 255 bytes")]
    NameTooLong,
    /// A path over 4,096 bytes.
    #[error("the path is longer than 4096 bytes")]
    PathTooLong,
    /// Too many components.
    #[error("the path has more than 256 components")]
    TooDeep,
    /// The root as a file or a link.
    #[error("the root is not a directory")]
    Root,
    /// An entry below a file, a device or a pipe of this layer.
    #[error("a parent of the path is not a directory")]
    ParentNotDirectory,
    /// Symbolic links without an end among the parents.
    #[error("the path's parents have too many symbolic links")]
    SymlinkLoop,
    /// A hard link to something that this layer hasn't had so far.
    #[error("the hard link's target is not in this layer")]
    LinkTargetMissing,
    /// A hard link to a directory.
    #[error("the hard link's target is a directory")]
    LinkTargetDirectory,
    /// An empty or overlong symbolic link.
    #[error("the symbolic link's target is empty or longer than 4095 bytes")]
    SymlinkTarget,
    /// A whiteout of nothing, or an entry below a whiteout.
    #[error("the whiteout's name is not valid")]
    WhiteoutName,
    /// A device number that Linux doesn't have.
    #[error("the device number is out of range")]
    Device,
    /// An attribute name or value that EROFS can't hold.
    #[error("an extended attribute is too long")]
    XattrTooLong,
}

/// A bound of [`crate::LayerOptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `max_bytes`, of the tar stream.
    TarBytes,
    /// `max_bytes`, of the image.
    ImageBytes,
    /// `max_entries`.
    Entries,
    /// `max_metadata_bytes`.
    MetadataBytes,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TarBytes => "bytes of tar stream",
            Self::ImageBytes => "bytes of image",
            Self::Entries => "entries",
            Self::MetadataBytes => "bytes of metadata",
        })
    }
}
