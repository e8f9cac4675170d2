//! Mutates good tar streams: nothing may panic, and what is accepted must be
//! a sound image.
//!
//! `SKIFF_FUZZ_ROUNDS` sets how long, `SKIFF_FUZZ_SEED` where it starts; a
//! failure names the round's seed.
#![allow(clippy::unwrap_used)]

mod common;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::archive::{Archive, Entry, directory, entry, file, hard_link, seal, symlink};
use common::{Image, run, try_image};
use skiff_erofs::LayerOptions;

const DEFAULT_ROUNDS: u64 = 2000;
const DEFAULT_SEED: u64 = 0x5eed;
/// Of accepted images, one in so many is checked.
const SAMPLE: u64 = 8;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

fn corpus() -> Vec<Vec<u8>> {
    let everything = Archive::of([
        directory("./"),
        file("a/file", "content".repeat(100))
            .xattr("user.a", "v")
            .pax("mtime", "1.5"),
        hard_link("a/link", "a/file"),
        symlink("s", "a"),
        file("s/through", "x"),
        file("n".repeat(200), "long"),
        Entry {
            device: (1, 3),
            ..entry(b'3', "null")
        },
        entry(b'6', "pipe"),
        file("a/.wh.gone", ""),
        file("o/.wh..wh..opq", ""),
        directory("a").xattr("user.d", "w".repeat(5000)),
    ]);
    let many = Archive::of((0..200).map(|number| file(format!("d/{number:040}"), "")));
    let scratch = tempfile::tempdir().unwrap();
    let long = scratch.path().join("n".repeat(150));
    std::fs::write(&long, "gnu").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), scratch.path().join("link")).unwrap();
    let root = scratch.path().to_str().unwrap();
    let gnu = run("tar", &["-c", "--format=gnu", "-C", root, "."]);
    let posix = run("tar", &["-c", "--format=posix", "-C", root, "."]);
    vec![everything, many, gnu, posix]
}

fn mutate(tar: &mut Vec<u8>, random: &mut Random) {
    let blocks = tar.len() / 512;
    let at = random.below(blocks) * 512;
    match random.below(8) {
        0 => {
            let position = random.below(tar.len());
            tar[position] ^= 1 << random.below(8);
        }
        1 => {
            let length = random.below(tar.len());
            tar.truncate(length);
        }
        2 => {
            let block = tar[at..at + 512].to_vec();
            let target = random.below(blocks) * 512;
            tar.splice(target..target, block);
        }
        3 => drop(tar.drain(at..at + 512)),
        4 => {
            // A digit becomes another: sizes, lengths, modes.
            let digits: Vec<usize> = (at..at + 512)
                .filter(|index| tar[*index].is_ascii_digit())
                .collect();
            if !digits.is_empty() {
                let position = digits[random.below(digits.len())];
                tar[position] = b'0' + u8::try_from(random.below(10)).unwrap();
            }
        }
        5 => {
            let kinds = b"01234567xgLKSMV\0";
            tar[at + 156] = kinds[random.below(kinds.len())];
        }
        6 => {
            let position = at + random.below(512);
            let words: [&[u8]; 8] = [
                b"../",
                b"/",
                b".wh.",
                b".wh..wh..opq",
                b"\0",
                b"\xff\xff\xff\xff",
                b"=",
                b"\n",
            ];
            let word = words[random.below(words.len())];
            let end = (position + word.len()).min(tar.len());
            tar[position..end].copy_from_slice(&word[..end - position]);
        }
        _ => {
            let position = random.below(tar.len());
            tar[position] = u8::try_from(random.below(256)).unwrap();
        }
    }
    // Most mutations should get past the checksum.
    if random.below(8) > 0 && at + 512 <= tar.len() && tar[at..at + 512] != [0; 512] {
        seal(&mut tar[at..at + 512]);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn mutated_layers_are_refused_or_sound() {
    let corpus = corpus();
    let options = LayerOptions {
        max_bytes: 16 << 20,
        max_entries: 10_000,
        capture: vec!["a/file".into(), "s".into()],
        ..LayerOptions::default()
    };
    for tar in &corpus {
        try_image(tar, &options).unwrap().check();
    }
    let first = setting("SKIFF_FUZZ_SEED", DEFAULT_SEED);
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    for seed in first..first + setting("SKIFF_FUZZ_ROUNDS", DEFAULT_ROUNDS) {
        let mut random = Random(seed);
        let mut tar = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            if tar.len() >= 512 {
                mutate(&mut tar, &mut random);
            }
        }
        let image: Option<Image> =
            catch_unwind(AssertUnwindSafe(|| try_image(&tar, &options).ok()))
                .unwrap_or_else(|_| panic!("seed {seed} panics"));
        match image {
            Some(image) => {
                accepted += 1;
                if accepted.is_multiple_of(SAMPLE) {
                    catch_unwind(AssertUnwindSafe(|| image.check()))
                        .unwrap_or_else(|_| panic!("seed {seed} makes an unsound image"));
                }
            }
            None => refused += 1,
        }
    }
    assert!(
        accepted > 0 && refused > 0,
        "{accepted} accepted, {refused} refused"
    );
}
