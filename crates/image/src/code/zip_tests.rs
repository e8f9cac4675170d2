use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

/// What a test puts into a zip file.
enum Put<'a> {
    File(&'a str, &'a [u8], u32),
    Folder(&'a str),
    Link(&'a str, &'a str),
}
use Put::{File as F, Folder as D, Link as L};

fn packed(entries: &[Put]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    for entry in entries {
        match entry {
            F(name, content, mode) => {
                zip.start_file(*name, options.unix_permissions(*mode))
                    .unwrap();
                zip.write_all(content).unwrap();
            }
            D(name) => zip.add_directory(*name, options).unwrap(),
            L(name, target) => zip.add_symlink(*name, *target, options).unwrap(),
        }
    }
    zip.finish().unwrap().into_inner()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn tar_of(bytes: &[u8]) -> Result<(Vec<u8>, Unpacked), CodeError> {
    let mut tar = Vec::new();
    let done = write_tar(&file(bytes), CodeRoot::Task, &mut tar)?;
    Ok((tar, done))
}

/// Each path of a tar: its mode, and its content or where it leads.
fn listed(tar: &[u8]) -> BTreeMap<String, (u32, String)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            if let Some(target) = entry.link_name().unwrap() {
                content = target.display().to_string();
            }
            (path, (entry.header().mode().unwrap(), content))
        })
        .collect()
}

