use std::collections::BTreeSet;
use std::path::Path;

use skiff_types::Digest;

use crate::error::ImageError;

use super::file::{entries, remove, sync_folder};
use super::lock::Mode;
use super::{ImageStore, SavedImage};

/// Which images a collection takes; never one that is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Collect {
    /// Those that no reference names.
    #[default]
    Unnamed,
    /// All that are not in use.
    Unused,
}

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images, by their manifests.
    pub images: Vec<Digest>,
    /// Layers that no remaining image has.
    pub layers: usize,
    /// What all that took on disk, bytes.
    pub bytes: u64,
}

impl ImageStore {
    /// Removes images that are not in use, and content that no image has.
    /// Waits for pulls and imports, and they for it.
    ///
    /// `in_use` are manifests that something is pinned to, and code that
    /// something is made of.
    ///
    /// # Errors
    /// A pull does not end in time, or the store holds what cannot be read:
    /// then nothing is removed.
    pub async fn prune(&self, in_use: &[Digest], collect: Collect) -> Result<Pruned, ImageError> {
        let in_use: BTreeSet<Digest> = in_use.iter().cloned().collect();
        let lock = self.lock(Mode::Exclusive).await?;
        self.blocking(move |store| {
            let _held = &lock;
            store.prune_locked(&in_use, collect)
        })
        .await
    }

    /// Names go first and content last: a crash in between leaves content
    /// without a name, which the next collection takes.
    fn prune_locked(
        &self,
        in_use: &BTreeSet<Digest>,
        collect: Collect,
    ) -> Result<Pruned, ImageError> {
        let images = self.saved_images()?;
        let references = self.saved_references()?;
        let named: BTreeSet<&Digest> = references.iter().map(|(_, saved)| &saved.digest).collect();
        let stays = |image: &SavedImage| {
            in_use.contains(&image.digest)
                || (collect == Collect::Unnamed && named.contains(&image.digest))
        };
        let (kept, gone): (Vec<_>, Vec<_>) = images.iter().partition(|image| stays(image));
        let gone: BTreeSet<&Digest> = gone.iter().map(|image| &image.digest).collect();
        for (path, saved) in &references {
            if gone.contains(&saved.digest) {
                remove(path)?;
            }
        }
        sync_folder(&self.layout.references())?;
        let mut pruned = Pruned {
            images: gone.iter().map(|digest| (*digest).clone()).collect(),
            ..Pruned::default()
        };
        for digest in gone {
            pruned.bytes += take(&self.layout.image(digest))?;
        }
        sync_folder(&self.layout.images())?;
        self.prune_content(&kept, &mut pruned)?;
        self.prune_code(in_use, &mut pruned)?;
        Ok(pruned)
    }

    fn prune_content(&self, kept: &[&SavedImage], pruned: &mut Pruned) -> Result<(), ImageError> {
        let layers: BTreeSet<&str> = kept
            .iter()
            .flat_map(|image| image.layers.iter().map(Digest::hex))
            .collect();
        for path in entries(&self.layout.layers())? {
            if !layers.contains(stem(&path)) {
                pruned.bytes += take(&path)?;
                pruned.layers += usize::from(path.extension().is_some_and(|e| e == "erofs"));
            }
        }
        let blobs: BTreeSet<&str> = kept
            .iter()
            .flat_map(|image| [image.digest.hex(), image.config_digest.hex()])
            .collect();
        for path in entries(&self.layout.blobs())? {
            if !blobs.contains(stem(&path)) {
                pruned.bytes += take(&path)?;
            }
        }
        // Nobody writes while this holds the lock: all of it is left over.
        for path in entries(&self.layout.ingest())? {
            pruned.bytes += take(&path)?;
        }
        Ok(())
    }
}

impl ImageStore {
    /// Code that nothing uses; what it became goes before it.
    fn prune_code(&self, in_use: &BTreeSet<Digest>, pruned: &mut Pruned) -> Result<(), ImageError> {
        let used: BTreeSet<&str> = in_use.iter().map(Digest::hex).collect();
        for path in entries(&self.layout.code_folder())? {
            let name = stem(&path).split('-').next().unwrap_or_default();
            if !used.contains(name) {
                pruned.bytes += take(&path)?;
            }
        }
        Ok(())
    }
}

fn stem(path: &Path) -> &str {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("")
}

/// Removes a file and says what it took.
fn take(path: &Path) -> Result<u64, ImageError> {
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    remove(path)?;
    Ok(bytes)
}
