//! What `write_layer` accepts, refuses and reports.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{self, Read};

use common::archive::{
    Archive, Entry, directory, entry, file, hard_link, pax_records, seal, symlink,
};
use common::{Image, image, refusal, try_image};
use skiff_erofs::{Captured, LayerError, LayerOptions, Limit, check_superblock, write_layer};

fn malformed(tar: &[u8], expect: &str) {
    let said = refusal(tar);
    assert!(said.ends_with(expect), "{said:?} instead of {expect:?}");
}

fn refused(entries: impl IntoIterator<Item = Entry>, expect: &str) {
    malformed(&Archive::of(entries), expect);
}

#[test]
fn hostile_paths_never_leave_the_layer() {
    refused([file("../etc/passwd", "x")], "a .. component");
    refused([file("a/../../b", "x")], "a .. component");
    refused([directory("..")], "a .. component");
    refused([file("", "x")], "the path is empty");
    refused([file("a".repeat(256), "x")], "longer than 255 bytes");
    refused(
        [file("a/".repeat(300) + "a", "x")],
        "more than 256 components",
    );
    refused(
        [file("a/".repeat(2100) + "a", "x")],
        "longer than 4096 bytes",
    );
    refused([file("a", "").pax("path", "b\0c")], "a NUL byte");
    refused([symlink("/", "x")], "the root is not a directory");
}

#[test]
fn absolute_paths_are_relative() {
    let image = image(&Archive::of([file("/etc/passwd", "x"), directory("/")]));
    let mount = image.mount();
    assert_eq!(
        std::fs::read(mount.path().join("etc/passwd")).unwrap(),
        b"x"
    );
}

#[test]
fn parents_that_are_links_stay_inside_the_layer() {
    let image = image(&Archive::of([
        symlink("out", "/etc"),
        symlink("up", "../../../.."),
        file("out/passwd", "inside"),
        file("up/top", "inside"),
    ]));
    let mount = image.mount();
    assert_eq!(
        std::fs::read(mount.path().join("etc/passwd")).unwrap(),
        b"inside"
    );
    assert_eq!(std::fs::read(mount.path().join("top")).unwrap(), b"inside");
    refused([file("f", ""), file("f/below", "")], "is not a directory");
    refused(
        [symlink("a", "a"), file("a/b", "")],
        "too many symbolic links",
    );
}

#[test]
fn links_lead_to_what_the_layer_has() {
    refused([hard_link("a", "missing")], "not in this layer");
    refused([hard_link("a", "b"), file("b", "")], "not in this layer");
    refused([hard_link("a", "../../etc/passwd")], "a .. component");
    refused([directory("d"), hard_link("a", "d")], "is a directory");
    refused(
        [file(".wh.b", ""), hard_link("a", "b")],
        "not in this layer",
    );
    refused([symlink("a", "")], "empty or longer than 4095 bytes");
    refused(
        [symlink("a", "t".repeat(4096))],
        "empty or longer than 4095 bytes",
    );
    image(&Archive::of([
        file("a", "x"),
        hard_link("a", "a"),
        hard_link("b", "a"),
    ]));
}

#[test]
fn whiteouts_have_valid_names() {
    refused([file(".wh.", "")], "the whiteout's name is not valid");
    refused([file(".wh..", "")], "the whiteout's name is not valid");
    refused([file("d/.wh...", "")], "the whiteout's name is not valid");
    refused([file(".wh.d/file", "")], "the whiteout's name is not valid");
    let image = image(&Archive::of([
        directory(".wh..wh.plnk"),
        file(".wh..wh.plnk/12.34", "aufs"),
        file(".wh..wh.orph", "aufs"),
        file(".wh.full", "content is passed over"),
        file("after", ""),
    ]));
    let names = std::fs::read_dir(image.mount().path()).unwrap().count();
    assert_eq!(names, 2, "full's whiteout and after");
}

#[test]
fn devices_fit_linux() {
    let device = |device| Entry {
        device,
        ..entry(b'3', "d")
    };
    image(&Archive::of([device((4095, 0xf_ffff))]));
    refused([device((4096, 0))], "the device number is out of range");
    refused([device((0, 1 << 20))], "the device number is out of range");
}

