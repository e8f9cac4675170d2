//! Functions' code: zip files, kept as they came, and the layers and images
//! that are made of them.
//!
//! ```text
//!  zip ─▶ checked, as a tar ─▶ layer below /var/task or /opt ─┐
//!                              layers of an image ────────────┴─▶ image of both
//! ```
//! An image of code is an image like all others, without a name: whoever uses
//! it pins it by its digest, and it can be made again while its zip files are
//! kept.

mod zip;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skiff_types::Digest;

use crate::commit::{Commit, Layers, digest_of, manifest_of};
use crate::config::ConfigDocument;
use crate::error::ImageError;
use crate::layer::{TarReader, Written, keep_layer, write};
use crate::limits::{CODE_ZIP_BYTES_MAX, JSON_BYTES_MAX, TAR_CHUNK_BYTES, TAR_CHUNKS};
use crate::platform::Platform;
use crate::record::{ImageRecord, SavedLayer};
use crate::store::ImageStore;
use crate::store::file::{Temporary, read_bounded, read_record, temporary_record};
use crate::store::lock::Mode;

pub use zip::{CodeError, EntryProblem};

/// Where code lies in its function's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeRoot {
    /// A function's own: `/var/task`.
    Task,
    /// A layer that functions share: `/opt`.
    Opt,
}

impl CodeRoot {
    /// The folder, below the root.
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Task => "var/task",
            Self::Opt => "opt",
        }
    }

    /// In names of files.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Opt => "opt",
        }
    }
}

/// A zip file of code that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCode {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its length.
    pub zip_bytes: u64,
    /// Its files' contents, bytes.
    pub unpacked_bytes: u64,
    /// It has a file `bootstrap` at its top.
    pub bootstrap: bool,
}

/// An image to be made of another one and code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composition {
    /// What lies below the code; nothing when it is absent.
    pub base: Option<Digest>,
    /// Zip files by their digests, the lowest first.
    pub code: Vec<(Digest, CodeRoot)>,
    /// Variables to add to the base's, `NAME=VALUE`.
    pub env: Vec<String>,
    /// Where its process begins.
    pub working_dir: String,
}

/// `code/HEX-task.json`: what became of `code/HEX.zip`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedCode {
    zip_bytes: u64,
    unpacked_bytes: u64,
    bootstrap: bool,
    layer: Digest,
}

impl SavedCode {
    fn stored(self, digest: Digest) -> StoredCode {
        StoredCode {
            digest,
            zip_bytes: self.zip_bytes,
            unpacked_bytes: self.unpacked_bytes,
            bootstrap: self.bootstrap,
        }
    }
}

