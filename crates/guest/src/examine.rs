//! Whether what was given can be booted as a guest, and what of it is kept.

use std::fmt;
use std::path::Path;

use crate::elf::{self, ElfError};
use crate::files::{Files, FilesError, Release, is_release};
use crate::kernel::{self, KernelError};
use crate::modules::{Module, ModuleError, Modules};
use crate::options::{BUILT_IN, Config, DRIVERS, Driver, Value, WELCOME};

/// What a kernel says first of itself.
const BANNER: &[u8] = b"Linux version ";

/// Why a kernel cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// There is none in what was given.
    #[error(
        "there is no kernel in it: boot/vmlinuz-VERSION is expected, or lib/modules/VERSION/vmlinuz"
    )]
    NoKernel,
    /// There is none of this release in what was given.
    #[error("there is no kernel {release} in it{}", but(.others))]
    NotThisKernel {
        /// What was wanted.
        release: String,
        /// What is there.
        others: Vec<String>,
    },
    /// There are several.
    #[error("there are several kernels in it: say which of {}", .releases.join(", "))]
    Several {
        /// Which.
        releases: Vec<String>,
    },
    /// It cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] KernelError),
    /// What it unpacks to is no kernel for a guest.
    #[error("the kernel {name} cannot be used")]
    Elf {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: ElfError,
    },
    /// It does not say its release.
    #[error("the kernel {name} does not say which Linux it is")]
    NoBanner {
        /// Its name.
        name: String,
    },
    /// It is another than its file's name says.
    #[error("the kernel {named} says that it is {says}")]
    Renamed {
        /// What its file's name says.
        named: String,
        /// What it says.
        says: String,
    },
    /// It lacks what a guest needs.
    #[error("the kernel {release} cannot be a guest's: {}", listed(.lacks))]
    Lacks {
        /// Its release.
        release: String,
        /// What it lacks, at least one.
        lacks: Vec<Lack>,
    },
    /// Its modules cannot be used.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The files failed.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// Something that a guest needs and a kernel has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// The option of the kernel's configuration.
    pub option: &'static str,
    /// What a guest needs it for.
    pub purpose: &'static str,
    /// The module that the option stands for, when that is what is missing.
    pub module: Option<&'static str>,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            option,
            purpose,
            module,
        } = self;
        match module {
            Some(module) => write!(
                f,
                "the module {module} of {option}, for {purpose}, was not given with it"
            ),
            None => write!(f, "it is without {option}, for {purpose}"),
        }
    }
}

fn listed(lacks: &[Lack]) -> String {
    let lacks: Vec<String> = lacks.iter().map(Lack::to_string).collect();
    lacks.join("; ")
}

fn but(others: &[String]) -> String {
    if others.is_empty() {
        return String::new();
    }
    format!(", but {}", others.join(", "))
}

/// A kernel that can be a guest's, with the modules that it loads.
#[derive(Debug)]
pub(crate) struct Bootable {
    pub(crate) release: String,
    /// An ELF file.
    pub(crate) kernel: Vec<u8>,
    /// In the order in which they load.
    pub(crate) modules: Vec<Module>,
    /// What an operator should know.
    pub(crate) notes: Vec<String>,
}

/// Examines the only kernel in what was given, or the one of this release.
pub(crate) fn examine(files: &Files, release: Option<&str>) -> Result<Bootable, ExamineError> {
    let (named, found) = choose(files, release)?;
    let name = if named.is_empty() { "image" } else { named };
    let kernel = unpack(files, name, found)?;
    let failed = |source| ExamineError::Elf {
        name: name.to_owned(),
        source,
    };
    elf::check_kernel(&kernel).map_err(failed)?;
    let says = release_of(&kernel).ok_or_else(|| ExamineError::NoBanner {
        name: name.to_owned(),
    })?;
    if !named.is_empty() && named != says {
        return Err(ExamineError::Renamed {
            named: named.to_owned(),
            says,
        });
    }
    let config = match found.config {
        Some(span) => Some(Config::parse(&files.read(span)?)),
        None => Config::in_kernel(&kernel),
    };
    let modules = Modules::new(files, found)?;
    let wanted = judge(&says, config.as_ref(), &modules)?;
    Ok(Bootable {
        modules: modules.load_order(&wanted, &says)?,
        notes: notes(config.as_ref()),
        release: says,
        kernel,
    })
}

