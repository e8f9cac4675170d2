//! Images from a real registry, through good and bad connections.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::servers::{DEADLINE, Proxy, Registry};
use common::{Fixture, names, reference, run, text};
use skiff_image::{
    ImageError, ImageRecord, ImageStore, ImportOptions, ImportSource, NoProgress, Platform,
    PullOptions,
};
use skiff_types::ErrorKind;
use skiff_types::api::RegistryAuth;

fn options() -> PullOptions {
    PullOptions {
        insecure_hosts: vec!["127.0.0.1".to_owned()],
        ..PullOptions::default()
    }
}

async fn pull(store: &ImageStore, name: &str) -> Result<ImageRecord, ImageError> {
    let reference = reference(name);
    let pull = store.pull(&reference, options(), Arc::new(NoProgress));
    tokio::time::timeout(DEADLINE, pull).await.unwrap()
}

fn told(error: &ImageError) -> String {
    skiff_base::chain(error).to_string()
}

async fn pushed(fixture: &Fixture) -> Registry {
    let registry = Registry::start(fixture.dir.path(), "").await;
    let target = format!("docker://{}/app:1", registry.host());
    fixture.copy(&["--dest-tls-verify=false"], &target);
    registry
}

#[tokio::test]
async fn a_pulled_image_is_the_imported_one_and_is_fetched_once() {
    let fixture = Fixture::new();
    let mut registry = pushed(&fixture).await;
    let store = fixture.store();
    let name = format!("{}/app:1", registry.host());
    let bytes = Arc::new(AtomicU64::new(0));
    let count = || {
        let bytes = Arc::clone(&bytes);
        Arc::new(move |now: u64, _: Option<u64>| bytes.store(now, Ordering::SeqCst))
    };
    let image = store
        .pull(&reference(&name), options(), count())
        .await
        .unwrap();
    assert!(bytes.swap(0, Ordering::SeqCst) > 3 << 20);
    assert_eq!(image.references, std::slice::from_ref(&name));
    assert_eq!(names(&fixture.path("store/ingest")), [""; 0]);

    let again = store
        .pull(&reference(&name), options(), count())
        .await
        .unwrap();
    assert_eq!(again, image);
    assert_eq!(bytes.load(Ordering::SeqCst), 0, "nothing was fetched");

    let other = ImageStore::open(&fixture.path("other")).unwrap();
    let source = ImportSource::Path(fixture.layout());
    let imported = other.import(source, ImportOptions::default(), Arc::new(NoProgress));
    let imported = imported.await.unwrap();
    assert_eq!(
        (imported.layers, imported.config),
        (image.layers.clone(), image.config.clone())
    );

    let pinned = format!("{}/app@{}", registry.host(), image.digest);
    assert_eq!(
        pull(&store, &pinned).await.unwrap().references,
        [name, pinned.clone()]
    );
    registry.stop();
    assert_eq!(pull(&store, &pinned).await.unwrap().digest, image.digest);
}

#[tokio::test]
async fn layers_that_are_there_are_not_fetched() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let store = fixture.store();
    pull(&store, &format!("{}/app:1", registry.host()))
        .await
        .unwrap();
    let image = format!("{}:app", text(&fixture.layout()));
    run(
        "umoci",
        &["config", "--image", &image, "--config.cmd", "false"],
    );
    let target = format!("docker://{}/app:2", registry.host());
    fixture.copy(&["--dest-tls-verify=false"], &target);
    let proxy = Proxy::start(registry.port, 1 << 20).await;
    let second = pull(&store, &format!("{}/app:2", proxy.host()))
        .await
        .unwrap();
    assert_eq!(second.config.cmd, ["false"]);
    assert!(
        proxy.answered() < 32 << 10,
        "only documents: {}",
        proxy.answered()
    );
}

