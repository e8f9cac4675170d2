//! Random layers against a model that keeps paths, not a tree.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::archive::{Archive, Entry, directory, file, hard_link, symlink};
use common::{image, xattrs};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

const DEFAULT_CASES: u32 = 48;
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

#[derive(Debug, Clone)]
enum Change {
    File {
        content: Vec<u8>,
        mode: u32,
        owner: u32,
        attribute: Option<usize>,
    },
    Directory {
        mode: u32,
        attribute: Option<usize>,
    },
    /// To a path that may or may not be there.
    HardLink(Vec<String>),
    Symlink(usize),
    Whiteout,
    Opaque,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// Files and symbolic links by identity.
    Other(usize),
    Directory {
        mode: u32,
        opaque: bool,
        attribute: Option<usize>,
    },
    Whiteout,
}

/// Few names, so that changes meet; some long, so that directories have
/// many blocks.
fn path() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof![
        4 => "[a-d]",
        2 => "[a-z-]{1,3}",
        1 => "[a-c.]{200,255}".prop_filter("a component", |name| !name.starts_with(".wh.")),
    ];
    prop::collection::vec(name, 1..5).prop_filter("plain components", |path: &Vec<String>| {
        !path
            .iter()
            .any(|name| name.bytes().all(|byte| byte == b'.'))
    })
}

fn change() -> impl Strategy<Value = Change> {
    let attribute = || prop::option::weighted(0.3, 0_usize..5000);
    let file = (
        0_usize..12_000,
        any::<u8>(),
        0_u32..0o10000,
        any::<u32>(),
        attribute(),
    );
    prop_oneof![
        6 => file.prop_map(|(length, byte, mode, owner, attribute)| Change::File {
            content: vec![byte; length], mode, owner, attribute,
        }),
        4 => (0_u32..0o10000, attribute()).prop_map(|(mode, attribute)| Change::Directory { mode, attribute }),
        2 => path().prop_map(Change::HardLink),
        2 => (1_usize..4096).prop_map(Change::Symlink),
        1 => Just(Change::Whiteout),
        1 => Just(Change::Opaque),
    ]
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<Vec<String>, Node>,
    /// What each identity is made of.
    others: Vec<Entry>,
    archive: Archive,
}

impl Model {
    /// Applies a change if it is a valid one.
    fn apply(&mut self, path: &[String], change: &Change) {
        let blocked =
            (1..path.len()).any(|end| matches!(self.nodes.get(&path[..end]), Some(Node::Other(_))));
        let directory_needed = matches!(change, Change::Opaque);
        let here = self.nodes.get(path).cloned();
        if blocked || directory_needed && matches!(here, Some(Node::Other(_))) {
            return;
        }
        let name = path.join("/");
        let (parent, last) = name
            .rsplit_once('/')
            .map_or(("", &name[..]), |(parent, last)| (parent, last));
        match change {
            Change::File {
                content,
                mode,
                owner,
                attribute,
            } => {
                let mut entry = Entry {
                    mode: *mode,
                    uid: u64::from(*owner),
                    ..file(&name, content)
                };
                entry.pax.extend(attribute.map(pax_attribute));
                self.other(path, entry);
            }
            Change::Symlink(length) => self.other(path, symlink(&name, "t".repeat(*length))),
            Change::Directory { mode, attribute } => {
                let mut entry = Entry {
                    mode: *mode,
                    ..directory(&name)
                };
                entry.pax.extend(attribute.map(pax_attribute));
                self.archive.add(&entry);
                self.parents(path);
                let opaque = match here {
                    None => false,
                    Some(Node::Directory { opaque, .. }) => opaque,
                    Some(Node::Other(_) | Node::Whiteout) => true,
                };
                let node = Node::Directory {
                    mode: *mode,
                    opaque,
                    attribute: *attribute,
                };
                self.nodes.insert(path.to_vec(), node);
            }
            Change::HardLink(target) => {
                let Some(Node::Other(identity)) = self.nodes.get(target).cloned() else {
                    return;
                };
                self.archive.add(&hard_link(&name, target.join("/")));
                self.replace(path, Node::Other(identity));
            }
            Change::Whiteout if last.len() > 251 => {}
            Change::Whiteout => {
                self.archive.add(&file(format!("{parent}/.wh.{last}"), ""));
                self.parents(path);
                match self.nodes.get_mut(path) {
                    None => drop(self.nodes.insert(path.to_vec(), Node::Whiteout)),
                    Some(Node::Directory { opaque, .. }) => *opaque = true,
                    Some(_) => {}
                }
            }
            Change::Opaque => {
                self.archive.add(&file(format!("{name}/.wh..wh..opq"), ""));
                let inside = [path, &[String::new()]].concat();
                self.parents(&inside);
                if let Some(Node::Directory { opaque, .. }) = self.nodes.get_mut(path) {
                    *opaque = true;
                }
            }
        }
    }

