//! A zip file of code on its way to a layer: checked entry by entry, and
//! written as the tar that a layer is made of.
//!
//! What two readers would read differently is refused, and so is what code has
//! no business with: files outside its folder, links that lead out of it,
//! devices, names that mean something to layers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memchr::memmem;
use skiff_base::Date;
use zip::{CompressionMethod, ZipArchive};

use crate::limits::{
    CODE_BYTES_MAX, CODE_DEPTH_MAX, CODE_ENTRIES_MAX, CODE_HEADERS_MAX, CODE_NAME_BYTES_MAX,
    CODE_PATH_BYTES_MAX,
};

use super::CodeRoot;

/// Every entry's header in a zip file's directory begins so.
const HEADER: &[u8] = b"PK\x01\x02";
/// What layers hide files with (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// Read at once while headers are counted.
const SCAN_BYTES: usize = 256 * 1024;
/// The type in a mode, and the types that code may have (stat(2)).
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// A zip file cannot become a layer.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// It is no zip file, or a damaged or an ambiguous one.
    #[error("it is not a zip file that can be read")]
    Damaged(#[source] zip::result::ZipError),
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// Nothing is in it.
    #[error("it has no file in it")]
    Empty,
    /// More entries than code has.
    #[error("it has over {0} entries")]
    Entries(usize),
    /// A bomb, or too much code.
    #[error("Unzipped size must be smaller than {0} bytes")]
    Unpacked(u64),
    /// One entry may not be as it is.
    #[error("its entry {path:?} {problem}")]
    Entry {
        /// Its name, with unprintable bytes replaced.
        path: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// An entry's content is damaged.
    #[error("its entry {path:?} cannot be unpacked")]
    Content {
        /// Its name, with unprintable bytes replaced.
        path: String,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// Whoever takes the tar has had enough.
    #[error("its layer cannot be written")]
    Write(#[source] io::Error),
}

/// What is wrong with an entry of a zip file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// It begins with a slash.
    #[error("has an absolute path")]
    Absolute,
    /// It leads up.
    #[error("has a .. in its path")]
    Traversal,
    /// No name, one that is too long, with NUL, or with backslashes.
    #[error("has a path that is empty, too long, too deep or has a NUL or a backslash in it")]
    Path,
    /// Layers hide files by such names.
    #[error("has a name that begins with .wh.")]
    Whiteout,
    /// It is there twice.
    #[error("is there twice, under one name or several that mean the same")]
    Twice,
    /// A file is where it needs a folder.
    #[error("is a file and a folder at once")]
    NotAFolder,
    /// It needs a password.
    #[error("is encrypted")]
    Encrypted,
    /// Neither stored nor deflated.
    #[error("is compressed by another method than deflate")]
    Method,
    /// A device, a pipe or a socket.
    #[error("is neither a file nor a folder nor a symbolic link")]
    Special,
    /// A symbolic link that is none, or leads out of the code.
    #[error("is a symbolic link that is absolute, empty or leads out of the code")]
    LinkOut,
}

/// What became of a zip file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// All files' contents, bytes.
    pub bytes: u64,
    /// It has a file `bootstrap` at its top.
    pub bootstrap: bool,
}

/// An entry that is taken.
#[derive(Debug)]
struct Entry {
    /// Below the code's folder.
    path: Vec<u8>,
    kind: Kind,
    size: u64,
    /// Whoever runs the code may read all of it.
    executable: bool,
    mtime: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
    Link,
}

/// Writes what is in a zip file as a tar, below the folder that code of its
/// kind has. The same zip file makes the same tar.
pub(crate) fn write_tar(
    zip: &File,
    root: CodeRoot,
    out: &mut dyn Write,
) -> Result<Unpacked, CodeError> {
    check_headers(zip)?;
    let reader = BufReader::with_capacity(64 * 1024, zip);
    let mut archive = ZipArchive::new(reader).map_err(CodeError::Damaged)?;
    archive
        .validate_header_consistency()
        .map_err(CodeError::Damaged)?;
    if archive.len() > CODE_ENTRIES_MAX {
        return Err(CodeError::Entries(CODE_ENTRIES_MAX));
    }
    let mut unpacking = Unpacking {
        root,
        tar: tar::Builder::new(out),
        known: HashMap::new(),
        done: Unpacked::default(),
    };
    for index in 0..archive.len() {
        let entry = entry_of(&archive, index)?;
        unpacking.admit(&entry)?;
        let content = archive.by_index(index).map_err(CodeError::Damaged)?;
        unpacking.write(&entry, content)?;
    }
    if archive.is_empty() {
        return Err(CodeError::Empty);
    }
    unpacking.tar.finish().map_err(CodeError::Write)?;
    Ok(unpacking.done)
}

/// As many headers as are in the file are the most that anyone may find in
/// it: this bounds the memory of whoever reads its directory.
fn check_headers(zip: &File) -> Result<(), CodeError> {
    let finder = memmem::Finder::new(HEADER);
    let mut buffer = vec![0; SCAN_BYTES];
    let (mut at, mut kept, mut found) = (0, 0, 0);
    loop {
        let read = zip.read_at(&mut buffer[kept..], at);
        let read = read.map_err(CodeError::Read)?;
        if read == 0 {
            return Ok(());
        }
        at += read as u64;
        let filled = kept + read;
        found += finder.find_iter(&buffer[..filled]).count();
        if found > CODE_HEADERS_MAX {
            return Err(CodeError::Entries(CODE_ENTRIES_MAX));
        }
        // A header may begin at the end of one piece; none is counted twice.
        kept = (HEADER.len() - 1).min(filled);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

fn entry_of<R: Read + io::Seek>(archive: &ZipArchive<R>, index: usize) -> Result<Entry, CodeError> {
    let found = archive.by_index_data(index).map_err(CodeError::Damaged)?;
    let refuse = |problem| wrong(found.name_raw(), problem);
    if found.encrypted() {
        return Err(refuse(EntryProblem::Encrypted));
    }
    let stored = [CompressionMethod::Stored, CompressionMethod::Deflated];
    if !stored.contains(&found.compression()) {
        return Err(refuse(EntryProblem::Method));
    }
    let mode = found.unix_mode().unwrap_or(0);
    let kind = match (mode & TYPE, found.is_dir()) {
        (FOLDER | 0, true) => Kind::Folder,
        (REGULAR | 0, false) => Kind::File,
        (LINK, false) => Kind::Link,
        _ => return Err(refuse(EntryProblem::Special)),
    };
    Ok(Entry {
        path: path_of(found.name_raw()).map_err(refuse)?,
        kind,
        size: match kind {
            Kind::Folder => 0,
            Kind::File | Kind::Link => found.size(),
        },
        executable: mode & 0o111 != 0,
        mtime: found.last_modified().map_or(0, unix_s),
    })
}

fn wrong(name: &[u8], problem: EntryProblem) -> CodeError {
    let path = shown(name);
    CodeError::Entry { path, problem }
}

fn shown(name: &[u8]) -> String {
    let shown = &name[..name.len().min(256)];
    String::from_utf8_lossy(shown).into_owned()
}

/// A time without a zone, taken for UTC.
fn unix_s(time: zip::DateTime) -> u64 {
    let date = Date {
        year: time.year().into(),
        month: time.month().into(),
        day: time.day().into(),
    };
    let of_day = (u64::from(time.hour()) * 60 + u64::from(time.minute())) * 60;
    date.days()
        .map_or(0, |days| days * 86_400 + of_day + u64::from(time.second()))
}

/// An entry's path without what means nothing.
fn path_of(name: &[u8]) -> Result<Vec<u8>, EntryProblem> {
    if name.starts_with(b"/") {
        return Err(EntryProblem::Absolute);
    }
    if name.len() > CODE_PATH_BYTES_MAX || name.contains(&0) || name.contains(&b'\\') {
        return Err(EntryProblem::Path);
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(EntryProblem::Traversal),
            part if part.starts_with(WHITEOUT) => return Err(EntryProblem::Whiteout),
            part if part.len() > CODE_NAME_BYTES_MAX => return Err(EntryProblem::Path),
            part => parts.push(part),
        }
    }
    if parts.is_empty() || parts.len() > CODE_DEPTH_MAX {
        return Err(EntryProblem::Path);
    }
    Ok(parts.join(&b'/'))
}

/// Whether a link at this path leads to something inside its root, as it is
/// written: other links on the way are not followed. Nothing is kept safe by
/// this but sense, for links are only ever followed inside of an instance.
fn leads_inside(path: &[u8], target: &[u8]) -> bool {
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return false;
    }
    let mut depth = path.split(|byte| *byte == b'/').count() - 1;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return false,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    true
}

struct Unpacking<'a> {
    root: CodeRoot,
    tar: tar::Builder<&'a mut dyn Write>,
    /// Each path so far; false where only something below it was named.
    known: HashMap<Vec<u8>, (Kind, bool)>,
    done: Unpacked,
}