#[test]
fn ambiguous_streams_are_refused() {
    let raw = |entries: &[Entry]| {
        let mut archive = Archive::default();
        for entry in entries {
            archive.raw(entry);
        }
        archive.end()
    };
    let pax = |records: &[(&str, &str)]| {
        let records: Vec<(String, Vec<u8>)> = records
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().into()))
            .collect();
        Entry {
            content: pax_records(&records),
            ..entry(b'x', "pax")
        }
    };
    let global = |records| Entry {
        type_flag: b'g',
        ..pax(records)
    };
    let long = |name: &str| Entry {
        content: name.into(),
        ..entry(b'L', "././@LongLink")
    };
    let plain = || file("f", "12345");

    image(&raw(&[pax(&[("size", "5")]), plain()]));
    let twice = raw(&[pax(&[("size", "5"), ("size", "5")]), plain()]);
    malformed(&twice, "a PAX record is repeated");
    let hidden = raw(&[pax(&[("size", "1024")]), plain()]);
    malformed(&hidden, "the PAX size contradicts the header's size");
    let two_headers = raw(&[pax(&[("size", "5")]), pax(&[("size", "5")]), plain()]);
    malformed(&two_headers, "an extension header is repeated");
    malformed(
        &raw(&[global(&[("size", "5")]), plain()]),
        "a global PAX header sets size",
    );
    malformed(
        &raw(&[global(&[("path", "x")]), plain()]),
        "a global PAX header sets path",
    );
    image(&raw(&[global(&[("comment", "x")]), plain()]));
    malformed(
        &raw(&[pax(&[("path", "f")])]),
        "an extension header has no entry",
    );
    malformed(
        &raw(&[long("a"), long("a"), plain()]),
        "an extension header is repeated",
    );
    let names = [pax(&[("path", "a")]), long("b"), plain()];
    malformed(&raw(&names), "the PAX name contradicts the GNU name");
    malformed(
        &raw(&[pax(&[("GNU.sparse.major", "1")]), plain()]),
        "sparse files are not supported",
    );
    malformed(&raw(&[entry(b'S', "f")]), "sparse files are not supported");
    malformed(
        &raw(&[entry(b'M', "f")]),
        "entry type 0x4d is not supported",
    );
    malformed(
        &raw(&[file("d/", "x")]),
        "an entry that has no content claims a size",
    );
    let full = Entry {
        content: vec![0; 10],
        ..directory("d")
    };
    malformed(&raw(&[full]), "an entry that has no content claims a size");
    let long = Entry {
        size: Some(2 << 20),
        ..pax(&[])
    };
    malformed(
        &raw(&[long]),
        "an extension header is longer than 1048576 bytes",
    );
}

#[test]
fn a_pax_size_does_not_apply_to_the_gnu_name_behind_it() {
    // Two published differentials between tar readers rest on this sequence.
    let name = "n".repeat(120);
    let size = 1_u64 << 34;
    let records = pax_records(&[("size".into(), size.to_string().into())]);
    let mut archive = Archive::default();
    archive.raw(&Entry {
        content: records,
        ..entry(b'x', "pax")
    });
    archive.raw(&Entry {
        content: name.clone().into(),
        ..entry(b'L', "././@LongLink")
    });
    archive.raw(&Entry {
        size: Some(0),
        ..entry(b'0', "short")
    });
    let zeros = io::repeat(0).take(size + 1024);
    let options = LayerOptions {
        max_bytes: 1 << 30,
        ..LayerOptions::default()
    };
    let mut out = tempfile::tempfile().unwrap();
    let over = write_layer((&archive.bytes[..]).chain(zeros), &mut out, &options);
    assert!(matches!(
        over,
        Err(LayerError::TooLarge {
            limit: Limit::ImageBytes,
            ..
        })
    ));
}

#[test]
fn truncation_is_noticed_wherever_it_is() {
    let whole = Archive::of([
        file("a", "x".repeat(700)).xattr("user.a", "v"),
        directory("d"),
        file("n".repeat(150), "y"),
    ]);
    let unpadded = whole.len() - 1024;
    for length in (0..whole.len())
        .step_by(7)
        .chain([unpadded, unpadded + 512])
    {
        assert!(
            try_image(&whole[..length], &LayerOptions::default()).is_err(),
            "{length}"
        );
    }
    let lenient = LayerOptions {
        require_end_marker: false,
        ..LayerOptions::default()
    };
    assert!(try_image(&whole[..unpadded], &lenient).is_ok());
    assert!(try_image(&[], &lenient).is_ok());
    assert!(try_image(&whole[..unpadded - 1], &lenient).is_err());
    // The header of a PAX extension, without its entry.
    assert!(try_image(&whole[..1024], &lenient).is_err());
}

