//! Decides where metadata goes.
//!
//! ```text
//! block 0      | data blocks ...      | long directories, targets | inodes
//! superblock   | written while reading|                           | from slot 2
//! ```
//! Inodes lie breadth-first, a directory's children together. An inode's
//! extended attributes follow it, then, if it fits the same block, the tail
//! of its directory entries or its link's target.

use crate::disk::{self, BLOCK_BYTES, INODE_BYTES, SLOT_BYTES};
use crate::tree::{Inode, InodeId, Kind, ROOT, Tree, index};
use crate::xattr;

/// Slot 0 stays empty: an inode number of zero means "deleted" to old
/// programs.
const FIRST_INODE: u64 = 64;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where one inode and its metadata content are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    /// The inode's number, which is its position.
    pub(crate) slot: u64,
    /// Names it has; zero for what was replaced.
    pub(crate) links: u32,
    /// First block of metadata content outside the inode.
    pub(crate) block: u32,
    /// Length of metadata content.
    pub(crate) length: u64,
    /// The content's last, partial block lies behind the inode.
    pub(crate) inline: bool,
}

impl Place {
    /// Bytes of metadata content outside the inode.
    pub(crate) fn outside(&self) -> u64 {
        if self.inline {
            self.length - self.length % BLOCK
        } else {
            self.length
        }
    }
}

#[derive(Debug)]
pub(crate) struct Layout {
    /// All inodes that have a name, as they lie on disk.
    pub(crate) order: Vec<InodeId>,
    places: Vec<Place>,
    /// First block of the inodes.
    pub(crate) inode_block: u32,
}

impl Layout {
    /// Lays out `tree`, with metadata from block `first_block` on.
    pub(crate) fn new(tree: &Tree, first_block: u32) -> Self {
        let mut places = vec![Place::default(); tree.len()];
        let order = breadth_first(tree, &mut places);
        let (mut cursor, mut block) = (FIRST_INODE, first_block);
        for id in &order {
            let inode = tree.inode(*id);
            let place = &mut places[index(*id)];
            place.length = content_length(*id, inode);
            let start = slot_for(&mut cursor, stored_bytes(tree, *id), place);
            place.slot = start / SLOT_BYTES as u64;
            place.block = block;
            let blocks = place.outside().div_ceil(BLOCK);
            block = block.saturating_add(u32::try_from(blocks).unwrap_or(u32::MAX));
        }
        Self {
            order,
            places,
            inode_block: block,
        }
    }

    pub(crate) fn place(&self, id: InodeId) -> &Place {
        &self.places[index(id)]
    }
}

/// Counts links on the way: a directory has its own and its children's.
fn breadth_first(tree: &Tree, places: &mut [Place]) -> Vec<InodeId> {
    let mut order = vec![ROOT];
    places[index(ROOT)].links = 2;
    let mut next = 0;
    while let Some(id) = order.get(next).copied() {
        next += 1;
        let Some(directory) = tree.directory(id) else {
            continue;
        };
        for child in directory.children.values() {
            let place = &mut places[index(*child)];
            if place.links == 0 {
                order.push(*child);
            }
            let own = if tree.directory(*child).is_some() {
                2
            } else {
                1
            };
            place.links = place.links.saturating_add(own);
            if own == 2 {
                let parent = &mut places[index(id)];
                parent.links = parent.links.saturating_add(1);
            }
        }
    }
    order
}

fn content_length(id: InodeId, inode: &Inode) -> u64 {
    let length = match &inode.kind {
        Kind::Directory(directory) => disk::directory_length(&disk::sorted_entries(id, directory)),
        Kind::Symlink(target) => target.len(),
        _ => 0,
    };
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Bytes of the inode and its attributes.
fn stored_bytes(tree: &Tree, id: InodeId) -> u64 {
    let bytes = INODE_BYTES + xattr::stored_bytes(&tree.stored_xattrs(id));
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Where an inode of `bytes` begins, and whether its content's tail fits
/// behind it; neither the inode itself nor the tail may cross a block.
fn slot_for(cursor: &mut u64, bytes: u64, place: &mut Place) -> u64 {
    let mut start = cursor.next_multiple_of(SLOT_BYTES as u64);
    if start % BLOCK + INODE_BYTES as u64 > BLOCK {
        start = start.next_multiple_of(BLOCK);
    }
    let tail = place.length % BLOCK;
    place.inline = tail > 0 && bytes + tail <= BLOCK;
    if place.inline && (start + bytes) % BLOCK + tail > BLOCK {
        start = start.next_multiple_of(BLOCK);
    }
    *cursor = start + bytes + if place.inline { tail } else { 0 };
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_inodes_nor_tails_cross_blocks() {
        let mut cursor = FIRST_INODE;
        for round in 0..100_000_u64 {
            let bytes = 64 + (round % 7) * 52;
            let mut place = Place {
                length: round * 37 % 9000,
                ..Place::default()
            };
            let before = cursor;
            let start = slot_for(&mut cursor, bytes, &mut place);
            assert!(start >= before && start.is_multiple_of(32));
            assert!(start % BLOCK + 64 <= BLOCK);
            let tail = place.length % BLOCK;
            assert_eq!(place.inline, tail > 0 && bytes + tail <= BLOCK);
            if place.inline {
                assert!((start + bytes) % BLOCK + tail <= BLOCK);
            }
            assert_eq!(place.outside() % BLOCK, if place.inline { 0 } else { tail });
        }
    }
}
