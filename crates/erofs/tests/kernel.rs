//! What the kernel and `fsck.erofs` make of our images. Needs root, erofs and
//! overlayfs.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::archive::{Archive, Entry, directory, entry, file, hard_link, symlink as link};
use common::{Image, Mount, assert_same, image, run, walk};
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use skiff_base::process::command;

/// The mounted image must be what GNU tar unpacks from the same stream.
fn assert_as_gnu_tar(tar: &[u8]) -> Image {
    let image = image(tar);
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("layer.tar");
    fs::write(&archive, tar).unwrap();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    let (archive, target) = (archive.to_str().unwrap(), root.to_str().unwrap());
    let arguments = [
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--delay-directory-restore",
        "-xpf",
        archive,
        "-C",
        target,
    ];
    run("tar", &arguments);
    let mount = image.mount();
    assert_same(&walk(mount.path()), &walk(&root));
    image
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Every kind of file and attribute that a host file system can hold.
fn oddities(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::write(at("empty"), "").unwrap();
    fs::write(at("block"), vec![b'b'; 4096]).unwrap();
    fs::write(at("blocks"), vec![b'c'; 3 * 4096 + 1]).unwrap();
    fs::hard_link(at("block"), at("block-again")).unwrap();
    fs::create_dir(at("nested")).unwrap();
    fs::hard_link(at("block"), at("nested/block-once-more")).unwrap();
    fs::write(at("setuid"), "su").unwrap();
    fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(at("nested"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(at("owned"), "x").unwrap();
    std::os::unix::fs::chown(at("owned"), Some(70_000), Some(4_000_000_000)).unwrap();
    symlink("owned", at("short-link")).unwrap();
    symlink("t".repeat(4095), at("long-link")).unwrap();
    symlink("t".repeat(4000), at("inline-link")).unwrap();
    fs::hard_link(at("short-link"), at("short-link-again")).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, mode, 0).unwrap();
    let device = rustix::fs::makedev(259, 0x1_2345);
    rustix::fs::mknodat(CWD, at("disk"), FileType::BlockDevice, mode, device).unwrap();
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(CWD, at("null"), FileType::CharacterDevice, mode, null).unwrap();
    fs::write(at(&"n".repeat(255)), "long name").unwrap();
    let deep = at(&["deep"; 60].join("/"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "bottom").unwrap();
    for name in ["-", ".-", "..x", "~", "\u{fc}", " "] {
        fs::write(at("nested").join(name), name).unwrap();
    }
    set_mtime(&at("blocks"), 1_234_567_890, 987_654_321);
    set_mtime(&at("short-link"), 4_000_000_000, 1);
    set_mtime(&at("empty"), -5, 250_000_000);
}

fn attributes(root: &Path) {
    let set = |name: &str, key: &str, value: &[u8]| {
        let path = root.join(name);
        rustix::fs::lsetxattr(path, key, value, XattrFlags::empty()).unwrap();
    };
    set("block", "user.short", b"v");
    set("block", "user.empty", b"");
    set("nested", "user.directory", b"binary\0=\n\xff");
    set("blocks", &format!("user.{}", "k".repeat(250)), &[7; 2000]);
    // VFS_CAP_REVISION_2, cap_net_raw.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    set("setuid", "security.capability", &capability);
    // Version 2; user::rwx, user:1:r, group::r, mask::r, other::r.
    let mut acl = vec![2, 0, 0, 0];
    let none = u32::MAX;
    for (tag, permissions, id) in [
        (1, 7, none),
        (2, 4, 1),
        (4, 4, none),
        (16, 4, none),
        (32, 4, none),
    ] {
        acl.extend_from_slice(&u16::to_le_bytes(tag));
        acl.extend_from_slice(&u16::to_le_bytes(permissions));
        acl.extend_from_slice(&u32::to_le_bytes(id));
    }
    set("owned", "system.posix_acl_access", &acl);
    set("nested", "system.posix_acl_default", &acl);
}

fn tar_up(root: &Path, format: &str) -> Vec<u8> {
    let root = root.to_str().unwrap();
    let format = format!("--format={format}");
    let mut arguments = vec![
        "-c",
        "--numeric-owner",
        "--sort=name",
        &format,
        "-C",
        root,
        ".",
    ];
    if format.ends_with("posix") {
        arguments.splice(1..1, ["--xattrs", "--xattrs-include=*"]);
    }
    run("tar", &arguments)
}

#[test]
fn a_tree_of_oddities_in_every_tar_format() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o751)).unwrap();
    oddities(root);
    assert_as_gnu_tar(&tar_up(root, "gnu"));
    attributes(root);
    let image = assert_as_gnu_tar(&tar_up(root, "posix"));
    assert_same(&walk(image.mount().path()), &walk(root));
    assert_eq!(image.report.dropped_xattrs, 0);
    assert_eq!(image.report.implied_count, 0);
}

