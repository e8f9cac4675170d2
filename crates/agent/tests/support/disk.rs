//! A disk with layers at places of its own, and one to write to.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use skiff_base::process::command;
use skiff_types::Digest;
use skiff_wire::agent::Window;

pub const SECTOR_BYTES: u64 = 512;
/// Between the beginnings of two layers.
const STEP_BYTES: u64 = 8 << 20;
/// Where there is nothing but zeros.
const EMPTY_BYTES: u64 = 1 << 20;
/// More than a sandbox's memory.
const SCRATCH_BYTES: u64 = 48 << 20;

#[derive(Debug, Clone)]
pub struct Layer {
    pub digest: Digest,
    pub window: Window,
    /// Its own file.
    pub file: PathBuf,
}

/// An empty ext4 file system, all of a machine's second disk.
pub struct Scratch {
    pub window: Window,
    pub file: PathBuf,
}

/// A machine's first disk, and what its second is of.
pub struct LayerDisk {
    /// busybox below, some files above.
    pub layers: Vec<Layer>,
    pub scratch: Scratch,
}

impl LayerDisk {
    /// Makes its layers in the folder.
    pub fn new(folder: &Path) -> Self {
        let fill: [fn(&Path); 2] = [add_busybox, add_files];
        let mut layers = Vec::new();
        for (number, fill) in (1..).zip(fill) {
            let file = make_layer(folder, number, fill);
            let length = fs::metadata(&file).unwrap().len();
            assert!(length <= STEP_BYTES && length.is_multiple_of(SECTOR_BYTES));
            layers.push(Layer {
                digest: format!("sha256:{number:064x}").parse().unwrap(),
                window: Window {
                    disk: 0,
                    first_sector: number * STEP_BYTES / SECTOR_BYTES,
                    sectors: length / SECTOR_BYTES,
                },
                file,
            });
        }
        Self {
            layers,
            scratch: make_scratch(folder),
        }
    }

    /// A part of it without a layer.
    pub fn empty(&self) -> Window {
        Window {
            disk: 0,
            first_sector: EMPTY_BYTES / SECTOR_BYTES,
            sectors: 1024,
        }
    }
}

fn make_layer(folder: &Path, number: u64, fill: fn(&Path)) -> PathBuf {
    let root = folder.join(format!("root-{number}"));
    fs::create_dir(&root).unwrap();
    fill(&root);
    let file = folder.join(format!("layer-{number}"));
    let made = command("mkfs.erofs")
        .arg(&file)
        .arg(&root)
        .status()
        .unwrap();
    assert!(made.success(), "mkfs.erofs fails");
    file
}

fn make_scratch(folder: &Path) -> Scratch {
    let path = folder.join("scratch");
    let file = fs::File::create(&path).unwrap();
    file.set_len(SCRATCH_BYTES).unwrap();
    let made = command("mke2fs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"])
        .args(["-E", "nodiscard,lazy_itable_init=1"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success(), "mke2fs fails");
    Scratch {
        window: Window {
            disk: 1,
            first_sector: 0,
            sectors: SCRATCH_BYTES / SECTOR_BYTES,
        },
        file: path,
    }
}

fn add_busybox(root: &Path) {
    let bin = root.join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "sleep", "tail", "head", "httpd", "wget", "nslookup", "stty", "test",
        "touch", "wc", "hostname", "date", "yes", "dd",
    ] {
        symlink("busybox", bin.join(name)).unwrap();
    }
}

fn add_files(root: &Path) {
    fs::write(root.join("greeting"), "hello from a layer\n").unwrap();
    fs::create_dir(root.join("www")).unwrap();
    fs::write(root.join("www/page"), "page ".repeat(20_000)).unwrap();
    let extensions = root.join("opt/extensions");
    fs::create_dir_all(&extensions).unwrap();
    let early = extensions.join("early");
    fs::write(&early, "#!/bin/sh\necho early\n").unwrap();
    fs::set_permissions(&early, fs::Permissions::from_mode(0o755)).unwrap();
}
