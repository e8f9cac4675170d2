use std::collections::BTreeSet;

use super::folder::Partial;
use super::*;
use crate::testing::{Made, module, static_program, vmlinux, xz};

struct Place {
    folder: tempfile::TempDir,
    kernels: Kernels,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernels = Kernels::open(&folder.path().join("kernels")).unwrap();
        Self { folder, kernels }
    }

    fn try_install(
        &self,
        made: &Made,
        options: InstallOptions,
    ) -> Result<InstalledKernel, StoreError> {
        let mut files = Files::new(&self.kernels.folder)?;
        files.add_package(Path::new("x.deb"), &*made.package())?;
        self.kernels.install(&files, &options)
    }

    fn install(&self, made: &Made) -> InstalledKernel {
        self.try_install(made, InstallOptions::default()).unwrap()
    }

    fn agent(&self, content: &[u8]) -> Agent {
        let path = self.folder.path().join("agent");
        fs::write(&path, static_program(content)).unwrap();
        Agent::read(&path).unwrap()
    }

    #[track_caller]
    fn assert_names(&self, expected: &[&str]) {
        let entries = fs::read_dir(&self.kernels.folder).unwrap();
        let names: BTreeSet<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(names, expected);
    }

    fn kernel_folder(&self, kernel: &InstalledKernel) -> PathBuf {
        self.kernels.folder.join(&kernel.hash)
    }
}

#[test]
fn an_installed_kernel_is_listed_and_has_its_files() {
    let place = Place::new();
    assert_eq!(place.kernels.list().unwrap(), []);
    assert_eq!(place.kernels.default().unwrap(), None);
    let options = InstallOptions {
        source: "x.deb".into(),
        ..InstallOptions::default()
    };
    let kernel = place.try_install(&Made::default(), options).unwrap();
    assert_eq!(kernel.version, "6.1.0-1-test");
    assert_eq!(kernel.source, "x.deb");
    assert_eq!(kernel.modules, 10);
    assert!(kernel.default);
    assert_eq!(place.kernels.list().unwrap(), std::slice::from_ref(&kernel));
    let folder = place.kernel_folder(&kernel);
    let image = fs::read(folder.join("vmlinux")).unwrap();
    assert_eq!(image, vmlinux("6.1.0-1-test", &[]));
    let first = fs::read(folder.join("000-virtio.ko")).unwrap();
    assert!(first.starts_with(b"\x7fELF"));
    assert!(folder.join("003-virtio_rng.ko").exists());
    place.assert_names(&[&kernel.hash, "default", "lock"]);
    place.kernels.check(&kernel).unwrap();
}

#[test]
fn the_same_kernel_is_installed_once_and_mended() {
    let place = Place::new();
    let first = place.install(&Made::default());
    let again = place.install(&Made::default());
    assert_eq!(first, again);
    let file = place.kernel_folder(&first).join("000-virtio.ko");
    fs::write(&file, "broken").unwrap();
    assert!(place.kernels.check(&first).is_err());
    let mended = place.install(&Made::default());
    assert_eq!(mended.hash, first.hash);
    place.kernels.check(&mended).unwrap();
    fs::remove_file(place.kernel_folder(&first).join("manifest.json")).unwrap();
    assert_eq!(place.kernels.list().unwrap(), []);
    assert_eq!(place.install(&Made::default()).hash, first.hash);
    place.assert_names(&[&first.hash, "default", "lock"]);
}

#[test]
fn the_last_installed_is_the_default_unless_told_otherwise() {
    let place = Place::new();
    let first = place.install(&Made::default());
    let second = place.install(&Made::of("6.2.0"));
    assert_eq!(place.kernels.default().unwrap().unwrap().hash, second.hash);
    let keep = InstallOptions {
        keep_default: true,
        ..InstallOptions::default()
    };
    let third = place.try_install(&Made::of("6.3.0"), keep).unwrap();
    assert!(!third.default);
    let chosen = place.kernels.make_default("6.1.0-1-test").unwrap();
    assert!(chosen.default);
    assert_eq!(place.kernels.default().unwrap().unwrap().hash, first.hash);
    let defaults: Vec<bool> = place
        .kernels
        .list()
        .unwrap()
        .iter()
        .map(|kernel| kernel.default)
        .collect();
    assert_eq!(defaults, [true, false, false]);
}

