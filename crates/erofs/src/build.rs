//! Applies a layer's entries, one after another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use crate::capture::capture;
use crate::disk::{self, BLOCK_BYTES};
use crate::error::{LayerError, Limit, Refusal};
use crate::layout::Layout;
use crate::options::{LayerOptions, LayerReport, MAX_IMPLIED_REPORTED};
use crate::path;
use crate::sink::Sink;
use crate::tar::{Entries, Entry, EntryKind};
use crate::tree::{Attributes, Directory, Inode, InodeId, Kind, ROOT, Tree, TreeError};
use crate::write::{implied_directories, write_metadata};
use crate::xattr;

/// OCI image specification, layer.md: whiteouts.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// What AUFS kept for itself; engines leave it out.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// Longest symbolic link that Linux makes.
const MAX_TARGET_BYTES: usize = 4095;
/// How much of a path an error shows.
const SHOWN_PATH_BYTES: usize = 256;

/// Writes the layer in `tar`, already decompressed, to `out` as one EROFS
/// image, replacing what `out` holds. `tar` is read to its very end, so that
/// a digest taken on the way covers all of it.
///
/// Nothing is synced. After an error `out`'s content is undefined and has no
/// superblock.
pub fn write_layer(
    tar: impl Read,
    out: &mut File,
    options: &LayerOptions,
) -> Result<LayerReport, LayerError> {
    let mut entries = Entries::new(tar, options.max_bytes, options.require_end_marker);
    let mut builder = Builder {
        options,
        tree: Tree::new(options.max_entries, options.max_metadata_bytes),
        sink: Sink::new(out, options.max_bytes)?,
        entries: 0,
        dropped_xattrs: 0,
    };
    while let Some(entry) = entries.next()? {
        builder.apply(entry, &mut entries)?;
    }
    builder.finish()
}

struct Builder<'a> {
    options: &'a LayerOptions,
    tree: Tree,
    sink: Sink<'a>,
    entries: u64,
    dropped_xattrs: u64,
}

/// What a name says, by the whiteout rules.
enum Meaning<'a> {
    Plain,
    Whiteout(&'a [u8]),
    Opaque,
    Ignored,
}

