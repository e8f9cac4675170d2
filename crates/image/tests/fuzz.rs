//! Documents and references, damaged at random from fixed seeds: nothing
//! panics, and what is taken is taken again when it is written out.
//! `SKIFF_FUZZ_ROUNDS` repeats more often.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::Arc;

use common::header;
use skiff_image::{
    ImageStore, ImportOptions, ImportSource, NoProgress, Platform, Reference, docker_credentials_in,
};

const ROUNDS: u64 = 20_000;

fn rounds() -> u64 {
    let more = std::env::var("SKIFF_FUZZ_ROUNDS").ok();
    more.and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }
}

/// Changes, removes, repeats or replaces a few bytes.
fn damaged(sample: &[u8], words: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(12)).min(bytes.len());
        match random.below(4) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            2 => {
                let word = words[random.below(words.len())];
                bytes.splice(at..end, word.iter().copied());
            }
            _ => {
                let byte = u8::try_from(random.below(256)).unwrap();
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
        }
    }
    bytes
}

#[test]
fn damaged_references_are_refused_or_stay_themselves() {
    let hex = "0a".repeat(32);
    let samples = [
        "hello".to_owned(),
        "localhost:5000/a/b-c_d:1.2".to_owned(),
        format!("[::1]:5000/a@sha256:{hex}"),
        format!("ghcr.io/a/b__c:tag@sha256:{hex}"),
    ];
    let words: [&[u8]; 9] = [
        b"/",
        b":",
        b"@",
        b"..",
        b"//",
        b"[",
        b"\0",
        b"localhost",
        "é".as_bytes(),
    ];
    let mut random = Random(1);
    let mut taken = 0;
    for round in 0..rounds() {
        let sample = &samples[random.below(samples.len())];
        let bytes = damaged(sample.as_bytes(), &words, &mut random);
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(reference) = text.parse::<Reference>() {
            taken += 1;
            let whole = reference.to_string();
            assert_eq!(
                whole.parse::<Reference>(),
                Ok(reference.clone()),
                "round {round}: {text}"
            );
            assert!(
                !reference
                    .repository()
                    .split('/')
                    .any(|part| part.is_empty() || part == "..")
            );
            assert!(
                !whole.contains(['\0', ' ', '?', '#', '\\', '%']),
                "{whole:?}"
            );
        }
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string(), text);
        }
    }
    assert!(taken > 0);
}

#[test]
fn damaged_docker_configurations_are_refused_or_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let sample =
        br#"{"auths":{"https://a.io/v1/":{"auth":"bWU6czpl"},"b.io":{}},"credsStore":"x"}"#;
    let words: [&[u8]; 5] = [b"null", b"\"", b"{}", b"[]", b"\\u0000"];
    let mut random = Random(2);
    for _ in 0..rounds() / 20 {
        std::fs::write(&path, damaged(sample, &words, &mut random)).unwrap();
        for host in ["a.io", "b.io"] {
            drop(docker_credentials_in(&path, host));
        }
    }
}

/// An archive with these members.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut head = header(tar::EntryType::Regular, 0o644, content.len() as u64);
        tar.append_data(&mut head, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn damaged_archives_are_refused_or_imported_whole() {
    use sha2::Digest as _;
    let digest =
        |bytes: &[u8]| skiff_types::Digest::from_sha256(sha2::Sha256::digest(bytes).into());
    let layer = archive(&[("etc/passwd", b"a:x:1:2::/:\n")]);
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","config":{{"Env":["A=1"],"Cmd":["x"],"User":"a"}},
        "rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest(&layer)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{}","size":{}}},"layers":[{{"mediaType":
        "application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
        digest(config.as_bytes()),
        config.len(),
        digest(&layer),
        layer.len()
    );
    let words: [&[u8]; 8] = [
        b"null",
        b"\"",
        b"{}",
        b"[]",
        b"-1",
        b"1e999",
        b"\\u0000",
        b"99999999999999999999",
    ];
    let mut random = Random(3);
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let honest = digest(config.as_bytes());
    let mut imported = 0;
    for round in 0..rounds() / 40 {
        // The digests follow the damage, so that it comes through to the parsers.
        let mut documents = [config.clone().into_bytes(), manifest.clone().into_bytes()];
        let which = random.below(3);
        if let Some(document) = documents.get_mut(which) {
            *document = damaged(document, &words, &mut random);
        }
        let [config, manifest] = documents;
        let manifest = String::from_utf8_lossy(&manifest)
            .replace(honest.as_str(), digest(&config).as_str())
            .into_bytes();
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":{}}}]}}"#,
            digest(&manifest),
            manifest.len()
        );
        let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest(bytes).hex());
        let mut bytes = archive(&[
            ("index.json", index.as_bytes()),
            (&blob(&config), &config),
            (&blob(&manifest), &manifest),
            (&blob(&layer), &layer),
        ]);
        if which == 2 {
            bytes = damaged(&bytes, &words, &mut random);
        }
        let source = ImportSource::Stream(Box::pin(std::io::Cursor::new(bytes)));
        let import = store.import(source, ImportOptions::default(), Arc::new(NoProgress));
        if let Ok(image) = import.await {
            imported += 1;
            assert!(
                image
                    .layers
                    .iter()
                    .all(|layer| store.open_layer(layer).is_ok()),
                "round {round}"
            );
            drop(store.resolve_user(&image, &image.config.user));
        }
    }
    assert!(imported > 0);
}
