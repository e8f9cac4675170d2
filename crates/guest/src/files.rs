//! What an install was given: kernels, their configurations and modules, out
//! of packages and folders.
//!
//! ```text
//! package ─ ar ─ tar ─┐
//! folder ─────────────┼▶ judged by name ─▶ spool, one file without a name
//! single files ───────┘
//! ```
//!
//! No name that was found ever becomes a name on the host's file system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use skiff_erofs::{LayerError, TarFiles};

use crate::options::MAX_CONFIG_BYTES;
use crate::package::{self, PackageError};
use crate::packed::Packing;

/// All of Debian's largest kernel has 400 MiB unpacked.
const MAX_BYTES: u64 = 4 << 30;
/// The largest kernel or module, packed or not.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// Debian's largest kernel has 4,200 modules.
const MAX_FILES: usize = 64 << 10;
const MAX_DEPTH: usize = 16;
const MAX_NAME_BYTES: usize = 128;
const PIECE: usize = 256 << 10;

/// Why what was given cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file or folder cannot be read.
    #[error("{} cannot be read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is no package.
    #[error("the package {} cannot be used", .path.display())]
    Package {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: PackageError,
    },
    /// A package's files are in no readable tar.
    #[error("the files of the package {} cannot be read", .path.display())]
    Tar {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: LayerError,
    },
    /// Something is there twice.
    #[error("{name} is there twice")]
    Twice {
        /// Its path or name.
        name: String,
    },
    /// It is more than any kernel has.
    #[error("{name}: more than {most} {of}")]
    Large {
        /// What was too much.
        name: String,
        /// How many are allowed.
        most: u64,
        /// Of what.
        of: &'static str,
    },
    /// The spool failed.
    #[error("the files cannot be kept while they are looked at")]
    Spool(#[source] io::Error),
}

/// Where a file's bytes are in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    offset: u64,
    bytes: u64,
}

/// A module's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModuleFile {
    pub(crate) span: Span,
    pub(crate) packing: Packing,
    /// Whether it lies among the ciphers and checksums.
    pub(crate) crypto: bool,
}

/// The files of one kernel release.
#[derive(Debug, Default)]
pub(crate) struct Release {
    pub(crate) kernel: Option<Span>,
    pub(crate) config: Option<Span>,
    pub(crate) builtin: Option<Span>,
    /// By name, with underscores.
    pub(crate) modules: BTreeMap<String, ModuleFile>,
}

/// Kernels and what belongs to them, by release. The release of a single
/// file is not known yet, and empty.
#[derive(Debug)]
pub struct Files {
    spool: File,
    end: u64,
    count: usize,
    releases: BTreeMap<String, Release>,
}

/// What a path is for.
#[derive(Debug, PartialEq, Eq)]
enum Role<'a> {
    Kernel,
    Config,
    Builtin,
    Module { file: &'a str, crypto: bool },
}

impl Files {
    /// Nothing yet. What is added is kept in a file without a name in this
    /// folder until this is dropped.
    ///
    /// # Errors
    /// When that file cannot be made.
    pub fn new(folder: &Path) -> Result<Self, FilesError> {
        let path = folder.join(format!(".spool-{:016x}", skiff_base::random::u64()));
        let spool = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(FilesError::Spool)?;
        match std::fs::remove_file(&path) {
            // A sweep was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(FilesError::Spool)?,
        }
        Ok(Self {
            spool,
            end: 0,
            count: 0,
            releases: BTreeMap::new(),
        })
    }

    /// Adds a Debian package. Its bytes are hostile: whoever calls this should
    /// have no privileges any more.
    ///
    /// # Errors
    /// When it is none, or has too much or something twice.
    pub fn add_package(&mut self, path: &Path, package: impl Read) -> Result<(), FilesError> {
        let data = package::data(package).map_err(|source| FilesError::Package {
            path: path.to_owned(),
            source,
        })?;
        let failed = |source| FilesError::Tar {
            path: path.to_owned(),
            source,
        };
        let mut tar = TarFiles::new(data, MAX_BYTES);
        while let Some(file) = tar.next_file().map_err(failed)? {
            let Some((release, role)) = str::from_utf8(&file.path).ok().and_then(role) else {
                continue;
            };
            check_size(&file.path, file.size, &role)?;
            let start = self.end;
            loop {
                let piece = tar.content().map_err(failed)?;
                if piece.is_empty() {
                    break;
                }
                self.write(piece)?;
            }
            self.keep(release, &role, start)?;
        }
        Ok(())
    }