impl Builder<'_> {
    fn apply<R: Read>(&mut self, entry: Entry, entries: &mut Entries<R>) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries > self.options.max_entries {
            let (limit, bound) = (Limit::Entries, self.options.max_entries);
            return Err(LayerError::TooLarge { limit, bound });
        }
        self.sink.reserve(entry.size)?;
        match self.place(&entry) {
            Ok(true) => self.copy(entries),
            Ok(false) => Ok(()),
            Err(TreeError::TooLarge(error)) => Err(error),
            Err(TreeError::Refused(problem)) => {
                let shown = &entry.path[..entry.path.len().min(SHOWN_PATH_BYTES)];
                let path = String::from_utf8_lossy(shown).into_owned();
                Err(LayerError::Refused { path, problem })
            }
        }
    }

    /// Puts the entry into the tree; says whether its content is wanted.
    fn place(&mut self, entry: &Entry) -> Result<bool, TreeError> {
        let components = path::split(&entry.path)?;
        let Some((last, parents)) = components.split_last() else {
            return self.describe_root(entry).map(|()| false);
        };
        match meaning(parents, last)? {
            Meaning::Ignored => return Ok(false),
            Meaning::Opaque => {
                let directory = self.tree.enter(parents)?;
                self.tree.make_opaque(directory);
                return Ok(false);
            }
            Meaning::Whiteout(hidden) => {
                let parent = self.tree.enter(parents)?;
                let attributes = Attributes {
                    mtime: entry.mtime,
                    ..Attributes::default()
                };
                return self
                    .tree
                    .white_out(parent, hidden, attributes)
                    .map(|()| false);
            }
            Meaning::Plain => {}
        }
        if entry.kind == EntryKind::HardLink {
            let target = self.link_target(entry)?;
            let parent = self.tree.enter(parents)?;
            return self.tree.link(parent, last, target).map(|()| false);
        }
        let kind = self.kind(entry)?;
        let attributes = self.attributes(entry, &kind)?;
        let parent = self.tree.enter(parents)?;
        self.tree.put(parent, last, Inode { attributes, kind })?;
        Ok(entry.size > 0)
    }

    fn describe_root(&mut self, entry: &Entry) -> Result<(), TreeError> {
        if entry.kind != EntryKind::Directory {
            return Err(Refusal::Root.into());
        }
        let kind = Kind::Directory(Box::default());
        let attributes = self.attributes(entry, &kind)?;
        self.tree.describe(ROOT, attributes)
    }

    fn kind(&self, entry: &Entry) -> Result<Kind, Refusal> {
        let device = || disk::device_number(entry.major, entry.minor).ok_or(Refusal::Device);
        Ok(match entry.kind {
            EntryKind::File | EntryKind::HardLink => {
                let block = if entry.size == 0 {
                    0
                } else {
                    self.sink.block()
                };
                Kind::File {
                    size: entry.size,
                    block,
                }
            }
            EntryKind::Directory => Kind::Directory(Box::<Directory>::default()),
            EntryKind::Symlink => Kind::Symlink(symlink_target(&entry.link)?),
            // Overlayfs takes such a device for a whiteout, whoever made it.
            EntryKind::CharDevice if (entry.major, entry.minor) == (0, 0) => Kind::Whiteout,
            EntryKind::CharDevice => Kind::CharDevice(device()?),
            EntryKind::BlockDevice => Kind::BlockDevice(device()?),
            EntryKind::Fifo => Kind::Fifo,
        })
    }

    fn attributes(&mut self, entry: &Entry, kind: &Kind) -> Result<Attributes, Refusal> {
        let mut xattrs = Vec::new();
        for (name, value) in &entry.xattrs {
            match xattr::accept(name, value, kind)? {
                Some(xattr) => xattrs.push(xattr),
                None => self.dropped_xattrs += 1,
            }
        }
        if xattr::stored_bytes(&xattrs) > xattr::MAX_STORED_BYTES - xattr::MARK_BYTES {
            return Err(Refusal::XattrTooLong);
        }
        let Entry {
            mode,
            uid,
            gid,
            mtime,
            ..
        } = *entry;
        Ok(Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        })
    }

    /// The inode that a hard link names: one that this layer has by now.
    fn link_target(&self, entry: &Entry) -> Result<InodeId, Refusal> {
        let components = path::split(&entry.link)?;
        let Some((last, parents)) = components.split_last() else {
            return Err(Refusal::LinkTargetDirectory);
        };
        let parent = self.tree.find(parents)?.ok_or(Refusal::LinkTargetMissing)?;
        let target = self
            .tree
            .child(parent, last)
            .ok_or(Refusal::LinkTargetMissing)?;
        match &self.tree.inode(target).kind {
            Kind::Directory(_) => Err(Refusal::LinkTargetDirectory),
            Kind::Whiteout => Err(Refusal::LinkTargetMissing),
            _ => Ok(target),
        }
    }

    fn copy<R: Read>(&mut self, entries: &mut Entries<R>) -> Result<(), LayerError> {
        loop {
            let chunk = entries.content()?;
            if chunk.is_empty() {
                return self.sink.align(BLOCK_BYTES);
            }
            self.sink.write(chunk)?;
        }
    }

    fn finish(mut self) -> Result<LayerReport, LayerError> {
        let layout = Layout::new(&self.tree, self.sink.block());
        let bytes = write_metadata(&self.tree, &layout, &mut self.sink)?;
        let mut captured = BTreeMap::new();
        for path in &self.options.capture {
            if let Some(state) = capture(&self.tree, path, self.sink.file())? {
                captured.insert(path.clone(), state);
            }
        }
        let (implied_directories, implied_count) =
            implied_directories(&self.tree, &layout, MAX_IMPLIED_REPORTED);
        Ok(LayerReport {
            bytes,
            entries: self.entries,
            captured,
            opaque_root: self.tree.directory(ROOT).is_some_and(|root| root.opaque),
            implied_directories,
            implied_count,
            dropped_xattrs: self.dropped_xattrs,
        })
    }
}

fn meaning<'a>(parents: &[&[u8]], last: &'a [u8]) -> Result<Meaning<'a>, Refusal> {
    let mut parents = parents.iter();
    if let Some(parent) = parents.find(|name| name.starts_with(WHITEOUT_PREFIX)) {
        let aufs = parent.starts_with(AUFS_PREFIX);
        return if aufs {
            Ok(Meaning::Ignored)
        } else {
            Err(Refusal::WhiteoutName)
        };
    }
    if last == OPAQUE_MARKER {
        return Ok(Meaning::Opaque);
    }
    if last.starts_with(AUFS_PREFIX) {
        return Ok(Meaning::Ignored);
    }
    match last.strip_prefix(WHITEOUT_PREFIX) {
        None => Ok(Meaning::Plain),
        Some(b"" | b"." | b"..") => Err(Refusal::WhiteoutName),
        Some(hidden) => Ok(Meaning::Whiteout(hidden)),
    }
}

fn symlink_target(target: &[u8]) -> Result<Box<[u8]>, Refusal> {
    if target.contains(&0) {
        return Err(Refusal::Nul);
    }
    if target.is_empty() || target.len() > MAX_TARGET_BYTES {
        return Err(Refusal::SymlinkTarget);
    }
    Ok(target.into())
}
