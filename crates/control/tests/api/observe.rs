use http_body_util::BodyExt;
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn the_server_tells_of_itself() {
    let server = World::new().start().await;
    assert_eq!(server.get("/healthz").await.is(200).text, "ok\n");
    assert_eq!(server.get("/metrics").await.is(200).text, "skiff_up 1\n");
    let version = server.get("/v1/version").await.is(200);
    assert_eq!(version.body()["domain"], "skiff.localhost");
    server.get("/v1/none").await.is(404).says("not_found");
    server
        .call("PATCH", "/v1/version", json!(null))
        .await
        .is(400)
        .says("method");
}

#[tokio::test]
async fn logs_are_lines_of_json() {
    let server = World::new().start().await;
    let path = format!("{}/logs", service_path("hello"));
    server.get(&path).await.is(404);
    server.deployed("hello", 1).await;
    let answer = server
        .get(&format!(
            "{path}?tail=5&revision=hello-00001&since_unix_ms=3"
        ))
        .await
        .is(200);
    assert_eq!(answer.lines.len(), 2);
    assert_eq!(answer.lines[1]["text"], "two\nlines");
    let query = server.records.last_log.lock().unwrap().clone().unwrap();
    assert_eq!(
        (query.tail, query.revision, query.since_unix_ms),
        (5, Some(1), Some(3))
    );
    server
        .get(&format!("{path}?revision=other-00001"))
        .await
        .is(400);
    server
        .get(&format!("{path}?instance=x"))
        .await
        .is(400)
        .says("not an id");
    server
        .get(&format!("{path}?folow=true"))
        .await
        .is(400)
        .says("folow");
}

#[tokio::test]
async fn following_a_log_ends_with_the_server() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let mut sender = server.connect().await;
    let path = format!("{}/logs?follow=true", service_path("hello"));
    let body = http_body_util::Full::new(bytes::Bytes::new());
    let request = http::Request::get(path)
        .header("host", "skiff")
        .body(body)
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let mut body = response.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    let ended = body.collect();
    let both = futures_util::future::join(ended, server.control.stop(PATIENCE));
    let (ended, ()) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    assert!(ended.is_ok());
}

#[tokio::test]
async fn traces_and_bills_are_asked_for_with_what_was_given() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let traces = server
        .get("/v1/projects/default/traces?service=hello&limit=7")
        .await
        .is(200);
    assert_eq!(traces.body()[0]["total_us"], 7);
    server
        .get("/v1/projects/default/traces?service=none")
        .await
        .is(404);
    server
        .get("/v1/usage?project=default&service=hello&from_unix_ms=5&to_unix_ms=9")
        .await
        .is(200);
    let query = server.records.last_usage.lock().unwrap().clone().unwrap();
    assert_eq!(query.project.unwrap().as_str(), "000000000001");
    assert_eq!((query.from_unix_ms, query.to_unix_ms), (5, 9));
    server.get("/v1/usage").await.is(200);
    assert!(
        server
            .records
            .last_usage
            .lock()
            .unwrap()
            .clone()
            .unwrap()
            .project
            .is_none()
    );
    server
        .get("/v1/usage?service=hello")
        .await
        .is(400)
        .says("without its project");
    server
        .get("/v1/usage?from_unix_ms=9&to_unix_ms=5")
        .await
        .is(400);
    server.get("/v1/usage?project=none").await.is(404);
    server
        .call("POST", "/v1/usage/check", json!(null))
        .await
        .is(200)
        .says("true");
}
