//! Hooks, by which servers of S3's kind tell functions of their objects.

use serde_json::json;

use crate::support::*;

const HOOKS: &str = "/v1/projects/default/hooks";

#[tokio::test]
async fn a_hook_needs_event_invocations_and_a_name() {
    let server = World::new().start().await;
    let wanted = |name: &str| json!({"name": name, "function": "thumbnails"});
    server
        .call("POST", HOOKS, wanted("uploads"))
        .await
        .is(501)
        .says("lambda.listen");
    server.call("POST", HOOKS, wanted("up/loads")).await.is(400);
    assert_eq!(*server.get(HOOKS).await.is(200).body(), json!([]));
    let place = format!("{HOOKS}/uploads");
    server
        .call("DELETE", &place, json!(null))
        .await
        .is(404)
        .says("no hook uploads");
}
