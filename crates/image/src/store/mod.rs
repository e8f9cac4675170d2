//! The content store: a folder that several processes use at once.
//!
//! Nothing is remembered between operations: the folder is the truth, and
//! each operation holds its lock, shared, or alone to collect.

pub(crate) mod file;
pub(crate) mod layout;
pub(crate) mod lock;
mod prune;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skiff_base::{Clock, SystemClock};
use skiff_types::Digest;

use crate::error::ImageError;
use crate::limits::{LOCK_TIMEOUT, PARTIAL_AGE_MAX, PULL_TIMEOUT};
use crate::platform::Platform;
use crate::record::{ImageRecord, SavedFile, SavedImage, SavedLayer, SavedReference};
use crate::reference::Reference;
use crate::user::{self, User};

use file::{TEMPORARY, entries, read_record, remove, sync_folder, write_record, write_whole};
use layout::Layout;
use lock::{Lock, Mode, Turn};

pub use prune::{Collect, Pruned};

/// The files that an image's users are looked up in.
pub(crate) const PASSWD: &str = "etc/passwd";
/// See [`PASSWD`].
pub(crate) const GROUP: &str = "etc/group";

/// The images and layers of one folder. Clones are handles of the same.
#[derive(Clone, Debug)]
pub struct ImageStore {
    layout: Arc<Layout>,
    clock: Arc<dyn Clock>,
}