impl ImageStore {
    /// A file without a name, in which a zip file can be gathered.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn spool(&self) -> Result<File, ImageError> {
        self.blocking(|store| {
            let mut temporary = Temporary::new(&store.layout().ingest())?;
            let path = temporary.path().to_owned();
            let cloned = temporary.file().try_clone();
            // Its name goes, the file stays as long as it is open.
            cloned.map_err(ImageError::io("open", &path))
        })
        .await
    }

    /// Keeps a zip file of code and the layer that it becomes. It stays until
    /// a collection that is not told of its digest.
    ///
    /// # Errors
    /// It is too large, no zip file, or holds what code may not; nothing of it
    /// stays then.
    pub async fn add_code(&self, zip: File, root: CodeRoot) -> Result<StoredCode, ImageError> {
        let lock = self.lock(Mode::Shared).await?;
        self.blocking(move |store| {
            let _held = &lock;
            store.add_code_locked(zip, root)
        })
        .await
    }

    /// The zip file with this SHA-256, if it is in the store.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open_code(&self, digest: &Digest) -> Result<Option<File>, ImageError> {
        let path = self.layout().code(digest);
        self.blocking(move |_| match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ImageError::io("open", &path)(source)),
        })
        .await
    }

    /// Makes an image without a name; the same of the same parts.
    ///
    /// # Errors
    /// The base or a zip file is not in the store, or there are more layers
    /// than an image may have.
    pub async fn compose(&self, parts: Composition) -> Result<ImageRecord, ImageError> {
        let lock = Arc::new(self.lock(Mode::Shared).await?);
        self.blocking(move |store| {
            let _held = &lock;
            store.compose_locked(&parts)
        })
        .await
    }

    fn add_code_locked(&self, mut zip: File, root: CodeRoot) -> Result<StoredCode, ImageError> {
        let layout = self.layout();
        let mut temporary = Temporary::new(&layout.ingest())?;
        let (digest, zip_bytes) = copy_digested(&mut zip, &mut temporary)?;
        let file = temporary.file().try_clone();
        let file = file.map_err(ImageError::io("open", temporary.path()))?;
        let saved = self.convert(&file, &digest, zip_bytes, root)?;
        // Both are in one folder: a record without its zip file counts as none.
        let record = layout.code_record(&digest, root);
        temporary_record(&layout.ingest(), &record, &saved)?.name(&record)?;
        temporary.persist(&layout.code(&digest))?;
        Ok(saved.stored(digest))
    }

    /// What became of a stored zip file, with its layer, made again if it is
    /// gone.
    fn code_layer(
        &self,
        digest: &Digest,
        root: CodeRoot,
    ) -> Result<(Digest, SavedLayer), ImageError> {
        let layout = self.layout();
        let record = layout.code_record(digest, root);
        if let Some(saved) = read_record::<SavedCode>(&record)?
            && let Some(layer) = self.layer(&saved.layer)?
        {
            return Ok((saved.layer, layer));
        }
        let path = layout.code(digest);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::NotFound {
                image: format!("the code {digest}"),
            },
            _ => ImageError::io("open", &path)(error),
        })?;
        let length = file
            .metadata()
            .map_err(ImageError::io("read", &path))?
            .len();
        let saved = self.convert(&file, digest, length, root)?;
        temporary_record(&layout.ingest(), &record, &saved)?.persist(&record)?;
        let layer = self.layer(&saved.layer)?;
        let layer = layer.ok_or(ImageError::Internal("a layer of code is gone at once"))?;
        Ok((saved.layer, layer))
    }

    /// Writes the layer of a zip file.
    fn convert(
        &self,
        zip: &File,
        digest: &Digest,
        zip_bytes: u64,
        root: CodeRoot,
    ) -> Result<SavedCode, ImageError> {
        let mut temporary = Temporary::new(&self.layout().ingest())?;
        let code = |source| ImageError::Code {
            digest: digest.clone(),
            source,
        };
        let (written, unpacked) = pipe(zip, root, temporary.file(), digest)?;
        let unpacked = unpacked.map_err(code)?;
        keep_layer(self, temporary, &written)?;
        Ok(SavedCode {
            zip_bytes,
            unpacked_bytes: unpacked.bytes,
            bootstrap: unpacked.bootstrap,
            layer: written.diff_id,
        })
    }

    fn compose_locked(&self, parts: &Composition) -> Result<ImageRecord, ImageError> {
        let mut layers = Layers::new();
        let mut document = match &parts.base {
            Some(base) => self.base(base, &mut layers)?,
            None => json!({
                "os": "linux",
                "architecture": Platform::host().architecture,
            }),
        };
        let mut added = Vec::with_capacity(parts.code.len());
        for (digest, root) in &parts.code {
            let (layer, saved) = self.code_layer(digest, *root)?;
            added.push(layer.clone());
            layers.insert(layer, saved);
        }
        extend(&mut document, parts, &added);
        let config = document.to_string().into_bytes();
        let parsed = ConfigDocument::parse(&config).map_err(ImageError::document("of code"))?;
        let config_digest = digest_of(&config);
        let (digest, manifest) = manifest_of(&parsed, &layers, &config_digest, config.len())?;
        let commit = Commit {
            digest,
            manifest,
            config_digest,
            config,
            parsed,
            layers,
            names: Vec::new(),
            platform: Platform::host(),
        };
        commit.run(self)
    }

    /// An image's configuration, and its layers.
    fn base(&self, digest: &Digest, layers: &mut Layers) -> Result<Value, ImageError> {
        let missing = || ImageError::NotFound {
            image: digest.to_string(),
        };
        let image = self.whole_image(digest)?.ok_or_else(missing)?;
        for layer in &image.layers {
            let saved = self.layer(layer)?.ok_or_else(missing)?;
            layers.insert(layer.clone(), saved);
        }
        let path = self.layout().blob(&image.config_digest);
        let bytes = read_bounded(&path, JSON_BYTES_MAX)?.ok_or_else(missing)?;
        serde_json::from_slice(&bytes).map_err(|source| ImageError::Record { path, source })
    }
}

