//! Who may call what: every operation of the document, with every kind of caller.

use serde_json::{Value, json};

use crate::support::*;

/// Every operation, with its parameters filled in for one project.
fn operations(project: &str) -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&skiff_control::openapi_json()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path
            .replace("{project}", project)
            .replace("{service}", "hello")
            .replace("{name}", "x");
        for method in item.as_object().unwrap().keys() {
            operations.push((method.to_uppercase(), path.clone()));
        }
    }
    operations
}

async fn token(server: &Server, project: Option<&str>) -> (String, String) {
    let body = json!({"name": "a test's", "project": project});
    let made = server.call("POST", "/v1/tokens", body).await.is(200);
    let field = |name: &str| made.body()[name].as_str().unwrap().to_owned();
    (field("id"), format!("Bearer {}", field("token")))
}

#[tokio::test]
async fn every_operation_asks_who_calls() {
    let server = World::new().start().await;
    server
        .call("POST", "/v1/projects", json!({"name": "mine"}))
        .await
        .is(200);
    server
        .call("POST", "/v1/projects", json!({"name": "theirs"}))
        .await
        .is(200);
    let address = server.tcp().await;
    let (_, bound) = token(&server, Some("mine")).await;
    let unknown = format!("Bearer skiff_0123456789abcdef_{}", "0".repeat(64));
    let all = operations("theirs");
    assert!(all.len() > 25, "{}", all.len());
    for (method, path) in all.iter().filter(|(_, path)| path != "/healthz") {
        for header in [
            None,
            Some("Bearer x"),
            Some("Basic x"),
            Some(unknown.as_str()),
            Some(""),
        ] {
            let headers: Vec<_> = header.iter().map(|h| ("authorization", *h)).collect();
            let answer = server
                .tcp_call(address, method, path, &headers, json!(null))
                .await;
            assert_eq!(
                answer.status, 401,
                "{method} {path} {header:?}: {}",
                answer.text
            );
        }
        let headers = [("authorization", bound.as_str())];
        let answer = server
            .tcp_call(address, method, path, &headers, json!(null))
            .await;
        let open = ["/v1/version", "/v1/openapi.json"].contains(&path.as_str())
            || (method.as_str(), path.as_str()) == ("GET", "/v1/projects");
        let expected = if open { 200 } else { 403 };
        assert_eq!(answer.status, expected, "{method} {path}: {}", answer.text);
    }
    let listed = server.get("/v1/projects").await.is(200);
    assert_eq!(
        listed.body().as_array().unwrap().len(),
        3,
        "nothing was changed"
    );
}

#[tokio::test]
async fn a_bound_token_does_all_of_its_project_and_nothing_of_the_operator() {
    let server = World::new().start().await;
    server
        .call("POST", "/v1/projects", json!({"name": "mine"}))
        .await
        .is(200);
    let address = server.tcp().await;
    let (_, bound) = token(&server, Some("mine")).await;
    let headers = [("authorization", bound.as_str())];
    for (method, path) in operations("mine") {
        let answer = server
            .tcp_call(address, &method, &path, &headers, json!(null))
            .await;
        let of_operator = answer.status == 403;
        let in_project = path.starts_with("/v1/projects/mine/") && !path.ends_with("/quota");
        let open = ["/healthz", "/v1/version", "/v1/openapi.json"].contains(&path.as_str());
        let listed = method == "GET" && path.starts_with("/v1/projects");
        let free = in_project || open || listed;
        assert_eq!(
            of_operator, !free,
            "{method} {path}: {} {}",
            answer.status, answer.text
        );
    }
    let listed = server
        .tcp_call(address, "GET", "/v1/projects", &headers, json!(null))
        .await;
    assert_eq!(listed.body().as_array().unwrap().len(), 1);
    let path = "/v1/projects/mine/services/hello";
    let deployed = server
        .tcp_call(address, "PUT", path, &headers, plain(1))
        .await;
    deployed.is(200).says("done");
    let usage = server.tcp_call(
        address,
        "GET",
        "/v1/usage?project=mine",
        &headers,
        json!(null),
    );
    usage.await.is(200);
    let usage = server.tcp_call(
        address,
        "GET",
        "/v1/usage?project=default",
        &headers,
        json!(null),
    );
    usage.await.is(403);
}

