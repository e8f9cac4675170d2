//! Joins extension headers with their entries and hands out contents.

use std::io::Read;

use crate::error::{LayerError, Malformed};

use super::Timestamp;
use super::header::{BLOCK, Block, Header};
use super::pax::{self, Pax};
use super::source::Source;

/// Longest extension header: a path, a target and sixteen of the largest
/// extended attributes Linux has.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// The largest size that a header's octal digits can tell.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// What kind of file an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// An entry with all extensions applied; nothing in it has been judged yet
/// but its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Bytes of content; zero unless a file.
    pub(crate) size: u64,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream as a sequence of entries.
#[derive(Debug)]
pub(crate) struct Entries<R> {
    source: Source<R>,
    require_end_marker: bool,
    /// Where the current entry's header began.
    entry: u64,
    /// Content not taken yet.
    content: u64,
    /// Filling up to the next header.
    padding: u64,
}

/// Extensions waiting for their entry.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(reader: R, max_bytes: u64, require_end_marker: bool) -> Self {
        let source = Source::new(reader, max_bytes);
        Self {
            source,
            require_end_marker,
            entry: 0,
            content: 0,
            padding: 0,
        }
    }

    /// The next entry, past what is left of the last one's content. `None`
    /// means that the whole stream has been read, padding behind its end
    /// marker included.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut pending = Pending::default();
        loop {
            self.source.skip(self.content, self.entry)?;
            self.source.skip(self.padding, self.entry)?;
            (self.content, self.padding) = (0, 0);
            self.entry = self.source.offset();
            let Some(block) = self.block()? else {
                return if pending.is_empty() {
                    Ok(None)
                } else {
                    Err(self.malformed(Malformed::DanglingExtension))
                };
            };
            let header = Header::parse(&block).map_err(|problem| self.malformed(problem))?;
            if self.extension(&header, &mut pending)? {
                continue;
            }
            let entry = join(header, pending).map_err(|problem| self.malformed(problem))?;
            self.expect_content(entry.size);
            return Ok(Some(entry));
        }
    }

    /// The next piece of the current entry's content; empty at its end.
    pub(crate) fn content(&mut self) -> Result<&[u8], LayerError> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let truncated = self.malformed(Malformed::Truncated);
        let chunk = self.source.take(self.content)?;
        if chunk.is_empty() {
            return Err(truncated);
        }
        self.content -= u64::try_from(chunk.len()).unwrap_or(self.content);
        Ok(chunk)
    }

    fn malformed(&self, problem: Malformed) -> LayerError {
        LayerError::Malformed {
            offset: self.entry,
            problem,
        }
    }

    fn expect_content(&mut self, size: u64) {
        const BLOCK_BYTES: u64 = BLOCK as u64;
        self.content = size;
        self.padding = (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES;
    }

    /// The next header, or `None` at the archive's end.
    fn block(&mut self) -> Result<Option<Block>, LayerError> {
        let mut block = [0; BLOCK];
        match self.source.read_up_to(&mut block)? {
            0 => return self.unmarked_end(),
            BLOCK => {}
            _ => return Err(self.malformed(Malformed::Truncated)),
        }
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.source.read_up_to(&mut block)? {
            0 => self.unmarked_end(),
            BLOCK if block == [0; BLOCK] => self.source.drain().map(|()| None),
            BLOCK => Err(self.malformed(Malformed::LoneZeroBlock)),
            _ => Err(self.malformed(Malformed::Truncated)),
        }
    }

    fn unmarked_end(&self) -> Result<Option<Block>, LayerError> {
        if self.require_end_marker {
            return Err(self.malformed(Malformed::NoEndMarker));
        }
        Ok(None)
    }

    /// Takes `header`'s content into `pending` if it is an extension.
    fn extension(&mut self, header: &Header, pending: &mut Pending) -> Result<bool, LayerError> {
        if !matches!(header.type_flag, b'x' | b'g' | b'L' | b'K') {
            return Ok(false);
        }
        let content = self.extension_content(header.size)?;
        let taken = match header.type_flag {
            b'g' => pax::check_global(&content),
            b'x' => Pax::parse(&content).and_then(|pax| set_once(&mut pending.pax, pax)),
            b'L' => set_once(&mut pending.name, before_nul(content)),
            _ => set_once(&mut pending.link, before_nul(content)),
        };
        taken
            .map(|()| true)
            .map_err(|problem| self.malformed(problem))
    }

    /// An extension's own header tells its size, whatever a PAX header before
    /// it says about the entry behind it.
    fn extension_content(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        let length = usize::try_from(size)
            .ok()
            .filter(|_| size <= MAX_EXTENSION_BYTES);
        let Some(length) = length else {
            return Err(self.malformed(Malformed::ExtensionTooLong(MAX_EXTENSION_BYTES)));
        };
        self.expect_content(size);
        let mut content = vec![0; length];
        if self.source.read_up_to(&mut content)? < length {
            return Err(self.malformed(Malformed::Truncated));
        }
        self.content = 0;
        Ok(content)
    }
}