fn choose<'a>(
    files: &'a Files,
    wanted: Option<&str>,
) -> Result<(&'a str, &'a Release), ExamineError> {
    let with_kernel = || {
        let releases = files.releases().iter();
        releases.filter(|(_, release)| release.kernel.is_some())
    };
    let names = || with_kernel().map(|(name, _)| name.clone()).collect();
    if let Some(release) = wanted {
        let found = with_kernel().find(|(name, _)| *name == release);
        let (name, found) = found.ok_or_else(|| ExamineError::NotThisKernel {
            release: release.to_owned(),
            others: names(),
        })?;
        return Ok((name, found));
    }
    let mut found = with_kernel();
    match (found.next(), found.next()) {
        (Some((name, release)), None) => Ok((name, release)),
        (None, _) => Err(ExamineError::NoKernel),
        (Some(_), Some(_)) => Err(ExamineError::Several { releases: names() }),
    }
}

fn unpack(files: &Files, name: &str, release: &Release) -> Result<Vec<u8>, ExamineError> {
    let Some(span) = release.kernel else {
        return Err(ExamineError::NoKernel);
    };
    let image = files.read(span)?;
    let mut kernel = Vec::new();
    kernel::unpack(Path::new(name), &image, &mut kernel)?;
    Ok(kernel)
}

/// `Linux version 6.1.0-56-cloud-amd64 (debian-kernel@…`
fn release_of(kernel: &[u8]) -> Option<String> {
    memchr::memmem::find_iter(kernel, BANNER).find_map(|at| {
        let rest = kernel.get(at + BANNER.len()..)?;
        let end = rest.iter().take(256).position(|byte| *byte == b' ')?;
        let text = str::from_utf8(rest.get(..end)?).ok()?;
        is_release(text).then(|| text.to_owned())
    })
}

/// Which modules have to be loaded for what a guest needs.
///
/// Without a configuration only drivers can be judged, by their modules.
fn judge(
    release: &str,
    config: Option<&Config>,
    modules: &Modules<'_>,
) -> Result<Vec<&'static str>, ExamineError> {
    let mut wanted = Vec::new();
    let mut lacks = Vec::new();
    for driver in DRIVERS {
        match judge_driver(driver, config, modules) {
            Ok(loaded) => wanted.extend(loaded.then_some(driver.module)),
            Err(lack) => lacks.push(lack),
        }
    }
    for (option, purpose) in BUILT_IN {
        if config.is_some_and(|config| config.value(option) != Value::Yes) {
            lacks.push(Lack {
                option,
                purpose,
                module: None,
            });
        }
    }
    if lacks.is_empty() {
        return Ok(wanted);
    }
    Err(ExamineError::Lacks {
        release: release.to_owned(),
        lacks,
    })
}

/// Whether a driver's module has to be loaded.
fn judge_driver(
    driver: Driver,
    config: Option<&Config>,
    modules: &Modules<'_>,
) -> Result<bool, Lack> {
    let lack = |module| {
        Err(Lack {
            option: driver.option,
            purpose: driver.purpose,
            module,
        })
    };
    match config.map(|config| config.value(driver.option)) {
        Some(Value::Yes) => Ok(false),
        Some(Value::No) => lack(None),
        _ if modules.has(driver.module) => Ok(true),
        None if modules.is_builtin(driver.module) => Ok(false),
        Some(Value::Module) | None => lack(Some(driver.module)),
    }
}

