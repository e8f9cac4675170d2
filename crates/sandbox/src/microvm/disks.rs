//! Disks for monitors that know no windows: an image's layers in one file, one
//! behind the other.
//!
//! A file is made once for each list of layers, whole or not at all, and goes
//! with the first of its layers that nobody uses any more.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use skiff_types::Digest;
use skiff_wire::agent::Window;
use tokio::sync::OnceCell;

use super::{LAYERS_DISK, SECTOR_BYTES, WINDOW_ALIGN_SECTORS, blocking};
use crate::LayerFile;

/// The layers of a disk's file are named beside it.
const DISK: &str = "disk";
const NAMES: &str = "layers";
/// A file that is being made.
const PART: &str = "part";

/// A disk's file, and where each layer lies on it.
#[derive(Clone, Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub windows: Vec<Window>,
}

/// Every disk's file.
#[derive(Debug)]
pub struct Disks {
    folder: PathBuf,
    /// By its name; makers of the same share one.
    made: Mutex<HashMap<String, Arc<OnceCell<Disk>>>>,
}

impl Disks {
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            made: Mutex::default(),
        }
    }

    /// The disk of these layers, made if it is not there.
    pub async fn of(&self, layers: &[LayerFile]) -> io::Result<Disk> {
        let name = name(layers);
        let cell = {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.entry(name.clone()).or_default().clone()
        };
        let make = || {
            let (folder, layers) = (self.folder.clone(), layers.to_vec());
            blocking(move || make(&folder, &name, &layers))
        };
        cell.get_or_try_init(make).await.cloned()
    }

    /// Removes the disks that this layer is on.
    pub async fn release(&self, layer: &Digest) -> io::Result<()> {
        let (folder, layer) = (self.folder.clone(), layer.to_string());
        let removed = blocking(move || remove(&folder, &layer)).await?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|name, _| !removed.contains(name));
        Ok(())
    }
}

/// The same for the same layers in the same order.
fn name(layers: &[LayerFile]) -> String {
    let mut hash = Sha256::new();
    for layer in layers {
        hash.update(layer.digest.to_string());
        hash.update(b"\n");
    }
    let mut name = String::new();
    for byte in hash.finalize() {
        // Writing to a string cannot fail.
        write!(name, "{byte:02x}").ok();
    }
    name
}

fn make(folder: &Path, name: &str, layers: &[LayerFile]) -> io::Result<Disk> {
    fs::create_dir_all(folder)?;
    let path = folder.join(name).with_extension(DISK);
    let (files, windows) = lay_out(layers)?;
    if !path.exists() {
        let part = path.with_extension(PART);
        write(&part, files, &windows)?;
        let names: String = layers
            .iter()
            .map(|layer| format!("{}\n", layer.digest))
            .collect();
        fs::write(path.with_extension(NAMES), names)?;
        fs::rename(&part, &path)?;
    }
    Ok(Disk { path, windows })
}

fn lay_out(layers: &[LayerFile]) -> io::Result<(Vec<File>, Vec<Window>)> {
    let (mut files, mut windows) = (Vec::new(), Vec::new());
    let mut first_sector = 0;
    for layer in layers {
        let file = File::open(&layer.path)?;
        let sectors = file.metadata()?.len() / SECTOR_BYTES;
        files.push(file);
        windows.push(Window {
            disk: LAYERS_DISK,
            first_sector,
            sectors,
        });
        first_sector = (first_sector + sectors).next_multiple_of(WINDOW_ALIGN_SECTORS);
    }
    Ok((files, windows))
}

/// Writes it whole, and to the disk: a name stands for its contents.
fn write(path: &Path, files: Vec<File>, windows: &[Window]) -> io::Result<()> {
    let mut disk = File::create(path)?;
    for (mut file, window) in files.into_iter().zip(windows) {
        disk.seek(SeekFrom::Start(window.first_sector * SECTOR_BYTES))?;
        io::copy(&mut file, &mut disk)?;
    }
    let end = windows
        .last()
        .map_or(0, |last| last.first_sector + last.sectors);
    disk.set_len(
        end.next_multiple_of(WINDOW_ALIGN_SECTORS)
            .max(WINDOW_ALIGN_SECTORS)
            * SECTOR_BYTES,
    )?;
    // Its monitor is another user; the folder above is closed to others.
    disk.set_permissions(fs::Permissions::from_mode(0o444))?;
    disk.sync_all()
}

/// The names of the disks that went.
fn remove(folder: &Path, layer: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let names = entry?.path();
        if names.extension().is_none_or(|extension| extension != NAMES) {
            continue;
        }
        if !fs::read_to_string(&names)?
            .lines()
            .any(|line| line == layer)
        {
            continue;
        }
        for gone in [names.with_extension(DISK), names.clone()] {
            match fs::remove_file(gone) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let name = names.file_stem().unwrap_or_default();
        removed.push(name.to_string_lossy().into_owned());
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn layer(folder: &Path, number: u8, bytes: usize) -> LayerFile {
        let path = folder.join(format!("layer-{number}"));
        fs::write(&path, vec![number; bytes]).unwrap();
        LayerFile {
            digest: Digest::from_sha256([number; 32]),
            path,
        }
    }

    #[tokio::test]
    async fn layers_lie_behind_each_other_until_one_of_them_goes() {
        let folder = tempfile::tempdir().unwrap();
        let layers = [
            layer(folder.path(), 1, 3 << 20),
            layer(folder.path(), 2, 4096),
            layer(folder.path(), 3, 8192),
        ];
        let disks = Disks::new(folder.path().join("disks"));
        let disk = disks.of(&layers).await.unwrap();
        let firsts: Vec<_> = disk
            .windows
            .iter()
            .map(|window| window.first_sector)
            .collect();
        assert_eq!(firsts, [0, 6144, 8192]);
        let mut bytes = Vec::new();
        File::open(&disk.path)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(bytes.len(), 5 << 20);
        for (window, number) in disk.windows.iter().zip(1u8..) {
            let range = |sectors: u64| usize::try_from(sectors * SECTOR_BYTES).unwrap();
            let (first, end) = (window.first_sector, window.first_sector + window.sectors);
            assert!(
                bytes[range(first)..range(end)]
                    .iter()
                    .all(|byte| *byte == number)
            );
        }
        let others = disks.of(&layers[..1]).await.unwrap();
        assert_ne!(others.path, disk.path);
        // A server that starts again finds it; it is not made anew.
        let made = fs::metadata(&disk.path).unwrap().modified().unwrap();
        let again = Disks::new(folder.path().join("disks"));
        assert_eq!(again.of(&layers).await.unwrap().windows, disk.windows);
        assert_eq!(fs::metadata(&disk.path).unwrap().modified().unwrap(), made);

        again.release(&layers[2].digest).await.unwrap();
        assert!(!disk.path.exists() && others.path.exists());
        again.of(&layers).await.unwrap();
        assert!(disk.path.exists(), "it is made again");
        again.release(&layers[0].digest).await.unwrap();
        assert_eq!(
            fs::read_dir(folder.path().join("disks")).unwrap().count(),
            0
        );
    }
}
