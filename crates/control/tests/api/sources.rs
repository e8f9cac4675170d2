//! What is kept of event sources.

use axum::Router;
use axum::routing::post;
use serde_json::{Value, json};
use skiff_control::ServiceSettings;
use skiff_lambda::Secret;
use skiff_types::ProjectId;
use tokio::net::TcpListener;

use crate::support::*;

const STREAM: &str =
    "arn:aws:dynamodb:us-east-1:000000000001:table/t/stream/2026-01-01T00:00:00.000";

/// A stream that has these shards, and answers nothing else.
async fn stream(shards: &'static [&str], tasks: &skiff_base::Tasks) -> ServiceSettings {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let shards: Vec<Value> = shards.iter().map(|id| json!({"ShardId": id})).collect();
    let told = json!({"StreamDescription": {"Shards": shards}});
    let router = Router::new().route("/", post(async move || axum::Json(told)));
    tasks.spawn("stream", async move {
        axum::serve(listener, router).await.unwrap();
    });
    ServiceSettings {
        endpoint,
        access_key: "any".into(),
        secret: Secret("any".into()),
    }
}

#[tokio::test]
async fn shards_that_are_read_and_gone_are_forgotten() {
    let world = World::new();
    let project = ProjectId::default_project();
    let mapping = json!({
        "source": STREAM, "function": "follows", "qualifier": null, "is_enabled": true,
        "batch_size": 1, "window_s": 0, "filters": [], "is_partial": false,
        "concurrency": null, "modified_unix_ms": 1,
        "stream": {
            "from_unix_ms": 0, "bisects": false, "retries": null, "age_s": null,
            "on_failure": null,
        },
    });
    world
        .store
        .put(format!("{project}/mapping/m"), &mapping)
        .await;
    let place = |shard: &str| format!("{project}/mapping-shard/m/{shard}");
    for (shard, is_read) in [("gone", true), ("kept", true), ("unread", false)] {
        let record = json!({"sequence": null, "is_read": is_read});
        world.store.put(place(shard), &record).await;
    }
    let server = world.start().await;
    let streams = stream(&["kept"], &server.tasks).await;
    let _front = server.lambda(Some(streams)).await;
    let forgotten = async {
        while world.store.keys().await.contains(&place("gone")) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let forgotten = tokio::time::timeout(PATIENCE, forgotten).await;
    assert!(forgotten.is_ok(), "what is gone is not forgotten");
    let keys = world.store.keys().await;
    assert!(
        keys.contains(&place("kept")) && keys.contains(&place("unread")),
        "{keys:?}"
    );
}
