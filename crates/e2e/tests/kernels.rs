//! Kernels for microVMs: installed, listed, chosen and removed.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use skiff_testkit::{Finished, run, skiff_binary};
use tempfile::TempDir;

/// Any static program will do in an agent's place.
const AGENT: &str = "/bin/busybox";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("skiff-kernels.")
            .tempdir()
            .unwrap();
        let _out = run("chmod", ["711".as_ref(), folder.path().as_os_str()]).ok();
        Self(folder)
    }

    fn data_dir(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn kernel(&self, command: &str, more: &[&dyn AsRef<OsStr>]) -> Finished {
        let data_dir = self.data_dir();
        let mut args: Vec<&OsStr> = vec!["kernel".as_ref(), command.as_ref()];
        args.extend(["--data-dir".as_ref(), data_dir.as_os_str()]);
        args.extend(more.iter().map(|argument| argument.as_ref()));
        run(skiff_binary(), args)
    }

    fn list(&self) -> Vec<Value> {
        let said = self
            .kernel("ls", &[&"--agent", &AGENT, &"--output", &"json"])
            .ok();
        serde_json::from_str::<Value>(&said)
            .unwrap()
            .as_array()
            .unwrap()
            .clone()
    }
}

/// Debian's cloud kernel: the folder of its package, and its release.
fn debian() -> &'static (PathBuf, String) {
    static DEBIAN: OnceLock<(PathBuf, String)> = OnceLock::new();
    DEBIAN.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/machine/package.sh");
        let said = run(script, ["linux-image-cloud-amd64"]).ok();
        let (folder, release) = said.trim().split_once(' ').unwrap();
        (folder.into(), release.to_owned())
    })
}

#[test]
fn a_kernel_is_installed_listed_chosen_and_removed() {
    let place = Place::new();
    assert_eq!(place.list(), Vec::<Value>::new());
    assert!(!place.data_dir().exists(), "looking makes nothing");

    let (folder, release) = debian();
    let package = folder.join("package.deb");
    let done = place.kernel("install", &[&"--agent", &AGENT, &package]);
    assert!(done.err.is_empty(), "{}", done.err);
    let said = done.ok();
    assert!(
        said.starts_with(&format!("installed {release} (")),
        "{said}"
    );

    let listed = place.list();
    assert_eq!(listed.len(), 1);
    let kernel = &listed[0];
    assert_eq!(kernel["version"], release.as_str());
    assert_eq!(kernel["default"], true);
    assert_eq!(kernel["ready"], true, "{kernel}");
    assert_eq!(kernel["source"], package.to_str().unwrap());
    let hash = kernel["hash"].as_str().unwrap();
    let text = place.kernel("ls", &[&"--agent", &AGENT]).ok();
    assert!(text.starts_with("VERSION"), "{text}");
    assert!(text.lines().nth(1).unwrap().contains(&hash[..12]), "{text}");

    let kept = place.data_dir().join("kernels").join(hash);
    let elf = std::fs::read(kept.join("vmlinux")).unwrap();
    assert!(elf.starts_with(b"\x7fELF"));
    assert!(kept.join("manifest.json").exists());
    let ours = rustix::process::geteuid();
    if ours.is_root() {
        // What is parsed is parsed, and kept, by the server's account.
        assert_ne!(std::fs::metadata(&kept).unwrap().uid(), ours.as_raw());
    }

    // The same kernel, from where its package was unpacked.
    let again = place.kernel("install", &[&"--agent", &AGENT, folder]).ok();
    assert!(again.contains(&hash[..12]), "{again}");
    assert_eq!(place.list().len(), 1);

    let chosen = place.kernel("use", &[&&hash[..8]]).ok();
    assert!(
        chosen.starts_with(&format!("microVMs now boot {release}")),
        "{chosen}"
    );
    let removed = place.kernel("rm", &[release]).ok();
    assert!(
        removed.starts_with(&format!("removed {release}")),
        "{removed}"
    );
    assert!(!kept.exists());
    assert_eq!(place.list(), Vec::<Value>::new());
    let error = place.kernel("rm", &[release]).failed();
    assert!(
        error.contains(&format!("no kernel `{release}` is installed")),
        "{error}"
    );
}

#[test]
fn a_kernel_that_lacks_an_option_is_told_by_its_name() {
    let place = Place::new();
    let (folder, release) = debian();
    let config = std::fs::read_to_string(folder.join(format!("boot/config-{release}"))).unwrap();
    assert!(config.contains("\nCONFIG_EROFS_FS=m\n"));
    let lacking = place.0.path().join("config");
    std::fs::write(&lacking, config.replace("\nCONFIG_EROFS_FS=m\n", "\n")).unwrap();
    let image = folder.join(format!("boot/vmlinuz-{release}"));
    let modules = folder.join("lib/modules").join(release);
    let error = place
        .kernel(
            "install",
            &[&"--modules", &modules, &"--kernel-config", &lacking, &image],
        )
        .failed();
    assert_eq!(
        error.trim(),
        format!(
            "skiff: the kernel {release} cannot be a guest's: \
             it is without CONFIG_EROFS_FS, for images' layers"
        )
    );
    assert_eq!(place.list(), Vec::<Value>::new());
}

#[test]
fn what_cannot_be_installed_is_told_and_leaves_nothing() {
    let place = Place::new();
    let text = place.0.path().join("text");
    std::fs::write(&text, "some text\n").unwrap();
    let empty = place.0.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let broken = place.0.path().join("broken.deb");
    std::fs::write(&broken, "!<arch>\nand no more").unwrap();
    let nowhere = place.0.path().join("nowhere");
    for (source, says) in [
        (&text, "is no bzImage, and no ELF file either"),
        (&empty, "there is no kernel in it"),
        (&broken, "its archive is broken: it ends within a header"),
        (&nowhere, "cannot be read"),
    ] {
        let error = place.kernel("install", &[source]).failed();
        assert!(error.contains(says), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let left = std::fs::read_dir(place.data_dir().join("kernels")).unwrap();
    assert_eq!(left.count(), 0);

    let error = place
        .kernel("install", &[&"--agent", &text, &empty])
        .failed();
    assert!(error.contains("it is no ELF file"), "{error}");
}

#[test]
fn the_kernel_that_runs_is_taken_or_told_why_not() {
    let place = Place::new();
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let there = Path::new("/lib/modules").join(&*release).is_dir();
    let image = format!("/boot/vmlinuz-{release}");
    let done = place.kernel("install", &[&"--agent", &AGENT, &"host"]);
    if there && Path::new(&image).is_file() && done.code == 0 {
        assert_eq!(place.list()[0]["version"], &*release);
    } else {
        let error = done.failed();
        assert!(error.contains(&*release), "{error}");
        assert_eq!(place.list(), Vec::<Value>::new());
    }
}
