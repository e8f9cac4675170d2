//! EROFS structures as they lie on disk (Linux, fs/erofs/erofs_fs.h): only
//! those of uncompressed images, nothing newer than Linux 5.4.

use crate::tree::{Attributes, Directory, InodeId, Kind, ROOT};

pub(crate) const BLOCK_BYTES: usize = 4096;
/// Inodes are addressed in units of this.
pub(crate) const SLOT_BYTES: usize = 32;
/// `erofs_inode_extended`; compact ones have no mtime of their own.
pub(crate) const INODE_BYTES: usize = 64;

const DIRENT_BYTES: usize = 12;
const FORMAT_EXTENDED: u16 = 1;
const LAYOUT_FLAT_INLINE: u16 = 2 << 1;

/// What an inode's fields say beside its attributes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InodeFields {
    pub(crate) kind_bits: u16,
    pub(crate) inline: bool,
    pub(crate) xattr_count: u16,
    pub(crate) size: u64,
    /// First block of the content, or a device's number.
    pub(crate) union: u32,
    pub(crate) number: u32,
    pub(crate) links: u32,
}

pub(crate) fn encode_inode(attributes: &Attributes, fields: &InodeFields, out: &mut Vec<u8>) {
    let layout = if fields.inline { LAYOUT_FLAT_INLINE } else { 0 };
    let end = out.len() + INODE_BYTES;
    out.extend_from_slice(&(FORMAT_EXTENDED | layout).to_le_bytes());
    out.extend_from_slice(&fields.xattr_count.to_le_bytes());
    out.extend_from_slice(&(fields.kind_bits | attributes.mode).to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&fields.size.to_le_bytes());
    out.extend_from_slice(&fields.union.to_le_bytes());
    out.extend_from_slice(&fields.number.to_le_bytes());
    out.extend_from_slice(&attributes.uid.to_le_bytes());
    out.extend_from_slice(&attributes.gid.to_le_bytes());
    out.extend_from_slice(&attributes.mtime.seconds.to_le_bytes());
    out.extend_from_slice(&attributes.mtime.nanoseconds.to_le_bytes());
    out.extend_from_slice(&fields.links.to_le_bytes());
    out.resize(end, 0);
}

/// The file type in an inode's mode.
pub(crate) fn kind_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice(_) | Kind::Whiteout => 0o020_000,
        Kind::Directory(_) => 0o040_000,
        Kind::BlockDevice(_) => 0o060_000,
        Kind::File { .. } => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
    }
}

/// The file type in a directory entry.
pub(crate) fn entry_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Directory(_) => 2,
        Kind::CharDevice(_) | Kind::Whiteout => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// Linux's `new_encode_dev`: 12 bits of major, 20 of minor.
pub(crate) fn device_number(major: u32, minor: u32) -> Option<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

pub(crate) type NamedChild<'a> = (&'a [u8], InodeId);

/// A directory's entries with `.` and `..`, all in the order of their bytes,
/// by which the kernel searches.
pub(crate) fn sorted_entries(id: InodeId, directory: &Directory) -> Vec<NamedChild<'_>> {
    let parent = if id == ROOT { ROOT } else { directory.parent };
    let mut entries: Vec<NamedChild<'_>> = Vec::with_capacity(directory.children.len() + 2);
    entries.push((b".", id));
    entries.push((b"..", parent));
    entries.extend(
        directory
            .children
            .iter()
            .map(|(name, child)| (&**name, *child)),
    );
    // Nearly sorted: only names that begin below '.' come before these two.
    entries.sort_by_key(|(name, _)| *name);
    entries
}

/// Splits entries into blocks; each has as many as fit.
pub(crate) fn entry_blocks<'a, 'b>(
    mut entries: &'a [NamedChild<'b>],
) -> impl Iterator<Item = &'a [NamedChild<'b>]> {
    std::iter::from_fn(move || {
        let mut used = 0;
        let fitting = entries.iter().take_while(|(name, _)| {
            used += DIRENT_BYTES + name.len();
            used <= BLOCK_BYTES
        });
        let (now, later) = entries.split_at(fitting.count());
        entries = later;
        (!now.is_empty()).then_some(now)
    })
}

fn block_length(entries: &[NamedChild<'_>]) -> usize {
    entries
        .iter()
        .map(|(name, _)| DIRENT_BYTES + name.len())
        .sum()
}

/// Length of a directory: whole blocks, and what the last one uses.
pub(crate) fn directory_length(entries: &[NamedChild<'_>]) -> usize {
    let mut length = 0_usize;
    for block in entry_blocks(entries) {
        length = length.next_multiple_of(BLOCK_BYTES) + block_length(block);
    }
    length
}

/// Appends one block's `erofs_dirent`s and names; `resolve` gives a child's
/// slot and type.
pub(crate) fn encode_entries(
    entries: &[NamedChild<'_>],
    resolve: impl Fn(InodeId) -> (u64, u8),
    out: &mut Vec<u8>,
) {
    let mut name_offset = entries.len() * DIRENT_BYTES;
    for (name, child) in entries {
        let (slot, entry_type) = resolve(*child);
        out.extend_from_slice(&slot.to_le_bytes());
        out.extend_from_slice(&u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(&[entry_type, 0]);
        name_offset += name.len();
    }
    for (name, _) in entries {
        out.extend_from_slice(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_linuxs() {
        let check = |major, minor, expect| assert_eq!(device_number(major, minor), expect);
        check(0, 0, Some(0));
        check(8, 1, Some(0x801));
        check(259, 0x12345, Some(0x1231_0345));
        check(4095, 0xf_ffff, Some(u32::MAX));
        check(4096, 0, None);
        check(0, 1 << 20, None);
    }

    #[test]
    fn entries_sort_around_the_dots() {
        let mut directory = Directory::default();
        for (id, name) in [
            (1, &b"a"[..]),
            (2, b"-"),
            (3, b".-"),
            (4, b"..x"),
            (5, b"\xff"),
        ] {
            directory.children.insert(name.into(), id);
        }
        let entries = sorted_entries(9, &directory);
        let names: Vec<&[u8]> = entries.iter().map(|(name, _)| *name).collect();
        let expect: [&[u8]; 7] = [b"-", b".", b".-", b"..", b"..x", b"a", b"\xff"];
        assert_eq!(names, expect);
    }

    #[test]
    fn blocks_are_filled_but_never_over() {
        let names: Vec<Vec<u8>> = (0..2000)
            .map(|n| format!("{n:0200}").into_bytes())
            .collect();
        let entries: Vec<NamedChild<'_>> = names.iter().map(|name| (&name[..], 1)).collect();
        let blocks: Vec<_> = entry_blocks(&entries).collect();
        assert_eq!(blocks.iter().map(|block| block.len()).sum::<usize>(), 2000);
        assert!(
            blocks[..blocks.len() - 1]
                .iter()
                .all(|block| block.len() == 19)
        );
        let mut last = Vec::new();
        encode_entries(blocks[blocks.len() - 1], |_| (7, 1), &mut last);
        let expect = (blocks.len() - 1) * BLOCK_BYTES + last.len();
        assert_eq!(directory_length(&entries), expect);
    }
}
