use serde_json::json;

use crate::support::*;

async fn three() -> Server {
    let server = World::new().start().await;
    for number in 1..=3 {
        server.deployed("hello", number).await;
    }
    server
}

fn traffic_path() -> String {
    format!("{}/traffic", service_path("hello"))
}

#[tokio::test]
async fn traffic_is_split_and_latest_follows() {
    let server = three().await;
    let body = json!({"targets": [
        {"revision": "hello-00001", "percent": 80},
        {"revision": "latest", "percent": 20, "tag": "next"}]});
    let answer = server
        .call("PUT", &traffic_path(), body.clone())
        .await
        .is(200);
    assert_eq!(answer.body()["traffic"], body["targets"]);
    let expected = [
        ("hello-00001".to_owned(), 80),
        ("hello-00003".to_owned(), 20),
    ];
    assert_eq!(server.table.traffic("hello"), expected);
    assert_eq!(server.fleet.serving(), ["hello-00001", "hello-00003"]);

    let mut quiet = plain(4);
    quiet["no_traffic"] = json!(true);
    quiet["tag"] = json!("canary");
    server.deploy("hello", quiet).await.is(200).says("done");
    assert_eq!(server.table.traffic("hello"), expected);
    let key = (
        skiff_types::ProjectId::default_project(),
        "hello".parse().unwrap(),
    );
    let tags = server.table.services.lock().unwrap()[&key].tags.clone();
    let tags: Vec<_> = tags
        .iter()
        .map(|(tag, id)| (tag.as_str().to_owned(), id.name()))
        .collect();
    let expected = [("canary", "hello-00004"), ("next", "hello-00003")];
    assert_eq!(
        tags,
        expected.map(|(tag, name)| (tag.to_owned(), name.to_owned()))
    );
    assert_eq!(
        server.fleet.serving(),
        ["hello-00001", "hello-00003", "hello-00004"]
    );
}

#[tokio::test]
async fn wrong_traffic_is_refused_and_changes_nothing() {
    let server = three().await;
    server.fleet.next_start(Start::Fails("no", vec![]));
    server
        .deploy("hello", plain(4))
        .await
        .is(200)
        .says("failed");
    let one = |revision: &str, percent: u32| json!([{"revision": revision, "percent": percent}]);
    for (targets, status, reason) in [
        (one("latest", 99), 400, "sum to 99"),
        (one("latest", 256), 400, "256"),
        (one("hello-00009", 100), 404, "no revision hello-00009"),
        (one("hello-00004", 100), 409, "hello-00004 is not ready"),
        (one("other-00001", 100), 400, "not a revision of hello"),
        (json!([]), 400, "sum to 0"),
        (
            json!([{"revision": "latest", "percent": 100, "colour": 1}]),
            400,
            "colour",
        ),
    ] {
        let body = json!({"targets": targets});
        server
            .call("PUT", &traffic_path(), body)
            .await
            .is(status)
            .says(reason);
    }
    let elsewhere = "/v1/projects/default/services/none/traffic";
    let fine = json!({"targets": one("latest", 100)});
    server
        .call("PUT", elsewhere, fine)
        .await
        .is(404)
        .says("no service none");
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00003".to_owned(), 100)]
    );
}

#[tokio::test]
async fn a_rollback_goes_one_back_or_where_it_is_told() {
    let server = three().await;
    let path = format!("{}/rollback", service_path("hello"));
    server.call("POST", &path, json!({})).await.is(200);
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00002".to_owned(), 100)]
    );
    server.call("POST", &path, json!({})).await.is(200);
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00001".to_owned(), 100)]
    );
    server
        .call("POST", &path, json!({}))
        .await
        .is(409)
        .says("older");
    server
        .call("POST", &path, json!({"to": "hello-00003"}))
        .await
        .is(200);
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00003".to_owned(), 100)]
    );
    server
        .call("POST", &path, json!({"to": "hello-00007"}))
        .await
        .is(404);
    server
        .call("POST", &path, json!({"too": "hello-00001"}))
        .await
        .is(400)
        .says("too");
    // What was rolled back to stays although newer ones come.
    server
        .call("POST", &path, json!({"to": "hello-00001"}))
        .await
        .is(200);
    let mut quiet = plain(4);
    quiet["no_traffic"] = json!(true);
    server.deploy("hello", quiet).await.is(200).says("done");
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00001".to_owned(), 100)]
    );
}
