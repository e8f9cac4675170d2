//! The layer's tree: who is whose child, and how later entries change it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::error::{LayerError, Limit, Refusal};
use crate::path::MAX_NAME_BYTES;
use crate::tar::Timestamp;
use crate::xattr::{self, Xattr};

/// Index of an inode in its tree.
pub(crate) type InodeId = u32;

pub(crate) const ROOT: InodeId = 0;

/// As many symbolic links as Linux follows in one path.
const MAX_SYMLINKS: u32 = 40;
/// Most components walked for one path, its symbolic links' included.
const MAX_STEPS: u32 = 2048;
const IMPLIED_MODE: u16 = 0o755;
/// What a map's entry costs beside its key, about.
const CHILD_BYTES: usize = 40;

/// Owner, permissions and the like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Vec<Xattr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) attributes: Attributes,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File {
        size: u64,
        block: u32,
    },
    Directory(Box<Directory>),
    Symlink(Box<[u8]>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    /// Hides the name in lower layers.
    Whiteout,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) name: Box<[u8]>,
    pub(crate) parent: InodeId,
    pub(crate) children: BTreeMap<Box<[u8]>, InodeId>,
    /// Hides the contents of lower layers' directories of this path.
    pub(crate) opaque: bool,
    /// No entry of the tar has described it yet.
    pub(crate) implied: bool,
}

/// All inodes ever made. Replaced ones stay, unreachable, so that the bounds
/// count work and not only results.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
    max_inodes: u64,
    metadata_bytes: usize,
    max_metadata_bytes: u64,
}

/// Why the tree didn't change.
#[derive(Debug)]
pub(crate) enum TreeError {
    Refused(Refusal),
    TooLarge(LayerError),
}

/// What one path may still use up.
struct Walk {
    steps: u32,
    links: u32,
}

/// Where one path component leads.
enum Step {
    Inside(InodeId),
    Make { opaque: bool },
    Follow(Box<[u8]>),
}

impl From<Refusal> for TreeError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Tree {
    pub(crate) fn new(max_entries: u64, max_metadata_bytes: u64) -> Self {
        let root = implied_directory(false);
        Self {
            inodes: vec![root],
            max_inodes: max_entries.saturating_add(1).min(u64::from(u32::MAX)),
            metadata_bytes: 0,
            max_metadata_bytes,
        }
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[index(id)]
    }

    /// How many inodes there ever were.
    pub(crate) fn len(&self) -> usize {
        self.inodes.len()
    }

    pub(crate) fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn child(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.directory(parent)?.children.get(name).copied()
    }

