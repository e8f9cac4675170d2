//! Oracles: `fsck.erofs`, the kernel's mount, and a walk that compares trees.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod archive;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use skiff_base::process::command;
use skiff_erofs::{LayerError, LayerOptions, LayerReport, check_superblock, write_layer};
use tempfile::{NamedTempFile, TempDir};

/// A finished image.
pub struct Image {
    pub report: LayerReport,
    pub file: NamedTempFile,
}

pub fn try_image(tar: &[u8], options: &LayerOptions) -> Result<Image, LayerError> {
    let mut file = NamedTempFile::new().unwrap();
    let report = write_layer(tar, file.as_file_mut(), options)?;
    Ok(Image { report, file })
}

/// Makes an image that must succeed and pass `fsck.erofs`.
pub fn image(tar: &[u8]) -> Image {
    let image = try_image(tar, &LayerOptions::default()).unwrap();
    image.check();
    image
}

pub fn refusal(tar: &[u8]) -> String {
    match try_image(tar, &LayerOptions::default()) {
        Ok(_) => panic!("the layer was written"),
        Err(error) => error.to_string(),
    }
}

impl Image {
    pub fn check(&self) {
        let info = check_superblock(self.file.as_file()).unwrap();
        assert_eq!(info.bytes, self.report.bytes);
        run("fsck.erofs", &[self.file.path()]);
    }

    pub fn mount(&self) -> Mount {
        Mount::new(self.file.path())
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.file.path()).unwrap()
    }
}

/// Runs to the end, which must be a good one; returns standard output.
pub fn run<S: AsRef<std::ffi::OsStr>>(program: &str, arguments: &[S]) -> Vec<u8> {
    let output = command(program)
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program}: {}: {said}",
        output.status
    );
    output.stdout
}

/// A mounted file system, unmounted when dropped.
pub struct Mount {
    directory: TempDir,
}

impl Mount {
    /// Straight from the file where the kernel can (6.12), else by a loop
    /// device.
    fn new(image: &Path) -> Self {
        let directory = TempDir::new().unwrap();
        let direct = command("mount")
            .args(["-i", "-t", "erofs", "-o", "ro"])
            .args([image, directory.path()])
            .status()
            .unwrap();
        if !direct.success() {
            let image = image.to_str().unwrap();
            let place = directory.path().to_str().unwrap();
            run("mount", &["-t", "erofs", "-o", "ro,loop", image, place]);
        }
        Self { directory }
    }

    /// An overlay of `layers`, the topmost first, with a writable top.
    pub fn overlay(layers: &[&Path], scratch: &Path) -> Self {
        let directory = TempDir::new().unwrap();
        let (upper, work) = (scratch.join("upper"), scratch.join("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        let layers: Vec<&str> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layers.join(":"),
            upper.display(),
            work.display()
        );
        let place = directory.path().to_str().unwrap();
        run(
            "mount",
            &["-i", "-t", "overlay", "-o", &options, "overlay", place],
        );
        Self { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A process that another test is just starting may still hold what
        // was open here: the kernel unmounts when it has let go.
        run("umount", &[Path::new("--lazy"), self.directory.path()]);
    }
}

/// Everything a layer may say about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    /// Of anything but a directory, whose length is its file system's affair.
    pub size: u64,
    pub device: u64,
    pub mtime: (i64, i64),
    /// A digest of a file's content, or a link's target.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path with the same inode.
    pub same_as: PathBuf,
}

/// All paths below `root`, itself included as the empty path.
pub fn walk(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = pending.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let facts = facts(&path, &relative, &mut inodes);
        found.insert(relative, facts);
    }
    found
}

fn facts(path: &Path, relative: &Path, inodes: &mut BTreeMap<(u64, u64), PathBuf>) -> Facts {
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    let content = if kind.is_file() {
        let mut digest = Sha256::new();
        let mut reader = std::io::BufReader::new(File::open(path).unwrap());
        std::io::copy(&mut reader, &mut HashWriter(&mut digest)).unwrap();
        digest.finalize().to_vec()
    } else if kind.is_symlink() {
        fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
    } else {
        Vec::new()
    };
    let device = if kind.is_char_device() || kind.is_block_device() {
        metadata.rdev()
    } else {
        0
    };
    Facts {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        links: metadata.nlink(),
        size: if kind.is_dir() { 0 } else { metadata.size() },
        device,
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        content,
        xattrs: xattrs(path),
        same_as: inodes
            .entry((metadata.dev(), metadata.ino()))
            .or_insert_with(|| relative.to_owned())
            .clone(),
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value)
            .unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(name)));
        value.truncate(length);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Compares two walks path by path, so that a failure names the path.
pub fn assert_same(found: &BTreeMap<PathBuf, Facts>, expected: &BTreeMap<PathBuf, Facts>) {
    for (path, facts) in expected {
        assert_eq!(found.get(path), Some(facts), "{}", path.display());
    }
    let extra = found.keys().find(|path| !expected.contains_key(*path));
    assert_eq!(extra, None);
}
