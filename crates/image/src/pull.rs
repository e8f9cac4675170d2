//! Images from a registry.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustls::pki_types::CertificateDer;
use skiff_types::Digest;
use skiff_types::api::RegistryAuth;
use tokio::sync::mpsc;

use crate::commit::{Commit, Layers, check, checked_config, digest_of};
use crate::document::{Descriptor, Document, DocumentError, Manifest};
use crate::error::ImageError;
use crate::layer::{Chunks, Expected, store_layer};
use crate::limits::{
    INDEX_DEPTH_MAX, LAYERS_AT_ONCE, NETWORK_CHUNKS, PULL_TIMEOUT, TAR_CHUNK_BYTES,
};
use crate::platform::Platform;
use crate::progress::{Counter, Progress};
use crate::record::{ImageRecord, SavedLayer};
use crate::reference::Reference;
use crate::registry::{Registry, RegistryError};
use crate::store::ImageStore;
use crate::store::file::remove;
use crate::store::lock::{Lock, Mode, Turn};

/// How an image is pulled.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Chooses among the images behind one name.
    pub platform: Platform,
    /// For registries that want it; see [`crate::docker_credentials`].
    pub auth: Option<RegistryAuth>,
    /// Hosts, as `HOST` or `HOST:PORT`, that are spoken to in plain HTTP.
    pub insecure_hosts: Vec<String>,
    /// Certificate authorities beside the system's.
    pub extra_roots: Vec<CertificateDer<'static>>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            auth: None,
            insecure_hosts: Vec::new(),
            extra_roots: Vec::new(),
        }
    }
}

impl ImageStore {
    /// Brings the image that a registry has under this name into the store.
    /// Layers that are there already are not fetched; what broke off is
    /// continued. A reference with a digest that is in the store asks nobody.
    ///
    /// # Errors
    /// The registry does not give the image, or it is not what it says it is;
    /// nothing that was not proved whole is left in the store but downloads to
    /// be continued.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: PullOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageRecord, ImageError> {
        if reference.digest().is_some()
            && let Some(image) = self.resolve(reference, &options.platform).await?
            && self.is_whole(&image.digest).await?
        {
            return Ok(image);
        }
        let pull = async {
            let lock = Arc::new(self.lock(Mode::Shared).await?);
            let platform = options.platform.clone();
            let registry = self.registry(reference, options).await?;
            let work = Pull {
                store: self.clone(),
                lock,
                registry,
                reference: reference.clone(),
                platform,
                counter: Counter::new(progress),
            };
            work.run().await
        };
        tokio::time::timeout(PULL_TIMEOUT, pull)
            .await
            .unwrap_or_else(|_| {
                Err(ImageError::Timeout {
                    what: format!("the pull of {reference}"),
                    limit: PULL_TIMEOUT,
                })
            })
    }
}

impl ImageStore {
    async fn is_whole(&self, digest: &Digest) -> Result<bool, ImageError> {
        let digest = digest.clone();
        self.blocking(move |store| Ok(store.whole_image(&digest)?.is_some()))
            .await
    }

    async fn registry(
        &self,
        reference: &Reference,
        options: PullOptions,
    ) -> Result<Registry, ImageError> {
        let reference = reference.clone();
        self.blocking(move |_| {
            Registry::new(
                &reference,
                options.auth,
                &options.insecure_hosts,
                &options.extra_roots,
            )
            .map_err(|source| ImageError::Registry {
                image: reference.to_string(),
                source,
            })
        })
        .await
    }
}

/// One pull at work.
struct Pull {
    store: ImageStore,
    lock: Arc<Lock>,
    registry: Registry,
    reference: Reference,
    platform: Platform,
    counter: Counter,
}

