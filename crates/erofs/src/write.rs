//! Writes the tree behind the data, and the superblock over the first block.

use sha2::{Digest, Sha256};

use crate::disk::{self, BLOCK_BYTES, InodeFields, SLOT_BYTES};
use crate::error::LayerError;
use crate::layout::Layout;
use crate::sink::Sink;
use crate::superblock::{SUPERBLOCK_OFFSET, Superblock};
use crate::tree::{InodeId, Kind, ROOT, Tree, index};
use crate::xattr;

/// Writes everything but the data, which ends at the sink's position; returns
/// the image's length.
pub(crate) fn write_metadata(
    tree: &Tree,
    layout: &Layout,
    sink: &mut Sink<'_>,
) -> Result<u64, LayerError> {
    let mut writer = Writer {
        tree,
        layout,
        sink,
        digest: Sha256::new(),
    };
    writer.contents()?;
    writer.inodes()?;
    writer.superblock()
}

struct Writer<'a, 'b> {
    tree: &'a Tree,
    layout: &'a Layout,
    sink: &'a mut Sink<'b>,
    /// Of all metadata, for an identity that tells images apart.
    digest: Sha256,
}

impl Writer<'_, '_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.digest.update(bytes);
        self.sink.write(bytes)
    }

    /// Directories and targets that don't fit behind their inodes.
    fn contents(&mut self) -> Result<(), LayerError> {
        let mut content = Vec::new();
        for id in &self.layout.order {
            let place = self.layout.place(*id);
            let outside = usize::try_from(place.outside()).unwrap_or(usize::MAX);
            if outside > 0 {
                self.content(*id, &mut content);
                self.put(&content[..outside])?;
                self.sink.align(BLOCK_BYTES)?;
            }
        }
        Ok(())
    }

    fn inodes(&mut self) -> Result<(), LayerError> {
        let base = self.sink.position();
        let mut record = Vec::new();
        let mut content = Vec::new();
        for (position, id) in self.layout.order.iter().enumerate() {
            let place = self.layout.place(*id);
            let target = base + place.slot * SLOT_BYTES as u64;
            self.pad_to(target)?;
            record.clear();
            self.inode(*id, position, &mut record);
            if place.inline {
                self.content(*id, &mut content);
                let outside = usize::try_from(place.outside()).unwrap_or(usize::MAX);
                record.extend_from_slice(&content[outside..]);
            }
            self.put(&record)?;
        }
        // fsck.erofs reads an attribute header behind every inode, even one
        // that has no attributes, and calls an image corrupt that ends there.
        self.sink.write(&[0; xattr::HEADER_BYTES])?;
        self.sink.align(BLOCK_BYTES)
    }

    fn pad_to(&mut self, target: u64) -> Result<(), LayerError> {
        let gap = target.saturating_sub(self.sink.position());
        // Gaps are shorter than a block: an inode skips at most to the next.
        let zeros = [0; BLOCK_BYTES];
        let gap = usize::try_from(gap).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        self.sink.write(&zeros[..gap])
    }

    fn inode(&self, id: InodeId, position: usize, record: &mut Vec<u8>) {
        let inode = self.tree.inode(id);
        let place = self.layout.place(id);
        let (size, union) = match &inode.kind {
            Kind::File { size, block } => (*size, *block),
            Kind::Directory(_) | Kind::Symlink(_) => (place.length, place.block),
            Kind::CharDevice(device) | Kind::BlockDevice(device) => (0, *device),
            Kind::Fifo | Kind::Whiteout => (0, 0),
        };
        let xattrs = self.tree.stored_xattrs(id);
        let fields = InodeFields {
            kind_bits: disk::kind_bits(&inode.kind),
            inline: place.inline,
            xattr_count: xattr::count_field(xattr::stored_bytes(&xattrs)),
            size,
            union,
            number: u32::try_from(position + 1).unwrap_or(u32::MAX),
            links: place.links,
        };
        disk::encode_inode(&inode.attributes, &fields, record);
        xattr::encode(&xattrs, record);
    }

    /// A directory's entries or a link's target, whole blocks but the last.
    fn content(&self, id: InodeId, content: &mut Vec<u8>) {
        content.clear();
        match &self.tree.inode(id).kind {
            Kind::Symlink(target) => content.extend_from_slice(target),
            Kind::Directory(directory) => {
                let resolve = |child: InodeId| {
                    let entry_type = disk::entry_type(&self.tree.inode(child).kind);
                    (self.layout.place(child).slot, entry_type)
                };
                let entries = disk::sorted_entries(id, directory);
                for block in disk::entry_blocks(&entries) {
                    content.resize(content.len().next_multiple_of(BLOCK_BYTES), 0);
                    disk::encode_entries(block, resolve, content);
                }
            }
            _ => {}
        }
    }

    fn superblock(mut self) -> Result<u64, LayerError> {
        self.sink.flush()?;
        let blocks = self.sink.block();
        self.digest.update(self.sink.fingerprint().finish());
        let digest = self.digest.finalize();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest[..16]);
        let root_slot = self.layout.place(ROOT).slot;
        let superblock = Superblock {
            root_slot: u16::try_from(root_slot).unwrap_or(u16::MAX),
            inodes: u64::try_from(self.layout.order.len()).unwrap_or(u64::MAX),
            blocks,
            inode_block: self.layout.inode_block,
            uuid: as_custom_uuid(uuid),
        };
        self.sink
            .write_at(&superblock.encode(), SUPERBLOCK_OFFSET)?;
        Ok(self.sink.position())
    }
}

/// Sets version 8, "custom" (RFC 9562), so that it is a valid UUID.
fn as_custom_uuid(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// The paths of directories that no entry described, and their count.
pub(crate) fn implied_directories(tree: &Tree, layout: &Layout, most: usize) -> (Vec<String>, u64) {
    let implied = |id: &&InodeId| {
        **id != ROOT
            && tree
                .directory(**id)
                .is_some_and(|directory| directory.implied)
    };
    let paths = layout
        .order
        .iter()
        .filter(implied)
        .take(most)
        .map(|id| path_of(tree, *id));
    let count = layout.order.iter().filter(implied).count();
    (paths.collect(), u64::try_from(count).unwrap_or(u64::MAX))
}

fn path_of(tree: &Tree, mut id: InodeId) -> String {
    let mut names = Vec::new();
    while let Some(directory) = tree.directory(id).filter(|_| index(id) != index(ROOT)) {
        names.push(String::from_utf8_lossy(&directory.name));
        id = directory.parent;
    }
    names.reverse();
    names.join("/")
}
