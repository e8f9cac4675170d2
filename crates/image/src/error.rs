use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skiff_types::{Digest, ErrorKind};

use crate::auth::CredentialsError;
use crate::code::CodeError;
use crate::document::DocumentError;
use crate::reference::ParseReferenceError;
use crate::registry::RegistryError;

/// Why an image could not be fetched, read, stored or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image's name cannot be one.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// Docker's configuration file cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A manifest, index or configuration cannot be used.
    #[error("image {image} cannot be used")]
    Document {
        /// The reference, digest or path.
        image: String,
        /// What is wrong with it.
        #[source]
        source: DocumentError,
    },
    /// The registry does not give the image.
    #[error("image {image} cannot be pulled")]
    Registry {
        /// The reference.
        image: String,
        /// What happened.
        #[source]
        source: RegistryError,
    },
    /// The content is not what its digest says.
    #[error("{what} is corrupt: its digest is {found}, {expected} was expected")]
    Corrupt {
        /// Which content.
        what: &'static str,
        /// What names it.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The content is longer or shorter than its descriptor says.
    #[error("{digest} is corrupt: it has {found} bytes, {expected} were expected")]
    Size {
        /// What names it.
        digest: Digest,
        /// What the descriptor says.
        expected: u64,
        /// What it has; at least this when it was cut off for being too long.
        found: u64,
    },
    /// A layer's tar cannot become a layer.
    #[error("layer {layer} cannot be used")]
    Layer {
        /// Its digest as it is fetched.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// A zip file of code cannot become a layer.
    #[error("the zip file {digest} cannot be used")]
    Code {
        /// Its SHA-256.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: CodeError,
    },
    /// A zip file of code is too long.
    #[error("the zip file is over {0} bytes")]
    CodeTooLarge(u64),
    /// The image is for another machine.
    #[error("the image is for {found}, not for {wanted}")]
    WrongPlatform {
        /// What was asked.
        wanted: String,
        /// What it is for.
        found: String,
    },
    /// What is to be imported is no image.
    #[error("{path} cannot be imported: {reason}")]
    NotAnImage {
        /// The file or folder; `-` is a stream.
        path: String,
        /// Why not.
        reason: String,
    },
    /// What is to be imported holds several images.
    #[error("{path} holds several images: choose one of {names}")]
    SeveralImages {
        /// The file or folder; `-` is a stream.
        path: String,
        /// Their names, behind commas.
        names: String,
    },
    /// The store does not have it.
    #[error("image {image} is not in the store")]
    NotFound {
        /// Reference or digest.
        image: String,
    },
    /// The image's user cannot be told.
    #[error("user `{user}` of image {digest} cannot be found: {reason}")]
    User {
        /// As it was asked.
        user: String,
        /// The image.
        digest: Digest,
        /// Why not.
        reason: String,
    },
    /// Another process holds the store.
    #[error("{path} is in use by another process: waited {waited:?}")]
    Busy {
        /// The lock.
        path: PathBuf,
        /// How long.
        waited: Duration,
    },
    /// The whole did not end in time.
    #[error("{what} took over {limit:?}")]
    Timeout {
        /// Pull or import, and of what.
        what: String,
        /// The bound.
        limit: Duration,
    },
    /// A file of the store cannot be used.
    #[error("{operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A record of the store was written by a newer version or damaged.
    #[error("{path} is not a record that this version reads")]
    Record {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A part of this program ended unexpectedly.
    #[error("{0}")]
    Internal(&'static str),
}

/// Why a layer's bytes cannot become a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The compressed stream is damaged.
    #[error("it cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// It does not end.
    #[error("its tar is over {0} bytes")]
    Bomb(u64),
    /// The tar cannot be used, or the file system not be written.
    #[error("its tar cannot be used")]
    Tar(#[source] skiff_erofs::LayerError),
}

impl ImageError {
    /// What kind of failure this is, for the API's answer.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Code {
                source: CodeError::Read(source) | CodeError::Write(source),
                ..
            } => match source.kind() {
                io::ErrorKind::StorageFull => ErrorKind::Exhausted,
                _ => ErrorKind::Internal,
            },
            Self::Reference(_)
            | Self::Credentials(_)
            | Self::SeveralImages { .. }
            | Self::Code { .. }
            | Self::CodeTooLarge(_) => ErrorKind::Invalid,
            Self::Layer {
                source: LayerError::Tar(skiff_erofs::LayerError::Write(source)),
                ..
            } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::Exhausted,
            Self::Document { .. }
            | Self::Corrupt { .. }
            | Self::Size { .. }
            | Self::Layer { .. }
            | Self::WrongPlatform { .. }
            | Self::NotAnImage { .. }
            | Self::User { .. } => ErrorKind::Failed,
            Self::Registry { source, .. } => source.kind(),
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Busy { .. } => ErrorKind::Unavailable,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::Exhausted
            }
            Self::Io { .. } | Self::Record { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn document(image: impl ToString) -> impl FnOnce(DocumentError) -> Self {
        let image = image.to_string();
        move |source| Self::Document { image, source }
    }
}
