//! The binary as an ordinary user who may use KVM. It takes root, to become
//! one, and a real KVM, as `machine.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use skiff_base::process::command;
use skiff_flat::testing::has_kvm;

/// In a mount namespace of its own, where KVM's device has this mode.
const AS_NOBODY: &str = r#"
set -e
mknod -m "$2" "$1/kvm" c 10 232
mount --bind "$1/kvm" /dev/kvm
cd "$1"
shift 2
setpriv=$1
shift
exec "$setpriv" --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all --no-new-privs "$@"
"#;

/// util-linux's; by its path, since a small userland's shell has one of its
/// own, which knows less.
fn setpriv() -> &'static str {
    let places = ["/usr/sbin/setpriv", "/usr/bin/setpriv"];
    places
        .into_iter()
        .find(|place| Path::new(place).exists())
        .unwrap()
}

/// A folder with the binary, a guest and its configuration, which anybody may
/// read and write.
fn guest(more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let binary = folder.path().join("skiff-vmm");
    fs::copy(env!("CARGO_BIN_EXE_skiff-vmm"), binary).unwrap();
    fs::write(
        folder.path().join("kernel"),
        skiff_flat::elf(skiff_flat::HELLO),
    )
    .unwrap();
    let config = format!(
        r#"{{"boot-source":{{"kernel_image_path":"kernel","boot_args":""}},
            "machine-config":{{"vcpu_count":1,"mem_size_mib":4}},"serial":{{}}{more}}}"#
    );
    fs::write(folder.path().join("config"), config).unwrap();
    folder
}

/// Its exit code, and what it said on standard output and error.
fn run(folder: &Path, mode: &str, words: &[&str]) -> (Option<i32>, String, String) {
    let output = command("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            AS_NOBODY,
            "sh",
        ])
        .arg(folder)
        .args([mode, setpriv(), "./skiff-vmm", "--config-file", "config"])
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_guest_runs_and_what_is_lacking_is_told() {
    if !has_kvm() {
        return;
    }
    let folder = guest(r#","vsock":{"guest_cid":3,"uds_path":"vsock"},"entropy":{}"#);
    let words = ["--no-api", "--control", "control", "--cache-dir", "cache"];
    let (code, out, said) = run(folder.path(), "666", &words);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(out, skiff_flat::HELLO_SAYS);
    let lines: Vec<_> = said.lines().collect();
    let [first, last] = *lines else {
        panic!("{said}")
    };
    for part in ["user 65534", "no cgroup", "this user's files"] {
        assert!(first.contains(part), "{said}");
    }
    assert!(last.ends_with("[reset]"), "{said}");
}

#[test]
fn what_it_may_not_is_told() {
    if !has_kvm() {
        return;
    }
    let folder = guest("");
    let (code, _, said) = run(folder.path(), "600", &["--no-api"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("/dev/kvm") && said.contains("group kvm"),
        "{said}"
    );
    let folder = guest(r#","network-interfaces":[{"iface_id":"a","host_dev_name":"skiff-none"}]"#);
    let (code, _, said) = run(folder.path(), "666", &["--no-api"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("skiff-none"), "{said}");
}
