//! Named files of what is imported: of a folder, or of a tar, which is never
//! unpacked.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::layer::Chunks;
use crate::limits::{ARCHIVE_ENTRIES_MAX, ARCHIVE_LINKS_MAX, JSON_BYTES_MAX, TAR_CHUNK_BYTES};

/// A piece of a file.
#[derive(Clone, Debug)]
pub(super) struct Section {
    file: Arc<File>,
    offset: u64,
    pub len: u64,
}

#[derive(Debug)]
pub(super) enum Tree {
    Folder(PathBuf),
    Archive {
        file: Arc<File>,
        members: HashMap<String, Member>,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Member {
    File { offset: u64, len: u64 },
    Link(String),
}

impl Tree {
    /// Reads the names of a tar's members. Only regular files and links are
    /// of use; of two with one name the later counts, as in unpacking.
    pub fn of_archive(file: File) -> io::Result<Self> {
        let mut archive = tar::Archive::new(&file);
        let mut members = HashMap::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            if members.len() >= ARCHIVE_ENTRIES_MAX {
                return Err(io::Error::other("it has over 8192 members"));
            }
            let Some(name) = entry.path_bytes().to_vec().try_into().ok() else {
                continue;
            };
            let name: String = name;
            let kind = entry.header().entry_type();
            let member = if kind.is_file() {
                Member::File {
                    offset: entry.raw_file_position(),
                    len: entry.size(),
                }
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let Ok(target) = String::from_utf8(target.into_owned()) else {
                    continue;
                };
                let base = if kind.is_symlink() { parent(&name) } else { "" };
                Member::Link(joined(base, &target))
            } else {
                continue;
            };
            members.insert(joined("", &name), member);
        }
        Ok(Self::Archive {
            file: Arc::new(file),
            members,
        })
    }

    /// The file of this name.
    pub fn open(&self, name: &str) -> io::Result<Option<Section>> {
        match self {
            Self::Folder(folder) => open_regular(&folder.join(name)),
            Self::Archive { file, members } => {
                let mut name = joined("", name);
                for _ in 0..=ARCHIVE_LINKS_MAX {
                    match members.get(&name) {
                        Some(Member::File { offset, len }) => {
                            return Ok(Some(Section {
                                file: Arc::clone(file),
                                offset: *offset,
                                len: *len,
                            }));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Err(io::Error::other(format!("{name} has too many links")))
            }
        }
    }

    /// A small file whole; `None` when there is none.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(section) = self.open(name)? else {
            return Ok(None);
        };
        if section.len > JSON_BYTES_MAX {
            return Err(io::Error::other(format!("{name} is over 4 MiB")));
        }
        let mut bytes = Vec::new();
        section.reader().read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// Opens a file, and neither a pipe nor a device: those may wait for ever.
pub(super) fn open_regular(path: &Path) -> io::Result<Option<Section>> {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other(format!(
            "{} is not a regular file",
            path.display()
        )));
    }
    Ok(Some(Section {
        file: Arc::new(file),
        offset: 0,
        len: metadata.len(),
    }))
}

impl Section {
    pub fn reader(&self) -> SectionReader {
        SectionReader {
            section: self.clone(),
            read: 0,
        }
    }

    pub fn into_file(self) -> io::Result<File> {
        Arc::try_unwrap(self.file).or_else(|shared| shared.try_clone())
    }
}

/// Reads a section without moving anybody else's place in the file.
pub(super) struct SectionReader {
    section: Section,
    read: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.section.len - self.read).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let place = self.section.offset + self.read;
        let count = self.section.file.read_at(&mut buffer[..wanted], place)?;
        self.read += count as u64;
        Ok(count)
    }
}

impl Chunks for SectionReader {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = BytesMut::zeroed(TAR_CHUNK_BYTES);
        let count = self.read(&mut buffer)?;
        buffer.truncate(count);
        Ok((count > 0).then(|| buffer.freeze()))
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// A path below the root, without `.` and `..`; above the root there is none.
fn joined(base: &str, path: &str) -> String {
    let base = if path.starts_with('/') { "" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_below_the_root() {
        let table = [
            ("", "./a/b", "a/b"),
            ("a/b", "../c/layer.tar", "a/c/layer.tar"),
            ("a", "../../../x", "x"),
            ("a", "/x/./y", "x/y"),
            ("", "", ""),
        ];
        for (base, path, expected) in table {
            assert_eq!(joined(base, path), expected);
        }
    }

    #[test]
    fn members_are_read_in_place_and_links_are_followed() {
        let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_cksum();
        tar.append_data(&mut header.clone(), "x/layer.tar", &b"hello"[..])
            .unwrap();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header.clone(), "y/layer.tar", "../x/layer.tar")
            .unwrap();
        tar.append_link(&mut header.clone(), "loop", "loop")
            .unwrap();
        let mut file = tar.into_inner().unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let tree = Tree::of_archive(file).unwrap();
        assert_eq!(tree.read("y/layer.tar").unwrap().unwrap(), b"hello");
        assert_eq!(tree.read("./x/layer.tar").unwrap().unwrap(), b"hello");
        assert!(tree.read("z").unwrap().is_none());
        assert!(tree.read("loop").is_err());
    }
}
