//! Which modules a guest needs, and in which order they load.
//!
//! A module's own description says what it needs (`depends`, and `softdep`
//! for what it asks for by name when it starts), so that packages will do
//! that nobody has run depmod(8) on.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::elf::{self, ElfError};
use crate::files::{Files, FilesError, ModuleFile, Release, module_name};
use crate::packed::read_bounded;

/// Of one module, unpacked.
const MAX_MODULE_BYTES: u64 = 64 << 20;
/// Of all that a guest loads.
const MAX_BYTES: usize = 128 << 20;
/// A guest of Debian's loads 15.
const MAX_MODULES: usize = 200;

/// Why there are no modules to load.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A module's file cannot be read or unpacked.
    #[error("the module {name} cannot be read")]
    Read {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is no module.
    #[error("the module {name} cannot be used")]
    Elf {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: ElfError,
    },
    /// What it needs is not there.
    #[error("the module {name} needs {needs}, which is neither a module nor in the kernel")]
    Missing {
        /// Its name.
        name: String,
        /// What it needs.
        needs: String,
    },
    /// It was built for another kernel.
    #[error("the module {name} is for the kernel {found}, and this is {release}")]
    Release {
        /// Its name.
        name: String,
        /// Which kernel it is for.
        found: String,
        /// The kernel's release.
        release: String,
    },
    /// More than a guest needs.
    #[error("a guest would have to load more than {MAX_MODULES} modules, or {MAX_BYTES} bytes")]
    Many,
    /// The files failed.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// A module as it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// The modules of a release.
#[derive(Debug)]
pub(crate) struct Modules<'a> {
    files: &'a Files,
    release: &'a Release,
    /// Names of what is in the kernel.
    builtin: BTreeSet<String>,
    /// Modules among the ciphers and checksums, by what else they are called.
    /// Others ask for them by that.
    aliases: OnceCell<BTreeMap<String, Vec<String>>>,
}

impl<'a> Modules<'a> {
    pub(crate) fn new(files: &'a Files, release: &'a Release) -> Result<Self, FilesError> {
        let listed = release.builtin.map(|span| files.read(span)).transpose()?;
        let listed = listed.unwrap_or_default();
        let names = listed
            .split(|byte| *byte == b'\n')
            .filter_map(|line| str::from_utf8(line).ok())
            .filter(|line| !line.trim().is_empty())
            .map(|line| module_name(line.trim()));
        Ok(Self {
            files,
            release,
            builtin: names.collect(),
            aliases: OnceCell::new(),
        })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.release.modules.contains_key(name)
    }

    pub(crate) fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(name)
    }

    /// These modules and all that they need, each behind what it needs.
    /// `release` is the kernel's own.
    pub(crate) fn load_order(
        &self,
        wanted: &[&str],
        release: &str,
    ) -> Result<Vec<Module>, ModuleError> {
        let mut order = Order {
            modules: self,
            release,
            seen: BTreeSet::new(),
            bytes: 0,
            loaded: Vec::new(),
        };
        for name in wanted {
            order.visit(name)?;
        }
        Ok(order.loaded)
    }

    fn content(&self, name: &str, file: ModuleFile) -> Result<Vec<u8>, ModuleError> {
        let packed = self.files.read(file.span)?;
        file.packing
            .open(&*packed)
            .and_then(|reader| read_bounded(reader, MAX_MODULE_BYTES))
            .map_err(|source| ModuleError::Read {
                name: name.to_owned(),
                source,
            })
    }

    /// The modules that a soft dependency names, by name or by alias. One that
    /// nobody has is no error: it may be in the kernel under another name.
    fn soft(&self, name: &str) -> Vec<String> {
        let module = module_name(name);
        if self.has(&module) {
            return vec![module];
        }
        let aliases = self.aliases.get_or_init(|| self.read_aliases());
        aliases.get(name).cloned().unwrap_or_default()
    }

    fn read_aliases(&self) -> BTreeMap<String, Vec<String>> {
        let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, file) in &self.release.modules {
            if !file.crypto {
                continue;
            }
            // One that cannot be read is missed when it is asked for by name.
            let Ok(content) = self.content(name, *file) else {
                continue;
            };
            for alias in Info::parse(&content).map_or_else(|_| Vec::new(), |info| info.aliases) {
                aliases.entry(alias).or_default().push(name.clone());
            }
        }
        aliases
    }
}

struct Order<'a> {
    modules: &'a Modules<'a>,
    release: &'a str,
    seen: BTreeSet<String>,
    bytes: usize,
    loaded: Vec<Module>,
}

