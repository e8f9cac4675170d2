//! Images and who uses them: what a revision uses, or is about to, is never
//! removed.
//!
//! A collection holds the lock from reading what is in use to the end of the
//! removal. A deployment takes the same lock for the moment in which it looks
//! whether its image is there and pins it; the pin holds until the store says
//! that a revision uses it. So a collection sees the pin, or the deployment
//! sees that the image is gone and pulls again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use skiff_types::Digest;
use skiff_types::api::{Image, Pruned};

use crate::db::Db;
use crate::error::{ControlError, conflict, failed, not_found, timeout};
use crate::key;
use crate::lambda::CodeInUse;
use crate::limit::PULL_TIMEOUT;
use crate::port::{Composition, Images, Progress, PullRequest, StoredImage};
use crate::record::Mark;

/// Pulls that find their image collected before it could be pinned.
const PULL_ROUNDS: usize = 3;
/// Revisions named in an answer; the rest is left out.
const USERS_TOLD: usize = 20;

type Pins = Arc<Mutex<HashMap<Digest, usize>>>;

/// The image store, with what is in use.
#[derive(Debug)]
pub(crate) struct Library {
    images: Arc<dyn Images>,
    db: Db,
    collection: tokio::sync::Mutex<()>,
    pins: Pins,
}

/// Keeps one image while it lives.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Pins,
    digest: Digest,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

impl Library {
    pub(crate) fn new(images: Arc<dyn Images>, db: Db) -> Self {
        Self {
            images,
            db,
            collection: tokio::sync::Mutex::new(()),
            pins: Pins::default(),
        }
    }

    /// Keeps code while the pin lives, from before it is stored. Waits for a
    /// collection that is under way: it does not know of this one.
    pub(crate) async fn keep(&self, zip: &Digest) -> Pin {
        let _collection = self.collection.lock().await;
        self.pin(zip)
    }

    fn pin(&self, digest: &Digest) -> Pin {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        *pins.entry(digest.clone()).or_insert(0) += 1;
        Pin {
            pins: Arc::clone(&self.pins),
            digest: digest.clone(),
        }
    }

    async fn find_and_pin(
        &self,
        reference: &str,
    ) -> Result<Option<(StoredImage, Pin)>, ControlError> {
        let _collection = self.collection.lock().await;
        let found = self.images.find(reference).await?;
        Ok(found.map(|image| {
            let pin = self.pin(&image.digest);
            (image, pin)
        }))
    }

    /// The stored image of this name, pulled when it is not there, and kept
    /// as long as the pin lives.
    pub(crate) async fn ensure(
        &self,
        request: PullRequest,
        progress: Progress,
    ) -> Result<(StoredImage, Pin), ControlError> {
        let mut name = request.reference.clone();
        for _ in 0..PULL_ROUNDS {
            if let Some(found) = self.find_and_pin(&name).await? {
                return Ok(found);
            }
            let digest = self.pull(request.clone(), Arc::clone(&progress)).await?;
            name = digest.as_str().to_owned();
        }
        let found = self.find_and_pin(&name).await?;
        found.ok_or_else(|| {
            failed(format!(
                "the image {} was removed each time it was pulled",
                request.reference
            ))
        })
    }

    /// Makes an image of another one and code, and keeps it as long as the
    /// pin lives.
    pub(crate) async fn compose(
        &self,
        parts: Composition,
    ) -> Result<(StoredImage, Pin), ControlError> {
        let _collection = self.collection.lock().await;
        let image = self.images.compose(parts).await?;
        let pin = self.pin(&image.digest);
        Ok((image, pin))
    }

    pub(crate) async fn pull(
        &self,
        request: PullRequest,
        progress: Progress,
    ) -> Result<Digest, ControlError> {
        let reference = request.reference.clone();
        let pull = self.images.pull(request, progress);
        let pulled = tokio::time::timeout(PULL_TIMEOUT, pull).await;
        Ok(pulled
            .map_err(|_| timeout(format!("the image {reference} did not arrive in time")))??)
    }

    /// The image under its digest or a reference, as the API tells it.
    pub(crate) async fn describe(&self, reference: &str) -> Result<Image, ControlError> {
        let found = self.images.find(reference).await?;
        let image = found.ok_or_else(|| not_found(format!("there is no image {reference}")))?;
        self.to_api(image).await
    }

    pub(crate) async fn list(&self) -> Result<Vec<Image>, ControlError> {
        let mut images = Vec::new();
        for image in self.images.list().await? {
            images.push(self.to_api(image).await?);
        }
        Ok(images)
    }

    async fn to_api(&self, image: StoredImage) -> Result<Image, ControlError> {
        Ok(Image {
            used_by: self.users(&image.digest).await?,
            references: image.references,
            digest: image.digest,
            platform: image.platform,
            size_bytes: image.size_bytes,
            layers: image.layers.len(),
            created_unix_ms: image.created_unix_ms,
        })
    }

    /// `PROJECT/hello-00003` of the revisions that use it.
    async fn users(&self, digest: &Digest) -> Result<Vec<String>, ControlError> {
        let prefix = key::used_by(digest);
        let found = self.db.first::<Mark>(&prefix, None, USERS_TOLD).await?;
        let name = |key: &str| key[prefix.len()..].to_owned();
        Ok(found.iter().map(|found| name(&found.key)).collect())
    }

    fn pinned(&self) -> HashSet<Digest> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.keys().cloned().collect()
    }

    /// Removes one name, and the image when that was its last.
    pub(crate) async fn remove(&self, reference: &str) -> Result<Pruned, ControlError> {
        let _collection = self.collection.lock().await;
        let found = self.images.find(reference).await?;
        let image = found.ok_or_else(|| not_found(format!("there is no image {reference}")))?;
        let users = self.users(&image.digest).await?;
        if let Some(user) = users.first() {
            return Err(conflict(format!(
                "the image {reference} is used by {user}: remove that first"
            )));
        }
        if self.pinned().contains(&image.digest) {
            return Err(conflict(format!(
                "the image {reference} is being deployed: try again later"
            )));
        }
        // Others may have lost their last name to a tag that moved.
        let in_use = self.in_use().await?;
        Ok(self.images.remove(reference, &in_use).await?)
    }

    /// Removes every image that nothing uses.
    pub(crate) async fn prune(&self) -> Result<Pruned, ControlError> {
        let _collection = self.collection.lock().await;
        let in_use = self.in_use().await?;
        Ok(self.images.prune(&in_use).await?)
    }

    /// What revisions use and what is being deployed.
    async fn in_use(&self) -> Result<HashSet<Digest>, ControlError> {
        let mut in_use = self.pinned();
        for used in self.db.all::<Mark>(key::USED).await? {
            let hex = used.key[key::USED.len()..].split('/').next();
            let digest = format!("sha256:{}", hex.unwrap_or_default());
            if let Ok(digest) = digest.parse() {
                in_use.insert(digest);
            }
        }
        let code = CodeInUse::of(&self.db).await?;
        in_use.extend(code.zips);
        for reference in &code.images {
            let found = self.images.find(reference).await?;
            in_use.extend(found.map(|image| image.digest));
        }
        Ok(in_use)
    }
}