impl Unpacking<'_> {
    /// Whether the entry fits those before it.
    fn admit(&mut self, entry: &Entry) -> Result<(), CodeError> {
        let refuse = |problem| wrong(&entry.path, problem);
        self.done.bytes = self.done.bytes.saturating_add(entry.size);
        if self.done.bytes > CODE_BYTES_MAX {
            return Err(CodeError::Unpacked(CODE_BYTES_MAX));
        }
        let folders = entry.path.iter().enumerate();
        for (end, _) in folders.filter(|(_, byte)| **byte == b'/') {
            let folder = &entry.path[..end];
            match self.known.get(folder) {
                Some((Kind::Folder, _)) => {}
                Some(_) => return Err(refuse(EntryProblem::NotAFolder)),
                None => drop(self.known.insert(folder.to_vec(), (Kind::Folder, false))),
            }
        }
        match self.known.get(&entry.path) {
            Some((_, true)) => return Err(refuse(EntryProblem::Twice)),
            Some((_, false)) if entry.kind != Kind::Folder => {
                return Err(refuse(EntryProblem::NotAFolder));
            }
            _ => drop(self.known.insert(entry.path.clone(), (entry.kind, true))),
        }
        // Folders that are only implied count as well.
        if self.known.len() > CODE_ENTRIES_MAX {
            return Err(CodeError::Entries(CODE_ENTRIES_MAX));
        }
        self.done.bootstrap |= entry.path == b"bootstrap" && entry.kind != Kind::Folder;
        Ok(())
    }

    fn write(&mut self, entry: &Entry, content: impl Read) -> Result<(), CodeError> {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(entry.mtime);
        header.set_mode(match (entry.kind, entry.executable) {
            (Kind::File, false) => 0o644,
            (Kind::File, true) | (Kind::Folder, _) => 0o755,
            (Kind::Link, _) => 0o777,
        });
        let mut path = self.root.folder().as_bytes().to_vec();
        path.push(b'/');
        path.extend_from_slice(&entry.path);
        let path = Path::new(std::ffi::OsStr::from_bytes(&path));
        let mut content = Exact {
            content,
            left: entry.size,
            failed: None,
        };
        let written = match entry.kind {
            Kind::File => {
                header.set_size(entry.size);
                header.set_entry_type(tar::EntryType::Regular);
                self.tar.append_data(&mut header, path, &mut content)
            }
            Kind::Folder => {
                header.set_size(0);
                header.set_entry_type(tar::EntryType::Directory);
                self.tar.append_data(&mut header, path, io::empty())
            }
            Kind::Link => {
                header.set_size(0);
                header.set_entry_type(tar::EntryType::Symlink);
                let target = link_target(entry, &mut content)?;
                let target = Path::new(std::ffi::OsStr::from_bytes(&target));
                self.tar.append_link(&mut header, path, target)
            }
        };
        match (written, content.failed) {
            (_, Some(source)) => Err(damaged(entry, source)),
            (written, None) => written.map_err(CodeError::Write),
        }
    }
}