#[tokio::test]
async fn tokens_are_shown_once_and_end() {
    let world = World::new();
    let server = world.start().await;
    let address = server.tcp().await;
    let (id, bearer) = token(&server, None).await;
    let headers = [("authorization", bearer.as_str())];
    let listed = server
        .tcp_call(address, "GET", "/v1/tokens", &headers, json!(null))
        .await
        .is(200);
    let text = bearer.strip_prefix("Bearer ").unwrap();
    let secret = text.rsplit('_').next().unwrap();
    assert!(!listed.text.contains(secret));
    assert_eq!(listed.body()[0]["id"], id);
    let stored: Vec<u8> = world
        .store
        .dump()
        .await
        .into_iter()
        .flat_map(|e| e.value)
        .collect();
    assert!(!String::from_utf8_lossy(&stored).contains(secret));
    // One digit off is another token.
    let mut other = bearer.clone();
    let last = if other.pop() == Some('0') { '1' } else { '0' };
    other.push(last);
    let wrong = [("authorization", other.as_str())];
    server
        .tcp_call(address, "GET", "/v1/tokens", &wrong, json!(null))
        .await
        .is(401);
    let twice = [
        ("authorization", bearer.as_str()),
        ("authorization", bearer.as_str()),
    ];
    server
        .tcp_call(address, "GET", "/v1/tokens", &twice, json!(null))
        .await
        .is(401);

    server
        .call("DELETE", &format!("/v1/tokens/{id}"), json!(null))
        .await
        .is(204);
    server
        .call("DELETE", &format!("/v1/tokens/{id}"), json!(null))
        .await
        .is(404);
    server
        .call("DELETE", "/v1/tokens/x", json!(null))
        .await
        .is(404);
    server
        .tcp_call(address, "GET", "/v1/tokens", &headers, json!(null))
        .await
        .is(401);
    server
        .call("POST", "/v1/tokens", json!({"name": ""}))
        .await
        .is(400);
    server
        .call(
            "POST",
            "/v1/tokens",
            json!({"name": "a", "project": "none"}),
        )
        .await
        .is(404);
}

#[tokio::test]
async fn a_deleted_projects_tokens_end_with_it() {
    let server = World::new().start().await;
    let address = server.tcp().await;
    server
        .call("POST", "/v1/projects", json!({"name": "mine"}))
        .await
        .is(200);
    let (_, bound) = token(&server, Some("mine")).await;
    server
        .call("DELETE", "/v1/projects/mine", json!(null))
        .await
        .is(204);
    server
        .call("POST", "/v1/projects", json!({"name": "mine"}))
        .await
        .is(200);
    let headers = [("authorization", bound.as_str())];
    let answer = server.tcp_call(
        address,
        "GET",
        "/v1/projects/mine/services",
        &headers,
        json!(null),
    );
    answer.await.is(401);
    assert_eq!(server.get("/v1/tokens").await.text, "[]");
}

#[tokio::test]
async fn over_tls_the_same_is_served_and_plain_bytes_are_not() {
    let server = World::new().start().await;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.control.clone();
    let tls = std::sync::Arc::new(tls);
    server.tasks.spawn("tls", async move {
        serving.serve_tcp(listener, Some(tls)).await
    });

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client));
    let (_, bearer) = token(&server, None).await;
    for (header, status) in [(bearer.as_str(), 200), ("Bearer x", 401)] {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let sender = connect(stream, &server.tasks).await;
        let headers = [("authorization", header)];
        let answer = send(sender, "GET", "/v1/version", &headers, bytes::Bytes::new()).await;
        answer.is(status);
    }
    let mut plain = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut answer);
    let read = tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert!(read.is_err() || !answer.starts_with(b"HTTP/"), "{answer:?}");
}