fn set_once<T>(place: &mut Option<T>, value: T) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed::RepeatedExtension),
    }
}

fn before_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

fn join(header: Header, pending: Pending) -> Result<Entry, Malformed> {
    let pax = pending.pax.unwrap_or_default();
    let path = choose(header.name, pending.name, pax.path)?;
    let link = choose(header.link, pending.link, pax.link)?;
    let claimed = claimed_size(header.size, pax.size)?;
    let kind = kind(header.type_flag, path.ends_with(b"/"), claimed)?;
    let size = match kind {
        EntryKind::File => claimed,
        // Some writers repeat the file's size in its links; no reader
        // expects content there.
        EntryKind::HardLink => 0,
        _ if claimed == 0 => 0,
        _ => return Err(Malformed::UnexpectedContent),
    };
    Ok(Entry {
        path,
        link,
        kind,
        size,
        mode: header.mode,
        uid: pax.uid.unwrap_or(header.uid),
        gid: pax.gid.unwrap_or(header.gid),
        mtime: pax.mtime.unwrap_or(header.mtime),
        major: header.major,
        minor: header.minor,
        xattrs: pax.xattrs,
    })
}

fn choose(
    header: Vec<u8>,
    gnu: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
) -> Result<Vec<u8>, Malformed> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => Err(Malformed::NameMismatch),
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) => Ok(header),
    }
}

/// A PAX size counts; it may differ from the header's only where the header
/// couldn't tell it, or a reader that overlooks one of them would find other
/// entries than we do.
fn claimed_size(header: u64, pax: Option<u64>) -> Result<u64, Malformed> {
    match pax {
        None => Ok(header),
        Some(size) if size == header || size > MAX_OCTAL_SIZE => Ok(size),
        Some(_) => Err(Malformed::SizeMismatch),
    }
}

fn kind(type_flag: u8, named_directory: bool, size: u64) -> Result<EntryKind, Malformed> {
    Ok(match type_flag {
        // Before POSIX, directories were files whose name ends in a slash,
        // and GNU tar still reads them so.
        0 | b'0' | b'7' if named_directory && size == 0 => EntryKind::Directory,
        0 | b'0' | b'7' if named_directory => return Err(Malformed::UnexpectedContent),
        0 | b'0' | b'7' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'S' => return Err(Malformed::Sparse),
        other => return Err(Malformed::Type(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_size_may_only_say_what_the_header_cannot() {
        assert_eq!(claimed_size(5, None), Ok(5));
        assert_eq!(claimed_size(5, Some(5)), Ok(5));
        assert_eq!(claimed_size(0, Some(1 << 33)), Ok(1 << 33));
        assert_eq!(claimed_size(MAX_OCTAL_SIZE, Some(1 << 40)), Ok(1 << 40));
        assert_eq!(claimed_size(0, Some(5)), Err(Malformed::SizeMismatch));
        assert_eq!(claimed_size(1024, Some(0)), Err(Malformed::SizeMismatch));
    }

    #[test]
    fn kinds_follow_type_and_trailing_slash() {
        assert_eq!(kind(b'0', false, 1), Ok(EntryKind::File));
        assert_eq!(kind(0, true, 0), Ok(EntryKind::Directory));
        assert_eq!(kind(b'0', true, 1), Err(Malformed::UnexpectedContent));
        assert_eq!(kind(b'S', false, 0), Err(Malformed::Sparse));
        assert_eq!(kind(b'V', false, 0), Err(Malformed::Type(b'V')));
        assert_eq!(kind(b'M', false, 0), Err(Malformed::Type(b'M')));
    }
}
