use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn a_project_has_its_own_names_and_hosts() {
    let world = World::new();
    let server = world.start().await;
    let body = json!({"name": "shop", "quota": {"instances": 5}});
    let made = server
        .call("POST", "/v1/projects", body.clone())
        .await
        .is(200);
    let id = made.body()["id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 12);
    assert_ne!(id, "000000000001");
    server
        .call("POST", "/v1/projects", body)
        .await
        .is(409)
        .says("a project shop already");
    server
        .call("POST", "/v1/projects", json!({"name": "UP"}))
        .await
        .is(400);
    server
        .call("POST", "/v1/projects", json!({"name": "a", "colour": 1}))
        .await
        .is(400)
        .says("colour");
    let listed = server.get("/v1/projects").await.is(200);
    assert_eq!(listed.body()[0]["id"], "000000000001");
    assert_eq!(listed.body()[1]["name"], "shop");

    server.deployed("hello", 1).await;
    let path = "/v1/projects/shop/services/hello";
    let answer = server.call("PUT", path, plain(2)).await.is(200);
    assert_eq!(
        answer.last()["service"]["url"],
        "http://hello.shop.skiff.localhost:8080"
    );
    assert_eq!(
        server.table.hosts(),
        ["hello.skiff.localhost", "hello.shop.skiff.localhost"]
    );

    server
        .call("DELETE", "/v1/projects/shop", json!(null))
        .await
        .is(409)
        .says("has services");
    server.call("DELETE", path, json!(null)).await.is(204);
    let secret = "/v1/projects/shop/secrets/key";
    server
        .call("PUT", secret, json!({"value_base64": "eA=="}))
        .await
        .is(200);
    server
        .call("DELETE", "/v1/projects/shop", json!(null))
        .await
        .is(409)
        .says("has secrets");
    server.call("DELETE", secret, json!(null)).await.is(204);
    server
        .call("DELETE", "/v1/projects/shop", json!(null))
        .await
        .is(204);
    server.get("/v1/projects/shop").await.is(404);
    server
        .call("DELETE", "/v1/projects/default", json!(null))
        .await
        .is(400);
    let left = world.store.keys().await;
    assert!(!left.iter().any(|key| key.contains(&id)), "{left:?}");
    server.get(&service_path("hello")).await.is(200);
}

#[tokio::test]
async fn quotas_are_told_to_the_fleet_and_hold_at_once() {
    let world = World::new();
    let server = world.start().await;
    let path = "/v1/projects/default/quota";
    server
        .call("PUT", path, json!({"memory_mib": 300, "instances": 1}))
        .await
        .is(200);
    let project = skiff_types::ProjectId::default_project();
    let told = server.fleet.quotas.lock().unwrap()[&project];
    assert_eq!(told.memory_mib, Some(300));
    let mut body = plain(1);
    body["resources"] = json!({"memory_mib": 512});
    server
        .deploy("hello", body)
        .await
        .is(429)
        .says("512 MiB")
        .says("may have 300 MiB");
    let mut body = plain(1);
    body["scaling"] = json!({"min": 2});
    server
        .deploy("hello", body)
        .await
        .is(429)
        .says("may have 1");
    server.deployed("hello", 1).await;
    server
        .call("PUT", path, json!({"memory": 1}))
        .await
        .is(400)
        .says("memory");
    server
        .call("PUT", "/v1/projects/none/quota", json!({}))
        .await
        .is(404);

    let server = server.crash().await.start().await;
    let told = server.fleet.quotas.lock().unwrap()[&project];
    assert_eq!(told.instances, Some(1));
}

#[tokio::test]
async fn services_are_listed_in_pages() {
    let server = World::new().start().await;
    for name in ["a", "b", "b-c", "d"] {
        server.deployed(name, 1).await;
    }
    let names = |answer: Answer| -> Vec<String> {
        let list = answer.body().as_array().unwrap();
        list.iter()
            .map(|service| service["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let path = "/v1/projects/default/services";
    assert_eq!(
        names(server.get(path).await.is(200)),
        ["a", "b", "b-c", "d"]
    );
    assert_eq!(
        names(server.get(&format!("{path}?limit=2")).await),
        ["a", "b"]
    );
    assert_eq!(
        names(server.get(&format!("{path}?after=b&limit=2")).await),
        ["b-c", "d"]
    );
    server
        .get(&format!("{path}?page=2"))
        .await
        .is(400)
        .says("page");
    server.get("/v1/projects/none/services").await.is(404);
}
