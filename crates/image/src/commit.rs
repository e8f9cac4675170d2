//! The last step of a pull and an import: an image whose layers are stored
//! gets its record and its names.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use skiff_types::Digest;

use crate::config::ConfigDocument;
use crate::document::{
    Descriptor, DocumentError, Manifest, OCI_CONFIG, OCI_LAYER_TAR, OCI_MANIFEST,
};
use crate::error::ImageError;
use crate::platform::Platform;
use crate::record::{ImageRecord, SavedImage, SavedLayer};
use crate::store::ImageStore;

/// The layers of an image that are in the store, by diff id.
pub(crate) type Layers = BTreeMap<Digest, SavedLayer>;

/// An image, proved, whose layers are stored.
pub(crate) struct Commit {
    pub digest: Digest,
    pub manifest: Vec<u8>,
    pub config_digest: Digest,
    pub config: Vec<u8>,
    pub parsed: ConfigDocument,
    pub layers: Layers,
    pub names: Vec<String>,
    /// As it was asked for: names are for it.
    pub platform: Platform,
}

impl Commit {
    /// Records the image. The caller holds the store's lock.
    pub fn run(self, store: &ImageStore) -> Result<ImageRecord, ImageError> {
        store.put_blob(&self.config_digest, &self.config)?;
        store.put_blob(&self.digest, &self.manifest)?;
        let mounted = mounted(self.parsed.diff_ids, &self.layers);
        let sizes = mounted
            .iter()
            .filter_map(|diff_id| self.layers.get(diff_id));
        let image = SavedImage {
            size_bytes: sizes.map(|saved| saved.size_bytes).sum(),
            layers: mounted,
            digest: self.digest,
            config_digest: self.config_digest,
            platform: self.parsed.platform,
            config: self.parsed.config,
            created_unix_ms: store.now_unix_ms(),
        };
        store.put_image(&image)?;
        store.put_names(&image.digest, &self.platform, &self.names)?;
        let missing = || ImageError::NotFound {
            image: image.digest.to_string(),
        };
        store.read_image(&image.digest)?.ok_or_else(missing)
    }
}

/// Reads a configuration that has to fit its manifest and the platform.
pub(crate) fn checked_config(
    image: &str,
    bytes: &[u8],
    layers: usize,
    wanted: &Platform,
) -> Result<ConfigDocument, ImageError> {
    let parsed = ConfigDocument::parse(bytes).map_err(ImageError::document(image))?;
    if parsed.diff_ids.len() != layers {
        let source = DocumentError::LayerCount {
            diff_ids: parsed.diff_ids.len(),
            layers,
        };
        return Err(ImageError::document(image)(source));
    }
    if wanted.rank(&parsed.platform).is_none() {
        return Err(ImageError::WrongPlatform {
            wanted: wanted.to_string(),
            found: parsed.platform.to_string(),
        });
    }
    Ok(parsed)
}

/// A manifest that describes layers as the tars that they are, and its digest.
pub(crate) fn manifest_of(
    parsed: &ConfigDocument,
    layers: &Layers,
    config_digest: &Digest,
    config_bytes: usize,
) -> Result<(Digest, Vec<u8>), ImageError> {
    let descriptor = |media_type: &str, digest: &Digest, size: u64| Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.clone(),
        size,
        platform: None,
        annotations: BTreeMap::new(),
    };
    let tars = parsed.diff_ids.iter().map(|diff_id| {
        let size = layers.get(diff_id).map_or(0, |saved| saved.tar_bytes);
        descriptor(OCI_LAYER_TAR, diff_id, size)
    });
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: descriptor(OCI_CONFIG, config_digest, config_bytes as u64),
        layers: tars.collect(),
    };
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|_| ImageError::Internal("a manifest could not be written"))?;
    Ok((digest_of(&bytes), bytes))
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// Refuses content that is not what names it.
pub(crate) fn check(
    what: &'static str,
    expected: &Digest,
    found: &Digest,
) -> Result<(), ImageError> {
    if expected == found {
        return Ok(());
    }
    Err(ImageError::Corrupt {
        what,
        expected: expected.clone(),
        found: found.clone(),
    })
}

/// From the topmost layer that hides everything below it upwards: overlayfs
/// merges the roots of its layers, whatever they say.
fn mounted(mut diff_ids: Vec<Digest>, layers: &Layers) -> Vec<Digest> {
    let hides = |diff_id: &Digest| layers.get(diff_id).is_some_and(|saved| saved.opaque_root);
    match diff_ids.iter().rposition(hides) {
        Some(lowest) => diff_ids.split_off(lowest),
        None => diff_ids,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_below_one_that_hides_everything_are_left_out() {
        let [a, b, c] = [1, 2, 3].map(|byte| Digest::from_sha256([byte; 32]));
        let layer = |opaque_root| SavedLayer {
            opaque_root,
            ..SavedLayer::default()
        };
        let of = |opaque: bool| {
            Layers::from([
                (a.clone(), layer(true)),
                (b.clone(), layer(opaque)),
                (c.clone(), layer(false)),
            ])
        };
        let all = vec![a.clone(), b.clone(), c.clone()];
        assert_eq!(mounted(all.clone(), &of(false)), all);
        assert_eq!(mounted(all, &of(true)), [b, c]);
    }
}
