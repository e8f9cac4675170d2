//! Images that mean harm, and disks that are full.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use skiff_e2e::{good, layout_with_layer, peak_kib};
use skiff_testkit::{Server, ServerOptions, fixture, run};

fn entry(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    link: &str,
    data: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    // Written past the checks of the library, which would refuse it.
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(u64::try_from(data.len()).unwrap());
    header.set_mode(0o777);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn layer(entries: &[(&str, tar::EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, link, data) in entries {
        entry(&mut builder, path, *kind, link, data);
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_hostile_layer_is_refused_or_harmless() {
    use tar::EntryType as Kind;
    let server = Server::start(ServerOptions::with(&["testapp"]));
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    std::fs::write(&witness, "untouched").unwrap();
    let absolute = witness.display().to_string();
    let up = format!("{}{}", "../".repeat(12), absolute.trim_start_matches('/'));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("up", layer(&[(&up, Kind::Regular, "", b"overwritten")])),
        (
            "absolute",
            layer(&[(&absolute, Kind::Regular, "", b"overwritten")]),
        ),
        (
            "through",
            layer(&[
                ("out", Kind::Symlink, folder.path().to_str().unwrap(), b""),
                ("out/witness", Kind::Regular, "", b"overwritten"),
            ]),
        ),
        ("hard", layer(&[("hard", Kind::Link, &up, b"")])),
        (
            "etc",
            layer(&[("etc", Kind::Symlink, "/proc/1/root/etc", b"")]),
        ),
        (
            "proc",
            layer(&[
                ("proc", Kind::Symlink, "/etc", b""),
                ("sys", Kind::Symlink, "/", b""),
            ]),
        ),
        ("dev", layer(&[("dev", Kind::Symlink, "/tmp", b"")])),
        (
            "whiteout",
            layer(&[
                (".wh.testapp/..", Kind::Regular, "", b""),
                (".wh...", Kind::Regular, "", b""),
            ]),
        ),
        ("device", layer(&[("disk", Kind::Block, "", b"")])),
        (
            "cut",
            layer(&[("file", Kind::Regular, "", &[1; 4000])])[..2000].to_vec(),
        ),
    ];
    let safe = server.deploy("safe", &[]);
    for (name, bytes) in cases {
        let layout = layout_with_layer(folder.path(), name, &bytes);
        let reference = format!("{name}:1");
        let imported = server.cli(&[
            "image",
            "import",
            layout.to_str().unwrap(),
            "--name",
            &reference,
        ]);
        if imported.code == 0 {
            let deployed = server.cli(&[
                "deploy",
                name,
                "--image",
                &reference,
                "--memory",
                "64",
                "--start-timeout",
                "5",
            ]);
            if deployed.code == 0 {
                let told = good(server.get(&server.host_of(name), "/write/witness-inside/1"));
                assert!(told.contains("written"), "{name}: {told}");
            } else {
                assert_eq!(
                    deployed
                        .err
                        .lines()
                        .filter(|line| line.starts_with("skiff: "))
                        .count(),
                    1,
                    "{name}: {}",
                    deployed.err
                );
            }
        } else {
            assert_eq!(imported.err.lines().count(), 1, "{name}: {}", imported.err);
        }
        assert_eq!(
            std::fs::read_to_string(&witness).unwrap(),
            "untouched",
            "{name}"
        );
    }
    assert!(good(server.get(&safe, "/")).starts_with("hello"));
    let check = server.cli(&["usage", "--check"]);
    assert_eq!(check.code, 0, "{}{}", check.out, check.err);
}

/// A layout whose only layer is this blob, with the digest that is given.
fn layout_of(folder: &Path, name: &str, blob: &[u8], digest: Option<&str>) -> PathBuf {
    let layout = folder.join(name);
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let hash: String = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        std::fs::write(blobs.join(&hash), bytes).unwrap();
        hash
    };
    let real = put(blob);
    let told = digest.unwrap_or(&real);
    std::fs::write(blobs.join(told), blob).unwrap();
    let config = put(format!(r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{real}"]}}}}"#).as_bytes());
    let size = |hash: &str| std::fs::metadata(blobs.join(hash)).unwrap().len();
    let manifest = put(format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{config}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:{told}","size":{}}}]}}"#,
        size(&config),
        size(told)
    ).as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{manifest}","size":{}}}]}}"#,
        size(&manifest)
    );
    std::fs::write(layout.join("index.json"), index).unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    layout
}

#[test]
fn what_is_not_what_its_digest_says_is_refused() {
    let server = Server::start(ServerOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&layer(&[("file", tar::EntryType::Regular, "", b"x")]))
        .unwrap();
    let blob = gzip.finish().unwrap();
    let wrong = "0".repeat(64);
    for (name, layout) in [
        (
            "digest",
            layout_of(folder.path(), "digest", &blob, Some(&wrong)),
        ),
        (
            "garbage",
            layout_of(folder.path(), "garbage", b"not gzip at all", None),
        ),
        (
            "cut",
            layout_of(folder.path(), "cut", &blob[..blob.len() / 2], None),
        ),
    ] {
        let told = server
            .cli(&[
                "image",
                "import",
                layout.to_str().unwrap(),
                "--name",
                &format!("{name}:1"),
            ])
            .failed();
        assert_eq!(told.lines().count(), 1, "{name}: {told}");
    }
    assert_eq!(server.json(&["image", "ls"]).as_array().unwrap().len(), 0);
}

fn gzip(write: impl FnOnce(&mut GzEncoder<Vec<u8>>)) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    write(&mut gzip);
    gzip.finish().unwrap()
}

/// A header block, and a size that is only claimed.
fn header(name: &str, kind: tar::EntryType, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn zeros(out: &mut impl std::io::Write, mib: usize) {
    let block = vec![0; 1 << 20];
    for _ in 0..mib {
        out.write_all(&block).unwrap();
    }
}

/// A PAX header with these records, padded to whole blocks.
fn pax(records: &str) -> Vec<u8> {
    let mut bytes = header("pax", tar::EntryType::XHeader, records.len() as u64);
    bytes.extend(records.bytes());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn bombs_and_double_sizes_are_refused_by_name_and_leave_nothing() {
    use tar::EntryType as Kind;
    let server = Server::start(ServerOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let small = layer(&[("file", Kind::Regular, "", b"12345")]);
    let cases: [(&str, Vec<u8>, &str); 5] = [
        // 40 GiB in a few hundred kilobytes, as far as its header goes.
        (
            "claim",
            gzip(|out| {
                out.write_all(&header("bomb", Kind::Regular, 40 << 30))
                    .unwrap();
                zeros(out, 256);
            }),
            "34359738368 bytes",
        ),
        // A name of 256 MiB, which would have to be held in memory.
        (
            "name",
            gzip(|out| {
                out.write_all(&header("name", Kind::GNULongName, 256 << 20))
                    .unwrap();
                zeros(out, 256);
            }),
            "extension",
        ),
        // A million and one files, of nothing.
        (
            "files",
            gzip(|out| {
                let block = header("file", Kind::Regular, 0).repeat(1000);
                (0..1001).for_each(|_| out.write_all(&block).unwrap());
            }),
            "1000000 entries",
        ),
        (
            "twice",
            gzip(|out| {
                let records = pax("10 size=5\n12 size=999\n");
                out.write_all(&[records, small.clone()].concat()).unwrap();
            }),
            "a PAX record is repeated",
        ),
        (
            "contrary",
            gzip(|out| {
                let records = pax("13 size=1024\n");
                out.write_all(&[records, small.clone()].concat()).unwrap();
            }),
            "the PAX size contradicts",
        ),
    ];
    for (name, blob, reason) in &cases {
        assert!(blob.len() < 16 << 20, "{name}: {} bytes", blob.len());
        let layout = layout_of(folder.path(), name, blob, None);
        let path = layout.to_str().unwrap();
        let named = format!("{name}:1");
        let told = server
            .cli(&["image", "import", path, "--name", &named])
            .failed();
        assert_eq!(told.lines().count(), 1, "{name}: {told}");
        assert!(told.contains(reason), "{name}: {told}");
    }
    assert_eq!(server.json(&["image", "ls"]).as_array().unwrap().len(), 0);
    let images = server.data_dir().join("images");
    let large = ["-type", "f", "-size", "+64k"];
    let left = run("find", [&[images.to_str().unwrap()][..], &large].concat()).ok();
    assert_eq!(left, "", "nothing of them is kept");
    // The memory is what one layer at a time takes, whatever it claims.
    let peak = peak_kib(&server);
    assert!(peak < 400 * 1024, "{peak} KiB");
}

/// A tmpfs that is unmounted at the end.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", ["--lazy".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let server = Server::start(ServerOptions::with(&["testapp"]));
    let host = server.deploy("dry", &[]);
    // The images' folder alone is small: what serves has its own place.
    let incoming = server.data_dir().join("images/ingest");
    let layers = server.data_dir().join("images/blobs");
    let owner = run(
        "stat",
        ["-c".as_ref(), "%u:%g".as_ref(), layers.as_os_str()],
    )
    .ok();
    let (uid, gid) = owner.trim().split_once(':').unwrap();
    let _disk = SmallDisk(incoming.clone());
    let options = format!("size=1m,mode=700,uid={uid},gid={gid}");
    let _out = run(
        "mount",
        [
            "-t",
            "tmpfs",
            "-o",
            &options,
            "small",
            incoming.to_str().unwrap(),
        ],
    )
    .ok();
    let layout = fixture("hello-python");
    let told = server
        .cli(&[
            "image",
            "import",
            layout.to_str().unwrap(),
            "--name",
            "big:1",
        ])
        .failed();
    assert!(
        told.contains("No space left") || told.contains("space"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    assert_eq!(server.json(&["image", "ls"]).as_array().unwrap().len(), 1);
    let left = run("find", [incoming.to_str().unwrap(), "-type", "f"]).out;
    assert_eq!(left, "", "a failed import leaves nothing");
}