/// Adds layers and wishes to an image's configuration (image-spec, config.md).
fn extend(document: &mut Value, parts: &Composition, added: &[Digest]) {
    let object = |value: &mut Value| {
        if !value.is_object() {
            *value = json!({});
        }
    };
    let list = |value: &mut Value| {
        if !value.is_array() {
            *value = json!([]);
        }
    };
    object(document);
    for name in ["config", "rootfs"] {
        object(&mut document[name]);
    }
    document["rootfs"]["type"] = json!("layers");
    let append = |value: &mut Value, more: &[String]| {
        list(value);
        if let Some(all) = value.as_array_mut() {
            all.extend(more.iter().map(|one| json!(one)));
        }
    };
    let added: Vec<String> = added.iter().map(Digest::to_string).collect();
    append(&mut document["rootfs"]["diff_ids"], &added);
    append(&mut document["config"]["Env"], &parts.env);
    document["config"]["WorkingDir"] = json!(parts.working_dir);
    // It tells of the base alone.
    if let Some(fields) = document.as_object_mut() {
        fields.remove("history");
    }
}

/// Copies an upload to where it may stay.
fn copy_digested(from: &mut File, temporary: &mut Temporary) -> Result<(Digest, u64), ImageError> {
    let path = temporary.path().to_owned();
    let failed = |operation| ImageError::io(operation, &path);
    from.seek(SeekFrom::Start(0)).map_err(failed("read"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; TAR_CHUNK_BYTES];
    let mut total = 0;
    loop {
        let read = from.read(&mut buffer).map_err(failed("read"))?;
        if read == 0 {
            break;
        }
        total += read as u64;
        if total > CODE_ZIP_BYTES_MAX {
            return Err(ImageError::CodeTooLarge(CODE_ZIP_BYTES_MAX));
        }
        hash.update(&buffer[..read]);
        let written = temporary.file().write_all(&buffer[..read]);
        written.map_err(failed("write"))?;
    }
    Ok((Digest::from_sha256(hash.finalize().into()), total))
}

/// Runs the reading of a zip file and the writing of its layer side by side.
fn pipe(
    zip: &File,
    root: CodeRoot,
    layer: &mut File,
    digest: &Digest,
) -> Result<(Written, Result<zip::Unpacked, CodeError>), ImageError> {
    let (read, written) = std::thread::scope(|scope| {
        let (full, received) = sync_channel(TAR_CHUNKS);
        let (spare, empty) = sync_channel(TAR_CHUNKS + 2);
        let writer = scope.spawn(move || write(TarReader::new(received, spare), layer));
        let mut sender = Sender {
            full,
            empty,
            buffer: Vec::with_capacity(TAR_CHUNK_BYTES),
        };
        let read = zip::write_tar(zip, root, &mut sender);
        let read = read.and_then(|done| match sender.flush() {
            Ok(()) => Ok(done),
            Err(error) => Err(CodeError::Write(error)),
        });
        drop(sender);
        (read, writer.join())
    });
    let written = written.map_err(|_| ImageError::Internal("writing a layer was cut off"))?;
    let failed = |source| ImageError::Layer {
        layer: digest.clone(),
        source: crate::error::LayerError::Tar(source),
    };
    match (read, written) {
        (read, Ok(written)) => Ok((written, read)),
        // The writer stopped first; the sender only noticed.
        (Ok(_) | Err(CodeError::Write(_)), Err(error)) => Err(failed(error)),
        (Err(source), Err(_)) => Err(ImageError::Code {
            digest: digest.clone(),
            source,
        }),
    }
}

/// Gathers a tar into buffers for the thread that writes the layer.
struct Sender {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = TAR_CHUNK_BYTES - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == TAR_CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut next = self.empty.try_recv().unwrap_or_default();
        next.clear();
        next.reserve(TAR_CHUNK_BYTES);
        let full = std::mem::replace(&mut self.buffer, next);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.full.send(full).map_err(gone)
    }
}
