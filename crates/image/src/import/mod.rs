//! Images from files: an OCI layout, as a folder or a tar, and what
//! `docker save` writes; from a path or a stream, compressed or not.

mod images;
mod spool;
mod tree;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use skiff_types::Digest;
use tokio::io::AsyncRead;

use crate::commit::{Commit, Layers, check, checked_config, digest_of};
use crate::config::ConfigDocument;
use crate::document::{
    Descriptor, Document, Manifest, OCI_CONFIG, OCI_LAYER_TAR, OCI_MANIFEST, bounded,
};
use crate::error::ImageError;
use crate::layer::{Expected, store_layer};
use crate::limits::{INDEX_DEPTH_MAX, LAYERS_AT_ONCE, PULL_TIMEOUT};
use crate::platform::Platform;
use crate::progress::{Counted, Counter, Progress};
use crate::record::{ImageRecord, SavedLayer};
use crate::reference::Reference;
use crate::store::ImageStore;
use crate::store::lock::{Lock, Mode};

use images::{Candidate, Choice, Found};
use tree::{Section, Tree};

/// Where an image is imported from.
pub enum ImportSource {
    /// A layout's folder, or an archive.
    Path(PathBuf),
    /// An archive, from start to end.
    Stream(Pin<Box<dyn AsyncRead + Send>>),
}

impl std::fmt::Debug for ImportSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl ImportSource {
    fn shown(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Stream(_) => "-".to_owned(),
        }
    }
}

/// What of the source is wanted.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Chooses among several images; the name of a single one.
    pub name: Option<Reference>,
    /// Chooses among the platforms of one image.
    pub platform: Platform,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            name: None,
            platform: Platform::host(),
        }
    }
}

impl ImageStore {
    /// Adds the image of a layout or an archive to the store.
    ///
    /// # Errors
    /// The source holds no image, or several, or a damaged one; nothing that
    /// was not proved whole is left in the store.
    pub async fn import(
        &self,
        source: ImportSource,
        options: ImportOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageRecord, ImageError> {
        let shown = source.shown();
        let what = format!("the import of {shown}");
        let import = async {
            let tree = self.tree(source, &shown).await?;
            let lock = Arc::new(self.lock(Mode::Shared).await?);
            let work = Import {
                store: self.clone(),
                lock,
                tree,
                shown,
                options,
                counter: Arc::new(Counter::new(progress)),
            };
            work.run().await
        };
        tokio::time::timeout(PULL_TIMEOUT, import)
            .await
            .unwrap_or(Err(ImageError::Timeout {
                what,
                limit: PULL_TIMEOUT,
            }))
    }

    async fn tree(&self, source: ImportSource, shown: &str) -> Result<Tree, ImageError> {
        let file = match source {
            ImportSource::Path(path) => {
                let unpacked = self.blocking(move |store| open_path(store, &path)).await?;
                match unpacked {
                    Opened::Folder(path) => return Ok(Tree::Folder(path)),
                    Opened::Archive(file) => file,
                }
            }
            ImportSource::Stream(stream) => spool::from_stream(self, stream).await?,
        };
        let shown = shown.to_owned();
        self.blocking(move |_| {
            Tree::of_archive(file).map_err(|source| not_an_image(&shown, &source.to_string()))
        })
        .await
    }
}

enum Opened {
    Folder(PathBuf),
    Archive(File),
}

fn open_path(store: &ImageStore, path: &Path) -> Result<Opened, ImageError> {
    if path.is_dir() {
        return Ok(Opened::Folder(path.to_owned()));
    }
    let opened = tree::open_regular(path).map_err(ImageError::io("open", path))?;
    let missing = || not_an_image(&path.display().to_string(), "there is no such file");
    let section = opened.ok_or_else(missing)?;
    spool::unpacked(store, section, path).map(Opened::Archive)
}

/// One import at work.
struct Import {
    store: ImageStore,
    lock: Arc<Lock>,
    tree: Tree,
    shown: String,
    options: ImportOptions,
    counter: Arc<Counter>,
}

/// An image of the tree, its documents read and proved.
struct Chosen {
    digest: Digest,
    manifest: Vec<u8>,
    config_digest: Digest,
    config: Vec<u8>,
    parsed: ConfigDocument,
    layers: Vec<(Expected, Section)>,
}

impl Import {
    async fn run(&self) -> Result<ImageRecord, ImageError> {
        let candidates = self.candidates()?;
        let candidate = images::choose(candidates, self.options.name.as_ref())
            .map_err(|choice| self.no_choice(choice))?;
        let names = images::references(&candidate, self.options.name.as_ref());
        match &candidate.found {
            Found::Oci(entries) => {
                let chosen = self.oci(entries)?;
                let layers = self.store_layers(&chosen.layers).await?;
                self.commit(chosen, layers, names).await
            }
            Found::Docker { config, layers } => {
                let mut chosen = self.docker(config, layers)?;
                let layers = self.store_layers(&chosen.layers).await?;
                chosen.describe(&layers)?;
                self.commit(chosen, layers, names).await
            }
        }
    }