fn problem(entries: &[Put]) -> EntryProblem {
    match tar_of(&packed(entries)) {
        Err(CodeError::Entry { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_zip_file_becomes_a_tar_below_its_folder() {
    let long = format!("{}/x.py", "deep/".repeat(40).trim_end_matches('/'));
    let zip = packed(&[
        F("bootstrap", b"#!", 0o700),
        F("./lib//a.py", b"a", 0o600),
        D("empty/"),
        F(&long, b"x", 0o4644),
        L("lib/b.py", "a.py"),
        L("lib/up", "../bootstrap"),
    ]);
    let (tar, done) = tar_of(&zip).unwrap();
    assert_eq!(
        done,
        Unpacked {
            bytes: 4 + "a.py".len() as u64 + 12,
            bootstrap: true
        }
    );
    let listed = listed(&tar);
    let of = |path: &str| {
        let (mode, content) = &listed[&format!("var/task/{path}")];
        (*mode, content.as_str())
    };
    assert_eq!(of("bootstrap"), (0o755, "#!"));
    assert_eq!(of("lib/a.py"), (0o644, "a"));
    assert_eq!(of("empty"), (0o755, ""));
    assert_eq!(of(&long), (0o644, "x"));
    assert_eq!(of("lib/b.py"), (0o777, "a.py"));
    assert_eq!(of("lib/up"), (0o777, "../bootstrap"));
    assert_eq!(tar_of(&zip).unwrap().0, tar);
}

#[test]
fn zip64_is_read_and_its_lies_are_refused() {
    let options = SimpleFileOptions::default().large_file(true);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("a", options).unwrap();
    zip.write_all(b"hello").unwrap();
    let zip = zip.finish().unwrap().into_inner();
    let (tar, _) = tar_of(&zip).unwrap();
    assert_eq!(listed(&tar)["var/task/a"].1, "hello");
    // The sizes in the extra field before the content (APPNOTE 4.5.3).
    let extra = place(&zip, &[1, 0, 16, 0], 30);
    let mut lying = zip;
    lying[extra + 4..extra + 12].copy_from_slice(&(1u64 << 62).to_le_bytes());
    let told = tar_of(&lying);
    assert!(
        matches!(told, Err(CodeError::Damaged(_) | CodeError::Content { .. })),
        "{told:?}"
    );
}

#[test]
fn entries_that_code_may_not_have_are_refused() {
    for (entries, expected) in [
        (&[F("/etc/passwd", b"", 0o644)][..], EntryProblem::Absolute),
        (&[F("../x", b"", 0o644)], EntryProblem::Traversal),
        (&[F("a/../../x", b"", 0o644)], EntryProblem::Traversal),
        (&[F("a\\x", b"", 0o644)], EntryProblem::Path),
        (&[F("a\0x", b"", 0o644)], EntryProblem::Path),
        (&[F(".wh.x", b"", 0o644)], EntryProblem::Whiteout),
        (&[F("a/.wh..wh..opq", b"", 0o644)], EntryProblem::Whiteout),
        (
            &[F("a", b"", 0o644), F("./a", b"", 0o644)],
            EntryProblem::Twice,
        ),
        (
            &[F("a", b"", 0o644), F("a/b", b"", 0o644)],
            EntryProblem::NotAFolder,
        ),
        (
            &[F("a/b", b"", 0o644), F("./a", b"", 0o644)],
            EntryProblem::NotAFolder,
        ),
        (
            &[L("a", "b"), F("a/b", b"", 0o644)],
            EntryProblem::NotAFolder,
        ),
        (&[L("a", "/etc")], EntryProblem::LinkOut),
        (&[L("a/b", "../../x")], EntryProblem::LinkOut),
        (&[L("a", "b/../../x")], EntryProblem::LinkOut),
    ] {
        assert_eq!(problem(entries), expected);
    }
    let long = "x".repeat(256);
    assert_eq!(problem(&[F(&long, b"", 0o644)]), EntryProblem::Path);
    let deep = "a/".repeat(CODE_DEPTH_MAX + 1) + "x";
    assert_eq!(problem(&[F(&deep, b"", 0o644)]), EntryProblem::Path);
}

/// The first place of `from` at or behind `start`.
fn place(bytes: &[u8], from: &[u8], start: usize) -> usize {
    start + memmem::find(&bytes[start..], from).unwrap()
}

/// The zip file with one field of its only entry set in both headers.
fn with_field(mut zip: Vec<u8>, local: usize, central: usize, value: &[u8]) -> Vec<u8> {
    let header = place(&zip, HEADER, 0);
    zip[local..local + value.len()].copy_from_slice(value);
    let at = header + central;
    zip[at..at + value.len()].copy_from_slice(value);
    zip
}

#[test]
fn what_is_encrypted_special_or_packed_otherwise_is_refused() {
    let one = || packed(&[F("a", b"hello hello hello", 0o644)]);
    let of = |zip: Vec<u8>| match tar_of(&zip) {
        Err(CodeError::Entry { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    // APPNOTE 4.3.7 and 4.3.12: flags, method, attributes.
    let flags = u16::from_le_bytes([one()[6], one()[7]]) | 1;
    assert_eq!(
        of(with_field(one(), 6, 8, &flags.to_le_bytes())),
        EntryProblem::Encrypted
    );
    assert_eq!(
        of(with_field(one(), 8, 10, &12u16.to_le_bytes())),
        EntryProblem::Method
    );
    let mut pipe = one();
    let header = place(&pipe, HEADER, 0);
    pipe[header + 38..header + 42].copy_from_slice(&(0o010_644u32 << 16).to_le_bytes());
    assert_eq!(of(pipe), EntryProblem::Special);
}

#[test]
fn damage_bombs_and_ambiguity_are_refused() {
    assert!(matches!(tar_of(b""), Err(CodeError::Damaged(_))));
    assert!(matches!(tar_of(b"PK"), Err(CodeError::Damaged(_))));
    assert!(matches!(tar_of(&packed(&[])), Err(CodeError::Empty)));
    let good = packed(&[F("a", b"hello", 0o644), F("b", b"hello", 0o644)]);
    assert!(matches!(
        tar_of(&good[..good.len() - 1]),
        Err(CodeError::Damaged(_))
    ));
    // Two entries of one name in the directory and before the contents.
    let mut twice = good.clone();
    let name = place(&twice, b"b", 30);
    twice[name] = b'a';
    let central = place(&twice, HEADER, 0);
    let name = place(&twice, b"b", place(&twice, HEADER, central + 1) + 46);
    twice[name] = b'a';
    assert!(matches!(tar_of(&twice), Err(CodeError::Damaged(_))));
    // Another name before the content than in the directory.
    let mut other = good;
    other[30] = b'x';
    assert!(matches!(tar_of(&other), Err(CodeError::Damaged(_))));
    let zeros = vec![0; 1024 * 1024];
    let names: Vec<String> = (0..251).map(|number| number.to_string()).collect();
    let bomb: Vec<Put> = names.iter().map(|name| F(name, &zeros, 0o644)).collect();
    let bomb = packed(&bomb);
    assert!(bomb.len() < 1024 * 1024);
    assert!(matches!(tar_of(&bomb), Err(CodeError::Unpacked(_))));
    let headers = HEADER.repeat(CODE_HEADERS_MAX + 1);
    assert!(matches!(tar_of(&headers), Err(CodeError::Entries(_))));
}

#[test]
fn content_is_as_long_as_it_says_and_has_its_sum() {
    let stored = || {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file("a", options).unwrap();
        zip.write_all(b"hello").unwrap();
        zip.finish().unwrap().into_inner()
    };
    let mut sum = stored();
    let at = place(&sum, b"hello", 0);
    sum[at] = b'j';
    assert!(matches!(tar_of(&sum), Err(CodeError::Content { .. })));
    for size in [4u32, 6] {
        let lying = with_field(stored(), 22, 24, &size.to_le_bytes());
        let told = tar_of(&lying);
        assert!(
            matches!(told, Err(CodeError::Content { .. } | CodeError::Damaged(_))),
            "{told:?}"
        );
    }
}

/// Whatever comes of bytes: refused, or a tar whose paths are all inside.
fn check_any(bytes: &[u8]) {
    let Ok((tar, done)) = tar_of(bytes) else {
        return;
    };
    assert!(done.bytes <= CODE_BYTES_MAX);
    let mut archive = tar::Archive::new(tar.as_slice());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        assert!(path.starts_with(b"var/task/"));
        assert!(!path.split(|b| *b == b'/').any(|part| part == b".."));
        let mode = entry.header().mode().unwrap();
        assert!([0o644, 0o755, 0o777].contains(&mode));
    }
    let mut layer = tempfile::tempfile().unwrap();
    let options = skiff_erofs::LayerOptions::default();
    skiff_erofs::write_layer(tar.as_slice(), &mut layer, &options).unwrap();
}

/// A small generator with a seed, so that a failure can be had again.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[test]
fn mutated_zip_files_are_refused_or_stay_inside() {
    let corpus = [
        packed(&[F("bootstrap", b"#!/bin/sh\n", 0o755)]),
        packed(&[
            F("a/b/c.py", &[7; 5000], 0o644),
            D("d/"),
            L("a/l", "b/c.py"),
        ]),
        packed(&[F("x", b"", 0o644), F("y/z", b"PK\x01\x02PK\x05\x06", 0o644)]),
    ];
    let mut seeded = Seeded(0x5eed);
    for round in 0..3000 {
        let mut bytes = corpus[round % corpus.len()].clone();
        for _ in 0..1 + seeded.below(4) {
            let at = seeded.below(bytes.len());
            match seeded.below(4) {
                0 => bytes[at] ^= 1 << seeded.below(8),
                1 => bytes[at] = [0, 0xff, b'/', b'.'][seeded.below(4)],
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let end = (at + 1 + seeded.below(60)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = seeded.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        check_any(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn files_come_out_as_they_went_in(
        files in prop::collection::btree_map("[a-z]{1,8}(/[a-z.]{1,8}x){0,3}", (".{0,60}", prop::bool::ANY), 1..12),
    ) {
        let entries: Vec<Put> = files
            .iter()
            .map(|(name, (content, run))| F(name, content.as_bytes(), if *run { 0o711 } else { 0o600 }))
            .collect();
        match tar_of(&packed(&entries)) {
            Ok((tar, _)) => {
                let expected = files.into_iter().map(|(name, (content, run))| {
                    (format!("var/task/{name}"), (if run { 0o755 } else { 0o644 }, content))
                });
                prop_assert_eq!(listed(&tar), expected.collect::<BTreeMap<_, _>>());
            }
            Err(CodeError::Entry { path, problem }) => {
                let expected = match path.contains("/.wh.") {
                    true => EntryProblem::Whiteout,
                    false => EntryProblem::NotAFolder,
                };
                prop_assert_eq!(problem, expected);
            }
            Err(error) => prop_assert!(false, "{error:?}"),
        }
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_any(&bytes);
    }
}
