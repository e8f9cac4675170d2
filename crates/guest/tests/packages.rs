//! Packages as dpkg makes them, and Debian's own, against Debian's own tools.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use skiff_guest::{Agent, Files, InstallOptions, InstalledKernel, Kernels, StoreError};
use skiff_testkit::run;
use tempfile::TempDir;

#[path = "../src/testing.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod testing;

use testing::{Made, static_program};

struct Place {
    folder: TempDir,
    kernels: Kernels,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernels = Kernels::open(&folder.path().join("kernels")).unwrap();
        Self { folder, kernels }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> Files {
        Files::new(self.folder.path()).unwrap()
    }

    fn install(&self, files: &Files) -> Result<InstalledKernel, StoreError> {
        self.kernels.install(files, &InstallOptions::default())
    }

    fn install_package(&self, package: &Path) -> Result<InstalledKernel, StoreError> {
        let mut files = self.files();
        files.add_package(package, File::open(package).unwrap())?;
        self.install(&files)
    }

    fn modules(&self, kernel: &InstalledKernel) -> Vec<String> {
        let folder = self.path("kernels").join(&kernel.hash);
        let names = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".ko"))
            .collect();
        names.sort();
        names
    }
}

/// Writes a kernel's files under a root.
fn unpack(made: &Made, root: &Path) {
    for (path, content) in made.files() {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

#[test]
fn a_package_of_dpkgs_is_installed_however_it_is_packed() {
    let place = Place::new();
    let root = place.path("root");
    unpack(&Made::default(), &root);
    let from_folder = {
        let mut files = place.files();
        files.add_folder(&root, None).unwrap();
        place.install(&files).unwrap()
    };
    fs::create_dir(root.join("DEBIAN")).unwrap();
    let control = "Package: linux-image-6.1.0-1-test\nVersion: 1\nArchitecture: amd64\n\
        Maintainer: nobody <nobody@example.org>\nDescription: none\n";
    fs::write(root.join("DEBIAN/control"), control).unwrap();
    for way in ["-Zxz", "-Zgzip", "-Zzstd", "-Znone"] {
        let package = place.path("made.deb");
        let _said = run(
            "dpkg-deb",
            [
                "--build".as_ref(),
                way.as_ref(),
                root.as_os_str(),
                package.as_os_str(),
            ],
        )
        .ok();
        let kernel = place.install_package(&package).unwrap();
        assert_eq!(kernel.hash, from_folder.hash, "{way}");
        fs::remove_file(package).unwrap();
    }
}

/// As Ubuntu has it.
#[test]
fn a_kernel_may_come_in_two_packages() {
    let place = Place::new();
    let made = Made::default();
    let (image, modules): (Vec<_>, Vec<_>) = made
        .files()
        .into_iter()
        .partition(|(path, _)| path.starts_with("boot/vmlinuz"));
    let mut files = place.files();
    for part in [image, modules] {
        let entries: Vec<(&str, &[u8])> = part
            .iter()
            .map(|(path, content)| (&**path, &**content))
            .collect();
        let package = testing::ar(&[
            ("debian-binary", b"2.0\n"),
            ("data.tar", &testing::tar(&entries)),
        ]);
        files.add_package(Path::new("part.deb"), &*package).unwrap();
    }
    let whole = {
        let mut files = place.files();
        files
            .add_package(Path::new("whole.deb"), &*made.package())
            .unwrap();
        place.install(&files).unwrap()
    };
    assert_eq!(place.install(&files).unwrap().hash, whole.hash);
}

#[test]
fn a_kernel_may_be_a_file_with_a_folder_of_modules() {
    let place = Place::new();
    let made = Made::default();
    let root = place.path("root");
    unpack(&made, &root);
    let modules = root.join("lib/modules/6.1.0-1-test");
    let config = root.join("boot/config-6.1.0-1-test");
    let image = root.join("boot/vmlinuz-6.1.0-1-test");
    let vmlinux = place.path("vmlinux");
    fs::write(&vmlinux, testing::vmlinux("6.1.0-1-test", &[])).unwrap();
    let install = |kernel: &Path, modules: Option<&Path>, config: Option<&Path>| {
        let mut files = place.files();
        files.add_kernel(kernel, modules, config).unwrap();
        place.install(&files)
    };
    let from_image = install(&image, Some(&modules), Some(&config)).unwrap();
    let from_elf = install(&vmlinux, Some(&modules), Some(&config)).unwrap();
    assert_eq!(from_image.hash, from_elf.hash);
    assert_eq!(from_image.notes, Vec::<String>::new());
    // Fedora has the configuration beside the modules.
    fs::copy(&config, modules.join("config")).unwrap();
    let beside = install(&image, Some(&modules), None).unwrap();
    assert_eq!(beside.notes, Vec::<String>::new());
    let error = install(&image, None, Some(&config))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the module virtio_mmio of CONFIG_VIRTIO_MMIO"),
        "{error}"
    );
}

/// Debian's cloud kernel: the folder that its package was unpacked to, and its release.
fn debian() -> (PathBuf, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/machine/package.sh");
    let said = run(script, ["linux-image-cloud-amd64"]).ok();
    let (folder, version) = said.trim().split_once(' ').unwrap();
    (folder.into(), version.to_owned())
}

#[test]
fn debians_cloud_kernel_is_installed_from_package_and_folder() {
    let place = Place::new();
    let (folder, version) = debian();
    let kernel = place.install_package(&folder.join("package.deb")).unwrap();
    assert_eq!(kernel.version, version);
    assert_eq!(kernel.notes, Vec::<String>::new());
    let mut files = place.files();
    files.add_folder(&folder, Some(&version)).unwrap();
    assert_eq!(place.install(&files).unwrap().hash, kernel.hash);

    // What modprobe would load, and each behind what depmod says it needs.
    let modules: Vec<String> = place
        .modules(&kernel)
        .iter()
        .map(|name| name[4..].strip_suffix(".ko").unwrap().to_owned())
        .collect();
    let wanted = [
        "virtio_mmio",
        "virtio_blk",
        "virtio-rng",
        "vmw_vsock_virtio_transport",
        "erofs",
        "overlay",
        "ext4",
        "virtio_net",
        "nf_tables",
    ];
    let root = folder.to_str().unwrap();
    let arguments = [
        "-d",
        root,
        "-S",
        &version,
        "--ignore-install",
        "-a",
        "--show-depends",
    ];
    let shown = run("modprobe", arguments.iter().chain(&wanted)).ok();
    let expected: BTreeSet<String> = shown.lines().filter_map(inserted).collect();
    assert_eq!(modules.iter().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(modules.len(), expected.len());
    for (at, module) in modules.iter().enumerate() {
        let shown = run("modprobe", arguments.iter().chain(&[&**module])).ok();
        for needs in shown.lines().filter_map(inserted) {
            assert!(modules[..=at].contains(&needs), "{module} needs {needs}");
        }
    }

    let agent = place.path("agent");
    fs::write(&agent, static_program(b"agent")).unwrap();
    let boot = place
        .kernels
        .boot_files(&kernel, &Agent::read(&agent).unwrap())
        .unwrap();
    let listed = run(
        "sh",
        [
            "-c",
            "busybox cpio -t < \"$1\"",
            "sh",
            boot.initramfs.to_str().unwrap(),
        ],
    )
    .ok();
    let mut names: Vec<&str> = vec![
        "dev",
        "modules",
        "proc",
        "run",
        "sys",
        "tmp",
        "dev/console",
        "dev/null",
    ];
    let files = place.modules(&kernel);
    let files: Vec<String> = files.iter().map(|name| format!("modules/{name}")).collect();
    names.extend(files.iter().map(|name| &**name));
    names.push("init");
    assert_eq!(listed.lines().collect::<Vec<_>>(), names);
}

/// `insmod /lib/modules/V/kernel/NAME.ko ` of modprobe's.
fn inserted(line: &str) -> Option<String> {
    let path = line.strip_prefix("insmod ")?.trim();
    let name = path.rsplit('/').next()?.split(".ko").next()?;
    Some(name.replace('-', "_"))
}