    async fn commit(
        &self,
        chosen: Chosen,
        layers: Layers,
        names: Vec<String>,
    ) -> Result<ImageRecord, ImageError> {
        let commit = Commit {
            digest: chosen.digest,
            manifest: chosen.manifest,
            config_digest: chosen.config_digest,
            config: chosen.config,
            parsed: chosen.parsed,
            layers,
            names,
            platform: self.options.platform.clone(),
        };
        let lock = Arc::clone(&self.lock);
        self.store
            .blocking(move |store| {
                let _held = &lock;
                commit.run(store)
            })
            .await
    }

    fn candidates(&self) -> Result<Vec<Candidate>, ImageError> {
        let document = ImageError::document(&self.shown);
        if let Some(index) = self.read("index.json")? {
            return images::of_layout(&index).map_err(document);
        }
        if let Some(manifest) = self.read("manifest.json")? {
            return images::of_docker(&manifest).map_err(document);
        }
        Err(not_an_image(
            &self.shown,
            "it has neither index.json (an OCI layout) nor manifest.json (docker save)",
        ))
    }

    fn oci(&self, entries: &[Descriptor]) -> Result<Chosen, ImageError> {
        let (digest, bytes, manifest) = self.manifest(entries)?;
        let config_digest = manifest.config.digest.clone();
        let config = self.blob(&config_digest)?;
        let parsed = self.config(&config, manifest.layers.len())?;
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&parsed.diff_ids) {
            let expected = Expected {
                blob: Some((layer.digest.clone(), layer.size)),
                diff_id: diff_id.clone(),
            };
            layers.push((expected, self.section(&blob_name(&layer.digest))?));
        }
        Ok(Chosen {
            digest,
            manifest: bytes,
            config_digest,
            config,
            parsed,
            layers,
        })
    }

    /// The manifest for the platform, through as many indexes as it takes.
    fn manifest(&self, entries: &[Descriptor]) -> Result<(Digest, Vec<u8>, Manifest), ImageError> {
        let mut entries = entries.to_vec();
        for _ in 0..INDEX_DEPTH_MAX {
            let entry = images::select(&entries, &self.options.platform)
                .map_err(ImageError::document(&self.shown))?;
            let bytes = self.blob(&entry.digest)?;
            match Document::parse(&bytes).map_err(ImageError::document(&entry.digest))? {
                Document::Manifest(manifest) => return Ok((entry.digest, bytes, manifest)),
                Document::Index(index) => entries = index.manifests,
            }
        }
        Err(not_an_image(
            &self.shown,
            "its indexes never come to an image",
        ))
    }

