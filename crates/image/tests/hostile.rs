//! What registries do that `docker-registry` does not: tokens, redirects,
//! TLS, faults and lies.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use common::servers::{DEADLINE, Reply, Scripted};
use common::{header, names, reference};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::Digest as _;
use skiff_image::{ImageError, ImageRecord, ImageStore, NoProgress, PullOptions};
use skiff_types::Digest;
use skiff_types::api::RegistryAuth;

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

/// An image of one small layer, by its documents.
#[derive(Clone)]
struct Small {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Small {
    fn new() -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        let content = vec![7; 100_000];
        let mut head = header(tar::EntryType::Regular, 0o644, content.len() as u64);
        tar.append_data(&mut head, "file", &content[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        gzip.write_all(&tar).unwrap();
        Self::of(gzip.finish().unwrap(), &digest(&tar))
    }

    fn of(layer: Vec<u8>, diff_id: &Digest) -> Self {
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":["{diff_id}"]}}}}"#
        )
        .into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":{}}},"layers":[{{
            "mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{}","size":{}}}]}}"#,
            digest(&config),
            config.len(),
            digest(&layer),
            layer.len()
        )
        .into_bytes();
        Self {
            layer,
            config,
            manifest,
        }
    }

    /// What an honest registry answers.
    fn answer(&self, request: &str) -> Reply {
        let path = request.split(' ').nth(1).unwrap();
        let ok = |body: &[u8]| ("200 OK".to_owned(), body.to_vec());
        match path.rsplit('/').next().unwrap() {
            "1" => ok(&self.manifest),
            name if name == digest(&self.layer).as_str() => ok(&self.layer),
            name if name == digest(&self.config).as_str() => ok(&self.config),
            _ => ("404 Not Found".to_owned(), Vec::new()),
        }
    }

    fn is_layer(&self, request: &str) -> bool {
        request.contains(digest(&self.layer).hex())
    }
}

struct Pulled {
    dir: tempfile::TempDir,
    result: Result<ImageRecord, ImageError>,
}

impl Pulled {
    fn error(&self) -> String {
        skiff_base::chain(self.result.as_ref().unwrap_err()).to_string()
    }

    fn left(&self) -> Vec<String> {
        let folders = ["blobs/sha256", "layers", "images", "references", "ingest"];
        let left = folders
            .iter()
            .flat_map(|folder| names(&self.dir.path().join(folder)));
        left.collect()
    }
}

async fn pull_with(host: &str, options: PullOptions) -> Pulled {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let name = reference(&format!("{host}/a/b:1"));
    let pull = store.pull(&name, options, Arc::new(NoProgress));
    let result = tokio::time::timeout(DEADLINE, pull).await.unwrap();
    Pulled { dir, result }
}

async fn pull(host: &str) -> Pulled {
    let options = PullOptions {
        insecure_hosts: vec![host.to_owned()],
        ..PullOptions::default()
    };
    pull_with(host, options).await
}