impl Pull {
    async fn run(&self) -> Result<ImageRecord, ImageError> {
        let (digest, bytes, manifest) = self.manifest().await?;
        if let Some(image) = self.known(&digest).await? {
            return Ok(image);
        }
        let config = self.blob(&manifest.config).await?;
        let name = self.reference.to_string();
        let parsed = checked_config(&name, &config, manifest.layers.len(), &self.platform)?;
        let layers = self.layers(&manifest.layers, &parsed.diff_ids).await?;
        let commit = Commit {
            digest,
            manifest: bytes,
            config_digest: manifest.config.digest,
            config,
            parsed,
            layers,
            names: vec![name],
            platform: self.platform.clone(),
        };
        let lock = Arc::clone(&self.lock);
        self.store
            .blocking(move |store| {
                let _held = &lock;
                commit.run(store)
            })
            .await
    }

    /// An image that is in the store already only gets the name.
    async fn known(&self, digest: &Digest) -> Result<Option<ImageRecord>, ImageError> {
        let digest = digest.clone();
        let lock = Arc::clone(&self.lock);
        let names = [self.reference.to_string()];
        let platform = self.platform.clone();
        self.store
            .blocking(move |store| {
                let _held = &lock;
                if store.whole_image(&digest)?.is_none() {
                    return Ok(None);
                }
                store.put_names(&digest, &platform, &names)?;
                store.read_image(&digest)
            })
            .await
    }

    /// The manifest for the platform, through as many indexes as it takes.
    async fn manifest(&self) -> Result<(Digest, Vec<u8>, Manifest), ImageError> {
        let mut selector = self.reference.selector().to_owned();
        for _ in 0..=INDEX_DEPTH_MAX {
            let bytes = self
                .registry
                .manifest(&selector)
                .await
                .map_err(|e| self.failed(e))?;
            let digest = digest_of(&bytes);
            if let Ok(expected) = selector.parse::<Digest>() {
                check("a manifest", &expected, &digest)?;
            }
            match Document::parse(&bytes).map_err(|e| self.unusable(e))? {
                Document::Manifest(manifest) => return Ok((digest, bytes, manifest)),
                Document::Index(index) => {
                    let entry = index.select(&self.platform);
                    selector = entry.map_err(|e| self.unusable(e))?.digest.to_string();
                }
            }
        }
        Err(self.unusable(DocumentError::NotAnImage {
            media_type: "an index of indexes without end".to_owned(),
        }))
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let fetched = self.registry.blob(&descriptor.digest, descriptor.size);
        let bytes = fetched.await.map_err(|e| self.failed(e))?;
        check("a configuration", &descriptor.digest, &digest_of(&bytes))?;
        Ok(bytes)
    }

    /// Stores each layer once, several at a time.
    async fn layers(
        &self,
        layers: &[Descriptor],
        diff_ids: &[Digest],
    ) -> Result<Layers, ImageError> {
        let once: BTreeMap<&Digest, &Descriptor> = diff_ids.iter().zip(layers).collect();
        self.counter
            .expect(once.values().map(|layer| layer.size).sum());
        let work = once.into_iter().map(|(diff_id, layer)| async move {
            let saved = self.layer(layer, diff_id).await?;
            Ok((diff_id.clone(), saved))
        });
        // Collected first: an iterator that borrows would make this future one
        // that no other thread may carry on.
        let work: Vec<_> = work.collect();
        stream::iter(work)
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_collect()
            .await
    }

    async fn layer(&self, layer: &Descriptor, diff_id: &Digest) -> Result<SavedLayer, ImageError> {
        let turn = Arc::new(self.store.turn(diff_id).await?);
        let first = match self.start(layer, diff_id).await? {
            Start::There(saved) => {
                self.counter.add(layer.size);
                return Ok(saved);
            }
            Start::Missing(partial) => partial,
        };
        let continued = first.len > 0;
        match self.fetch(first, layer, diff_id, &turn).await {
            // What an earlier process left may be damaged: it gets one chance.
            Err(
                ImageError::Corrupt { .. } | ImageError::Size { .. } | ImageError::Layer { .. },
            ) if continued => match self.start(layer, diff_id).await? {
                Start::There(saved) => Ok(saved),
                Start::Missing(again) => self.fetch(again, layer, diff_id, &turn).await,
            },
            result => result,
        }
    }