#[test]
fn zero_blocks_end_the_archive_only_in_pairs() {
    let one = Archive::of([file("a", "")]);
    let headers = &one[..512];
    let lone = [headers, &[0; 512], headers, &[0; 1024]].concat();
    malformed(&lone, "a lone zero block stands between entries");
    let behind = [&one[..], headers].concat();
    let mut reader = &behind[..];
    let mut out = tempfile::tempfile().unwrap();
    let report = write_layer(&mut reader, &mut out, &LayerOptions::default()).unwrap();
    assert_eq!(report.entries, 1);
    assert!(
        reader.is_empty(),
        "a digest of the stream must see all of it"
    );
}

#[test]
fn broken_headers_are_refused() {
    let good = Archive::of([file("a", "")]);
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    malformed(&flipped, "the header's checksum is wrong");
    let mut negative = good.clone();
    negative[124..136].fill(0xff);
    seal(&mut negative[..512]);
    malformed(&negative, "the header's size is not a number in range");
    let mut letters = good;
    letters[100..107].copy_from_slice(b"rw-r--r");
    seal(&mut letters[..512]);
    malformed(&letters, "the header's mode is not a number in range");
}

#[test]
fn bombs_hit_their_bounds() {
    let check = |entries: Vec<Entry>, options: &LayerOptions, expect| match try_image(
        &Archive::of(entries),
        options,
    ) {
        Err(LayerError::TooLarge { limit, .. }) => assert_eq!(limit, expect),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("no bound hit"),
    };
    let options = LayerOptions::default();
    let claim = Entry {
        size: Some(1 << 50),
        ..entry(b'0', "huge")
    };
    check(vec![claim], &options, Limit::ImageBytes);
    let small = LayerOptions {
        max_bytes: 1 << 16,
        ..options.clone()
    };
    check(vec![file("a", vec![0; 1 << 17])], &small, Limit::TarBytes);
    let files = (0..50)
        .map(|number| file(number.to_string(), "x"))
        .collect();
    check(files, &small, Limit::ImageBytes);
    let few = LayerOptions {
        max_entries: 10,
        ..options.clone()
    };
    check(
        (0..11).map(|_| directory("same")).collect(),
        &few,
        Limit::Entries,
    );
    check(vec![file("a/".repeat(20), "")], &few, Limit::Entries);
    let light = LayerOptions {
        max_metadata_bytes: 4000,
        ..options
    };
    check(
        (0..200)
            .map(|_| directory("same").xattr("user.a", "v"))
            .collect(),
        &light,
        Limit::MetadataBytes,
    );
    check(
        vec![file("f", ""), symlink("l", "t".repeat(4000))],
        &light,
        Limit::MetadataBytes,
    );
    let links = (0..200).map(|number| hard_link(format!("l{number}"), "f"));
    check(
        [file("f", "")].into_iter().chain(links).collect(),
        &light,
        Limit::MetadataBytes,
    );
}

#[test]
fn a_failing_stream_is_the_cause() {
    let good = Archive::of([file("a", "x".repeat(5000))]);
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("digest mismatch"))
        }
    }
    let mut out = tempfile::tempfile().unwrap();
    let stream = (&good[..2000]).chain(Failing);
    let error = write_layer(stream, &mut out, &LayerOptions::default()).unwrap_err();
    let LayerError::Read {
        offset: 2000,
        source,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(source.to_string(), "digest mismatch");
    assert!(
        check_superblock(&out).is_err(),
        "an unfinished image has no superblock"
    );
}

#[test]
fn images_are_sound_wherever_the_last_inode_ends() {
    for count in 0..140 {
        image(&Archive::of(
            (0..count).map(|number| file(format!("{number:03}"), "")),
        ));
    }
}