    /// Adds what is under a folder that looks like a root: `boot/vmlinuz-V`,
    /// `boot/config-V` and `lib/modules/V`, of one release or of all. Only
    /// names are looked at. Links are not followed.
    ///
    /// # Errors
    /// When something cannot be read, or there is too much of it.
    pub fn add_folder(&mut self, root: &Path, release: Option<&str>) -> Result<(), FilesError> {
        let wanted = |name: &str| release.is_none_or(|release| release == name);
        for entry in entries(&root.join("boot"))? {
            let path = format!("boot/{}", entry.name);
            if let Some((found, role)) = role(&path)
                && wanted(found)
            {
                self.add_file(&entry.path, found, &role)?;
            }
        }
        let modules = ["lib/modules", "usr/lib/modules"].map(|modules| root.join(modules));
        let Some(modules) = modules.into_iter().find(|modules| modules.is_dir()) else {
            return Ok(());
        };
        for entry in entries(&modules)? {
            if entry.folder && is_release(&entry.name) && wanted(&entry.name) {
                self.add_modules(&entry.path, &entry.name)?;
            }
        }
        Ok(())
    }

    /// Adds a kernel that is a file, with the folder of its modules (as
    /// `/lib/modules/V`) and its configuration, when it has any.
    ///
    /// # Errors
    /// As [`Files::add_folder`].
    pub fn add_kernel(
        &mut self,
        kernel: &Path,
        modules: Option<&Path>,
        config: Option<&Path>,
    ) -> Result<(), FilesError> {
        self.add_file(kernel, "", &Role::Kernel)?;
        // One that was named goes before one beside the modules.
        if let Some(config) = config {
            self.add_file(config, "", &Role::Config)?;
        }
        match modules {
            Some(modules) => self.add_modules(modules, ""),
            None => Ok(()),
        }
    }

    pub(crate) fn releases(&self) -> &BTreeMap<String, Release> {
        &self.releases
    }

    pub(crate) fn read(&self, span: Span) -> Result<Vec<u8>, FilesError> {
        let length = usize::try_from(span.bytes).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.spool
            .read_exact_at(&mut bytes, span.offset)
            .map_err(FilesError::Spool)?;
        Ok(bytes)
    }

    /// Adds a folder of modules, and what lies beside them.
    fn add_modules(&mut self, folder: &Path, release: &str) -> Result<(), FilesError> {
        let known = self.releases.get(release);
        let has_kernel = known.is_some_and(|known| known.kernel.is_some());
        let has_config = known.is_some_and(|known| known.config.is_some());
        for entry in entries(folder)? {
            let Some(role) = role_beside_modules(&entry.name) else {
                continue;
            };
            let known = match role {
                Role::Kernel => has_kernel,
                Role::Config => has_config,
                _ => false,
            };
            if !entry.folder && !known {
                self.add_file(&entry.path, release, &role)?;
            }
        }
        let mut folders = vec![(folder.join("kernel"), "kernel".to_owned(), 0)];
        while let Some((folder, inside, depth)) = folders.pop() {
            for entry in entries(&folder)? {
                let inside = format!("{inside}/{}", entry.name);
                if entry.folder && depth < MAX_DEPTH {
                    folders.push((entry.path, inside, depth + 1));
                } else if let Some(role) = role_beside_modules(&inside) {
                    self.add_file(&entry.path, release, &role)?;
                }
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, release: &str, role: &Role<'_>) -> Result<(), FilesError> {
        let failed = |source| FilesError::Read {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let descriptor =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let mut file = File::from(descriptor);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is no plain file")));
        }
        check_size(path.as_os_str().as_encoded_bytes(), metadata.len(), role)?;
        let start = self.end;
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece).map_err(failed)? {
                0 => break,
                length => self.write(piece.get(..length).unwrap_or_default())?,
            }
        }
        self.keep(release, role, start)
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), FilesError> {
        let end = self.end.saturating_add(piece.len() as u64);
        if end > MAX_BYTES {
            return Err(FilesError::Large {
                name: "all files together".to_owned(),
                most: MAX_BYTES,
                of: "bytes",
            });
        }
        self.spool
            .seek(SeekFrom::Start(self.end))
            .and_then(|_| self.spool.write_all(piece))
            .map_err(FilesError::Spool)?;
        self.end = end;
        Ok(())
    }

    /// Files what was written since `start`.
    fn keep(&mut self, release: &str, role: &Role<'_>, start: u64) -> Result<(), FilesError> {
        self.count += 1;
        if self.count > MAX_FILES {
            return Err(FilesError::Large {
                name: "all files together".to_owned(),
                most: MAX_FILES as u64,
                of: "files",
            });
        }
        let span = Span {
            offset: start,
            bytes: self.end - start,
        };
        let files = self.releases.entry(release.to_owned()).or_default();
        let (name, former) = match *role {
            Role::Kernel => ("the kernel", files.kernel.replace(span).is_some()),
            Role::Config => ("the configuration", files.config.replace(span).is_some()),
            Role::Builtin => ("modules.builtin", files.builtin.replace(span).is_some()),
            Role::Module { file, crypto } => {
                let (stem, packing) = Packing::split(file);
                let module = ModuleFile {
                    span,
                    packing,
                    crypto,
                };
                let former = files.modules.insert(module_name(stem), module);
                (file, former.is_some())
            }
        };
        if former {
            return Err(FilesError::Twice {
                name: format!("{name} of {release}"),
            });
        }
        Ok(())
    }
}