    /// What there is of a layer whose turn it is.
    async fn start(&self, layer: &Descriptor, diff_id: &Digest) -> Result<Start, ImageError> {
        let diff_id = diff_id.clone();
        let (blob, size) = (layer.digest.clone(), layer.size);
        self.store
            .blocking(move |store| {
                if let Some(saved) = store.layer(&diff_id)? {
                    return Ok(Start::There(saved));
                }
                let path = store.layout().partial(&diff_id, &blob);
                Partial::open(&path, size).map(Start::Missing)
            })
            .await
    }

    /// Downloads and writes at the same time.
    async fn fetch(
        &self,
        partial: Partial,
        layer: &Descriptor,
        diff_id: &Digest,
        turn: &Arc<Turn>,
    ) -> Result<SavedLayer, ImageError> {
        let (sender, receiver) = mpsc::channel(NETWORK_CHUNKS);
        let offset = partial.len;
        self.counter.add(offset);
        let expected = Expected {
            blob: Some((layer.digest.clone(), layer.size)),
            diff_id: diff_id.clone(),
        };
        let held = (Arc::clone(&self.lock), Arc::clone(turn));
        let mut chunks = Download::new(partial, receiver, layer.size);
        let writing = self.store.blocking(move |store| {
            let _held = &held;
            let written = store_layer(store, &mut chunks, &expected);
            // Whole or damaged, there is nothing to continue. It is removed
            // here because nobody may wait for this any more.
            if written.is_ok() || chunks.seen >= chunks.size {
                remove(&chunks.partial.path)?;
            }
            written
        });
        let sending = async move {
            let sender = sender;
            self.registry
                .download(&layer.digest, layer.size, offset, &sender, &self.counter)
                .await
        };
        let (written, sent) = tokio::join!(writing, sending);
        if let Err(error) = sent {
            return Err(self.failed(error));
        }
        written
    }

    fn failed(&self, source: RegistryError) -> ImageError {
        ImageError::Registry {
            image: self.reference.to_string(),
            source,
        }
    }

    fn unusable(&self, source: DocumentError) -> ImageError {
        ImageError::document(&self.reference)(source)
    }
}

enum Start {
    There(SavedLayer),
    Missing(Partial),
}

/// What has been downloaded of a blob, on disk.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Partial {
    fn open(path: &Path, size: u64) -> Result<Self, ImageError> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(ImageError::io("open", path))?;
        let mut len = file.metadata().map_err(ImageError::io("read", path))?.len();
        if len > size {
            file.set_len(0).map_err(ImageError::io("truncate", path))?;
            len = 0;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            len,
        })
    }
}

/// The pieces of a download: first from disk, then from the network, which
/// are kept on disk until the layer is whole.
struct Download {
    partial: Partial,
    receiver: mpsc::Receiver<Bytes>,
    from_disk: u64,
    seen: u64,
    size: u64,
    keeps: bool,
}

impl Download {
    fn new(partial: Partial, receiver: mpsc::Receiver<Bytes>, size: u64) -> Self {
        Self {
            from_disk: partial.len,
            partial,
            receiver,
            seen: 0,
            size,
            keeps: true,
        }
    }

    fn keep(&mut self, chunk: &[u8]) {
        if self.keeps
            && let Err(error) = self.partial.file.write_all(chunk)
        {
            // The pull goes on: all that is lost is the chance to continue it.
            tracing::debug!(path = %self.partial.path.display(), %error, "a download is not kept");
            self.keeps = false;
        }
    }
}

impl Chunks for Download {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.seen < self.from_disk {
            let left = usize::try_from(self.from_disk - self.seen).unwrap_or(usize::MAX);
            let mut chunk = BytesMut::zeroed(left.min(TAR_CHUNK_BYTES));
            self.partial.file.read_exact(&mut chunk)?;
            self.seen += chunk.len() as u64;
            return Ok(Some(chunk.freeze()));
        }
        match self.receiver.blocking_recv() {
            Some(chunk) => {
                self.keep(&chunk);
                self.seen += chunk.len() as u64;
                Ok(Some(chunk))
            }
            None if self.seen >= self.size => Ok(None),
            // The download failed or was given up, and says so itself.
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }
}