#[tokio::test]
async fn credentials_are_given_when_they_are_wanted() {
    let fixture = Fixture::new();
    // bcrypt of `secret`, as `htpasswd -B` writes it.
    let hash = run(
        "perl",
        &[
            "-e",
            r#"print crypt("secret", '$2y$05$abcdefghijklmnopqrstuu')"#,
        ],
    );
    let htpasswd = fixture.path("htpasswd");
    std::fs::write(&htpasswd, format!("me:{hash}\n")).unwrap();
    let auth = format!(
        "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
        text(&htpasswd)
    );
    let registry = Registry::start(fixture.dir.path(), &auth).await;
    let target = format!("docker://{}/app:1", registry.host());
    fixture.copy(
        &["--dest-tls-verify=false", "--dest-creds", "me:secret"],
        &target,
    );
    let store = fixture.store();
    let name = format!("{}/app:1", registry.host());
    let with = |auth: Option<(&str, &str)>| PullOptions {
        auth: auth.map(|(username, password)| RegistryAuth {
            username: username.to_owned(),
            password: password.to_owned(),
        }),
        ..options()
    };
    let pull = |auth| {
        let (store, name) = (store.clone(), reference(&name));
        async move { store.pull(&name, with(auth), Arc::new(NoProgress)).await }
    };
    let error = pull(None).await.unwrap_err();
    assert!(told(&error).contains("docker login"), "{}", told(&error));
    let error = pull(Some(("me", "wrong"))).await.unwrap_err();
    assert!(
        told(&error).contains("these credentials"),
        "{}",
        told(&error)
    );
    assert!(!told(&error).contains("wrong"));
    assert_eq!(pull(Some(("me", "secret"))).await.unwrap().layers.len(), 2);
}

/// The large layer's partial download, when the threads of a failed pull have
/// ended.
async fn kept_of(fixture: &Fixture) -> PathBuf {
    let ingest = fixture.path("store/ingest");
    let ended = async {
        while !names(&ingest).iter().all(|name| name.ends_with(".partial")) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.unwrap();
    let partials = names(&ingest).into_iter().map(|name| ingest.join(name));
    partials
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap()
}

#[tokio::test]
async fn a_download_that_breaks_off_is_continued_where_it_was() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let proxy = Proxy::start(registry.port, 2 << 20).await;
    let store = fixture.store();
    let name = format!("{}/app:1", proxy.host());
    let heal = async {
        while !proxy.has_refused() {
            tokio::task::yield_now().await;
        }
        proxy.allow(i64::MAX);
    };
    let (image, ()) = tokio::join!(pull(&store, &name), heal);
    assert_eq!(image.unwrap().layers.len(), 2);
    assert!(proxy.requests().to_lowercase().contains("range: bytes="));
}

#[tokio::test]
async fn a_registry_that_goes_away_is_told_and_a_later_pull_continues() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let proxy = Proxy::start(registry.port, 2 << 20).await;
    let store = fixture.store();
    let name = format!("{}/app:1", proxy.host());
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", told(&error));
    assert!(told(&error).contains(&format!("image {name} cannot be pulled")));
    let given_up = format!("{} did not give the blob sha256:", proxy.host());
    assert!(told(&error).contains(&given_up), "{}", told(&error));
    assert!(told(&error).contains("in 5 tries"), "{}", told(&error));
    assert_eq!(store.list().await.unwrap(), []);
    let kept = std::fs::metadata(kept_of(&fixture).await).unwrap().len();
    assert!(kept > 1 << 20, "{kept}");
    let before = proxy.answered();
    proxy.allow(i64::MAX);
    pull(&fixture.store(), &name).await.unwrap();
    let fetched = proxy.answered() - before;
    assert!(fetched < 4 << 20, "{fetched} bytes were fetched again");
    assert!(proxy.requests().contains(&format!("bytes={kept}-")));
    assert_eq!(names(&fixture.path("store/ingest")), [""; 0]);
}

#[tokio::test]
async fn a_damaged_partial_download_is_begun_again() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let proxy = Proxy::start(registry.port, 2 << 20).await;
    let store = fixture.store();
    let name = format!("{}/app:1", proxy.host());
    pull(&store, &name).await.unwrap_err();
    let partial = kept_of(&fixture).await;
    let mut bytes = std::fs::read(&partial).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    proxy.allow(i64::MAX);
    assert_eq!(pull(&store, &name).await.unwrap().layers.len(), 2);
}