/// A module's name from its file's, without packing: without folders and
/// ending, and with underscores, as the kernel has it.
pub(crate) fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".ko").unwrap_or(name).replace('-', "_")
}

/// What a kernel's release can be: it is shown to people, and kept in files.
pub(crate) fn is_release(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._+~".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_digit())
        && text.len() <= MAX_NAME_BYTES
        && text.bytes().all(plain)
}

/// The release that a path in a package belongs to, and what it is for.
fn role(path: &str) -> Option<(&str, Role<'_>)> {
    let path = path.strip_prefix("./").unwrap_or(path);
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_prefix("usr/").unwrap_or(path);
    let (release, role) = if let Some(name) = path.strip_prefix("boot/") {
        match name.split_once('-')? {
            ("vmlinuz" | "vmlinux", release) => (release, Role::Kernel),
            ("config", release) => (release, Role::Config),
            _ => return None,
        }
    } else {
        let (release, inside) = path.strip_prefix("lib/modules/")?.split_once('/')?;
        (release, role_beside_modules(inside)?)
    };
    is_release(release).then_some((release, role))
}

/// What a path under `lib/modules/V` is for. Modules from elsewhere than the
/// kernel's own build are left alone.
fn role_beside_modules(inside: &str) -> Option<Role<'_>> {
    match inside {
        "vmlinuz" => return Some(Role::Kernel),
        "config" => return Some(Role::Config),
        "modules.builtin" => return Some(Role::Builtin),
        _ => {}
    }
    let (stem, _) = Packing::split(inside.strip_prefix("kernel/")?);
    let name = module_name(stem);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = stem.ends_with(".ko") && !name.is_empty() && name.len() <= MAX_NAME_BYTES;
    (good && name.bytes().all(plain)).then(|| Role::Module {
        file: inside,
        crypto: inside.contains("/crypto/"),
    })
}

fn check_size(name: &[u8], bytes: u64, role: &Role<'_>) -> Result<(), FilesError> {
    let most = match role {
        Role::Config | Role::Builtin => MAX_CONFIG_BYTES,
        Role::Kernel | Role::Module { .. } => MAX_FILE_BYTES,
    };
    if bytes <= most {
        return Ok(());
    }
    Err(FilesError::Large {
        name: String::from_utf8_lossy(name).escape_debug().to_string(),
        most,
        of: "bytes",
    })
}

struct Entry {
    name: String,
    path: PathBuf,
    folder: bool,
}