impl ImageStore {
    /// Opens the store in this folder, making it if it is missing, and removes
    /// what crashed writers left behind.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        let store = Self {
            layout: Arc::new(Layout::new(dir)),
            clock: Arc::new(SystemClock),
        };
        for folder in store.layout.folders() {
            std::fs::create_dir_all(&folder).map_err(ImageError::io("create", &folder))?;
        }
        sync_folder(store.layout.dir())?;
        store.sweep()?;
        Ok(store)
    }

    /// The image that a reference names for a platform, if it is in the store.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<ImageRecord>, ImageError> {
        let path = self.layout.reference(&reference.to_string(), platform);
        self.reading(move |store| match read_record::<SavedReference>(&path)? {
            Some(saved) => store.read_image(&saved.digest),
            None => Ok(None),
        })
        .await
    }

    /// The image with this manifest, if it is in the store.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn get(&self, digest: &Digest) -> Result<Option<ImageRecord>, ImageError> {
        let digest = digest.clone();
        self.reading(move |store| store.read_image(&digest)).await
    }

    /// All images, by digest.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        self.reading(|store| {
            let mut names = store.names()?;
            let images = store.saved_images()?.into_iter();
            Ok(images
                .map(|image| {
                    let references = names.remove(&image.digest).unwrap_or_default();
                    image.with_references(references)
                })
                .collect())
        })
        .await
    }

    /// Takes a name, or all names, from an image. `name` is a reference, or the
    /// digest of a manifest. The content goes with the next [`Self::prune`]
    /// once nothing names or uses it.
    ///
    /// # Errors
    /// Nothing has that name, or the store cannot be written.
    pub async fn remove(&self, name: &str) -> Result<(), ImageError> {
        if let Ok(digest) = name.parse::<Digest>() {
            return self
                .reading(move |store| store.remove_names_of(&digest))
                .await;
        }
        let reference: Reference = name.parse()?;
        self.reading(move |store| store.remove_name(&reference.to_string()))
            .await
    }

    /// Where a layer's EROFS file is, whether it exists or not. `diff_id` is
    /// one of [`ImageRecord::layers`].
    #[must_use]
    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layout.layer(diff_id)
    }

    /// Opens a layer's EROFS file for reading.
    ///
    /// # Errors
    /// It is not in the store.
    pub fn open_layer(&self, diff_id: &Digest) -> Result<File, ImageError> {
        let path = self.layer_path(diff_id);
        File::open(&path).map_err(ImageError::io("open", &path))
    }

    /// The numbers behind a user's name, from the passwd and group files of
    /// the image: those of the topmost layer that has or removes them.
    ///
    /// # Errors
    /// The image has no such user, or a layer is missing.
    pub fn resolve_user(&self, image: &ImageRecord, user: &str) -> Result<User, ImageError> {
        let mut passwd = None;
        let mut group = None;
        for layer in image.layers.iter().rev() {
            let Some(saved) = self.layer(layer)? else {
                return Err(ImageError::NotFound {
                    image: layer.to_string(),
                });
            };
            passwd = passwd.or_else(|| saved.captured.get(PASSWD).cloned());
            group = group.or_else(|| saved.captured.get(GROUP).cloned());
        }
        let unreadable = why_unreadable(&passwd).or_else(|| why_unreadable(&group));
        user::resolve(user, text(&passwd), text(&group)).map_err(|reason| ImageError::User {
            user: user.chars().take(100).collect(),
            digest: image.digest.clone(),
            reason: unreadable.unwrap_or(reason),
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn now_unix_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// Held while content is added, so that it is not collected before it has a name.
    pub(crate) async fn lock(&self, mode: Mode) -> Result<Lock, ImageError> {
        Lock::take(&self.layout.lock(), mode, LOCK_TIMEOUT).await
    }

    /// What is remembered of a layer, if it is in the store whole.
    pub(crate) fn layer(&self, diff_id: &Digest) -> Result<Option<SavedLayer>, ImageError> {
        let path = self.layout.layer(diff_id);
        let Ok(metadata) = std::fs::metadata(&path) else {
            return Ok(None);
        };
        let saved: Option<SavedLayer> = read_record(&self.layout.layer_record(diff_id))?;
        Ok(saved.filter(|saved| saved.size_bytes == metadata.len()))
    }

    /// The image with this manifest, if all of it is in the store.
    pub(crate) fn whole_image(&self, digest: &Digest) -> Result<Option<SavedImage>, ImageError> {
        let Some(image) = read_record::<SavedImage>(&self.layout.image(digest))? else {
            return Ok(None);
        };
        for layer in &image.layers {
            if self.layer(layer)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(image))
    }

    /// Stores a manifest or a configuration.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        let path = self.layout.blob(digest);
        if path.exists() {
            return Ok(());
        }
        write_whole(&self.layout.ingest(), &path, bytes)
    }

    /// Records an image whose layers are stored.
    pub(crate) fn put_image(&self, image: &SavedImage) -> Result<(), ImageError> {
        let path = self.layout.image(&image.digest);
        if read_record::<SavedImage>(&path)?.is_some() {
            return Ok(());
        }
        write_record(&self.layout.ingest(), &path, image)
    }

    /// Waits until nobody else works on this layer, here or in another process.
    pub(crate) async fn turn(&self, diff_id: &Digest) -> Result<Turn, ImageError> {
        Turn::take(&self.layout.turn(diff_id), PULL_TIMEOUT).await
    }

    /// Lets these references name a stored image.
    pub(crate) fn put_names(
        &self,
        digest: &Digest,
        platform: &Platform,
        names: &[String],
    ) -> Result<(), ImageError> {
        for name in names {
            let path = self.layout.reference(name, platform);
            let saved = SavedReference {
                reference: name.clone(),
                platform: platform.clone(),
                digest: digest.clone(),
            };
            if read_record::<SavedReference>(&path)?.as_ref() != Some(&saved) {
                write_record(&self.layout.ingest(), &path, &saved)?;
            }
        }
        Ok(())
    }

    pub(crate) fn read_image(&self, digest: &Digest) -> Result<Option<ImageRecord>, ImageError> {
        let Some(image) = read_record::<SavedImage>(&self.layout.image(digest))? else {
            return Ok(None);
        };
        let references = self.names()?.remove(digest).unwrap_or_default();
        Ok(Some(image.with_references(references)))
    }

    /// Runs short file work under the shared lock, off the async threads.
    async fn reading<T, F>(&self, work: F) -> Result<T, ImageError>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T, ImageError> + Send + 'static,
    {
        let lock = self.lock(Mode::Shared).await?;
        self.blocking(move |store| {
            let _held = &lock;
            work(store)
        })
        .await
    }

    /// Runs file work off the async threads.
    pub(crate) async fn blocking<T, F>(&self, work: F) -> Result<T, ImageError>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T, ImageError> + Send + 'static,
    {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .unwrap_or(Err(ImageError::Internal(
                "work on the image store was cut off",
            )))
    }

    fn saved_images(&self) -> Result<Vec<SavedImage>, ImageError> {
        let mut images = Vec::new();
        for path in entries(&self.layout.images())? {
            images.extend(read_record::<SavedImage>(&path)?);
        }
        Ok(images)
    }

    fn saved_references(&self) -> Result<Vec<(PathBuf, SavedReference)>, ImageError> {
        let mut references = Vec::new();
        for path in entries(&self.layout.references())? {
            references.extend(read_record(&path)?.map(|saved| (path, saved)));
        }
        Ok(references)
    }

    fn names(&self) -> Result<BTreeMap<Digest, Vec<String>>, ImageError> {
        let mut names: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for (_, saved) in self.saved_references()? {
            names.entry(saved.digest).or_default().push(saved.reference);
        }
        Ok(names)
    }

    fn remove_name(&self, name: &str) -> Result<(), ImageError> {
        self.remove_references(name, |saved| saved.reference == name)
    }

    fn remove_names_of(&self, digest: &Digest) -> Result<(), ImageError> {
        if !self.layout.image(digest).exists() {
            return Err(ImageError::NotFound {
                image: digest.to_string(),
            });
        }
        match self.remove_references(digest.as_str(), |saved| saved.digest == *digest) {
            // An image without names has none to lose.
            Err(ImageError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    fn remove_references(
        &self,
        asked: &str,
        matches: impl Fn(&SavedReference) -> bool,
    ) -> Result<(), ImageError> {
        let mut found = false;
        for (path, saved) in self.saved_references()? {
            if matches(&saved) {
                found |= remove(&path)?;
            }
        }
        if !found {
            return Err(ImageError::NotFound {
                image: asked.to_owned(),
            });
        }
        sync_folder(&self.layout.references())
    }

    /// Removes temporary files without a writer, and old partial downloads.
    fn sweep(&self) -> Result<(), ImageError> {
        for path in entries(&self.layout.ingest())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let left_over = name.starts_with(TEMPORARY)
                || name.ends_with(".turn")
                || (name.ends_with(".partial") && self.is_old(&path));
            if left_over && let Some(_held) = Lock::try_take(&path, Mode::Exclusive)? {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn is_old(&self, path: &Path) -> bool {
        let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        let Ok(Ok(modified)) = modified.map(|at| at.duration_since(std::time::UNIX_EPOCH)) else {
            return false;
        };
        Duration::from_millis(self.clock.unix_ms()).saturating_sub(modified) > PARTIAL_AGE_MAX
    }
}

fn text(file: &Option<SavedFile>) -> &str {
    match file {
        Some(SavedFile::Text(text)) => text,
        Some(SavedFile::Removed | SavedFile::Unreadable(_)) | None => "",
    }
}

fn why_unreadable(file: &Option<SavedFile>) -> Option<String> {
    match file {
        Some(SavedFile::Unreadable(reason)) => Some(reason.clone()),
        _ => None,
    }
}
