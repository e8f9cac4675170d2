use std::path::Path;

use crate::support::*;

/// Set, it makes the file instead of comparing it.
const WRITE: &str = "SKIFF_WRITE_SNAPSHOTS";

#[test]
fn the_document_in_the_docs_is_the_one_that_the_code_makes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let made = format!("{}\n", skiff_control::openapi_json());
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    if written != made {
        let line = written.lines().zip(made.lines()).position(|(a, b)| a != b);
        panic!(
            "docs/openapi.json differs from the code (line {line:?}): run this test with {WRITE}=1"
        );
    }
}

#[tokio::test]
async fn the_server_serves_its_document_and_every_reference_in_it_leads_somewhere() {
    let server = World::new().start().await;
    let document = server.get("/v1/openapi.json").await.is(200);
    let schemas = &document.body()["components"]["schemas"];
    let mut references = 0;
    for part in document
        .text
        .split("\"$ref\": \"#/components/schemas/")
        .skip(1)
    {
        let name = part.split('"').next().unwrap();
        assert!(schemas.get(name).is_some(), "{name}");
        references += 1;
    }
    assert!(references > 50, "{references}");
}
