//! A layer on its way from compressed bytes to a verified EROFS file.
//!
//! ```text
//! chunks ─▶ digest of the blob ─▶ decompress ─▶ buffers ─▶ digest of the tar ─▶ EROFS
//!           └──────────── this thread ────────┘          └──── a second one ──┘
//! ```
//!
//! The file gets its name only when both digests are what they should be.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use skiff_erofs::{Captured, LayerOptions, LayerReport, write_layer};
use skiff_types::Digest;

use crate::document::Compression;
use crate::error::{ImageError, LayerError};
use crate::limits::{CAPTURED_BYTES_MAX, LAYER_BYTES_MAX, TAR_CHUNK_BYTES, TAR_CHUNKS};
use crate::record::{SavedFile, SavedLayer};
use crate::store::file::{Temporary, temporary_record};
use crate::store::{GROUP, ImageStore, PASSWD};

/// Where a layer's compressed bytes come from, a piece at a time; waits for them.
pub(crate) trait Chunks: Send {
    /// The next piece, never empty; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Bytes>>;
}

/// What a layer has to be.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// As it is fetched; an archive of `docker save` does not say.
    pub blob: Option<(Digest, u64)>,
    /// Its tar.
    pub diff_id: Digest,
}

/// Writes a layer into the store; nothing of it stays when it is not what is
/// expected.
pub(crate) fn store_layer(
    store: &ImageStore,
    chunks: &mut dyn Chunks,
    expected: &Expected,
) -> Result<SavedLayer, ImageError> {
    let layout = store.layout();
    let mut temporary = Temporary::new(&layout.ingest())?;
    let written = decompress(chunks, expected, &mut temporary)?;
    if written.diff_id != expected.diff_id {
        return Err(ImageError::Corrupt {
            what: "a layer's tar",
            expected: expected.diff_id.clone(),
            found: written.diff_id,
        });
    }
    keep_layer(store, temporary, &written)
}

/// Gives a written layer its name, and its record.
pub(crate) fn keep_layer(
    store: &ImageStore,
    temporary: Temporary,
    written: &Written,
) -> Result<SavedLayer, ImageError> {
    let layout = store.layout();
    let saved = saved(written);
    tracing::debug!(
        layer = %written.diff_id, entries = written.report.entries, bytes = saved.size_bytes,
        implied_directories = written.report.implied_count,
        dropped_xattrs = written.report.dropped_xattrs, "layer written"
    );
    // Both names are in one folder, which is synced with the second: a layer
    // without its record counts as none.
    let record = layout.layer_record(&written.diff_id);
    temporary_record(&layout.ingest(), &record, &saved)?.name(&record)?;
    temporary.persist(&layout.layer(&written.diff_id))?;
    Ok(saved)
}

/// A layer's file that has yet to get its name.
pub(crate) struct Written {
    pub diff_id: Digest,
    tar_bytes: u64,
    report: LayerReport,
}

/// Runs both threads to their ends and says whose failure counts.
fn decompress(
    chunks: &mut dyn Chunks,
    expected: &Expected,
    temporary: &mut Temporary,
) -> Result<Written, ImageError> {
    let file = temporary.file();
    let mut blob = Blob::new(chunks, expected.blob.as_ref().map(|(_, size)| *size));
    let (sent, written) = std::thread::scope(|scope| {
        let (full, received) = sync_channel(TAR_CHUNKS);
        let (spare, empty) = sync_channel(TAR_CHUNKS + 2);
        let writer = scope.spawn(move || write(TarReader::new(received, spare), file));
        let sent = send_tar(&mut blob, &full, &empty);
        drop(full);
        let written = writer.join();
        (sent, written)
    });
    let written = written.map_err(|_| ImageError::Internal("writing a layer was cut off"))?;
    // The blob's own damage explains every later failure, so it is told first.
    let read_to_end = blob.drain();
    if let (Ok(()), Some((digest, size))) = (&read_to_end, &expected.blob) {
        blob.check(digest, *size)?;
    }
    let name = expected.blob.as_ref().map_or(&expected.diff_id, |(d, _)| d);
    let layer = |source| ImageError::Layer {
        layer: name.clone(),
        source,
    };
    match (read_to_end.and(sent), written) {
        // The writer stopped first; the sender only noticed.
        (Err(_), Err(error)) if !is_short(&error) => Err(layer(LayerError::Tar(error))),
        (Err(error), _) => Err(layer(LayerError::Decompress(error))),
        (Ok(()), Err(error)) => Err(layer(LayerError::Tar(error))),
        (Ok(()), Ok(written)) if written.tar_bytes > LAYER_BYTES_MAX => {
            Err(layer(LayerError::Bomb(LAYER_BYTES_MAX)))
        }
        (Ok(()), Ok(written)) => Ok(written),
    }
}

/// Whether the writer only saw the end of what the sender could give.
fn is_short(error: &skiff_erofs::LayerError) -> bool {
    use skiff_erofs::Malformed;
    matches!(
        error,
        skiff_erofs::LayerError::Read { .. }
            | skiff_erofs::LayerError::Malformed {
                problem: Malformed::Truncated | Malformed::NoEndMarker,
                ..
            }
    )
}

fn saved(written: &Written) -> SavedLayer {
    let captured = written.report.captured.iter();
    SavedLayer {
        size_bytes: written.report.bytes,
        tar_bytes: written.tar_bytes,
        opaque_root: written.report.opaque_root,
        captured: captured
            .map(|(path, state)| (path.clone(), saved_file(path, state)))
            .collect(),
    }
}