#[test]
fn a_debian_userland() {
    let mut arguments = vec![
        "-c",
        "--numeric-owner",
        "--format=posix",
        "--xattrs",
        "-C",
        "/",
    ];
    arguments.extend(["--no-recursion", ".", "usr", "usr/share", "--recursion"]);
    arguments.extend([
        "etc",
        "usr/share/doc",
        "usr/share/perl",
        "usr/share/zoneinfo",
    ]);
    arguments.retain(|name| name.starts_with('-') || Path::new("/").join(name).exists());
    let output = command("tar")
        .args(&arguments)
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    // 1 says that a file changed meanwhile, which both sides then see.
    assert!(matches!(output.status.code(), Some(0 | 1)));
    let image = assert_as_gnu_tar(&output.stdout);
    assert!(image.report.entries > 1000);
}

#[test]
fn a_hundred_thousand_entries_in_one_directory() {
    let mut archive = Archive::default();
    for number in 0..100_000 {
        archive.add(&file(format!("large/{number}-entry"), ""));
    }
    let image = image(&archive.end());
    let mount = image.mount();
    let listed = fs::read_dir(mount.path().join("large")).unwrap().count();
    assert_eq!(listed, 100_000);
    for number in [0, 1, 9, 10, 4_711, 50_000, 99_999] {
        assert!(mount.path().join(format!("large/{number}-entry")).is_file());
        assert!(!mount.path().join(format!("large/{number}-entr")).exists());
    }
}

