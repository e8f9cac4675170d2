//! An archive has its parts in any order, so one that cannot be read at any
//! place is first written to a file without a name.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::document::Compression;
use crate::error::ImageError;
use crate::layer::decoder_for;
use crate::limits::{ARCHIVE_BYTES_MAX, NETWORK_CHUNKS, TAR_CHUNK_BYTES};
use crate::store::ImageStore;
use crate::store::file::Temporary;

use super::not_an_image;
use super::tree::Section;

/// Between two pieces of a stream; `docker save` may think for a while.
const STREAM_STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// The archive itself when it is not compressed, else a copy that is not.
pub(super) fn unpacked(
    store: &ImageStore,
    section: Section,
    path: &Path,
) -> Result<File, ImageError> {
    let shown = path.display().to_string();
    let mut head = [0; 4];
    let mut start = section.reader();
    let known = start
        .read(&mut head)
        .map_err(ImageError::io("read", path))?;
    if Compression::sniff(&head[..known]) == Compression::None {
        return section.into_file().map_err(ImageError::io("open", path));
    }
    let packed = BufReader::with_capacity(TAR_CHUNK_BYTES, section.reader());
    spool(store, head, packed, &shown)
}

/// The archive that a stream carries.
pub(super) async fn from_stream(
    store: &ImageStore,
    mut stream: Pin<Box<dyn AsyncRead + Send>>,
) -> Result<File, ImageError> {
    let (sender, receiver) = mpsc::channel(NETWORK_CHUNKS);
    let writing = store.blocking(move |store| {
        let mut packed = BufReader::with_capacity(TAR_CHUNK_BYTES, StreamReader::new(receiver));
        let head = peek(&mut packed).map_err(|error| not_an_image("-", &error.to_string()))?;
        spool(store, head, packed, "-")
    });
    let reading = async {
        loop {
            let mut buffer = bytes::BytesMut::with_capacity(TAR_CHUNK_BYTES);
            let read = tokio::time::timeout(STREAM_STALL_TIMEOUT, stream.read_buf(&mut buffer));
            let piece = match read.await {
                Ok(Ok(0)) => Ok(None),
                Ok(Ok(_)) => Ok(Some(buffer.freeze())),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            };
            let ends = !matches!(piece, Ok(Some(_)));
            if sender.send(piece).await.is_err() || ends {
                return;
            }
        }
    };
    // The writer ends when the reader has, or for a reason of its own.
    let (written, ()) = tokio::join!(writing, reading);
    written
}

fn peek<R: Read>(packed: &mut BufReader<R>) -> io::Result<[u8; 4]> {
    use std::io::BufRead;
    let start = packed.fill_buf()?;
    let mut head = [0; 4];
    let known = start.len().min(4);
    head[..known].copy_from_slice(&start[..known]);
    Ok(head)
}

fn spool(
    store: &ImageStore,
    head: [u8; 4],
    packed: impl io::BufRead + Send,
    shown: &str,
) -> Result<File, ImageError> {
    let ingest = store.layout().ingest();
    let unreadable = |error: io::Error| not_an_image(shown, &error.to_string());
    let mut file = unnamed(&ingest)?;
    let mut tar = decoder_for(head, packed).map_err(unreadable)?;
    let mut buffer = vec![0; TAR_CHUNK_BYTES];
    let mut total = 0u64;
    loop {
        let count = match tar.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        total += count as u64;
        if total > ARCHIVE_BYTES_MAX {
            return Err(not_an_image(shown, "it is over 64 GiB"));
        }
        file.write_all(&buffer[..count])
            .map_err(ImageError::io("write", &ingest))?;
    }
    file.rewind().map_err(ImageError::io("read", &ingest))?;
    Ok(file)
}

/// A file that the kernel removes when it is closed; where the file system
/// cannot make one without a name, its name is taken away at once.
fn unnamed(folder: &Path) -> Result<File, ImageError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600)) {
        return Ok(File::from(file));
    }
    let mut temporary = Temporary::new(folder)?;
    let path = temporary.path().to_owned();
    temporary
        .file()
        .try_clone()
        .map_err(ImageError::io("open", &path))
}

/// The blocking end of the stream. An end that was not announced is a failure.
struct StreamReader {
    receiver: mpsc::Receiver<io::Result<Option<Bytes>>>,
    current: Bytes,
    ended: bool,
}

impl StreamReader {
    fn new(receiver: mpsc::Receiver<io::Result<Option<Bytes>>>) -> Self {
        Self {
            receiver,
            current: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(Some(piece))) => self.current = piece,
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => return Err(error),
                None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