fn notes(config: Option<&Config>) -> Vec<String> {
    let Some(config) = config else {
        return vec![
            "it came without a configuration, so that its options could not be checked".to_owned(),
        ];
    };
    WELCOME
        .into_iter()
        .filter(|(option, _)| config.value(option) == Value::No)
        .map(|(option, purpose)| format!("it is without {option}, and so without {purpose}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Made, bzimage, gzip, vmlinux};

    fn examined(made: &Made) -> Result<Bootable, ExamineError> {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::new(folder.path()).unwrap();
        files
            .add_package(Path::new("x.deb"), &*made.package())
            .unwrap();
        examine(&files, None)
    }

    fn names(bootable: &Bootable) -> Vec<&str> {
        bootable
            .modules
            .iter()
            .map(|module| &*module.name)
            .collect()
    }

    #[test]
    fn a_kernel_with_all_that_it_needs_will_do() {
        let bootable = examined(&Made::default()).unwrap();
        assert_eq!(bootable.release, "6.1.0-1-test");
        assert_eq!(bootable.kernel, vmlinux("6.1.0-1-test", &[]));
        assert_eq!(
            names(&bootable),
            [
                "virtio",
                "virtio_mmio",
                "virtio_blk",
                "virtio_rng",
                "vmw_vsock_virtio_transport",
                "erofs",
                "overlay",
                "ext4",
                "virtio_net",
                "nf_tables"
            ]
        );
        assert_eq!(bootable.notes, Vec::<String>::new());
    }

    #[test]
    fn each_option_that_is_missing_is_named_with_its_purpose() {
        let drivers = DRIVERS.map(|driver| (driver.option, driver.purpose));
        for (option, purpose) in drivers.into_iter().chain(BUILT_IN) {
            let mut made = Made::default();
            made.config = made.config.replace(&format!("{option}="), "# was ");
            let error = examined(&made).unwrap_err().to_string();
            let expected = format!(
                "the kernel 6.1.0-1-test cannot be a guest's: it is without {option}, for {purpose}"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn all_that_is_missing_is_listed() {
        let made = Made {
            config: "CONFIG_ACPI=y\n".into(),
            ..Made::default()
        };
        let ExamineError::Lacks { lacks, .. } = examined(&made).unwrap_err() else {
            panic!("it lacks options");
        };
        assert_eq!(lacks.len(), DRIVERS.len() + BUILT_IN.len() - 1);
    }

    #[test]
    fn an_option_as_a_module_needs_its_module() {
        let mut made = Made::default();
        made.modules.retain(|(path, _)| !path.contains("erofs"));
        let error = examined(&made).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "the module erofs of CONFIG_EROFS_FS, for images' layers, was not given with it"
            ),
            "{error}"
        );
        made.config = made
            .config
            .replace("CONFIG_EROFS_FS=m", "CONFIG_EROFS_FS=y");
        assert!(!names(&examined(&made).unwrap()).contains(&"erofs"));
    }

    #[test]
    fn a_kernel_may_have_its_configuration_inside_or_none() {
        let made = Made::default();
        let inside = [b"IKCFG_ST", &*gzip(made.config.as_bytes()), b"IKCFG_ED"].concat();
        let with = Made {
            kernel: bzimage(&vmlinux("6.1.0-1-test", &inside)),
            config: String::new(),
            ..Made::default()
        };
        assert_eq!(examined(&with).unwrap().notes, Vec::<String>::new());
        let lacking = made.config.replace("CONFIG_MEMCG=", "# was ");
        let inside = [b"IKCFG_ST", &*gzip(lacking.as_bytes()), b"IKCFG_ED"].concat();
        let lacking = Made {
            kernel: bzimage(&vmlinux("6.1.0-1-test", &inside)),
            config: String::new(),
            ..Made::default()
        };
        let error = examined(&lacking).unwrap_err().to_string();
        assert!(
            error.contains("CONFIG_MEMCG, for limits of memory"),
            "{error}"
        );

        let mut without = Made {
            config: String::new(),
            ..Made::default()
        };
        let notes = examined(&without).unwrap().notes;
        assert!(notes[0].contains("could not be checked"), "{notes:?}");
        without
            .modules
            .retain(|(path, _)| !path.contains("overlay"));
        let error = examined(&without).unwrap_err().to_string();
        assert!(
            error.contains("the module overlay of CONFIG_OVERLAY_FS"),
            "{error}"
        );
        without.builtin = "kernel/fs/overlayfs/overlay.ko\n".into();
        assert!(!names(&examined(&without).unwrap()).contains(&"overlay"));
    }

    #[test]
    fn what_is_welcome_is_noted() {
        let mut made = Made::default();
        made.config = made.config.replace("CONFIG_KVM_GUEST=y", "");
        let notes = examined(&made).unwrap().notes;
        assert!(notes[0].contains("CONFIG_KVM_GUEST"), "{notes:?}");
    }

    #[test]
    fn what_is_no_kernel_is_told() {
        let image = |kernel: Vec<u8>| Made {
            kernel,
            ..Made::default()
        };
        for (made, says) in [
            (image(Vec::new()), "is no bzImage, and no ELF file either"),
            (image(b"\x7fELF and no more".to_vec()), "cannot be used"),
            (image(vmlinux("", &[])), "does not say which Linux it is"),
            (
                image(vmlinux("6.2.0", &[])),
                "6.1.0-1-test says that it is 6.2.0",
            ),
            (image(bzimage(b"no kernel")), "cannot be used"),
        ] {
            let error = examined(&made).unwrap_err().to_string();
            assert!(error.contains(says), "{error} / {says}");
        }
    }

    #[test]
    fn one_of_several_kernels_has_to_be_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::new(folder.path()).unwrap();
        assert!(matches!(examine(&files, None), Err(ExamineError::NoKernel)));
        for release in ["6.1.0-1-test", "6.2.0"] {
            let made = Made::of(release);
            files
                .add_package(Path::new("x.deb"), &*made.package())
                .unwrap();
        }
        let error = examine(&files, None).unwrap_err().to_string();
        assert!(
            error.ends_with("say which of 6.1.0-1-test, 6.2.0"),
            "{error}"
        );
        assert_eq!(examine(&files, Some("6.2.0")).unwrap().release, "6.2.0");
        let error = examine(&files, Some("6.3.0")).unwrap_err().to_string();
        assert!(
            error.contains("no kernel 6.3.0 in it, but 6.1.0-1-test, 6.2.0"),
            "{error}"
        );
    }
}
