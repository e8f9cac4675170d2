//! A server that ends between any two steps, and the next one on the same store.

use futures_util::future::{Either, select};
use serde_json::json;

use crate::support::*;

/// Runs an operation until the store stands still or it has ended.
async fn cut_off(world: &World, operation: impl Future) -> bool {
    let crashed = until("the store stands still", || world.store.has_crashed());
    let (operation, crashed) = (std::pin::pin!(operation), std::pin::pin!(crashed));
    matches!(select(operation, crashed).await, Either::Right(_))
}

#[tokio::test]
async fn a_deployment_cut_off_anywhere_leaves_one_revision_serving() {
    for unheard in [false, true] {
        for after in 0.. {
            let world = World::new();
            let server = world.start().await;
            server.deployed("hello", 1).await;
            world.store.crash_after(after, unheard);
            let cut = cut_off(&world, server.deploy("hello", plain(2))).await;
            let world = server.crash().await;
            let server = world.start().await;
            let traffic = server.table.traffic("hello");
            let (name, percent) = &traffic[0];
            assert_eq!(
                (traffic.len(), *percent),
                (1, 100),
                "after {after}: {traffic:?}"
            );
            assert_eq!(server.fleet.serving(), std::slice::from_ref(name));
            let service = server.get(&service_path("hello")).await.is(200);
            for revision in service.body()["revisions"].as_array().unwrap() {
                let state = revision["state"].as_str().unwrap();
                assert_ne!(state, "pending", "after {after}");
                assert_eq!(state == "failed", revision["reason"].as_str().is_some());
                if state == "failed" {
                    assert!(
                        revision["reason"]
                            .as_str()
                            .unwrap()
                            .starts_with("interrupted")
                    );
                }
            }
            assert!(
                !world
                    .store
                    .keys()
                    .await
                    .iter()
                    .any(|key| key.contains("/pending/"))
            );
            server.deployed("hello", 3).await;
            if !cut {
                assert!(after >= 2, "a deployment is at least two transactions");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_first_deployment_cut_off_while_its_instance_starts_is_failed() {
    let world = World::new();
    let server = world.start().await;
    server.fleet.next_start(Start::Hangs);
    let deploy = server.deploy("hello", plain(1));
    let starts = || {
        server
            .fleet
            .starts
            .load(std::sync::atomic::Ordering::SeqCst)
            > 0
    };
    let starting = until("it is being validated", starts);
    select(std::pin::pin!(deploy), std::pin::pin!(starting)).await;
    let server = server.crash().await.start().await;
    assert!(server.table.traffic("hello").is_empty());
    let service = server.get(&service_path("hello")).await.is(200);
    assert_eq!(service.body()["revisions"][0]["state"], "failed");
    server.deployed("hello", 1).await;
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00002".to_owned(), 100)]
    );
}

#[tokio::test]
async fn a_deletion_cut_off_happened_whole_or_not_at_all() {
    for unheard in [false, true] {
        let world = World::new();
        let server = world.start().await;
        server.deployed("hello", 1).await;
        world.store.crash_after(0, unheard);
        let path = service_path("hello");
        assert!(cut_off(&world, server.call("DELETE", &path, json!(null))).await);
        let world = server.crash().await;
        let server = world.start().await;
        assert_eq!(server.table.traffic("hello").is_empty(), unheard);
        let keys = world.store.keys().await;
        let revision = keys.iter().any(|key| key.contains("/revision/hello/"));
        assert_eq!(revision, !unheard);
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let world = World::new();
    let server = world.start().await;
    for number in 1..=3 {
        server.deployed("hello", number).await;
    }
    let targets = json!({"targets": [
        {"revision": "hello-00001", "percent": 50, "tag": "old"},
        {"revision": "latest", "percent": 50}]});
    let traffic = format!("{}/traffic", service_path("hello"));
    server.call("PUT", &traffic, targets).await.is(200);
    let before = server.get(&service_path("hello")).await.text;
    let routes = format!("{:?}", server.table.services.lock().unwrap());
    let server = server.crash().await.start().await;
    assert_eq!(
        format!("{:?}", server.table.services.lock().unwrap()),
        routes
    );
    assert_eq!(server.fleet.serving(), ["hello-00001", "hello-00003"]);
    assert_eq!(
        server.get(&service_path("hello")).await.text,
        before.replace(
            // The fleet of the new server has not been told of what nothing leads to.
            &instance("hello-00002"),
            ""
        )
    );
}

/// As the fleet of these tests tells one.
fn instance(revision: &str) -> String {
    let number = revision.rsplit('-').next().unwrap().parse().unwrap();
    let id = skiff_types::InstanceId::from_parts(1, number);
    format!(
        r#"{{"id":"{id}","revision":"{revision}","state":"ready","class":"container","class_reason":"a test","created_unix_ms":0,"in_flight":0,"memory_mib":null}},"#
    )
}

#[tokio::test]
async fn a_store_that_answers_too_late_does_not_part_what_is_stored_from_what_is_served() {
    let world = World::new();
    let server = world.start().await;
    server.deployed("hello", 1).await;
    // Pending is stored; that it is ready is stored too and not heard of.
    world.store.late_after(1);
    server.deployed("hello", 2).await;
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00002".to_owned(), 100)]
    );
    let service = server.get(&service_path("hello")).await.is(200);
    assert_eq!(service.body()["revisions"][0]["state"], "ready");
}

#[tokio::test]
async fn everything_is_there_again_from_the_store_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let mut world = World::new();
    for number in 1..=4 {
        let disk = std::sync::Arc::new(skiff_store::SqliteStore::open(&path).unwrap());
        world.store = crate::store::TestStore::on(disk);
        let server = world.start().await;
        if number > 1 {
            let before = format!("hello-{:05}", number - 1);
            assert_eq!(server.table.traffic("hello"), [(before, 100)]);
        }
        server.deployed("hello", number).await;
        let go = server.call("POST", "/v1/secrets/rekey", json!(null)).await;
        go.is(200);
        world = server.crash().await;
    }
}
