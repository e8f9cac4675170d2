//! Images from files, as the real tools write them.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Fixture, names, reference, run, text};
use skiff_image::{
    Collect, ImageError, ImageRecord, ImageStore, ImportOptions, ImportSource, NoProgress, Platform,
};

async fn import(
    store: &ImageStore,
    path: &Path,
    name: Option<&str>,
) -> Result<ImageRecord, ImageError> {
    let options = ImportOptions {
        name: name.map(reference),
        ..ImportOptions::default()
    };
    let source = ImportSource::Path(path.to_owned());
    store.import(source, options, Arc::new(NoProgress)).await
}

#[tokio::test]
async fn a_layout_is_imported_and_listed_and_found() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let bytes = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&bytes);
    let progress = move |now: u64, total: Option<u64>| {
        assert!(now <= total.unwrap());
        seen.fetch_max(now, Ordering::Relaxed);
    };
    let source = ImportSource::Path(fixture.layout());
    let options = ImportOptions::default();
    let image = store
        .import(source, options, Arc::new(progress))
        .await
        .unwrap();
    assert!(bytes.load(Ordering::Relaxed) > 3 << 20);
    assert_eq!(image.references, ["docker.io/library/app:latest"]);
    assert_eq!(image.platform.to_string(), "linux/amd64");
    assert_eq!(image.config.entrypoint, ["/bin/busybox"]);
    assert_eq!(image.config.cmd, ["true"]);
    assert!(image.config.env.contains(&"A=1".to_owned()));
    assert_eq!(image.config.working_dir, "/srv");
    assert_eq!(image.layers.len(), 2);
    let size: u64 = image
        .layers
        .iter()
        .map(|layer| store.open_layer(layer).unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(image.size_bytes, size);
    let again = fixture.store();
    assert_eq!(again.list().await.unwrap(), std::slice::from_ref(&image));
    let host = Platform::host();
    let found = again.resolve(&reference("app"), &host).await.unwrap();
    assert_eq!(found, Some(image.clone()));
    assert_eq!(again.get(&image.digest).await.unwrap(), Some(image));
    let none = again.resolve(&reference("other"), &host).await.unwrap();
    assert_eq!(none, None);
    assert_eq!(names(&fixture.path("store/ingest")), [""; 0]);
}

#[tokio::test]
async fn users_are_those_of_the_topmost_passwd_and_group() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let image = import(&store, &fixture.layout(), None).await.unwrap();
    let user = store.resolve_user(&image, &image.config.user).unwrap();
    assert_eq!(
        (user.uid, user.gid, user.additional_gids),
        (2000, 2001, vec![33])
    );
    let user = store.resolve_user(&image, "7:web").unwrap();
    assert_eq!((user.uid, user.gid), (7, 33));
    let error = store.resolve_user(&image, "nobody").unwrap_err();
    assert!(error.to_string().contains("no `nobody`"), "{error}");
}

#[tokio::test]
async fn one_image_in_every_form_has_the_same_layers() {
    let fixture = Fixture::new();
    let image = import(&fixture.store(), &fixture.layout(), Some("forms/layout"))
        .await
        .unwrap();
    let oci = fixture.path("oci.tar");
    let docker = fixture.path("docker.tar");
    let packed = fixture.path("docker.tar.gz");
    fixture.copy(&[], &format!("oci-archive:{}:app", text(&oci)));
    fixture.copy(&[], &format!("docker-archive:{}:app:1", text(&docker)));
    run(
        "sh",
        &[
            "-c",
            &format!("gzip -c {} > {}", text(&docker), text(&packed)),
        ],
    );
    let zstd = fixture.path("zstd");
    let target = format!("oci:{}:app", text(&zstd));
    fixture.copy(&["--dest-compress-format", "zstd"], &target);
    for (path, name) in [
        (&oci, "docker.io/library/app:latest"),
        (&docker, "docker.io/library/app:1"),
        (&packed, "docker.io/library/app:1"),
        (&zstd, "docker.io/library/app:latest"),
    ] {
        let fresh = ImageStore::open(&path.with_extension("store")).unwrap();
        let found = import(&fresh, path, None).await.unwrap();
        assert_eq!(found.layers, image.layers, "{path:?}");
        assert_eq!(found.config, image.config, "{path:?}");
        assert_eq!(found.references, [name], "{path:?}");
        for layer in &found.layers {
            let same = std::fs::read(fresh.layer_path(layer)).unwrap();
            assert_eq!(
                same,
                std::fs::read(fixture.store().layer_path(layer)).unwrap()
            );
        }
    }
}

#[tokio::test]
async fn an_archive_comes_through_a_pipe() {
    let fixture = Fixture::new();
    let archive = fixture.path("docker.tar");
    fixture.copy(&[], &format!("docker-archive:{}:app:1", text(&archive)));
    let mut cat = tokio::process::Command::from({
        let mut command = skiff_base::process::command("gzip");
        command
            .arg("-c")
            .arg(&archive)
            .stdout(std::process::Stdio::piped());
        command
    })
    .spawn()
    .unwrap();
    let stream = ImportSource::Stream(Box::pin(cat.stdout.take().unwrap()));
    let store = fixture.store();
    let image = store
        .import(stream, ImportOptions::default(), Arc::new(NoProgress))
        .await
        .unwrap();
    assert!(cat.wait().await.unwrap().success());
    assert_eq!(image.references, ["docker.io/library/app:1"]);
    assert_eq!(names(&fixture.path("store/ingest")), [""; 0]);
    let cut: &[u8] = &std::fs::read(&archive).unwrap()[..1 << 20];
    let stream = ImportSource::Stream(Box::pin(std::io::Cursor::new(cut.to_vec())));
    let error = store
        .import(stream, ImportOptions::default(), Arc::new(NoProgress))
        .await
        .unwrap_err();
    assert!(
        error.to_string().starts_with("- cannot be imported"),
        "{error}"
    );
}

