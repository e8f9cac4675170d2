//! Code from zip files in the store: kept, made into layers and images, and
//! collected.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Cursor, Read as _, Write as _};
use std::path::Path;

use sha2::Digest as _;
use skiff_image::{CodeError, CodeRoot, Collect, Composition, ImageError, ImageStore};
use skiff_types::{Digest, ErrorKind};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

fn zipped(files: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        let options = SimpleFileOptions::default();
        zip.start_file(*name, options).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

async fn spooled(store: &ImageStore, bytes: &[u8]) -> File {
    let mut file = store.spool().await.unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn over(base: Option<&Digest>, code: &[(&Digest, CodeRoot)]) -> Composition {
    Composition {
        base: base.cloned(),
        code: code
            .iter()
            .map(|(digest, root)| ((*digest).clone(), *root))
            .collect(),
        env: vec!["A=1".to_owned()],
        working_dir: "/var/task".to_owned(),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn code_becomes_images_and_is_collected_when_nothing_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let (task, opt) = (zipped(&[("bootstrap", "x")]), zipped(&[("lib/a", "yy")]));
    let file = spooled(&store, &task).await;
    let added = store.add_code(file, CodeRoot::Task).await.unwrap();
    assert_eq!(added.digest, digest_of(&task));
    assert_eq!(added.zip_bytes, task.len() as u64);
    assert_eq!((added.unpacked_bytes, added.bootstrap), (1, true));
    let file = spooled(&store, &opt).await;
    let shared = store.add_code(file, CodeRoot::Opt).await.unwrap();
    assert!(!shared.bootstrap);
    assert_eq!(names(&dir.path().join("ingest")), Vec::<String>::new());

    let parts = over(
        None,
        &[
            (&shared.digest, CodeRoot::Opt),
            (&added.digest, CodeRoot::Task),
        ],
    );
    let image = store.compose(parts.clone()).await.unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.config.working_dir, "/var/task");
    assert_eq!(image.config.env, ["A=1"]);
    assert_eq!(store.compose(parts.clone()).await.unwrap(), image);
    let again = over(Some(&image.digest), &[(&added.digest, CodeRoot::Opt)]);
    let again = store.compose(again).await.unwrap();
    assert_eq!(again.layers[..2], image.layers);
    assert_eq!(again.config.env, ["A=1", "A=1"]);
    assert_ne!(again.layers[2], image.layers[1]);

    // The image is in use, and one of the two zip files.
    let in_use = [image.digest.clone(), shared.digest.clone()];
    let pruned = store.prune(&in_use, Collect::Unused).await.unwrap();
    assert_eq!(pruned.images, [again.digest]);
    assert!(store.get(&image.digest).await.unwrap().is_some());
    assert!(store.open_code(&added.digest).await.unwrap().is_none());
    let mut bytes = Vec::new();
    let file = store.open_code(&shared.digest).await.unwrap();
    file.unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, opt);

    // What is kept as a zip file can become a layer again.
    let in_use = [shared.digest.clone()];
    store.prune(&in_use, Collect::Unused).await.unwrap();
    assert_eq!(names(&dir.path().join("layers")), Vec::<String>::new());
    let alone = over(None, &[(&shared.digest, CodeRoot::Opt)]);
    let alone = store.compose(alone).await.unwrap();
    assert_eq!(alone.layers, image.layers[..1]);
    let gone = store.compose(parts).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn nothing_stays_of_what_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    for bytes in [
        b"no zip file".to_vec(),
        zipped(&[("../out", "x")]),
        zipped(&[("good", "x"), (".wh.bad", "x")]),
    ] {
        let file = spooled(&store, &bytes).await;
        let error = store.add_code(file, CodeRoot::Task).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
        assert!(matches!(
            error,
            ImageError::Code {
                source: CodeError::Damaged(_) | CodeError::Entry { .. },
                ..
            }
        ));
    }
    for folder in ["ingest", "code", "layers"] {
        assert_eq!(names(&dir.path().join(folder)), Vec::<String>::new());
    }
    assert!(store.list().await.unwrap().is_empty());
}