#[test]
fn the_first_one_is_the_default_whatever_was_told() {
    let place = Place::new();
    let keep = InstallOptions {
        keep_default: true,
        ..InstallOptions::default()
    };
    assert!(place.try_install(&Made::default(), keep).unwrap().default);
}

#[test]
fn kernels_are_named_by_version_or_hash() {
    let place = Place::new();
    let kernel = place.install(&Made::default());
    for name in [
        &*kernel.version,
        &kernel.hash,
        short(&kernel.hash),
        &kernel.hash[..4],
    ] {
        assert_eq!(place.kernels.get(name).unwrap().hash, kernel.hash);
    }
    for name in ["6.1", "", &kernel.hash[..3]] {
        let error = place.kernels.get(name).unwrap_err();
        assert!(matches!(error, StoreError::NoSuch { .. }), "{error}");
    }
    // A distribution builds the same version again.
    place.install(&Made {
        kernel: vmlinux("6.1.0-1-test", b"rebuilt"),
        ..Made::default()
    });
    let error = place.kernels.get("6.1.0-1-test").unwrap_err();
    assert!(matches!(error, StoreError::Ambiguous { .. }), "{error}");
    assert!(place.kernels.get(&kernel.hash).is_ok());
}

#[test]
fn the_default_is_removed_last() {
    let place = Place::new();
    let first = place.install(&Made::default());
    let second = place.install(&Made::of("6.2.0"));
    let error = place.kernels.remove("6.2.0").unwrap_err();
    assert!(matches!(error, StoreError::Default { .. }), "{error}");
    assert_eq!(
        place.kernels.remove("6.1.0-1-test").unwrap().hash,
        first.hash
    );
    place.assert_names(&[&second.hash, "default", "lock"]);
    place.kernels.remove("6.2.0").unwrap();
    place.assert_names(&["lock"]);
    assert!(place.kernels.remove("6.2.0").is_err());
}

#[test]
fn a_kernel_that_will_not_do_leaves_nothing() {
    let place = Place::new();
    let mut made = Made::default();
    made.config = made.config.replace("CONFIG_EROFS_FS=m", "");
    let error = place
        .try_install(&made, InstallOptions::default())
        .unwrap_err();
    assert!(error.to_string().contains("CONFIG_EROFS_FS"), "{error}");
    place.assert_names(&[]);
}

#[test]
fn what_a_killed_install_left_is_swept_and_what_runs_is_not() {
    let place = Place::new();
    let kernel = place.install(&Made::default());
    let left = place.kernels.folder.join(".partial-0123456789abcdef");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("vmlinux"), "half").unwrap();
    fs::write(place.kernels.folder.join(".spool-0123456789abcdef"), "half").unwrap();
    let runs = Partial::new(&place.kernels.folder).unwrap();
    assert_eq!(place.kernels.list().unwrap(), std::slice::from_ref(&kernel));
    Kernels::open(&place.kernels.folder).unwrap();
    assert!(!left.exists());
    assert!(runs.path().exists());
    drop(runs);
    place.assert_names(&[&kernel.hash, "default", "lock"]);
}

#[test]
fn many_installs_at_once_make_one_kernel() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                Kernels::open(&place.kernels.folder).unwrap();
                place.install(&Made::default());
            });
        }
    });
    assert_eq!(place.kernels.list().unwrap().len(), 1);
    let kernel = place.kernels.default().unwrap().unwrap();
    place.assert_names(&[&kernel.hash, "default", "lock"]);
}