#[test]
fn data_beyond_four_gibibytes() {
    const LARGE: u64 = (4 << 30) + 5000;
    let mut head = Archive::default();
    head.raw(&Entry {
        size: Some(LARGE),
        ..entry(b'0', "large")
    });
    let padding = vec![0; usize::try_from(LARGE.next_multiple_of(512) - LARGE).unwrap()];
    let tail = [padding, Archive::of([file("after", "after")])].concat();
    let middle = std::io::repeat(b'z').take(LARGE);
    let stream = (&head.bytes[..]).chain(middle).chain(&tail[..]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let options = skiff_erofs::LayerOptions::default();
    let report = skiff_erofs::write_layer(stream, file.as_file_mut(), &options).unwrap();
    let image = Image { report, file };
    let mount = image.mount();
    assert_eq!(fs::read(mount.path().join("after")).unwrap(), b"after");
    let large = File::open(mount.path().join("large")).unwrap();
    assert_eq!(large.metadata().unwrap().len(), LARGE);
    let mut last = [0; 2];
    std::os::unix::fs::FileExt::read_exact_at(&large, &mut last, LARGE - 2).unwrap();
    assert_eq!(&last, b"zz");
}

#[test]
fn attributes_as_long_as_linux_has_them() {
    let value = vec![b'v'; 65_535];
    let mut file = file("f", "content");
    for number in 0..3 {
        file = file.xattr(&format!("user.{number}"), &value);
    }
    let mut directory = directory("d").xattr("user.long", &value);
    directory.mode = 0o700;
    let image = image(&Archive::of([file, directory, self::file("d/x", "x")]));
    let mount = image.mount();
    let found = common::xattrs(&mount.path().join("f"));
    assert_eq!(found.len(), 3);
    assert!(found.values().all(|found| *found == value));
    assert_eq!(
        common::xattrs(&mount.path().join("d"))[&b"user.long"[..]],
        value
    );
    assert_eq!(fs::read(mount.path().join("d/x")).unwrap(), b"x");
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn whiteouts_work_in_an_overlay() {
    let lower = image(&Archive::of([
        directory("etc"),
        file("etc/keep", "lower"),
        file("etc/gone", "lower"),
        directory("opaque"),
        file("opaque/hidden", "lower"),
        directory("replaced"),
        file("replaced/hidden", "lower"),
        directory("removed"),
        file("removed/hidden", "lower"),
        file("shared", "same"),
        hard_link("shared-again", "shared"),
    ]));
    let upper = image(&Archive::of([
        directory("etc"),
        file("etc/.wh.gone", ""),
        file("etc/new", "upper"),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/shown", "upper"),
        directory("replaced"),
        file(".wh.replaced", ""),
        file("replaced/shown", "upper"),
        file(".wh.removed", ""),
        file("fresh/.wh.nothing", ""),
    ]));
    let (lower, upper) = (lower.mount(), upper.mount());
    let whiteout = fs::symlink_metadata(upper.path().join("removed")).unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert_eq!(whiteout.rdev(), 0);
    let opaque = common::xattrs(&upper.path().join("opaque"));
    assert_eq!(opaque[&b"trusted.overlay.opaque"[..]], b"y");

    let scratch = tempfile::tempdir().unwrap();
    let merged = Mount::overlay(&[upper.path(), lower.path()], scratch.path());
    let expect = [
        "etc",
        "fresh",
        "opaque",
        "replaced",
        "shared",
        "shared-again",
    ];
    assert_eq!(names(merged.path()), expect);
    assert_eq!(names(&merged.path().join("etc")), ["keep", "new"]);
    assert_eq!(names(&merged.path().join("opaque")), ["shown"]);
    assert_eq!(names(&merged.path().join("replaced")), ["shown"]);
    let fresh = merged.path().join("fresh");
    assert_eq!(names(&fresh), [""; 0], "no other layer has this directory");
    assert!(!fresh.join("nothing").exists());
    fs::write(merged.path().join("etc/keep"), "changed").unwrap();
    fs::write(merged.path().join("removed"), "made again").unwrap();
    assert_eq!(
        fs::read(merged.path().join("etc/keep")).unwrap(),
        b"changed"
    );
    assert_eq!(fs::read(lower.path().join("etc/keep")).unwrap(), b"lower");
}

/// What umoci makes of an image of these layers, the lowest first.
fn umoci_unpack(layers: &[&[u8]], scratch: &Path) -> PathBuf {
    let layout = scratch.join("layout");
    let bundle = scratch.join("bundle");
    let name = format!("{}:test", layout.display());
    run("umoci", &["init", "--layout", layout.to_str().unwrap()]);
    run("umoci", &["new", "--image", &name]);
    let archive = scratch.join("layer.tar");
    for layer in layers {
        fs::write(&archive, layer).unwrap();
        run(
            "umoci",
            &[
                "raw",
                "add-layer",
                "--image",
                &name,
                archive.to_str().unwrap(),
            ],
        );
    }
    run(
        "umoci",
        &["unpack", "--image", &name, bundle.to_str().unwrap()],
    );
    bundle.join("rootfs")
}

#[test]
fn umoci_unpacks_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("source");
    fs::create_dir(&root).unwrap();
    oddities(&root);
    let tar = tar_up(&root, "posix");
    let image = image(&tar);
    let mut ours = walk(image.mount().path());
    let mut theirs = walk(&umoci_unpack(&[&tar], scratch.path()));
    // umoci gives the root no times of its own.
    for tree in [&mut ours, &mut theirs] {
        tree.get_mut(&PathBuf::new()).unwrap().mtime = (0, 0);
    }
    assert_same(&ours, &theirs);
}

#[test]
fn umoci_stacks_the_same() {
    let lower = Archive::of([
        directory("etc"),
        file("etc/keep", "lower"),
        file("etc/gone", "lower"),
        file("etc/changed", "lower"),
        directory("opaque"),
        directory("opaque/below"),
        file("opaque/below/hidden", "lower"),
        directory("removed"),
        file("removed/hidden", "lower"),
        directory("becomes-file"),
        file("becomes-file/hidden", "lower"),
        file("becomes-directory", "lower"),
        link("becomes-file-too", "etc"),
        file("shared", "same"),
        hard_link("shared-again", "shared"),
    ]);
    let upper = Archive::of([
        Entry {
            mode: 0o700,
            ..directory("etc")
        },
        file("etc/.wh.gone", ""),
        Entry {
            mode: 0o4755,
            ..file("etc/changed", "upper")
        },
        directory("opaque"),
        file("opaque/.wh..wh..opq", ""),
        directory("opaque/below"),
        file("opaque/below/shown", "upper"),
        file(".wh.removed", ""),
        file("becomes-file", "upper"),
        directory("becomes-directory"),
        file("becomes-directory/shown", "upper"),
        file("becomes-file-too", "upper"),
        hard_link("changed-again", "etc/changed"),
    ]);
    let scratch = tempfile::tempdir().unwrap();
    let images = [image(&upper), image(&lower)];
    let mounts = images.map(|image| image.mount());
    let merged = Mount::overlay(&[mounts[0].path(), mounts[1].path()], scratch.path());
    let mut ours = walk(merged.path());
    let mut theirs = walk(&umoci_unpack(&[&lower, &upper], scratch.path()));
    for facts in ours.values_mut().chain(theirs.values_mut()) {
        // A merged directory has one link, and umoci's time of unpacking.
        if FileType::from_raw_mode(facts.mode) == FileType::Directory {
            (facts.links, facts.mtime) = (0, (0, 0));
        }
    }
    assert_same(&ours, &theirs);
}

#[test]
fn identity_and_links_are_shared() {
    let image = image(&Archive::of([
        file("a/original", "content"),
        hard_link("b/again", "./a/original"),
        link("lib", "usr/lib"),
        file("lib/through", "through"),
        hard_link("third", "/lib/through"),
    ]));
    let mount = image.mount();
    let inode = |name: &str| fs::metadata(mount.path().join(name)).unwrap();
    assert_eq!(inode("a/original").ino(), inode("b/again").ino());
    assert_eq!(inode("a/original").nlink(), 2);
    assert_eq!(inode("usr/lib/through").ino(), inode("third").ino());
    assert_eq!(
        image.report.implied_directories,
        ["a", "b", "usr", "usr/lib"]
    );
    assert_eq!(inode("usr").mode() & 0o7777, 0o755);
}