impl Order<'_> {
    /// Loads a module behind what it needs. It calls itself at most
    /// [`MAX_MODULES`] times deep, since no module is visited twice.
    fn visit(&mut self, name: &str) -> Result<(), ModuleError> {
        let Some(file) = self.modules.release.modules.get(name) else {
            return Ok(());
        };
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        if self.seen.len() > MAX_MODULES {
            return Err(ModuleError::Many);
        }
        let content = self.modules.content(name, *file)?;
        self.bytes += content.len();
        if self.bytes > MAX_BYTES {
            return Err(ModuleError::Many);
        }
        let info = Info::parse(&content).map_err(|source| ModuleError::Elf {
            name: name.to_owned(),
            source,
        })?;
        self.check_release(name, &info)?;
        for soft in &info.before {
            for module in self.modules.soft(soft) {
                self.visit(&module)?;
            }
        }
        for needs in &info.depends {
            self.check_there(name, needs)?;
            self.visit(needs)?;
        }
        self.loaded.push(Module {
            name: name.to_owned(),
            content,
        });
        for soft in &info.behind {
            for module in self.modules.soft(soft) {
                self.visit(&module)?;
            }
        }
        Ok(())
    }

    fn check_there(&self, name: &str, needs: &str) -> Result<(), ModuleError> {
        if self.modules.has(needs) || self.modules.is_builtin(needs) {
            return Ok(());
        }
        Err(ModuleError::Missing {
            name: name.to_owned(),
            needs: needs.escape_debug().to_string(),
        })
    }

    fn check_release(&self, name: &str, info: &Info) -> Result<(), ModuleError> {
        match &info.release {
            Some(found) if found != self.release => Err(ModuleError::Release {
                name: name.to_owned(),
                found: found.escape_debug().to_string(),
                release: self.release.to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Info {
    /// The kernel that it is for.
    release: Option<String>,
    depends: Vec<String>,
    /// Soft dependencies to load before it, and behind it.
    before: Vec<String>,
    behind: Vec<String>,
    aliases: Vec<String>,
}

impl Info {
    fn parse(content: &[u8]) -> Result<Self, ElfError> {
        let mut info = Self::default();
        let lines = elf::modinfo(content)?.filter_map(|line| str::from_utf8(line).ok());
        for (key, value) in lines.filter_map(|line| line.split_once('=')) {
            match key {
                "vermagic" => info.release = value.split(' ').next().map(str::to_owned),
                "depends" => {
                    let names = value.split(',').filter(|name| !name.is_empty());
                    info.depends.extend(names.map(module_name));
                }
                "softdep" => info.soft(value),
                "alias" => info.aliases.push(value.to_owned()),
                _ => {}
            }
        }
        Ok(info)
    }

    /// `pre: NAME... post: NAME...`; names before either word mean nothing.
    fn soft(&mut self, value: &str) {
        let mut list = None;
        for word in value.split_ascii_whitespace() {
            match word {
                "pre:" => list = Some(true),
                "post:" => list = Some(false),
                _ => match list {
                    Some(true) => self.before.push(word.to_owned()),
                    Some(false) => self.behind.push(word.to_owned()),
                    None => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{ar, gzip, module, tar, xz, zstd};

    /// Files of the release 6.1.0 with these modules, by their paths.
    fn files(modules: &[(&str, Vec<u8>)], builtin: &str) -> Files {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::new(folder.path()).unwrap();
        let mut entries: Vec<(String, Vec<u8>)> = modules
            .iter()
            .map(|(path, content)| (format!("lib/modules/6.1.0/kernel/{path}"), content.clone()))
            .collect();
        entries.push(("lib/modules/6.1.0/modules.builtin".into(), builtin.into()));
        let entries: Vec<(&str, &[u8])> = entries
            .iter()
            .map(|(path, content)| (&**path, &**content))
            .collect();
        let package = ar(&[("debian-binary", b"2.0\n"), ("data.tar", &tar(&entries))]);
        files.add_package(Path::new("x.deb"), &*package).unwrap();
        files
    }

    fn order(files: &Files, wanted: &[&str]) -> Result<Vec<String>, ModuleError> {
        let modules = Modules::new(files, &files.releases()["6.1.0"]).unwrap();
        let loaded = modules.load_order(wanted, "6.1.0")?;
        Ok(loaded.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn each_is_loaded_once_behind_what_it_needs() {
        let files = files(
            &[
                (
                    "fs/erofs.ko.xz",
                    xz(&module("erofs", &["depends=libcrc32c"])),
                ),
                (
                    "lib/libcrc32c.ko.gz",
                    gzip(&module("libcrc32c", &["softdep=pre: crc32c", "depends="])),
                ),
                (
                    "arch/x86/crypto/crc32c-intel.ko",
                    module("crc32c_intel", &["alias=crc32c"]),
                ),
                ("crypto/sha1.ko", module("sha1", &["alias=sha1"])),
                (
                    "virtio.ko.zst",
                    zstd(&module("virtio", &["depends=virtio_ring"])),
                ),
                (
                    "virtio_ring.ko",
                    module("virtio_ring", &["vermagic=6.1.0 SMP"]),
                ),
                (
                    "virtio-rng.ko",
                    module("virtio_rng", &["depends=virtio-ring,virtio,core"]),
                ),
                ("other.ko", module("other", &[])),
            ],
            "kernel/drivers/core.ko\n\n",
        );
        assert_eq!(
            order(&files, &["virtio_rng", "erofs", "virtio"]).unwrap(),
            [
                "virtio_ring",
                "virtio",
                "virtio_rng",
                "crc32c_intel",
                "libcrc32c",
                "erofs"
            ]
        );
    }

    #[test]
    fn soft_dependencies_go_before_and_behind_and_may_be_missing() {
        let files = files(
            &[
                ("a.ko", module("a", &["softdep=none pre: b-b gone post: c"])),
                ("b_b.ko", module("b_b", &[])),
                ("c.ko", module("c", &[])),
            ],
            "",
        );
        assert_eq!(order(&files, &["a"]).unwrap(), ["b_b", "a", "c"]);
    }

    #[test]
    fn modules_that_need_each_other_end() {
        let files = files(
            &[
                ("a.ko", module("a", &["depends=b"])),
                ("b.ko", module("b", &["depends=a,b"])),
            ],
            "",
        );
        assert_eq!(order(&files, &["a"]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn what_is_missing_or_foreign_is_named() {
        let files = files(
            &[
                ("a.ko", module("a", &["depends=gone"])),
                ("b.ko", module("b", &["vermagic=5.10.0-1 SMP"])),
                ("c.ko", b"no module".to_vec()),
                ("d.ko.xz", b"not packed".to_vec()),
            ],
            "",
        );
        for (name, says) in [
            ("a", "the module a needs gone"),
            ("b", "for the kernel 5.10.0-1, and this is 6.1.0"),
            ("c", "the module c cannot be used"),
            ("d", "the module d cannot be read"),
        ] {
            let error = order(&files, &[name]).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn there_is_an_end_to_a_chain() {
        let chain: Vec<(String, Vec<u8>)> = (0..=MAX_MODULES)
            .map(|number| {
                let needs = format!("depends=m{}", number + 1);
                let lines: &[&str] = if number == MAX_MODULES {
                    &[]
                } else {
                    &[&needs]
                };
                (format!("m{number}.ko"), module("m", lines))
            })
            .collect();
        let chain: Vec<(&str, Vec<u8>)> = chain
            .iter()
            .map(|(path, content)| (&**path, content.clone()))
            .collect();
        let files = files(&chain, "");
        let error = order(&files, &["m0"]).unwrap_err();
        assert!(matches!(error, ModuleError::Many), "{error}");
        assert_eq!(order(&files, &["m1"]).unwrap().len(), MAX_MODULES);
    }

    proptest! {
        #[test]
        fn any_needs_are_before_those_who_need_them(
            needs in prop::collection::vec(prop::collection::vec(0_usize..12, 0..4), 12),
        ) {
            // Only of those with higher numbers, so that there is an order.
            let depends = |number: usize| -> Vec<String> {
                needs[number].iter().filter(|other| **other > number).map(|other| format!("m{other}")).collect()
            };
            let all: Vec<(String, Vec<u8>)> = (0..12)
                .map(|number| {
                    let line = format!("depends={}", depends(number).join(","));
                    (format!("m{number}.ko"), module("m", &[&line]))
                })
                .collect();
            let all: Vec<(&str, Vec<u8>)> = all.iter().map(|(path, content)| (&**path, content.clone())).collect();
            let order = order(&files(&all, ""), &["m3", "m0", "m7"]).unwrap();
            let place = |name: &str| order.iter().position(|found| found == name);
            prop_assert!(["m0", "m3", "m7"].iter().all(|name| place(name).is_some()));
            for (at, name) in order.iter().enumerate() {
                let number: usize = name[1..].parse().unwrap();
                for other in depends(number) {
                    prop_assert!(place(&other).unwrap() < at);
                }
            }
        }

        #[test]
        fn no_description_panics(value in ".{0,200}") {
            let mut info = Info::default();
            info.soft(&value);
            let parsed = Info::parse(&module("a", &[&format!("softdep={value}"), &format!("depends={value}")]));
            prop_assert!(parsed.is_ok());
        }
    }
}