#[test]
fn the_same_tar_makes_the_same_bytes() {
    let entries = || {
        [
            file("b", "content")
                .xattr("user.b", "1")
                .xattr("user.a", "2"),
            file("a", "content"),
            hard_link("c", "a"),
            file("d/.wh..wh..opq", ""),
        ]
    };
    let first = image(&Archive::of(entries()));
    let second = image(&Archive::of(entries()));
    assert!(first.bytes() == second.bytes());
    let uuid = |image: &Image| check_superblock(image.file.as_file()).unwrap().uuid;
    let [mut other, rest @ ..] = entries();
    other.content = b"c0ntent".to_vec();
    let other = image(&Archive::of([other].into_iter().chain(rest)));
    assert_ne!(uuid(&first), uuid(&other), "only one byte of data differs");
}

#[test]
fn a_file_is_overwritten_whole() {
    let mut out = tempfile::tempfile().unwrap();
    let large = Archive::of([file("a", vec![1; 100_000])]);
    write_layer(&large[..], &mut out, &LayerOptions::default()).unwrap();
    let small = Archive::of([file("b", "2")]);
    write_layer(&small[..], &mut out, &LayerOptions::default()).unwrap();
    let once = image(&small);
    assert_eq!(check_superblock(&out).unwrap().bytes, once.report.bytes);
}

fn captured(entries: impl IntoIterator<Item = Entry>) -> BTreeMap<String, Captured> {
    let capture = vec!["etc/passwd".to_owned(), "/etc/group".to_owned()];
    let options = LayerOptions {
        capture,
        ..LayerOptions::default()
    };
    try_image(&Archive::of(entries), &options)
        .unwrap()
        .report
        .captured
}

#[test]
fn captures_tell_a_paths_last_state() {
    let passwd = |entries: &[Entry]| captured(entries.iter().cloned()).remove("etc/passwd");
    let is_file = |content: &str| Some(Captured::File(content.into()));
    assert_eq!(passwd(&[]), None);
    assert_eq!(passwd(&[directory("etc")]), None);
    assert_eq!(passwd(&[file("./etc/passwd", "a")]), is_file("a"));
    assert_eq!(passwd(&[file("etc/passwd", "")]), is_file(""));
    assert_eq!(
        passwd(&[file("etc/passwd", "a"), file("etc/passwd", "b")]),
        is_file("b")
    );
    assert_eq!(
        passwd(&[file("x", "a"), hard_link("etc/passwd", "x")]),
        is_file("a")
    );
    let through = [symlink("link", "etc"), file("link/passwd", "a")];
    assert_eq!(passwd(&through), is_file("a"));
    let large = vec![b'x'; (1 << 20) + 1];
    let too_long = Captured::TooLong {
        bytes: (1 << 20) + 1,
    };
    assert_eq!(passwd(&[file("etc/passwd", large)]), Some(too_long));
    for hidden in [
        file("etc/.wh.passwd", ""),
        file(".wh.etc", ""),
        file("etc/.wh..wh..opq", ""),
        file(".wh..wh..opq", ""),
        file("etc", "a file"),
    ] {
        assert_eq!(
            passwd(std::slice::from_ref(&hidden)),
            Some(Captured::Whiteout),
            "{hidden:?}"
        );
    }
    let target = |link: &str, target: &str| {
        Some(Captured::Symlink {
            link: link.into(),
            target: target.into(),
        })
    };
    assert_eq!(
        passwd(&[symlink("etc", "usr/etc")]),
        target("etc", "usr/etc")
    );
    assert_eq!(
        passwd(&[symlink("etc/passwd", "p")]),
        target("etc/passwd", "p")
    );
    assert_eq!(passwd(&[directory("etc/passwd")]), Some(Captured::Other));
    let group = captured([file("etc/group", "g")]);
    assert_eq!(
        group,
        BTreeMap::from([("/etc/group".to_owned(), Captured::File(b"g".into()))])
    );
}

#[test]
fn reports_say_what_the_caller_must_know() {
    let image = image(&Archive::of([
        file("a/b/c", ""),
        directory("a"),
        file(".wh..wh..opq", ""),
        file("x", "")
            .xattr("trusted.overlay.metacopy", "")
            .xattr("security.selinux", "s"),
    ]));
    assert!(image.report.opaque_root);
    assert_eq!(image.report.entries, 4);
    assert_eq!(image.report.implied_directories, ["a/b"]);
    assert_eq!(image.report.implied_count, 1);
    assert_eq!(image.report.dropped_xattrs, 2);
    assert!(common::xattrs(&image.mount().path().join("x")).is_empty());
}
