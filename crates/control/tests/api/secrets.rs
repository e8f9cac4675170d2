use base64::Engine as _;
use serde_json::json;

use crate::support::*;

const VALUE: &str = "correct-horse-battery";

fn encoded(value: &str) -> serde_json::Value {
    json!({"value_base64": base64::engine::general_purpose::STANDARD.encode(value)})
}

fn path(name: &str) -> String {
    format!("/v1/projects/default/secrets/{name}")
}

fn with_secret(name: &str) -> serde_json::Value {
    json!({"containers": [{"image": "hello:1", "env": [{"name": "KEY", "secret": name}]}]})
}

#[tokio::test]
async fn a_secret_reaches_instances_and_nothing_else() {
    let world = World::new();
    let server = world.start().await;
    let set = server
        .call("PUT", &path("api"), encoded(VALUE))
        .await
        .is(200);
    assert_eq!(set.body()["key_id"].as_str().unwrap().len(), 8);
    let deployed = server
        .deploy("hello", with_secret("api"))
        .await
        .is(200)
        .says("done");
    assert!(server.fleet.env_of_last().contains(&format!("KEY={VALUE}")));

    let launch = format!("{:?}", server.fleet.launches.lock().unwrap());
    let debug = format!("{:?} {:?}", server.control, server.resolver);
    let listed = server.get("/v1/projects/default/secrets").await.is(200);
    assert_eq!(listed.body()[0]["name"], "api");
    let described = server.get(&service_path("hello")).await.is(200);
    let stored: Vec<u8> = world
        .store
        .dump()
        .await
        .into_iter()
        .flat_map(|e| e.value)
        .collect();
    let stored = String::from_utf8_lossy(&stored).into_owned();
    let told = [
        launch,
        debug,
        listed.text,
        described.text,
        deployed.text,
        set.text,
        stored,
    ];
    let base64 = base64::engine::general_purpose::STANDARD.encode(VALUE);
    let key = std::fs::read_to_string(world.key_file()).unwrap();
    for text in told {
        assert!(!text.contains(VALUE) && !text.contains(&base64), "{text}");
        assert!(!text.contains(key.trim()), "{text}");
    }
}

#[tokio::test]
async fn new_instances_get_a_changed_secret_and_a_lost_one_is_named() {
    let server = World::new().start().await;
    server
        .deploy("hello", with_secret("api"))
        .await
        .is(422)
        .says("the secret api");
    server
        .call("PUT", &path("api"), encoded("one"))
        .await
        .is(200);
    server
        .deploy("hello", with_secret("api"))
        .await
        .is(200)
        .says("done");
    server
        .call("PUT", &path("api"), encoded("two"))
        .await
        .is(200);
    let id =
        skiff_types::RevisionId::parse(&skiff_types::ProjectId::default_project(), "hello-00001")
            .unwrap();
    let launch = server.resolver.launch(&id).await.unwrap();
    assert!(launch.env.contains(&"KEY=two".to_owned()));
    server
        .call("DELETE", &path("api"), json!(null))
        .await
        .is(204);
    server
        .call("DELETE", &path("api"), json!(null))
        .await
        .is(404);
    let error = server.resolver.launch(&id).await.unwrap_err();
    assert!(error.message.contains("no secret api"), "{error}");
}

#[tokio::test]
async fn wrong_secrets_are_refused_without_repeating_them() {
    let server = World::new().start().await;
    let long = "x".repeat(70_000);
    for (name, body, status) in [
        ("a", json!({"value_base64": "hunter2!"}), 400),
        ("a", json!({"value_base64": "hunter2 "}), 400),
        ("a", json!({"value": "hunter2"}), 400),
        ("a", json!({}), 400),
        ("a", encoded("hunter2\0"), 400),
        ("a", json!({"value_base64": "//79"}), 400),
        ("a", encoded(&long), 413),
        ("a.b", encoded("hunter2"), 400),
        ("a%2Fb", encoded("hunter2"), 400),
    ] {
        let answer = server.call("PUT", &path(name), body).await.is(status);
        assert!(!answer.text.contains("hunter2"), "{}", answer.text);
    }
    assert_eq!(server.get("/v1/projects/default/secrets").await.text, "[]");
}