#[tokio::test]
async fn a_token_is_fetched_and_shown() {
    let image = Small::new();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let tokens = Scripted::start(None, move |request| {
        seen.lock().unwrap().push(request.to_owned());
        ("200 OK".to_owned(), br#"{"access_token":"t0ken"}"#.to_vec())
    })
    .await;
    let realm = format!("http://{}/token?x=1", tokens.host());
    let registry = Scripted::start(None, move |request| {
        if request
            .to_lowercase()
            .contains("authorization: bearer t0ken\r")
        {
            return image.answer(request);
        }
        let challenge = format!(r#"Bearer realm="{realm}",service="s p",scope="registry:*:*""#);
        let head = format!("401 Unauthorized\r\nWWW-Authenticate: {challenge}");
        (head, Vec::new())
    })
    .await;
    let options = PullOptions {
        auth: Some(RegistryAuth {
            username: "me".to_owned(),
            password: "secret".to_owned(),
        }),
        insecure_hosts: vec!["127.0.0.1".to_owned()],
        ..PullOptions::default()
    };
    pull_with(&registry.host(), options).await.result.unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 1, "one token serves all requests");
    let wanted = "GET /token?x=1&scope=repository%3Aa%2Fb%3Apull&service=s%20p ";
    assert!(asked[0].starts_with(wanted), "{}", asked[0]);
    // base64 of me:secret
    assert!(asked[0].contains("Basic bWU6c2VjcmV0"), "{}", asked[0]);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let image = Small::new();
    let served = image.clone();
    let asked: Arc<Mutex<String>> = Arc::default();
    let seen = Arc::clone(&asked);
    let storage = Scripted::start(None, move |request| {
        seen.lock().unwrap().push_str(request);
        served.answer(request)
    })
    .await;
    let place = storage.host();
    let registry = Scripted::start(None, move |request| {
        assert!(request.to_lowercase().contains("authorization: bearer own"));
        let path = request.split(' ').nth(1).unwrap();
        match image.is_layer(request) {
            true => (
                format!("307 Away\r\nLocation: http://{place}{path}"),
                Vec::new(),
            ),
            false => image.answer(request),
        }
    })
    .await;
    let auth = RegistryAuth {
        username: String::new(),
        password: "own".to_owned(),
    };
    let options = |insecure: &[String]| PullOptions {
        auth: Some(auth.clone()),
        insecure_hosts: insecure.to_vec(),
        ..PullOptions::default()
    };
    let both = [registry.host(), storage.host()];
    pull_with(&registry.host(), options(&both))
        .await
        .result
        .unwrap();
    let asked = asked.lock().unwrap().to_lowercase();
    assert!(
        asked.contains("blobs") && !asked.contains("authorization"),
        "{asked}"
    );
    let refused = pull_with(&registry.host(), options(&both[..1])).await;
    assert!(
        refused.error().contains("not configured as insecure"),
        "{}",
        refused.error()
    );
}

#[tokio::test]
async fn redirects_without_end_are_refused() {
    let registry = Scripted::start(None, |request| {
        let path = request.split(' ').nth(1).unwrap();
        (format!("302 Found\r\nLocation: {path}"), Vec::new())
    })
    .await;
    let pulled = pull(&registry.host()).await;
    assert!(
        pulled.error().contains("redirects over 5 times"),
        "{}",
        pulled.error()
    );
    assert_eq!(pulled.left(), [""; 0]);
}

#[tokio::test]
async fn a_registry_that_fails_for_a_while_is_tried_again() {
    let image = Small::new();
    let requests = AtomicU32::new(0);
    let registry = Scripted::start(None, move |request| {
        match requests.fetch_add(1, Ordering::SeqCst) % 3 {
            0 => ("503 Busy".to_owned(), Vec::new()),
            1 => ("429 Slowly".to_owned(), Vec::new()),
            _ => image.answer(request),
        }
    })
    .await;
    pull(&registry.host()).await.result.unwrap();
    let registry = Scripted::start(None, |_| {
        let body = br#"{"errors":[{"code":"UNKNOWN","message":"broken\u0007"}]}"#;
        ("500 Oh".to_owned(), body.to_vec())
    })
    .await;
    let pulled = pull(&registry.host()).await;
    assert!(
        pulled.error().ends_with("answers 500: UNKNOWN broken?"),
        "{}",
        pulled.error()
    );
}

#[tokio::test]
async fn a_registry_without_ranges_is_read_from_the_start() {
    let image = Small::new();
    let times = AtomicU32::new(0);
    let registry = Scripted::start(None, move |request| {
        let (head, mut body) = image.answer(request);
        if !image.is_layer(request) || times.fetch_add(1, Ordering::SeqCst) > 0 {
            return (head, body);
        }
        // Announces all, and ends early.
        body.truncate(50_000);
        let head = format!("{head}\r\nTransfer-Encoding: chunked");
        let mut chunked = format!("{:x}\r\n", body.len() + 1).into_bytes();
        chunked.extend(body);
        (head, chunked)
    })
    .await;
    let pulled = pull(&registry.host()).await;
    assert_eq!(pulled.result.unwrap().layers.len(), 1);
}

#[tokio::test]
async fn lies_are_refused_and_leave_nothing() {
    type Lie = fn(&Small, Reply) -> Reply;
    let of_layer: [(&str, Lie); 6] = [
        ("is corrupt: its digest", |image, _| {
            ("200 OK".to_owned(), vec![0; image.layer.len()])
        }),
        ("were expected", |_, (head, mut body)| {
            body.push(0);
            (head, body)
        }),
        ("another range", |_, (_, body)| {
            ("206 Part\r\nContent-Range: bytes 5-9/10".to_owned(), body)
        }),
        ("does not have", |_, _| ("404 No".to_owned(), Vec::new())),
        ("denies access (403)", |_, _| {
            ("403 No".to_owned(), Vec::new())
        }),
        ("sent 99 bytes of", |_, (head, mut body)| {
            body.truncate(99);
            (head, body)
        }),
    ];
    for (expected, lie) in of_layer {
        let image = Small::new();
        let registry = Scripted::start(None, move |request| {
            let honest = image.answer(request);
            match image.is_layer(request) {
                true => lie(&image, honest),
                false => honest,
            }
        })
        .await;
        let pulled = pull(&registry.host()).await;
        assert!(
            pulled.error().contains(expected),
            "{expected}: {}",
            pulled.error()
        );
        let left = pulled.left();
        assert!(
            left.iter().all(|name| name.ends_with(".partial")),
            "{left:?}"
        );
    }
}

#[tokio::test]
async fn documents_that_cannot_be_used_are_named() {
    let long = " ".repeat(5 << 20);
    let huge_index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        digest(b"x")
    );
    for (manifest, expected) in [
        (r#"{"schemaVersion":1,"name":"x"}"#, "schema 1"),
        ("{", "not valid"),
        (&long, "over 4194304 bytes"),
        (&huge_index, "does not have"),
    ] {
        let body = manifest.as_bytes().to_vec();
        let registry = Scripted::start(None, move |request| match request.contains("/1 ") {
            true => ("200 OK".to_owned(), body.clone()),
            false => ("404 No".to_owned(), Vec::new()),
        })
        .await;
        let pulled = pull(&registry.host()).await;
        assert!(
            pulled.error().contains(expected),
            "{expected}: {}",
            pulled.error()
        );
        assert_eq!(pulled.left(), [""; 0]);
    }
}

#[tokio::test]
async fn a_layer_that_is_not_its_diff_id_or_no_tar_is_refused() {
    let honest = Small::new();
    let mut garbage = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    garbage.write_all(&vec![b'x'; 4096]).unwrap();
    for (image, expected) in [
        (
            Small::of(honest.layer.clone(), &digest(b"other")),
            "a layer's tar is corrupt",
        ),
        (
            Small::of(garbage.finish().unwrap(), &digest(&vec![b'x'; 4096])),
            "its tar cannot be used",
        ),
        (
            Small::of(
                honest.layer[..honest.layer.len() - 9].to_vec(),
                &digest(b"cut"),
            ),
            "it cannot be decompressed",
        ),
    ] {
        let registry = Scripted::start(None, move |request| image.answer(request)).await;
        let pulled = pull(&registry.host()).await;
        assert!(
            pulled.error().contains(expected),
            "{expected}: {}",
            pulled.error()
        );
        assert_eq!(pulled.left(), [""; 0]);
    }
}

#[tokio::test]
async fn tls_is_spoken_with_known_authorities_only() {
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = key.cert.der().clone();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], private)
        .unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let image = Small::new();
    let registry = Scripted::start(Some(tls), move |request| image.answer(request)).await;
    let known = PullOptions {
        extra_roots: vec![certificate],
        ..PullOptions::default()
    };
    pull_with(&registry.host(), known).await.result.unwrap();
    let unknown = pull_with(&registry.host(), PullOptions::default()).await;
    assert!(
        unknown.error().contains("UnknownIssuer"),
        "{}",
        unknown.error()
    );
}