fn damaged(entry: &Entry, source: io::Error) -> CodeError {
    let path = shown(&entry.path);
    CodeError::Content { path, source }
}

/// A symbolic link's content is where it leads.
fn link_target(entry: &Entry, content: &mut dyn Read) -> Result<Vec<u8>, CodeError> {
    let out = || wrong(&entry.path, EntryProblem::LinkOut);
    if entry.size >= CODE_PATH_BYTES_MAX as u64 {
        return Err(out());
    }
    let mut target = Vec::new();
    let read = content.read_to_end(&mut target);
    read.map_err(|source| damaged(entry, source))?;
    match leads_inside(&entry.path, &target) {
        true => Ok(target),
        false => Err(out()),
    }
}

/// Content of exactly the length that was told; its failure is kept, since
/// whoever copies it may mix it up with one of its own.
struct Exact<R> {
    content: R,
    left: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Exact<R> {
    fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            // The content's sum is looked at when its end is read.
            return match self.content.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::Error::other("it is longer than it says")),
            };
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let wanted = most.min(buffer.len());
        let read = self.content.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::Error::other("it is shorter than it says"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next(buffer).map_err(|error| {
            let told = io::Error::new(error.kind(), "the content is damaged");
            self.failed = Some(error);
            told
        })
    }
}

#[cfg(test)]
#[path = "zip_tests.rs"]
mod tests;