fn saved_file(path: &str, state: &Captured) -> SavedFile {
    match state {
        Captured::File(bytes) if bytes.len() <= CAPTURED_BYTES_MAX => {
            SavedFile::Text(String::from_utf8_lossy(bytes).into_owned())
        }
        Captured::Whiteout => SavedFile::Removed,
        Captured::File(_) | Captured::TooLong { .. } => {
            SavedFile::Unreadable(format!("its {path} is too long"))
        }
        Captured::Symlink { .. } => SavedFile::Unreadable(format!("its {path} is a symbolic link")),
        Captured::Other => SavedFile::Unreadable(format!("its {path} is no file")),
    }
}

/// The compressed bytes, digested as they pass.
struct Blob<'a> {
    chunks: &'a mut dyn Chunks,
    current: Bytes,
    hash: Sha256,
    bytes: u64,
    most: u64,
}

impl<'a> Blob<'a> {
    fn new(chunks: &'a mut dyn Chunks, size: Option<u64>) -> Self {
        Self {
            chunks,
            current: Bytes::new(),
            hash: Sha256::new(),
            bytes: 0,
            most: size.unwrap_or(LAYER_BYTES_MAX),
        }
    }

    /// Takes the next piece; `None` at the end, and when it is longer than it
    /// may be.
    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        if self.bytes > self.most {
            return Ok(None);
        }
        let Some(chunk) = self.chunks.next()? else {
            return Ok(None);
        };
        self.hash.update(&chunk);
        self.bytes += chunk.len() as u64;
        Ok(Some(chunk))
    }

    /// The first bytes, without taking them.
    fn head(&mut self) -> io::Result<[u8; 4]> {
        while self.current.len() < 4 {
            let Some(more) = self.pull()? else { break };
            let mut joined = BytesMut::with_capacity(self.current.len() + more.len());
            joined.extend_from_slice(&self.current);
            joined.extend_from_slice(&more);
            self.current = joined.freeze();
        }
        let mut head = [0; 4];
        let known = self.current.len().min(4);
        head[..known].copy_from_slice(&self.current[..known]);
        Ok(head)
    }

    /// Digests what the decompression did not need.
    fn drain(&mut self) -> io::Result<()> {
        while self.pull()?.is_some() {}
        Ok(())
    }

    fn check(&mut self, digest: &Digest, size: u64) -> Result<(), ImageError> {
        if self.bytes != size {
            return Err(ImageError::Size {
                digest: digest.clone(),
                expected: size,
                found: self.bytes,
            });
        }
        let found = Digest::from_sha256(std::mem::take(&mut self.hash).finalize().into());
        if found == *digest {
            return Ok(());
        }
        Err(ImageError::Corrupt {
            what: "a layer",
            expected: digest.clone(),
            found,
        })
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

impl BufRead for Blob<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty()
            && let Some(chunk) = self.pull()?
        {
            self.current = chunk;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, taken: usize) {
        self.current.advance(taken);
    }
}

/// Decompresses into buffers until the end, or until the writer wants no more.
fn send_tar(
    blob: &mut Blob<'_>,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut tar = decoder(blob)?;
    let mut total = 0u64;
    loop {
        let mut buffer = empty.try_recv().unwrap_or_default();
        buffer.resize(TAR_CHUNK_BYTES, 0);
        let filled = fill(&mut *tar, &mut buffer)?;
        total += filled as u64;
        buffer.truncate(filled);
        if filled > 0 && full.send(buffer).is_err() {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        // A bomb has gone one buffer too far by now, and the writer knows it.
        if filled == 0 || total > LAYER_BYTES_MAX {
            return Ok(());
        }
    }
}

/// Reads what is packed as its first bytes say.
pub(crate) fn decoder_for<'a>(
    head: [u8; 4],
    packed: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match Compression::sniff(&head) {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(MultiGzDecoder::new(packed)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
    })
}

fn decoder<'a>(blob: &'a mut Blob<'_>) -> io::Result<Box<dyn Read + Send + 'a>> {
    let head = blob.head()?;
    decoder_for(head, blob)
}

/// As much as there is, up to the buffer's length.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The second thread's end of the buffers, digested as they pass.
pub(crate) struct TarReader {
    full: Receiver<Vec<u8>>,
    spare: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    taken: usize,
    hash: Sha256,
    bytes: u64,
}

impl TarReader {
    pub fn new(full: Receiver<Vec<u8>>, spare: SyncSender<Vec<u8>>) -> Self {
        Self {
            full,
            spare,
            current: Vec::new(),
            taken: 0,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// Takes the next buffer; false at the end.
    fn advance(&mut self) -> bool {
        let Ok(next) = self.full.recv() else {
            return false;
        };
        let used = std::mem::replace(&mut self.current, next);
        // Nobody is hurt when the sender is gone or has spare ones enough.
        drop(self.spare.try_send(used));
        self.taken = 0;
        self.hash.update(&self.current);
        self.bytes += self.current.len() as u64;
        true
    }
}

impl Read for TarReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.current.len() && !self.advance() {
            return Ok(0);
        }
        let left = &self.current[self.taken..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// Writes the layer of a tar that is digested as it passes.
pub(crate) fn write(
    mut tar: TarReader,
    file: &mut std::fs::File,
) -> Result<Written, skiff_erofs::LayerError> {
    let options = LayerOptions {
        max_bytes: LAYER_BYTES_MAX,
        // The digest of the tar proves that nothing is missing.
        require_end_marker: false,
        capture: vec![PASSWD.to_owned(), GROUP.to_owned()],
        ..LayerOptions::default()
    };
    let report = write_layer(&mut tar, file, &options)?;
    while tar.advance() {}
    Ok(Written {
        diff_id: Digest::from_sha256(tar.hash.finalize().into()),
        tar_bytes: tar.bytes,
        report,
    })
}