#[tokio::test]
async fn nobody_at_the_port_is_told_in_bounded_time() {
    let fixture = Fixture::new();
    let mut registry = Registry::start(fixture.dir.path(), "").await;
    let name = format!("{}/none:1", registry.host());
    let error = pull(&fixture.store(), &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", told(&error));
    registry.stop();
    let error = pull(&fixture.store(), &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        told(&error).contains("onnection refused"),
        "{}",
        told(&error)
    );
    let (tls, name) = (fixture.store(), reference(&name));
    let error = tls.pull(&name, PullOptions::default(), Arc::new(NoProgress));
    assert_eq!(error.await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_corrupt_blob_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let blobs = fixture.layout().join("blobs/sha256");
    let largest = names(&blobs)
        .into_iter()
        .max_by_key(|name| std::fs::metadata(blobs.join(name)).unwrap().len())
        .unwrap();
    let data = registry.blob(&largest);
    let mut bytes = std::fs::read(&data).unwrap();
    let last = bytes.len() - 1;
    for place in [last / 2, last] {
        bytes[place] ^= 1;
        std::fs::write(&data, &bytes).unwrap();
        let store = fixture.store();
        let error = pull(&store, &format!("{}/app:1", registry.host()))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ImageError::Corrupt { .. }),
            "{}",
            told(&error)
        );
        assert_eq!(store.list().await.unwrap(), []);
        assert_eq!(names(&fixture.path("store/ingest")), [""; 0]);
        let erofs = names(&fixture.path("store/layers"));
        assert!(erofs.len() <= 2, "only the other layer: {erofs:?}");
    }
}

#[tokio::test]
async fn pulls_of_one_image_at_once_fetch_each_layer_once() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let proxy = Proxy::start(registry.port, i64::MAX).await;
    let name = format!("{}/app:1", proxy.host());
    let stores = [(); 4].map(|()| fixture.store());
    let images = futures_util::future::join_all(stores.iter().map(|store| pull(store, &name)));
    let images: Vec<_> = images.await.into_iter().map(Result::unwrap).collect();
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(
        proxy.answered() < 6 << 20,
        "{} bytes were fetched",
        proxy.answered()
    );
    assert_eq!(names(&fixture.path("store/ingest")), [""; 0]);
}

#[tokio::test]
async fn the_platform_chooses_among_many() {
    let fixture = Fixture::new();
    let layout = text(&fixture.layout()).to_owned();
    let arm = format!("{layout}:arm");
    run(
        "umoci",
        &["tag", "--image", &format!("{layout}:app"), "arm"],
    );
    run(
        "umoci",
        &["config", "--image", &arm, "--architecture", "arm64"],
    );
    index_of_all(&fixture);
    let registry = Registry::start(fixture.dir.path(), "").await;
    let target = format!("docker://{}/app:1", registry.host());
    fixture.copy(&["--all", "--dest-tls-verify=false"], &target);
    let store = fixture.store();
    let name = reference(&format!("{}/app:1", registry.host()));
    let mut found = Vec::new();
    for platform in ["linux/amd64", "linux/arm64"] {
        let platform: Platform = platform.parse().unwrap();
        let options = PullOptions {
            platform: platform.clone(),
            ..options()
        };
        let image = store
            .pull(&name, options, Arc::new(NoProgress))
            .await
            .unwrap();
        assert_eq!(image.platform, platform);
        let named = store.resolve(&name, &platform).await.unwrap();
        assert_eq!(named.unwrap().digest, image.digest);
        found.push(image.digest);
    }
    assert_ne!(found[0], found[1]);
    let other = PullOptions {
        platform: "linux/s390x".parse().unwrap(),
        ..options()
    };
    let error = store
        .pull(&name, other, Arc::new(NoProgress))
        .await
        .unwrap_err();
    assert!(told(&error).contains("no image for linux/s390x, only for linux/amd64, linux/arm64"));
    let source = ImportSource::Path(fixture.layout());
    let imported = store.import(source, ImportOptions::default(), Arc::new(NoProgress));
    assert_eq!(imported.await.unwrap().digest, found[0]);
}

/// Makes the layout's image an index of both of its manifests.
fn index_of_all(fixture: &Fixture) {
    use sha2::Digest as _;
    let path = fixture.layout().join("index.json");
    let mut index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut manifests = index["manifests"].as_array().unwrap().clone();
    for manifest in &mut manifests {
        let name = &manifest["annotations"]["org.opencontainers.image.ref.name"];
        let architecture = if name == "arm" { "arm64" } else { "amd64" };
        manifest["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        manifest.as_object_mut().unwrap().remove("annotations");
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let nested =
        serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    let bytes = serde_json::to_vec(&nested).unwrap();
    let digest = skiff_types::Digest::from_sha256(sha2::Sha256::digest(&bytes).into());
    std::fs::write(
        fixture.layout().join("blobs/sha256").join(digest.hex()),
        &bytes,
    )
    .unwrap();
    index["manifests"] = serde_json::json!([{
        "mediaType": media_type, "digest": digest, "size": bytes.len(),
        "annotations": {"org.opencontainers.image.ref.name": "app"},
    }]);
    std::fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
}
