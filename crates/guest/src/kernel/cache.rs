//! Unpacked kernels, by the hash of what they were unpacked from.
//!
//! ```text
//! .HASH.partial (locked by who unpacks) ── rename ─▶ HASH.vmlinux
//! ```
//!
//! What a dead maker left is a partial file, which the next one of the same
//! kernel starts over.

use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, MemfdFlags, OFlags, SealFlags};
use sha2::{Digest, Sha256};

use super::KernelError;

const SUFFIX: &str = ".vmlinux";
/// How many kernels are kept: the oldest makes room.
const MAX_KERNELS: usize = 16;

/// Why an unpacked kernel cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file cannot be made, read or renamed.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else could put kernels there.
    #[error(
        "the cache {} belongs to another user, or others can write to it: \
         name a folder of your own", .path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
}

/// A folder of unpacked kernels.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens a cache, and makes its folder when there is none.
    ///
    /// # Errors
    /// When it cannot be made, or somebody else can write to it.
    pub fn open(folder: &Path) -> Result<Self, CacheError> {
        let failed = |what| {
            move |source| CacheError::File {
                what,
                path: folder.to_owned(),
                source,
            }
        };
        if !folder.exists() {
            fs::create_dir_all(folder).map_err(failed("make the folder"))?;
            fs::set_permissions(folder, Permissions::from_mode(0o700))
                .map_err(failed("close the folder"))?;
        }
        let metadata = fs::metadata(folder).map_err(failed("look at the folder"))?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw();
        if !own || metadata.mode() & 0o022 != 0 {
            return Err(CacheError::Foreign {
                path: folder.to_owned(),
            });
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The kernel that this image unpacks to, unpacked now if it is not there.
    pub(super) fn get(
        &self,
        image: &[u8],
        unpack: impl FnOnce(&mut dyn Write) -> Result<(), KernelError>,
    ) -> Result<File, KernelError> {
        let hash = hex(&Sha256::digest(image));
        let path = self.folder.join(format!("{hash}{SUFFIX}"));
        if let Some(file) = found(&path)? {
            return Ok(file);
        }
        let partial = self.folder.join(format!(".{hash}.partial"));
        let failed = |what| failed(what, &partial);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&partial)
            .map_err(failed("make"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| failed("lock")(errno.into()))?;
        // Who waited for the lock finds it done.
        if let Some(file) = found(&path)? {
            return Ok(file);
        }
        file.set_len(0).map_err(failed("start over"))?;
        let mut writer = BufWriter::new(&file);
        unpack(&mut writer)?;
        writer.flush().map_err(failed("write"))?;
        drop(writer);
        file.sync_all().map_err(failed("sync"))?;
        fs::rename(&partial, &path).map_err(failed("rename"))?;
        self.make_room(&path);
        let file = found(&path)?;
        file.ok_or_else(|| KernelError::Cache(failed("find")(std::io::ErrorKind::NotFound.into())))
    }

    /// Removes the oldest kernels that are over the limit. A machine that
    /// boots from one has it open already.
    fn make_room(&self, keep: &Path) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let mut kernels: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?;
                if !name.ends_with(SUFFIX) || path == keep {
                    return None;
                }
                Some((fs::metadata(&path).ok()?.modified().ok()?, path))
            })
            .collect();
        kernels.sort();
        let surplus = (kernels.len() + 1).saturating_sub(MAX_KERNELS);
        for (_, path) in kernels.into_iter().take(surplus) {
            // Somebody else may have removed it.
            drop(fs::remove_file(path));
        }
    }
}

/// A file for an unpacked kernel that nobody else sees.
pub(super) fn in_memory() -> Result<File, CacheError> {
    let failed =
        |errno: rustix::io::Errno| failed("make", Path::new("a file in memory"))(errno.into());
    let descriptor =
        rustix::fs::memfd_create(c"vmlinux", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(failed)?;
    rustix::fs::fcntl_add_seals(&descriptor, SealFlags::SHRINK).map_err(failed)?;
    Ok(File::from(descriptor))
}

fn found(path: &Path) -> Result<Option<File>, CacheError> {
    let opened = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        rustix::fs::Mode::empty(),
    );
    match opened {
        Ok(descriptor) => Ok(Some(File::from(descriptor))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("open", path)(errno.into())),
    }
}

fn failed(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError::File {
        what,
        path: path.clone(),
        source,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;

    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::bzimage::tests::image;
    use super::super::open;
    use super::*;

    fn content(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_image_is_unpacked_once_by_however_many() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("new")).unwrap();
        let unpacked = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let file = cache.get(b"image", |target| {
                        unpacked.fetch_add(1, Ordering::SeqCst);
                        target.write_all(b"kernel").unwrap();
                        Ok(())
                    });
                    assert_eq!(content(file.unwrap()), b"kernel");
                });
            }
        });
        assert_eq!(unpacked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_failed_or_died_is_started_over() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let fail = cache.get(b"image", |target| {
            target.write_all(b"half of a long kernel").unwrap();
            Err(KernelError::Large { path: "x".into() })
        });
        assert!(fail.is_err());
        let file = cache.get(b"image", |target| {
            target.write_all(b"kernel").unwrap();
            Ok(())
        });
        assert_eq!(content(file.unwrap()), b"kernel");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_oldest_kernel_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        for number in 0..MAX_KERNELS + 3 {
            cache
                .get(&[u8::try_from(number).unwrap()], |_| Ok(()))
                .unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MAX_KERNELS);
    }

    #[test]
    fn a_folder_that_others_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let error = Cache::open(folder.path()).unwrap_err();
        assert!(matches!(error, CacheError::Foreign { .. }));
    }

    #[test]
    fn kernels_are_opened_by_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("cache")).unwrap();
        let path = folder.path().join("kernel");
        fs::write(&path, b"\x7fELF and more").unwrap();
        assert_eq!(content(open(&path, Some(&cache)).unwrap()), b" and more");
        let packed = zstd::encode_all(&b"\x7fELF in it"[..], 1).unwrap();
        fs::write(&path, image(&packed, 10)).unwrap();
        assert_eq!(
            content(open(&path, Some(&cache)).unwrap()),
            b"\x7fELF in it"
        );
        let in_memory = open(&path, None).unwrap();
        let mut bytes = vec![0; 10];
        std::os::unix::fs::FileExt::read_exact_at(&in_memory, &mut bytes, 0).unwrap();
        assert_eq!(bytes, b"\x7fELF in it");
        fs::write(&path, b"#!/bin/sh").unwrap();
        let error = open(&path, None).unwrap_err();
        assert!(error.to_string().contains("is no bzImage"), "{error}");
    }
}