    fn other(&mut self, path: &[String], entry: Entry) {
        self.archive.add(&entry);
        self.others.push(entry);
        self.replace(path, Node::Other(self.others.len() - 1));
    }

    fn replace(&mut self, path: &[String], node: Node) {
        self.parents(path);
        self.nodes.retain(|found, _| !found.starts_with(path));
        self.nodes.insert(path.to_vec(), node);
    }

    fn parents(&mut self, path: &[String]) {
        for end in 1..path.len() {
            let implied = |opaque| Node::Directory {
                mode: 0o755,
                opaque,
                attribute: None,
            };
            let node = self
                .nodes
                .entry(path[..end].to_vec())
                .or_insert(implied(false));
            if *node == Node::Whiteout {
                *node = implied(true);
            }
        }
    }
}

fn pax_attribute(length: usize) -> (String, Vec<u8>) {
    ("SCHILY.xattr.user.property".into(), vec![b'v'; length])
}

fn check(root: &Path, model: &Model) {
    let found = common::walk(root);
    assert_eq!(found.len(), model.nodes.len() + 1);
    let mut identities = BTreeMap::new();
    for (path, node) in &model.nodes {
        let name = path.join("/");
        let facts = &found[Path::new(&name)];
        let length = |key: &[u8]| facts.xattrs.get(key).map(Vec::len);
        match node {
            Node::Whiteout => assert_eq!((facts.mode, facts.device), (0o020_000, 0)),
            Node::Directory {
                mode,
                opaque,
                attribute,
            } => {
                assert_eq!(facts.mode, 0o040_000 | mode, "{name}");
                assert_eq!(facts.xattrs.contains_key(OPAQUE), *opaque, "{name}");
                assert_eq!(length(b"user.property"), *attribute);
            }
            Node::Other(identity) => {
                let entry = &model.others[*identity];
                let names = model.nodes.values().filter(|other| *other == node).count();
                assert_eq!(facts.links, u64::try_from(names).unwrap(), "{name}");
                assert_eq!(u64::from(facts.owner.0), entry.uid);
                let inode = fs::symlink_metadata(root.join(&name)).unwrap().ino();
                assert_eq!(*identities.entry(*identity).or_insert(inode), inode);
                if entry.type_flag == b'2' {
                    assert_eq!(facts.content, entry.link);
                } else {
                    assert_eq!(facts.mode, 0o100_000 | entry.mode);
                    assert_eq!(facts.content, Sha256::digest(&entry.content).to_vec());
                    let attribute = entry.pax.first().map(|(_, value)| value.len());
                    assert_eq!(length(b"user.property"), attribute);
                }
            }
        }
    }
    assert!(!xattrs(root).contains_key(OPAQUE));
}

/// `PROPTEST_CASES`, or few, since each mounts an image.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(DEFAULT_CASES, |value| value.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_mount_as_the_model_says(changes in prop::collection::vec((path(), change()), 0..150)) {
        let mut model = Model::default();
        for (path, change) in &changes {
            model.apply(path, change);
        }
        let image = image(&model.archive.clone().end());
        check(image.mount().path(), &model);
    }
}
