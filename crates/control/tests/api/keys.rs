//! Keys for AWS's clients.

use serde_json::json;

use crate::support::*;

const KEYS: &str = "/v1/projects/default/keys";

#[tokio::test]
async fn a_keys_secret_is_shown_once_and_stored_encrypted() {
    let world = World::new();
    let server = world.start().await;
    let made = server
        .call("POST", KEYS, json!({"name": "ci"}))
        .await
        .is(200);
    let field = |name: &str| made.body()[name].as_str().unwrap().to_owned();
    let (id, secret) = (field("id"), field("secret"));
    assert!(id.len() == 20 && secret.len() == 40, "{}", made.text);

    let listed = server.get(KEYS).await.is(200);
    assert_eq!(listed.body()[0]["id"], id.as_str());
    let rekeyed = server.call("POST", "/v1/secrets/rekey", json!(null)).await;
    assert_eq!(rekeyed.is(200).body()["secrets"], 1);
    let stored = world.store.dump().await.into_iter().flat_map(|e| e.value);
    let stored = String::from_utf8_lossy(&stored.collect::<Vec<u8>>()).into_owned();
    for text in [listed.text, stored] {
        assert!(!text.contains(&secret), "{text}");
    }

    let place = format!("{KEYS}/{id}");
    server.call("DELETE", &place, json!(null)).await.is(204);
    server.call("DELETE", &place, json!(null)).await.is(404);
    assert_eq!(*server.get(KEYS).await.is(200).body(), json!([]));
}

#[tokio::test]
async fn a_key_is_of_one_project_and_ends_with_it() {
    let world = World::new();
    let server = world.start().await;
    let create = async |name: &str| {
        let body = json!({"name": name});
        server.call("POST", "/v1/projects", body).await.is(200);
    };
    create("mine").await;
    create("theirs").await;
    let made = server
        .call("POST", "/v1/projects/mine/keys", json!({"name": "a"}))
        .await
        .is(200);
    let id = made.body()["id"].as_str().unwrap().to_owned();
    let elsewhere = format!("/v1/projects/theirs/keys/{id}");
    server.call("DELETE", &elsewhere, json!(null)).await.is(404);
    let count = async || {
        let all = world.store.dump().await;
        all.iter()
            .filter(|e| String::from_utf8_lossy(&e.key).contains(&id))
            .count()
    };
    assert_eq!(count().await, 2);
    server
        .call("DELETE", "/v1/projects/mine", json!(null))
        .await
        .is(204);
    assert_eq!(count().await, 0);
}

#[tokio::test]
async fn a_bad_name_and_one_key_too_many_are_refused() {
    let server = World::new().start().await;
    for name in ["", "a\nb", &"x".repeat(101)] {
        server
            .call("POST", KEYS, json!({"name": name}))
            .await
            .is(400);
    }
    for _ in 0..100 {
        server
            .call("POST", KEYS, json!({"name": "a"}))
            .await
            .is(200);
    }
    server
        .call("POST", KEYS, json!({"name": "a"}))
        .await
        .is(429)
        .says("100 keys");
}