#[test]
fn an_initramfs_is_made_once_for_an_agent() {
    let place = Place::new();
    let kernel = place.install(&Made::default());
    let agent = place.agent(b"one");
    let boot = place.kernels.boot_files(&kernel, &agent).unwrap();
    assert_eq!(boot.version, "6.1.0-1-test");
    assert_eq!(boot.hash, kernel.hash);
    let archive = fs::read(&boot.initramfs).unwrap();
    let has = |text: &[u8]| memchr::memmem::find(&archive, text).is_some();
    assert!(has(b"modules/008-virtio_net.ko\0"));
    assert!(has(&static_program(b"one")));
    let made = fs::metadata(&boot.initramfs).unwrap().modified().unwrap();
    assert_eq!(place.kernels.boot_files(&kernel, &agent).unwrap(), boot);
    let metadata = fs::metadata(&boot.initramfs).unwrap();
    assert_eq!(metadata.modified().unwrap(), made);

    let other = place
        .kernels
        .boot_files(&kernel, &place.agent(b"two"))
        .unwrap();
    assert_ne!(other.initramfs, boot.initramfs);
    assert_eq!(other.kernel, boot.kernel);
    assert!(boot.initramfs.exists());
}

#[test]
fn a_broken_initramfs_is_made_again() {
    let place = Place::new();
    let kernel = place.install(&Made::default());
    let agent = place.agent(b"");
    let boot = place.kernels.boot_files(&kernel, &agent).unwrap();
    let good = fs::read(&boot.initramfs).unwrap();
    let mut bad = good.clone();
    bad[200] ^= 1;
    for broken in [&bad[..], &good[..100], b""] {
        fs::write(&boot.initramfs, broken).unwrap();
        place.kernels.boot_files(&kernel, &agent).unwrap();
        assert_eq!(fs::read(&boot.initramfs).unwrap(), good);
    }
}

#[test]
fn few_initramfses_are_kept() {
    let place = Place::new();
    let kernel = place.install(&Made::default());
    for number in 0..MAX_INITRAMFS + 3 {
        let agent = place.agent(number.to_string().as_bytes());
        let boot = place.kernels.boot_files(&kernel, &agent).unwrap();
        assert!(boot.initramfs.exists());
    }
    let entries = fs::read_dir(place.kernel_folder(&kernel)).unwrap();
    let count = entries
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with("initramfs-")
        })
        .count();
    assert_eq!(count, MAX_INITRAMFS);
}

#[test]
fn what_was_changed_is_not_booted() {
    let place = Place::new();
    let kernel = place.install(&Made::default());
    let agent = place.agent(b"");
    let folder = place.kernel_folder(&kernel);
    for name in ["vmlinux", "004-vmw_vsock_virtio_transport.ko"] {
        let path = folder.join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(&path, bad).unwrap();
        let error = place.kernels.boot_files(&kernel, &agent).unwrap_err();
        assert!(
            matches!(&error, StoreError::Damaged { path: at } if *at == path),
            "{error}"
        );
        fs::write(&path, good).unwrap();
    }
    let path = folder.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("6.1.0-1-test", "6.9.0-1-test")).unwrap();
    let error = place.kernels.boot_files(&kernel, &agent).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    fs::write(&path, "{").unwrap();
    let error = place.kernels.list().unwrap_err();
    assert!(matches!(error, StoreError::Manifest { .. }), "{error}");
}

#[test]
fn an_agent_is_a_static_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    fs::write(&path, module("a", &[])).unwrap();
    let error = Agent::read(&path).unwrap_err();
    assert!(matches!(error, StoreError::Agent { .. }), "{error}");
    let error = Agent::read(&std::env::current_exe().unwrap()).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Agent { .. } | StoreError::AgentRead { .. }
        ),
        "{error}"
    );
    let error = Agent::read(Path::new("/nowhere/agent")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/agent"), "{error}");
}

#[test]
fn a_file_in_the_folders_place_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Kernels::open(&file).unwrap_err();
    assert!(error.to_string().contains("cannot make"), "{error}");
}

#[test]
fn modules_of_other_packings_are_kept_unpacked() {
    let place = Place::new();
    let mut made = Made::default();
    let magic = "vermagic=6.1.0-1-test SMP";
    let (at, _) = made
        .modules
        .iter()
        .enumerate()
        .find(|(_, (path, _))| path.contains("overlay"))
        .unwrap();
    let plain = module("overlay", &[magic]);
    made.modules[at] = ("fs/overlayfs/overlay.ko".into(), plain.clone());
    let one = place.install(&made);
    made.modules[at] = ("fs/overlayfs/overlay.ko.xz".into(), xz(&plain));
    let other = place.install(&made);
    assert_eq!(one.hash, other.hash);
}