/// The plain files and folders in a folder, by name. One that is not there
/// has none.
fn entries(folder: &Path) -> Result<Vec<Entry>, FilesError> {
    let failed = |source| FilesError::Read {
        path: folder.to_owned(),
        source,
    };
    let listed = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string()
            && (kind.is_dir() || kind.is_file())
        {
            found.push(Entry {
                name,
                path: entry.path(),
                folder: kind.is_dir(),
            });
        }
        if found.len() > MAX_FILES {
            return Err(FilesError::Large {
                name: folder.display().to_string(),
                most: MAX_FILES as u64,
                of: "files",
            });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{ar, tar, xz};

    fn files() -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        (folder, files)
    }

    fn package(entries: &[(&str, &[u8])]) -> Vec<u8> {
        ar(&[
            ("debian-binary", b"2.0\n"),
            ("data.tar.xz", &xz(&tar(entries))),
        ])
    }

    #[test]
    fn paths_are_known_by_name_alone() {
        let module = |file, crypto| Some(("6.1.0-1", Role::Module { file, crypto }));
        for (path, expected) in [
            ("./boot/vmlinuz-6.1.0-1", Some(("6.1.0-1", Role::Kernel))),
            (
                "/usr/lib/modules/6.1.0-1/vmlinuz",
                Some(("6.1.0-1", Role::Kernel)),
            ),
            ("boot/config-6.1.0-1", Some(("6.1.0-1", Role::Config))),
            (
                "lib/modules/6.1.0-1/modules.builtin",
                Some(("6.1.0-1", Role::Builtin)),
            ),
            (
                "lib/modules/6.1.0-1/kernel/a-b.ko.xz",
                module("kernel/a-b.ko.xz", false),
            ),
            (
                "lib/modules/6.1.0-1/kernel/crypto/c.ko",
                module("kernel/crypto/c.ko", true),
            ),
            ("lib/modules/6.1.0-1/updates/a.ko", None),
            ("lib/modules/6.1.0-1/kernel/a b.ko", None),
            ("lib/modules/6.1.0-1/kernel/.ko", None),
            ("lib/modules/../kernel/a.ko", None),
            ("boot/vmlinuz-../../etc/passwd", None),
            ("boot/vmlinuz-6\u{1b}[0m", None),
            ("boot/vmlinuz", None),
            ("etc/passwd", None),
        ] {
            assert_eq!(role(path), expected, "{path}");
        }
    }

    #[test]
    fn a_package_gives_its_kernel_and_modules() {
        let (folder, mut files) = files();
        let given = package(&[
            ("./boot/vmlinuz-6.1.0", b"kernel"),
            ("./usr/share/doc/readme", b"words"),
            (
                "./lib/modules/6.1.0/kernel/drivers/virtio-rng.ko.xz",
                b"module",
            ),
            ("../../../../tmp/out-of-it", b"evil"),
        ]);
        files.add_package(Path::new("x.deb"), &*given).unwrap();
        let release = &files.releases()["6.1.0"];
        assert_eq!(files.read(release.kernel.unwrap()).unwrap(), b"kernel");
        let module = release.modules["virtio_rng"];
        assert_eq!(files.read(module.span).unwrap(), b"module");
        assert_eq!(module.packing, Packing::Xz);
        assert_eq!(files.count, 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_there_twice_is_refused() {
        let (_folder, mut files) = files();
        let given = package(&[
            ("lib/modules/6.1.0/kernel/a-b.ko", b"one"),
            ("lib/modules/6.1.0/kernel/more/a_b.ko.xz", b"other"),
        ]);
        let error = files.add_package(Path::new("x.deb"), &*given).unwrap_err();
        assert!(matches!(error, FilesError::Twice { .. }), "{error}");
    }

    #[test]
    fn a_large_file_is_refused_before_it_is_read() {
        let (_folder, mut files) = files();
        let mut given = tar(&[("boot/config-6.1.0", b"")]);
        // Size and checksum, as octal digits.
        given[124..135].copy_from_slice(b"00100000000");
        let sum: u32 = given[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u32::from(*byte)
                }
            })
            .sum();
        given[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        let given = ar(&[("debian-binary", b"2.0\n"), ("data.tar", &given)]);
        let error = files.add_package(Path::new("x.deb"), &*given).unwrap_err();
        assert!(matches!(error, FilesError::Large { .. }), "{error}");
        assert_eq!(files.end, 0);
    }

    #[test]
    fn a_folder_gives_one_release_or_all_and_follows_no_link() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, content: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        for release in ["6.1.0", "6.2.0"] {
            put(&format!("boot/vmlinuz-{release}"), "kernel");
            put(
                &format!("usr/lib/modules/{release}/kernel/fs/erofs.ko"),
                "module",
            );
            put(&format!("usr/lib/modules/{release}/config"), "in modules");
        }
        put("boot/config-6.1.0", "in boot");
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("boot/vmlinuz-6.3.0")).unwrap();
        let (_folder, mut all) = files();
        all.add_folder(root.path(), None).unwrap();
        assert_eq!(
            all.releases().keys().collect::<Vec<_>>(),
            ["6.1.0", "6.2.0"]
        );
        let config = all.releases()["6.1.0"].config.unwrap();
        assert_eq!(all.read(config).unwrap(), b"in boot");
        let (_folder, mut one) = files();
        one.add_folder(root.path(), Some("6.2.0")).unwrap();
        assert_eq!(one.releases().keys().collect::<Vec<_>>(), ["6.2.0"]);
        assert!(one.releases()["6.2.0"].modules.contains_key("erofs"));
    }

    #[test]
    fn a_pipe_in_a_files_place_is_refused() {
        let (folder, mut files) = files();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR).unwrap();
        let error = files.add_kernel(&pipe, None, None).unwrap_err();
        assert!(matches!(error, FilesError::Read { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_change_of_a_package_panics_or_leaves_anything(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let (folder, mut files) = files();
            let mut data = tar(&[
                ("boot/vmlinuz-6.1.0", b"kernel"),
                ("lib/modules/6.1.0/kernel/a.ko", b"module"),
            ]);
            for (at, value) in changes {
                let at = at.index(data.len());
                data[at] = value;
            }
            let given = ar(&[("debian-binary", b"2.0\n"), ("data.tar", &data)]);
            if files.add_package(Path::new("x.deb"), &*given).is_ok() {
                prop_assert!(files.count <= 2);
            }
            prop_assert!(files.end <= data.len() as u64);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