    /// An inode's attributes and the marks that overlayfs needs.
    pub(crate) fn stored_xattrs(&self, id: InodeId) -> Cow<'_, [Xattr]> {
        let inode = self.inode(id);
        let xattrs = &inode.attributes.xattrs;
        let Kind::Directory(directory) = &inode.kind else {
            return Cow::Borrowed(xattrs);
        };
        let is_whiteout = |child: &InodeId| self.inode(*child).kind == Kind::Whiteout;
        let hides = directory.children.values().any(is_whiteout);
        let marks = [
            directory.opaque.then(xattr::opaque),
            hides.then(xattr::has_whiteouts),
        ];
        if marks.iter().all(Option::is_none) {
            return Cow::Borrowed(xattrs);
        }
        let marks = marks.into_iter().flatten();
        Cow::Owned(xattrs.iter().cloned().chain(marks).collect())
    }

    /// The directory at `path`, made with its parents where they are missing.
    ///
    /// Symbolic links among the components are followed within this layer, as
    /// engines do that unpack into a root: packages put files below `/lib`
    /// where that is a link to `usr/lib`. `..` in a target stops at the root.
    pub(crate) fn enter(&mut self, path: &[&[u8]]) -> Result<InodeId, TreeError> {
        let mut walk = Walk {
            steps: MAX_STEPS,
            links: MAX_SYMLINKS,
        };
        self.descend(ROOT, path, &mut walk)
    }

    fn descend(
        &mut self,
        from: InodeId,
        path: &[&[u8]],
        walk: &mut Walk,
    ) -> Result<InodeId, TreeError> {
        let mut at = from;
        for (position, name) in path.iter().enumerate() {
            at = match self.step(at, name, walk)? {
                Step::Inside(id) => id,
                Step::Make { opaque } => self.add(at, name, implied_directory(opaque))?,
                Step::Follow(target) => {
                    let start = if target.starts_with(b"/") { ROOT } else { at };
                    let mut onward: Vec<&[u8]> = target.split(|byte| *byte == b'/').collect();
                    onward.extend_from_slice(&path[position + 1..]);
                    return self.descend(start, &onward, walk);
                }
            };
        }
        Ok(at)
    }

    /// The directory at `path` if it is there, found as [`Self::enter`] does.
    pub(crate) fn find(&self, path: &[&[u8]]) -> Result<Option<InodeId>, Refusal> {
        let mut walk = Walk {
            steps: MAX_STEPS,
            links: MAX_SYMLINKS,
        };
        self.search(ROOT, path, &mut walk)
    }

    fn search(
        &self,
        from: InodeId,
        path: &[&[u8]],
        walk: &mut Walk,
    ) -> Result<Option<InodeId>, Refusal> {
        let mut at = from;
        for (position, name) in path.iter().enumerate() {
            at = match self.step(at, name, walk)? {
                Step::Inside(id) => id,
                Step::Make { .. } => return Ok(None),
                Step::Follow(target) => {
                    let start = if target.starts_with(b"/") { ROOT } else { at };
                    let mut onward: Vec<&[u8]> = target.split(|byte| *byte == b'/').collect();
                    onward.extend_from_slice(&path[position + 1..]);
                    return self.search(start, &onward, walk);
                }
            };
        }
        Ok(Some(at))
    }

    fn step(&self, at: InodeId, name: &[u8], walk: &mut Walk) -> Result<Step, Refusal> {
        walk.steps = walk.steps.checked_sub(1).ok_or(Refusal::SymlinkLoop)?;
        match name {
            b"" | b"." => return Ok(Step::Inside(at)),
            b".." => {
                let parent = self
                    .directory(at)
                    .map_or(ROOT, |directory| directory.parent);
                return Ok(Step::Inside(parent));
            }
            name if name.len() > MAX_NAME_BYTES => return Err(Refusal::NameTooLong),
            _ => {}
        }
        let Some(id) = self.child(at, name) else {
            return Ok(Step::Make { opaque: false });
        };
        match &self.inode(id).kind {
            Kind::Directory(_) => Ok(Step::Inside(id)),
            // What lies below a whiteout is this layer's own.
            Kind::Whiteout => Ok(Step::Make { opaque: true }),
            Kind::Symlink(target) => {
                walk.links = walk.links.checked_sub(1).ok_or(Refusal::SymlinkLoop)?;
                Ok(Step::Follow(target.clone()))
            }
            _ => Err(Refusal::ParentNotDirectory),
        }
    }

    /// Puts `inode` at `name`, as if on top of what this layer had there: a
    /// directory keeps its children under a new directory entry, everything
    /// else is replaced.
    pub(crate) fn put(
        &mut self,
        parent: InodeId,
        name: &[u8],
        mut inode: Inode,
    ) -> Result<InodeId, TreeError> {
        if let Some(existing) = self.child(parent, name) {
            let existing_is_directory = self.directory(existing).is_some();
            if let Kind::Directory(directory) = &mut inode.kind {
                if existing_is_directory {
                    return self.describe(existing, inode.attributes).map(|()| existing);
                }
                // A non-directory or a whiteout hid the lower layers' name;
                // the directory in its place must not let it through again.
                directory.opaque = true;
            }
        }
        self.add(parent, name, inode)
    }

    /// Hides `name` in lower layers; what this layer has there stays.
    pub(crate) fn white_out(
        &mut self,
        parent: InodeId,
        name: &[u8],
        attributes: Attributes,
    ) -> Result<(), TreeError> {
        match self.child(parent, name) {
            None => self
                .add(
                    parent,
                    name,
                    Inode {
                        attributes,
                        kind: Kind::Whiteout,
                    },
                )
                .map(drop),
            Some(existing) => {
                self.make_opaque(existing);
                Ok(())
            }
        }
    }

    /// Hides what lower layers have in a directory; others hide it anyway.
    pub(crate) fn make_opaque(&mut self, id: InodeId) {
        if let Kind::Directory(directory) = &mut self.inodes[index(id)].kind {
            directory.opaque = true;
        }
    }

    /// Gives a directory the attributes of its entry.
    pub(crate) fn describe(
        &mut self,
        id: InodeId,
        attributes: Attributes,
    ) -> Result<(), TreeError> {
        self.charge(xattr_bytes(&attributes))?;
        let inode = &mut self.inodes[index(id)];
        inode.attributes = attributes;
        if let Kind::Directory(directory) = &mut inode.kind {
            directory.implied = false;
        }
        Ok(())
    }

    /// Makes `name` another name of `target`.
    pub(crate) fn link(
        &mut self,
        parent: InodeId,
        name: &[u8],
        target: InodeId,
    ) -> Result<(), TreeError> {
        self.charge(CHILD_BYTES + name.len())?;
        if let Kind::Directory(directory) = &mut self.inodes[index(parent)].kind {
            directory.children.insert(name.into(), target);
        }
        Ok(())
    }

    fn add(
        &mut self,
        parent: InodeId,
        name: &[u8],
        mut inode: Inode,
    ) -> Result<InodeId, TreeError> {
        let count = u64::try_from(self.inodes.len()).unwrap_or(u64::MAX);
        if count >= self.max_inodes {
            let (limit, bound) = (Limit::Entries, self.max_inodes - 1);
            return Err(TreeError::TooLarge(LayerError::TooLarge { limit, bound }));
        }
        let payload = match &mut inode.kind {
            Kind::Directory(directory) => {
                (directory.name, directory.parent) = (name.into(), parent);
                size_of::<Directory>() + name.len()
            }
            Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        self.charge(size_of::<Inode>() + payload + xattr_bytes(&inode.attributes))?;
        let id = InodeId::try_from(count).unwrap_or(InodeId::MAX);
        self.inodes.push(inode);
        self.link(parent, name, id)?;
        Ok(id)
    }

    fn charge(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.metadata_bytes = self.metadata_bytes.saturating_add(bytes);
        if u64::try_from(self.metadata_bytes).unwrap_or(u64::MAX) > self.max_metadata_bytes {
            let (limit, bound) = (Limit::MetadataBytes, self.max_metadata_bytes);
            return Err(TreeError::TooLarge(LayerError::TooLarge { limit, bound }));
        }
        Ok(())
    }
}