    fn docker(&self, config_name: &str, layers: &[String]) -> Result<Chosen, ImageError> {
        let config = self.required(config_name)?;
        let config_digest = digest_of(&config);
        if let Some(expected) = images::digest_in(config_name) {
            check("a configuration", &expected, &config_digest)?;
        }
        bounded(
            "layers",
            layers.len() as u64,
            skiff_types::limits::LAYERS_MAX as u64,
        )
        .map_err(ImageError::document(&self.shown))?;
        let parsed = self.config(&config, layers.len())?;
        let mut sections = Vec::new();
        for (name, diff_id) in layers.iter().zip(&parsed.diff_ids) {
            let expected = Expected {
                blob: None,
                diff_id: diff_id.clone(),
            };
            sections.push((expected, self.section(name)?));
        }
        Ok(Chosen {
            digest: config_digest.clone(),
            manifest: Vec::new(),
            config_digest,
            config,
            parsed,
            layers: sections,
        })
    }

    /// Stores each layer once, several at a time.
    async fn store_layers(&self, layers: &[(Expected, Section)]) -> Result<Layers, ImageError> {
        self.counter.expect(layers.iter().map(|(_, s)| s.len).sum());
        let mut once = std::collections::BTreeMap::new();
        for (expected, section) in layers {
            if once
                .insert(expected.diff_id.clone(), (expected, section))
                .is_some()
            {
                self.counter.add(section.len);
            }
        }
        let work = once.into_values().map(|(expected, section)| async move {
            let saved = self.store_layer(expected.clone(), section.clone()).await?;
            Ok((expected.diff_id.clone(), saved))
        });
        // Collected first: an iterator that borrows would make this future one
        // that no other thread may carry on.
        let work: Vec<_> = work.collect();
        stream::iter(work)
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_collect()
            .await
    }

    async fn store_layer(
        &self,
        expected: Expected,
        section: Section,
    ) -> Result<SavedLayer, ImageError> {
        let turn = self.store.turn(&expected.diff_id).await?;
        let lock = Arc::clone(&self.lock);
        let counter = Arc::clone(&self.counter);
        self.store
            .blocking(move |store| {
                let _held = (&turn, &lock);
                if let Some(saved) = store.layer(&expected.diff_id)? {
                    counter.add(section.len);
                    return Ok(saved);
                }
                let mut chunks = Counted {
                    chunks: section.reader(),
                    counter,
                };
                store_layer(store, &mut chunks, &expected)
            })
            .await
    }

    fn config(&self, bytes: &[u8], layers: usize) -> Result<ConfigDocument, ImageError> {
        checked_config(&self.shown, bytes, layers, &self.options.platform)
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let bytes = self.required(&blob_name(digest))?;
        check("a document", digest, &digest_of(&bytes))?;
        Ok(bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        self.tree
            .read(name)
            .map_err(|error| not_an_image(&self.shown, &error.to_string()))
    }

    fn required(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        self.read(name)?.ok_or_else(|| self.missing(name))
    }

    fn section(&self, name: &str) -> Result<Section, ImageError> {
        self.tree
            .open(name)
            .map_err(|error| not_an_image(&self.shown, &error.to_string()))?
            .ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> ImageError {
        let name: String = name.chars().take(100).collect();
        not_an_image(&self.shown, &format!("{name} is missing"))
    }

    fn no_choice(&self, choice: Choice) -> ImageError {
        match choice {
            Choice::None => not_an_image(&self.shown, "it holds no image"),
            Choice::Several(names) => ImageError::SeveralImages {
                path: self.shown.clone(),
                names,
            },
        }
    }
}

impl Chosen {
    /// Writes the manifest that an archive does not have: its layers as the
    /// tars that they are.
    fn describe(&mut self, layers: &Layers) -> Result<(), ImageError> {
        let descriptor = |media_type: &str, digest: &Digest, size: u64| Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            size,
            platform: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let tars = self.parsed.diff_ids.iter().map(|diff_id| {
            let size = layers.get(diff_id).map_or(0, |saved| saved.tar_bytes);
            descriptor(OCI_LAYER_TAR, diff_id, size)
        });
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: descriptor(OCI_CONFIG, &self.config_digest, self.config.len() as u64),
            layers: tars.collect(),
        };
        self.manifest = serde_json::to_vec(&manifest)
            .map_err(|_| ImageError::Internal("a manifest could not be written"))?;
        self.digest = digest_of(&self.manifest);
        Ok(())
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn not_an_image(path: &str, reason: &str) -> ImageError {
    ImageError::NotAnImage {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
