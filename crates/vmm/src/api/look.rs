use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::FileType;

use super::fault::Fault;
use crate::config::BootSource;
use crate::inherited;

/// Looks whether a file can be opened, so that whoever names it is told at
/// once, and not when the machine starts. A descriptor's name is believed: it
/// can be taken only once.
pub(super) fn file(field: &str, path: &Path, writes: bool) -> Result<(), Fault> {
    if inherited::is_name(path) {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    // A pipe whose other end is nowhere is not waited for.
    options.custom_flags(libc::O_NONBLOCK);
    let opened = options.read(true).write(writes).open(path);
    opened
        .map(drop)
        .map_err(|source| Fault::open(field, path, source))
}

/// Opens what is to be behind a disk: a file, or a block device.
pub(super) fn disk(field: &str, path: &Path, writes: bool) -> Result<File, Fault> {
    let failed = |source| Fault::open(field, path, source);
    let mut options = OpenOptions::new();
    // A pipe whose other end is nowhere is not waited for.
    options.custom_flags(libc::O_NONBLOCK);
    let opened = options.read(true).write(writes).open(path);
    let file = opened.map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Ok(file),
        _ => Err(failed(rustix::io::Errno::NOTBLK.into())),
    }
}

pub(super) fn boot_source(source: &BootSource) -> Result<(), Fault> {
    file("kernel_image_path", &source.kernel_image_path, false)?;
    match &source.initrd_path {
        Some(path) => file("initrd_path", path, false),
        None => Ok(()),
    }
}
