//! Processes that end at any moment, disks that fill up, collection in
//! between: what the store shows is whole.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::servers::{DEADLINE, Proxy, Registry};
use common::{Fixture, names, reference, run, text};
use skiff_image::{Collect, ImageError, ImageRecord, ImageStore, NoProgress, PullOptions};
use skiff_types::ErrorKind;

/// Tells a test process that it is the child of another: the store's folder
/// and the reference, with a blank between.
const CHILD: &str = "SKIFF_IMAGE_TEST_CHILD";

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

async fn pushed(fixture: &Fixture) -> Registry {
    let registry = Registry::start(fixture.dir.path(), "").await;
    let target = format!("docker://{}/app:1", registry.host());
    fixture.copy(&["--dest-tls-verify=false"], &target);
    registry
}

/// Every layer that the store shows is the one that an undisturbed pull makes.
fn layers_are(store: &Path, expected: &Path) {
    for name in names(&store.join("layers")) {
        let path = store.join("layers").join(&name);
        let same = std::fs::read(expected.join("layers").join(&name)).unwrap();
        assert!(std::fs::read(path).unwrap() == same, "{name} is not whole");
    }
}

/// The child's part of the next test; nothing unless it is asked for.
#[tokio::test]
async fn as_a_child() {
    let Ok(asked) = std::env::var(CHILD) else {
        return;
    };
    let (dir, name) = asked.split_once(' ').unwrap();
    let store = ImageStore::open(Path::new(dir)).unwrap();
    pull(&store, name).await.unwrap();
}

#[tokio::test]
async fn a_process_killed_at_any_moment_leaves_nothing_half() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let expected = ImageStore::open(&fixture.path("expected")).unwrap();
    let whole = pull(&expected, &format!("{}/app:1", registry.host()))
        .await
        .unwrap();
    let proxy = Proxy::start(registry.port, i64::MAX).await;
    let name = format!("{}/app:1", proxy.host());
    let dir = fixture.path("store");
    for at in [1u64, 4_000, 200_000, 1_500_000, 3_000_000, u64::MAX] {
        let before = proxy.answered();
        let mut child = skiff_base::process::command(std::env::current_exe().unwrap())
            .args(["--exact", "as_a_child"])
            .env(CHILD, format!("{} {name}", text(&dir)))
            .spawn()
            .unwrap();
        let killed = async {
            while proxy.answered() - before < at && child.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, killed).await.unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let store = fixture.store();
        for image in store.list().await.unwrap() {
            assert_eq!(image.layers, whole.layers);
        }
        layers_are(&dir, &fixture.path("expected"));
        let ingest = names(&dir.join("ingest"));
        assert!(
            ingest.iter().all(|name| name.ends_with(".partial")),
            "{ingest:?}"
        );
    }
    let image = pull(&fixture.store(), &name).await.unwrap();
    assert_eq!(image.digest, whole.digest);
}

#[tokio::test]
async fn a_pull_that_is_given_up_can_be_made_again() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let store = fixture.store();
    let name = reference(&format!("{}/app:1", registry.host()));
    let reached = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&reached);
    let progress = move |bytes: u64, _: Option<u64>| {
        if bytes > 500_000 {
            tell.notify_one();
        }
    };
    tokio::select! {
        biased;
        () = reached.notified() => {}
        result = store.pull(&name, options(), Arc::new(progress)) => {
            panic!("it ended before it was given up: {result:?}");
        }
    }
    let image = pull(&store, &name.to_string()).await.unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(names(&fixture.path("store/ingest")), [""; 0]);
}

#[tokio::test]
async fn collection_and_pulls_do_not_disturb_each_other() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let name = format!("{}/app:1", registry.host());
    for _ in 0..5 {
        let (one, other) = (fixture.store(), fixture.store());
        let collect = other.prune(&[], Collect::Unused);
        let (image, pruned) = tokio::join!(pull(&one, &name), collect);
        let (image, _) = (image.unwrap(), pruned.unwrap());
        let shown = one.list().await.unwrap();
        // Collected before or after, never in between.
        if let [shown] = &shown[..] {
            assert_eq!(shown.digest, image.digest);
            assert!(
                shown
                    .layers
                    .iter()
                    .all(|layer| one.open_layer(layer).is_ok())
            );
        } else {
            assert_eq!(names(&fixture.path("store/layers")), [""; 0]);
        }
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_the_store_usable() {
    let fixture = Fixture::new();
    let registry = pushed(&fixture).await;
    let dir = fixture.path("small");
    std::fs::create_dir(&dir).unwrap();
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=3m", "tmpfs", text(&dir)],
    );
    let name = format!("{}/app:1", registry.host());
    let store = ImageStore::open(&dir).unwrap();
    let error = pull(&store, &name).await.unwrap_err();
    let told = skiff_base::chain(&error).to_string();
    // The other layer's thread ends a moment after the failure is told.
    let only_partial = async {
        while !names(&dir.join("ingest"))
            .iter()
            .all(|name| name.ends_with(".partial"))
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let swept = tokio::time::timeout(DEADLINE, only_partial).await;
    run("mount", &["-o", "remount,size=64m", text(&dir)]);
    let healed = pull(&store, &name).await;
    drop(store);
    run("umount", &[text(&dir)]);
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{told}");
    assert!(told.contains("No space left"), "{told}");
    assert!(swept.is_ok());
    assert_eq!(healed.unwrap().layers.len(), 2);
}
