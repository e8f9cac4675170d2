//! Real images, made by umoci and skopeo from a busybox, and real tools.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test binary uses a part of this, and a fixture that fails is a failed test"
)]

pub mod servers;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use skiff_image::{ImageStore, Reference};

/// Runs a tool to its end; its output is the answer.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = skiff_base::process::command(program)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn reference(name: &str) -> Reference {
    name.parse().unwrap()
}

/// A folder with an OCI layout of one image, `app`, of two layers.
pub struct Fixture {
    pub dir: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let fixture = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let layout = fixture.layout();
        let image = format!("{}:app", text(&layout));
        run("umoci", &["init", "--layout", text(&layout)]);
        run("umoci", &["new", "--image", &image]);
        let base = fixture.tar("base", base_layer);
        let upper = fixture.tar("upper", upper_layer);
        run(
            "umoci",
            &["raw", "add-layer", "--image", &image, text(&base)],
        );
        run(
            "umoci",
            &["raw", "add-layer", "--image", &image, text(&upper)],
        );
        let config = [
            "config",
            "--image",
            &image,
            "--architecture",
            "amd64",
            "--os",
            "linux",
            "--config.entrypoint",
            "/bin/busybox",
            "--config.cmd",
            "true",
            "--config.env",
            "A=1",
            "--config.user",
            "app",
            "--config.workingdir",
            "/srv",
        ];
        run("umoci", &config);
        fixture
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn layout(&self) -> PathBuf {
        self.path("layout")
    }

    pub fn store(&self) -> ImageStore {
        ImageStore::open(&self.path("store")).unwrap()
    }

    /// Copies the image into another form.
    pub fn copy(&self, args: &[&str], target: &str) {
        let source = format!("oci:{}:app", text(&self.layout()));
        let policy = ["--insecure-policy", "copy"];
        run("skopeo", &[&policy, args, &[&source, target]].concat());
    }

    fn tar(&self, name: &str, fill: fn(&mut tar::Builder<std::fs::File>)) -> PathBuf {
        let path = self.path(&format!("{name}.tar"));
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        fill(&mut tar);
        tar.into_inner().unwrap().sync_all().unwrap();
        path
    }
}

fn base_layer(tar: &mut tar::Builder<std::fs::File>) {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    for dir in ["bin", "etc", "srv", "srv/old", "tmp"] {
        folder(tar, dir, if dir == "tmp" { 0o1777 } else { 0o755 });
    }
    file(tar, "bin/busybox", 0o755, &busybox);
    file(
        tar,
        "etc/passwd",
        0o644,
        b"root:x:0:0::/:\napp:x:1000:1001::/:\n",
    );
    file(tar, "etc/group", 0o644, b"root:x:0:\nweb:x:33:app\n");
    file(tar, "srv/gone", 0o644, b"gone");
    file(tar, "srv/old/hidden", 0o644, b"hidden");
    file(tar, "srv/kept", 0o4755, b"kept");
    // Not compressible, so that a download takes more than a moment.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(3 << 20)
    .collect();
    file(tar, "srv/noise", 0o600, &noise);
}

fn upper_layer(tar: &mut tar::Builder<std::fs::File>) {
    folder(tar, "etc", 0o755);
    folder(tar, "srv", 0o750);
    folder(tar, "srv/old", 0o755);
    file(
        tar,
        "etc/passwd",
        0o644,
        b"root:x:0:0::/:\napp:x:2000:2001::/:\n",
    );
    file(tar, "srv/.wh.gone", 0, b"");
    file(tar, "srv/old/.wh..wh..opq", 0, b"");
    file(tar, "srv/old/new", 0o644, b"new");
    let mut header = header(tar::EntryType::Symlink, 0o777, 0);
    tar.append_link(&mut header, "srv/link", "kept").unwrap();
    let mut header = self::header(tar::EntryType::Link, 0o644, 0);
    tar.append_link(&mut header, "srv/hard", "srv/old/new")
        .unwrap();
}

pub fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn folder(tar: &mut tar::Builder<std::fs::File>, name: &str, mode: u32) {
    let mut header = header(tar::EntryType::Directory, mode, 0);
    tar.append_data(&mut header, format!("{name}/"), &b""[..])
        .unwrap();
}

fn file(tar: &mut tar::Builder<std::fs::File>, name: &str, mode: u32, content: &[u8]) {
    let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
    tar.append_data(&mut header, name, content).unwrap();
}

/// The names in a folder of the store.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