#[tokio::test]
async fn one_of_several_images_is_chosen_by_name() {
    let fixture = Fixture::new();
    let layout = text(&fixture.layout()).to_owned();
    let image = format!("{layout}:app");
    run("umoci", &["tag", "--image", &image, "other"]);
    let other = format!("{layout}:other");
    run(
        "umoci",
        &["config", "--image", &other, "--config.cmd", "false"],
    );
    let store = fixture.store();
    let error = import(&store, &fixture.layout(), None).await.unwrap_err();
    assert!(error.to_string().contains("app, other"), "{error}");
    let error = import(&store, &fixture.layout(), Some("third"))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::SeveralImages { .. }));
    let chosen = import(&store, &fixture.layout(), Some("other"))
        .await
        .unwrap();
    assert_eq!(chosen.config.cmd, ["false"]);
}

#[tokio::test]
async fn what_is_damaged_or_no_image_leaves_nothing() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let empty = fixture.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let error = import(&store, &empty, None).await.unwrap_err();
    assert!(error.to_string().contains("neither index.json"), "{error}");
    let error = import(&store, Path::new("/dev/zero"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Io { .. }), "{error}");
    let error = import(&store, &fixture.path("none"), None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no such file"), "{error}");
    let blobs = fixture.layout().join("blobs/sha256");
    let largest = names(&blobs)
        .into_iter()
        .max_by_key(|name| std::fs::metadata(blobs.join(name)).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(blobs.join(&largest)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(blobs.join(&largest), &bytes).unwrap();
    let error = import(&store, &fixture.layout(), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error:?}");
    bytes.push(0);
    std::fs::write(blobs.join(&largest), &bytes).unwrap();
    let error = import(&store, &fixture.layout(), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Size { .. }), "{error:?}");
    assert_eq!(store.list().await.unwrap(), []);
    assert_eq!(names(&fixture.path("store/ingest")), [""; 0]);
    let layers = names(&fixture.path("store/layers"));
    assert_eq!(layers.len(), 2, "only the other layer: {layers:?}");
    let pruned = store.prune(&[], Collect::Unnamed).await.unwrap();
    assert_eq!((pruned.layers, pruned.images.len()), (1, 0));
    assert_eq!(names(&fixture.path("store/layers")), [""; 0]);
}

#[tokio::test]
async fn collection_keeps_what_is_named_or_in_use() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let first = import(&store, &fixture.layout(), None).await.unwrap();
    let image = format!("{}:app", text(&fixture.layout()));
    run(
        "umoci",
        &["config", "--image", &image, "--config.cmd", "false"],
    );
    let second = import(&store, &fixture.layout(), None).await.unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(first.layers, second.layers);
    let unnamed = store.get(&first.digest).await.unwrap().unwrap();
    assert_eq!(unnamed.references, [""; 0], "the name has moved on");

    let kept = store
        .prune(std::slice::from_ref(&first.digest), Collect::Unnamed)
        .await
        .unwrap();
    assert_eq!(kept, Default::default());
    let pruned = store.prune(&[], Collect::Unnamed).await.unwrap();
    assert_eq!(
        (pruned.images, pruned.layers),
        (vec![first.digest.clone()], 0)
    );
    store.remove("app").await.unwrap();
    assert!(matches!(
        store.remove("app").await,
        Err(ImageError::NotFound { .. })
    ));
    store.remove(second.digest.as_str()).await.unwrap();
    assert!(store.remove(first.digest.as_str()).await.is_err());
    let kept = store
        .prune(std::slice::from_ref(&second.digest), Collect::Unused)
        .await
        .unwrap();
    assert_eq!(kept, Default::default());
    let pruned = store.prune(&[], Collect::Unnamed).await.unwrap();
    assert_eq!((pruned.images.len(), pruned.layers), (1, 2));
    for folder in ["blobs/sha256", "layers", "images", "references", "ingest"] {
        assert_eq!(
            names(&fixture.path("store").join(folder)),
            [""; 0],
            "{folder}"
        );
    }
}

#[tokio::test]
async fn what_a_crashed_writer_left_is_swept_and_what_a_live_one_holds_is_not() {
    let fixture = Fixture::new();
    drop(fixture.store());
    let ingest = fixture.path("store/ingest");
    std::fs::write(ingest.join("tmp-left"), "x").unwrap();
    std::fs::write(ingest.join("a.turn"), "").unwrap();
    std::fs::write(ingest.join("a-b.partial"), "fresh").unwrap();
    let held = std::fs::File::create(ingest.join("tmp-held")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let store = fixture.store();
    assert_eq!(names(&ingest), ["a-b.partial", "tmp-held"]);
    drop(store);
}