#[tokio::test]
async fn a_new_key_encrypts_everything_and_the_old_one_opens_nothing() {
    let world = World::new();
    let server = world.start().await;
    for n in 0..100 {
        server
            .call("PUT", &path(&format!("s{n}")), encoded(&format!("v{n}")))
            .await
            .is(200);
    }
    let old = std::fs::read(world.key_file()).unwrap();
    let answer = server
        .call("POST", "/v1/secrets/rekey", json!(null))
        .await
        .is(200);
    assert_eq!(answer.body()["secrets"], 100);
    let new = answer.body()["key_id"].clone();
    let listed = server.get("/v1/projects/default/secrets").await.is(200);
    assert!(
        listed
            .body()
            .as_array()
            .unwrap()
            .iter()
            .all(|secret| secret["key_id"] == new)
    );
    assert_ne!(std::fs::read(world.key_file()).unwrap(), old);

    let world = server.crash().await;
    let server = world.start().await;
    server
        .deploy("hello", with_secret("s42"))
        .await
        .is(200)
        .says("done");
    assert!(server.fleet.env_of_last().contains(&"KEY=v42".to_owned()));
    let world = server.crash().await;
    std::fs::write(world.key_file(), old).unwrap();
    let images: std::sync::Arc<dyn skiff_control::port::Images> = world.shelf.clone();
    let opened = skiff_control::Resolver::open(world.config(), world.store.open(), images).await;
    assert!(opened.unwrap_err().message.contains("put that one back"));
}

#[tokio::test]
async fn a_change_of_keys_that_was_cut_off_is_finished_by_the_next_start() {
    for (after, unheard) in (0..7).flat_map(|after| [(after, false), (after, true)]) {
        let world = World::new();
        let server = world.start().await;
        for n in 0..100 {
            server
                .call("PUT", &path(&format!("s{n}")), encoded(&format!("v{n}")))
                .await
                .is(200);
        }
        // Two marks, four transactions of secrets, and one mark more.
        world.store.crash_after(after, unheard);
        let rekey = server.call("POST", "/v1/secrets/rekey", json!(null));
        let crashed = until("the store stands", || world.store.has_crashed());
        futures_util::future::select(std::pin::pin!(rekey), std::pin::pin!(crashed)).await;
        let world = server.crash().await;
        let server = world.start().await;
        if (after, unheard) == (0, false) {
            // Nothing but the key's file was made: it is the next change's key.
            let again = server.call("POST", "/v1/secrets/rekey", json!(null));
            assert_eq!(again.await.is(200).body()["secrets"], 100);
        }
        let listed = server.get("/v1/projects/default/secrets").await.is(200);
        let secrets = listed.body().as_array().unwrap();
        assert!(
            secrets
                .iter()
                .all(|secret| secret["key_id"] == secrets[0]["key_id"])
        );
        assert!(!world.dir.path().join("key.next").exists());
        server
            .deploy("hello", with_secret("s99"))
            .await
            .is(200)
            .says("done");
        assert!(server.fleet.env_of_last().contains(&"KEY=v99".to_owned()));
    }
}

#[tokio::test]
async fn the_key_is_outside_the_data_folder_and_must_not_get_lost() {
    let world = World::new();
    let images: std::sync::Arc<dyn skiff_control::port::Images> = world.shelf.clone();
    let mut config = world.config();
    config.secret_key_file = config.data_dir.join("key");
    let opened = skiff_control::Resolver::open(config, world.store.open(), images.clone()).await;
    assert!(
        opened
            .unwrap_err()
            .message
            .contains("may not be in the data folder")
    );
    let server = world.start().await;
    let world = server.crash().await;
    std::fs::remove_file(world.key_file()).unwrap();
    let opened = skiff_control::Resolver::open(world.config(), world.store.open(), images).await;
    assert!(opened.unwrap_err().message.contains("is gone"));
    assert!(
        !world.key_file().exists(),
        "no new key is made for old secrets"
    );
}

#[tokio::test]
async fn a_new_key_can_be_in_a_file_of_its_own() {
    let world = World::new();
    let server = world.start().await;
    server
        .call("PUT", &path("api"), encoded(VALUE))
        .await
        .is(200);
    let rekey = "/v1/secrets/rekey";
    let file = world.dir.path().join("other/key");
    for (file, reason) in [
        (
            world.config().data_dir.join("key"),
            "may not be in the data folder",
        ),
        ("key".into(), "no absolute path"),
        (world.key_file(), "in use"),
    ] {
        server
            .call("POST", rekey, json!({"key_file": file}))
            .await
            .is(400)
            .says(reason);
    }
    server
        .call("POST", rekey, json!({"keyfile": file}))
        .await
        .is(400)
        .says("keyfile");
    let answer = server
        .call("POST", rekey, json!({"key_file": file}))
        .await
        .is(200);
    assert_eq!(answer.body()["secrets"], 1);
    server
        .deploy("hello", with_secret("api"))
        .await
        .is(200)
        .says("done");

    let world = server.crash().await;
    let images: std::sync::Arc<dyn skiff_control::port::Images> = world.shelf.clone();
    let opened = skiff_control::Resolver::open(world.config(), world.store.open(), images).await;
    assert!(
        opened
            .unwrap_err()
            .message
            .contains("name its file in the configuration")
    );
    std::fs::rename(&file, world.key_file()).unwrap();
    let server = world.start().await;
    server
        .deploy("hello", with_secret("api"))
        .await
        .is(200)
        .says("unchanged");
}
