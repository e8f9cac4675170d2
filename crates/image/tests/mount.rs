//! What the kernel mounts is what umoci unpacks. Needs root.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Fixture, run, text};
use skiff_image::{ImportOptions, ImportSource, NoProgress};

/// Unmounted when it is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(folder: PathBuf, kind: &str, options: &str, source: &str) -> Self {
        std::fs::create_dir(&folder).unwrap();
        run("mount", &["-t", kind, "-o", options, source, text(&folder)]);
        Self(folder)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[text(&self.0)]);
    }
}

/// All that a file is but its times, which umoci and overlayfs give to the
/// folders that they make themselves.
fn described(path: &Path) -> String {
    let metadata = path.symlink_metadata().unwrap();
    let content = if metadata.is_symlink() {
        format!(
            "{:?}",
            std::fs::read_link(path).unwrap().as_os_str().as_bytes()
        )
    } else if metadata.is_file() {
        use sha2::Digest as _;
        format!("{:?}", sha2::Sha256::digest(std::fs::read(path).unwrap()))
    } else {
        String::new()
    };
    let size = if metadata.is_dir() { 0 } else { metadata.len() };
    let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
    let mtime = if metadata.is_dir() {
        0
    } else {
        metadata.mtime()
    };
    format!("{mode:o} {uid}:{gid} {size} {mtime} {content}")
}

fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, described(&path));
            if path.symlink_metadata().unwrap().is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

#[tokio::test]
async fn mounted_layers_are_what_umoci_unpacks() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let source = ImportSource::Path(fixture.layout());
    let import = store.import(source, ImportOptions::default(), Arc::new(NoProgress));
    let image = import.await.unwrap();
    let layers: Vec<Mount> = (0..)
        .zip(&image.layers)
        .map(|(at, layer)| {
            let file = store.layer_path(layer);
            run("fsck.erofs", &[text(&file)]);
            Mount::new(
                fixture.path(&format!("layer{at}")),
                "erofs",
                "ro,loop",
                text(&file),
            )
        })
        .collect();
    let stacked: Vec<&str> = layers.iter().rev().map(|layer| text(&layer.0)).collect();
    let options = format!("ro,lowerdir={}", stacked.join(":"));
    let whole = Mount::new(fixture.path("whole"), "overlay", &options, "overlay");
    let bundle = fixture.path("bundle");
    let name = format!("{}:app", text(&fixture.layout()));
    run("umoci", &["unpack", "--image", &name, text(&bundle)]);
    let unpacked = tree(&bundle.join("rootfs"));
    assert!(unpacked.contains_key(Path::new("srv/old/new")));
    assert!(!unpacked.contains_key(Path::new("srv/gone")));
    assert_eq!(tree(&whole.0), unpacked);
    drop(whole);
}
