//! What the store remembers of an image and of a layer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skiff_types::Digest;

use crate::config::ImageConfig;
use crate::platform::Platform;

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// References that name it, complete and sorted.
    pub references: Vec<String>,
    /// Its manifest, of one platform: what a revision is pinned to.
    pub digest: Digest,
    /// What it is made for.
    pub platform: Platform,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// The layers to mount, lowest first, by the digests of their tars: names
    /// for [`crate::ImageStore::layer_path`]. Layers below one that hides
    /// everything are left out.
    pub layers: Vec<Digest>,
    /// Its EROFS layers on disk, bytes; shared ones count in each image.
    pub size_bytes: u64,
    /// When it came into the store, milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// `images/HEX.json`: an image without its references.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedImage {
    pub digest: Digest,
    /// The blob with the configuration.
    pub config_digest: Digest,
    pub platform: Platform,
    pub config: ImageConfig,
    pub layers: Vec<Digest>,
    pub size_bytes: u64,
    pub created_unix_ms: u64,
}

/// `references/HEX.json`, HEX being a hash of reference and platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedReference {
    pub reference: String,
    pub platform: Platform,
    pub digest: Digest,
}

/// `layers/HEX.json`, beside the EROFS file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedLayer {
    /// The EROFS file, bytes.
    pub size_bytes: u64,
    /// The tar that it was made of, bytes.
    pub tar_bytes: u64,
    /// It hides all layers below it.
    pub opaque_root: bool,
    /// What it says of the files that users are looked up in, by path.
    pub captured: BTreeMap<String, SavedFile>,
}

/// A file of a layer that the host has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SavedFile {
    /// Its text; what is not UTF-8 was replaced.
    Text(String),
    /// The layer removes it.
    Removed,
    /// It cannot be read here, and this is why.
    Unreadable(String),
}

impl SavedImage {
    pub fn with_references(self, mut references: Vec<String>) -> ImageRecord {
        references.sort();
        references.dedup();
        ImageRecord {
            references,
            digest: self.digest,
            platform: self.platform,
            config: self.config,
            layers: self.layers,
            size_bytes: self.size_bytes,
            created_unix_ms: self.created_unix_ms,
        }
    }
}