fn implied_directory(opaque: bool) -> Inode {
    let directory = Directory {
        opaque,
        implied: true,
        ..Directory::default()
    };
    Inode {
        attributes: Attributes {
            mode: IMPLIED_MODE,
            ..Attributes::default()
        },
        kind: Kind::Directory(Box::new(directory)),
    }
}

fn xattr_bytes(attributes: &Attributes) -> usize {
    let each = |xattr: &Xattr| size_of::<Xattr>() + xattr.name.len() + xattr.value.len();
    attributes.xattrs.iter().map(each).sum()
}

pub(crate) fn index(id: InodeId) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        Tree::new(1000, 1 << 20)
    }

    fn split(path: &str) -> Vec<&[u8]> {
        path.split('/').map(str::as_bytes).collect()
    }

    fn inode(kind: Kind) -> Inode {
        Inode {
            attributes: Attributes::default(),
            kind,
        }
    }

    fn put(tree: &mut Tree, path: &str, kind: Kind) -> InodeId {
        let path = split(path);
        let (name, parents) = path.split_last().unwrap();
        let parent = tree.enter(parents).unwrap();
        tree.put(parent, name, inode(kind)).unwrap()
    }

    fn directory() -> Kind {
        Kind::Directory(Box::default())
    }

    fn opaque(tree: &Tree, id: InodeId) -> bool {
        tree.directory(id).unwrap().opaque
    }

    #[test]
    fn links_among_parents_are_followed_within_the_layer() {
        let mut tree = tree();
        put(&mut tree, "lib", Kind::Symlink(b"usr/lib"[..].into()));
        put(&mut tree, "up", Kind::Symlink(b"../../.."[..].into()));
        put(&mut tree, "a/b", Kind::Symlink(b"/lib/../bin"[..].into()));
        let file = put(&mut tree, "lib/x", Kind::Fifo);
        let library = tree.enter(&split("usr/lib")).unwrap();
        assert_eq!(tree.child(library, b"x"), Some(file));
        assert_eq!(tree.enter(&split("up")).unwrap(), ROOT);
        let bin = tree.enter(&split("a/b")).unwrap();
        assert_eq!(bin, tree.enter(&split("usr/bin")).unwrap());
    }

    #[test]
    fn endless_links_and_files_as_parents_are_refused() {
        let mut tree = tree();
        put(&mut tree, "a", Kind::Symlink(b"b"[..].into()));
        put(&mut tree, "b", Kind::Symlink(b"a"[..].into()));
        put(&mut tree, "f", Kind::Fifo);
        let refused = |result| match result {
            Err(TreeError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(tree.enter(&split("a/x"))), Refusal::SymlinkLoop);
        assert_eq!(
            refused(tree.enter(&split("f/x"))),
            Refusal::ParentNotDirectory
        );
    }

    #[test]
    fn directories_keep_children_and_others_replace() {
        let mut tree = tree();
        let old = put(&mut tree, "d/f", Kind::Fifo);
        let first = put(&mut tree, "d", directory());
        assert_eq!(tree.child(first, b"f"), Some(old));
        assert!(!tree.directory(first).unwrap().implied);
        assert!(!opaque(&tree, first));
        put(&mut tree, "d", Kind::Fifo);
        let second = put(&mut tree, "d", directory());
        assert_eq!(tree.child(second, b"f"), None);
        assert!(opaque(&tree, second), "the pipe hid what lower layers have");
    }

    #[test]
    fn whiteouts_hide_only_what_is_below_the_layer() {
        let mut tree = tree();
        let file = put(&mut tree, "a", Kind::Fifo);
        let made = put(&mut tree, "d", directory());
        for name in [b"a", b"d", b"w", b"p"] {
            tree.white_out(ROOT, name, Attributes::default()).unwrap();
        }
        assert_eq!(tree.child(ROOT, b"a"), Some(file));
        assert!(opaque(&tree, made));
        let later = put(&mut tree, "w", directory());
        assert!(opaque(&tree, later));
        let parent = tree.enter(&split("p")).unwrap();
        assert!(opaque(&tree, parent));
    }

    #[test]
    fn bounds_count_what_was_replaced_too() {
        let mut tree = Tree::new(3, 1 << 20);
        for _ in 0..3 {
            tree.put(ROOT, b"f", inode(Kind::Fifo)).unwrap();
        }
        let over = tree.put(ROOT, b"f", inode(Kind::Fifo));
        assert!(matches!(over, Err(TreeError::TooLarge(_))));
        let mut small = Tree::new(3, 64);
        assert!(matches!(
            small.enter(&[b"directory"]),
            Err(TreeError::TooLarge(_))
        ));
    }
}
