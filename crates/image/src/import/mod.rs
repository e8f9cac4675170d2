//! Images from files: an OCI layout, as a folder or a tar, and what
//! `docker save` writes; from a path or a stream, compressed or not.

mod chosen;
mod images;
mod spool;
mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::io::AsyncRead;

use crate::commit::{Commit, Layers};
use crate::error::ImageError;
use crate::layer::{Expected, store_layer};
use crate::limits::{LAYERS_AT_ONCE, PULL_TIMEOUT};
use crate::platform::Platform;
use crate::progress::{Counted, Counter, Progress};
use crate::record::{ImageRecord, SavedLayer};
use crate::reference::Reference;
use crate::store::ImageStore;
use crate::store::lock::{Lock, Mode};

use chosen::{Chosen, Source};
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
            let platform = options.platform.clone();
            let source = Source {
                tree,
                shown,
                options,
            };
            let chosen = self.blocking(move |_| source.choose()).await?;
            let work = Import {
                store: self.clone(),
                lock: Arc::new(self.lock(Mode::Shared).await?),
                platform,
                counter: Arc::new(Counter::new(progress)),
            };
            work.run(chosen).await
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
    platform: Platform,
    counter: Arc<Counter>,
}

impl Import {
    async fn run(&self, mut chosen: Chosen) -> Result<ImageRecord, ImageError> {
        let layers = self.store_layers(&chosen.layers).await?;
        let (digest, manifest) = chosen.manifest(&layers)?;
        let commit = Commit {
            digest,
            manifest,
            config_digest: chosen.config_digest,
            config: chosen.config,
            parsed: chosen.parsed,
            layers,
            names: chosen.names,
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

    /// Stores each layer once, several at a time.
    async fn store_layers(&self, layers: &[(Expected, Section)]) -> Result<Layers, ImageError> {
        self.counter.expect(layers.iter().map(|(_, s)| s.len).sum());
        let mut once = BTreeMap::new();
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
}

fn not_an_image(path: &str, reason: &str) -> ImageError {
    ImageError::NotAnImage {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
