use std::sync::Arc;

use serde_json::json;
use tokio::sync::Notify;

use crate::support::*;

#[tokio::test]
async fn images_are_pulled_listed_and_removed() {
    let world = World::new();
    let server = world.start().await;
    let answer = server
        .call("POST", "/v1/images/pull", json!({"image": "hello:1"}))
        .await
        .is(200);
    let events: Vec<_> = answer
        .lines
        .iter()
        .map(|line| line["event"].as_str().unwrap())
        .collect();
    assert_eq!(events, ["progress", "done"]);
    assert_eq!(answer.last()["image"]["digest"], digest(1).as_str());
    let answer = server
        .call("POST", "/v1/images/pull", json!({"image": "gone:1"}))
        .await
        .is(200);
    assert_eq!(answer.last()["event"], "failed");
    server
        .call("POST", "/v1/images/pull", json!({"image": ""}))
        .await
        .is(400);
    server
        .call("POST", "/v1/images/pull", json!({"img": "x"}))
        .await
        .is(400)
        .says("img");

    server.deployed("hello", 1).await;
    let listed = server.get("/v1/images").await.is(200);
    assert_eq!(
        listed.body()[0]["used_by"],
        json!(["000000000001/hello-00001"])
    );
    let path = "/v1/images?image=hello:1";
    server
        .call("DELETE", path, json!(null))
        .await
        .is(409)
        .says("hello-00001");
    server
        .call("DELETE", "/v1/images?image=none", json!(null))
        .await
        .is(404);
    server
        .call("DELETE", "/v1/images", json!(null))
        .await
        .is(400)
        .says("image");
    server
        .call("DELETE", &service_path("hello"), json!(null))
        .await
        .is(204);
    server.call("DELETE", path, json!(null)).await.is(200);
    assert!(!world.shelf.holds(1));
}

#[tokio::test]
async fn an_import_is_streamed_and_bounded() {
    let server = World::new().start().await;
    let tar = vec![7u8; 500_000];
    let path = "/v1/images/import?reference=mine:1";
    let answer = server.raw("POST", path, tar).await.is(200);
    assert_eq!(answer.last()["event"], "done", "{}", answer.text);
    assert_eq!(answer.last()["image"]["references"], json!(["mine:1"]));
    assert_eq!(answer.last()["image"]["size_bytes"], 500_000);
    server.raw("POST", path, vec![7u8; 1_000_001]).await.is(413);
    server
        .deploy("mine", json!({"containers": [{"image": "mine:1"}]}))
        .await
        .is(200)
        .says("done");
}

#[tokio::test]
async fn collection_keeps_what_revisions_use_and_nothing_else() {
    let world = World::new();
    let server = world.start().await;
    server.deployed("hello", 1).await;
    server.deployed("hello", 2).await;
    server
        .call("POST", "/v1/images/pull", json!({"image": "hello:3"}))
        .await
        .is(200);
    let pruned = server
        .call("POST", "/v1/images/prune", json!(null))
        .await
        .is(200);
    assert_eq!(pruned.body()["images"], 1);
    assert!(world.shelf.holds(1) && world.shelf.holds(2) && !world.shelf.holds(3));
}

#[tokio::test]
async fn collection_during_a_deployment_does_not_take_its_image() {
    let world = World::new();
    let server = world.start().await;
    let go = Arc::new(Notify::new());
    server.fleet.next_start(Start::Waits(go.clone()));
    let deploy = server.deploy("hello", plain(1));
    let prune = async {
        until("its instance starts", || {
            !server.fleet.plans.lock().unwrap().is_empty()
        })
        .await;
        server
            .call("POST", "/v1/images/prune", json!(null))
            .await
            .is(200);
        let path = "/v1/images?image=hello:1";
        server.call("DELETE", path, json!(null)).await.is(409);
        go.notify_one();
    };
    let (answer, ()) = futures_util::future::join(deploy, prune).await;
    answer.is(200).says("done");
    assert!(world.shelf.holds(1));
}

#[tokio::test]
async fn collections_and_deployments_at_once_never_lose_an_image_in_use() {
    let world = World::new();
    let server = world.start().await;
    let deploys = (1..=9u8).map(|number| {
        let name = format!("s{number}");
        let server = &server;
        async move { server.deployed(&name, number).await }
    });
    let prunes = async {
        for _ in 0..30 {
            server
                .call("POST", "/v1/images/prune", json!(null))
                .await
                .is(200);
        }
    };
    futures_util::future::join(futures_util::future::join_all(deploys), prunes).await;
    for number in 1..=9 {
        assert!(world.shelf.holds(number), "{number}");
    }
}

#[tokio::test]
async fn an_image_is_kept_before_the_store_says_that_it_is_used() {
    let world = World::new();
    let server = world.start().await;
    // The deployment stands just before its revision is stored.
    world.store.crash_after(0, false);
    let deploy = server.deploy("hello", plain(1));
    let prune = async {
        until("the deployment stands", || world.store.has_crashed()).await;
        let pruned = server.call("POST", "/v1/images/prune", json!(null));
        assert_eq!(pruned.await.is(200).body()["images"], 0);
        let path = "/v1/images?image=hello:1";
        server
            .call("DELETE", path, json!(null))
            .await
            .is(409)
            .says("being deployed");
    };
    futures_util::future::select(std::pin::pin!(deploy), std::pin::pin!(prune)).await;
    assert!(world.shelf.holds(1));
}

#[tokio::test]
async fn a_collection_does_not_wait_for_a_slow_pull() {
    let world = World::new();
    let server = world.start().await;
    let gate = Arc::new(Notify::new());
    *world.shelf.gate.lock().unwrap() = Some(gate.clone());
    let deploy = server.deploy("hello", plain(1));
    let prune = async {
        let pulling = || world.shelf.pulls.load(std::sync::atomic::Ordering::SeqCst) > 0;
        until("the pull stands", pulling).await;
        server
            .call("POST", "/v1/images/prune", json!(null))
            .await
            .is(200);
        gate.notify_one();
    };
    let (answer, ()) = futures_util::future::join(deploy, prune).await;
    answer.is(200).says("done");
}
