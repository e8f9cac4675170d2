//! Functions as a server finds them in its store after a crash.

use serde_json::{Value, json};
use skiff_store::{Op, Txn};

use crate::support::*;

const PLACE: &str = "000000000001/function/hello";
const VERSION: &str = "000000000001/function-version/hello/0000000001";

/// A configuration that was being deployed.
fn under_way(revision: Option<u32>) -> Value {
    json!({
        "revision_id": "r", "modified_unix_ms": 1, "description": "", "role": "",
        "timeout_s": 3, "memory_mib": 128, "environment": {}, "image_uri": "hello:1",
        "entry_point": [], "command": [], "revision": revision, "digest": null,
        "update": "in_progress",
    })
}

async fn store(world: &World, key: &str, record: &Value) {
    let value = json!({"v": 1, "record": record}).to_string();
    let put = Op::Put(key.as_bytes().to_vec(), value.into_bytes());
    let txn = Txn {
        ops: vec![put],
        ..Txn::default()
    };
    world.store.open().txn(txn).await.unwrap();
}

async fn stored(world: &World, key: &str) -> Option<Value> {
    let all = world.store.dump().await;
    let found = all.into_iter().find(|item| item.key == key.as_bytes())?;
    let value: Value = serde_json::from_slice(&found.value).unwrap();
    Some(value["record"].clone())
}

/// What is stored after a crash of a function, whose service serves, and of
/// the version that was to be made of it.
async fn recovered(before: Option<u32>) -> (Value, Option<Value>, World) {
    let world = World::new();
    let server = world.start().await;
    server.deployed("hello", 1).await;
    let world = server.crash().await;
    let record = json!({
        "latest": under_way(before), "last_version": 1, "versions": {}, "publishing": 1,
        "aliases": {}, "tags": {}, "reserved_concurrency": null, "policies": {},
    });
    store(&world, PLACE, &record).await;
    store(&world, VERSION, &under_way(None)).await;
    let world = world.start().await.crash().await;
    let record = stored(&world, PLACE).await.unwrap();
    let version = stored(&world, VERSION).await;
    (record, version, world)
}

#[tokio::test]
async fn a_deployment_that_had_succeeded_is_told_whole_with_its_version() {
    let (record, version, world) = recovered(None).await;
    let version = version.unwrap();
    for config in [&record["latest"], &version] {
        assert_eq!(config["update"], "done");
        assert_eq!(config["revision"], 1);
        assert_eq!(config["digest"], digest(1).as_str());
    }
    assert_eq!(record["versions"]["1"]["revision"], 1);
    assert_eq!(record["publishing"], Value::Null);
    let service = stored(&world, "000000000001/service/hello").await.unwrap();
    assert_eq!(service["kept"], json!([1]));
}

#[tokio::test]
async fn a_deployment_that_was_cut_off_has_failed_and_makes_no_version() {
    let (record, version, _world) = recovered(Some(1)).await;
    let reason = record["latest"]["update"]["failed"]["reason"].as_str();
    assert!(reason.unwrap().starts_with("interrupted"), "{record}");
    assert_eq!((version, &record["versions"]), (None, &json!({})));
    assert_eq!(record["publishing"], Value::Null);
}
