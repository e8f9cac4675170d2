//! Signatures of AWS's own signer and of AWS's documentation.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use proptest::prelude::*;
use skiff_lambda::{Request, Scope, Secret, Signature, SignatureError};

const NOW: u64 = 1_700_000_000;
const KEY: &str = "SKIFEXAMPLEEXAMPLE00";
const SECRET: &str = "a/secret+of0nobody";
const HERE: Scope<'_> = Scope {
    region: "us-east-1",
    service: "lambda",
};

/// A request as it goes over the wire.
#[derive(Clone, Debug)]
struct Sent {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Sent {
    fn check(&self, now: u64) -> Result<Vec<u8>, SignatureError> {
        let request = Request {
            method: &self.method,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
        };
        let signature = Signature::of(&request, HERE)?;
        assert_eq!(signature.access_key(), KEY);
        let secret = Secret(SECRET.to_owned());
        signature.verify(&request, self.body.clone(), &secret, now)
    }
}

/// Signs with AWS's signer.
fn signed(mut sent: Sent, presigned: bool) -> Sent {
    let identity = Credentials::from_keys(KEY, SECRET, None).into();
    let mut settings = SigningSettings::default();
    if presigned {
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(Duration::from_secs(60));
    }
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(HERE.region)
        .name(HERE.service)
        .time(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
        .settings(settings)
        .build()
        .expect("it is good")
        .into();
    let mut uri = format!("http://127.0.0.1:9090{}", sent.path);
    if !sent.query.is_empty() {
        uri = format!("{uri}?{}", sent.query);
    }
    sent.headers.push(("host".into(), "127.0.0.1:9090".into()));
    let headers = sent.headers.iter().map(|(a, b)| (a.as_str(), b.as_str()));
    let body = SignableBody::Bytes(&sent.body);
    let signable = SignableRequest::new(&sent.method, &uri, headers, body).expect("it is good");
    let (instructions, _) = sign(signable, &params).expect("it is good").into_parts();
    let mut request = http::Request::builder()
        .method(sent.method.as_str())
        .uri(&uri)
        .body(())
        .expect("it is good");
    instructions.apply_to_request_http1x(&mut request);
    sent.query = request.uri().query().unwrap_or_default().to_owned();
    for (name, value) in request.headers() {
        let value = value.to_str().expect("it is good").to_owned();
        sent.headers.push((name.to_string(), value));
    }
    sent
}

fn plain() -> Sent {
    Sent {
        method: "POST".into(),
        path: "/2015-03-31/functions/arn%3Aaws%3Alambda/invocations".into(),
        query: "Qualifier=%24LATEST&a=b%20c".into(),
        headers: vec![("x-amz-log-type".into(), "Tail".into())],
        body: b"{}".to_vec(),
    }
}

type Change = fn(&mut Sent);

/// Changes of a signed request that make it another.
fn changes() -> Vec<(&'static str, Change)> {
    vec![
        ("method", |sent| sent.method = "PUT".into()),
        ("path", |sent| sent.path.push('x')),
        ("query", |sent| sent.query.push_str("&z=1")),
        ("body", |sent| sent.body.push(b' ')),
        ("header", |sent| sent.headers[0].1.push('x')),
        ("signature", |sent| {
            for text in [
                &mut sent.query,
                &mut sent.headers.last_mut().expect("it is good").1,
            ] {
                *text = text
                    .replace("Signature=", "Signature=0")
                    .replace("=00", "=0");
            }
        }),
    ]
}

#[test]
fn what_aws_signs_is_taken_and_what_has_changed_is_not() {
    for presigned in [false, true] {
        let good = signed(plain(), presigned);
        assert_eq!(good.check(NOW).unwrap(), b"{}", "presigned: {presigned}");
        for (what, change) in changes() {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bad.check(NOW).is_err(), "{what}, presigned: {presigned}");
        }
    }
}

#[test]
fn time_and_place_count() {
    let good = signed(plain(), false);
    for skew in [0, 900] {
        assert!(good.check(NOW + skew).is_ok());
        assert!(good.check(NOW - skew).is_ok());
    }
    for now in [NOW + 901, NOW - 901] {
        assert!(matches!(
            good.check(now),
            Err(SignatureError::Skewed { .. })
        ));
    }
    let short = signed(plain(), true);
    assert!(short.check(NOW + 60).is_ok());
    assert_eq!(short.check(NOW + 61), Err(SignatureError::Expired));
    let request = Request {
        method: &good.method,
        path: &good.path,
        query: &good.query,
        headers: &good.headers,
    };
    let elsewhere = Scope {
        region: "eu-west-1",
        service: "lambda",
    };
    let error = Signature::of(&request, elsewhere).unwrap_err();
    assert!(matches!(error, SignatureError::Scope { .. }), "{error}");
}

#[test]
fn what_is_not_signed_whole_is_refused() {
    let mut sent = plain();
    assert_eq!(sent.check(NOW), Err(SignatureError::Missing));
    sent.headers
        .push(("authorization".into(), "Bearer x".into()));
    assert_eq!(sent.check(NOW), Err(SignatureError::Missing));
    let mut sent = signed(plain(), false);
    sent.headers
        .push(("x-amz-invocation-type".into(), "Event".into()));
    assert!(matches!(
        sent.check(NOW),
        Err(SignatureError::Incomplete(_))
    ));
}

/// The example of "Signature calculations for the Authorization header:
/// transferring payload in multiple chunks", whose path is S3's.
fn documented() -> (Vec<(String, String)>, Vec<u8>) {
    let signature = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
    let signed = "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
                  x-amz-decoded-content-length;x-amz-storage-class";
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders={signed},Signature={signature}"
    );
    let headers = [
        ("host", "s3.amazonaws.com"),
        ("x-amz-date", "20130524T000000Z"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("authorization", authorization.as_str()),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", "66560"),
        ("content-length", "66824"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut body = Vec::new();
    for (size, signature) in [
        (
            65_536,
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        ),
        (
            1024,
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        ),
        (
            0,
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ),
    ] {
        body.extend(format!("{size:x};chunk-signature={signature}\r\n").into_bytes());
        body.extend(vec![b'a'; size]);
        body.extend(b"\r\n");
    }
    (headers.to_vec(), body)
}

#[test]
fn the_documented_chunks_are_opened() {
    let (headers, body) = documented();
    let request = Request {
        method: "PUT",
        path: "/examplebucket/chunkObject.txt",
        query: "",
        headers: &headers,
    };
    let scope = Scope {
        region: "us-east-1",
        service: "s3",
    };
    let signature = Signature::of(&request, scope).unwrap();
    let secret = Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned());
    let open = |body: Vec<u8>| signature.verify(&request, body, &secret, 1_369_353_600);
    assert_eq!(open(body.clone()).unwrap(), vec![b'a'; 66_560]);
    let mut changed = body.clone();
    changed[100] = b'b';
    assert_eq!(open(changed), Err(SignatureError::Mismatch));
    for cut in [1, 90, 1000, 66_000] {
        assert!(
            open(body[..body.len() - cut - 2].to_vec()).is_err(),
            "{cut}"
        );
    }
}

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9:$/._~-]{1,12}"
}

proptest! {
    #[test]
    fn every_request_that_aws_signs_is_taken(
        segments in proptest::collection::vec("[a-zA-Z0-9_.:-]{1,8}|%3A|%24LATEST", 1..5),
        pairs in proptest::collection::vec(("[A-Za-z]{1,8}", text()), 0..4),
        headers in proptest::collection::btree_map("x-amz-[a-z]{3,9}", "[ -~]{0,20}", 0..3),
        body in proptest::collection::vec(any::<u8>(), 0..64),
        presigned in any::<bool>(),
    ) {
        let query: Vec<String> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={}", value.replace('/', "%2F").replace(':', "%3A").replace('$', "%24")))
            .collect();
        prop_assume!(!headers.contains_key("x-amz-date"));
        let sent = Sent {
            method: "GET".into(),
            path: format!("/{}", segments.join("/")),
            query: query.join("&"),
            headers: headers.into_iter().collect(),
            body,
        };
        let good = signed(sent, presigned);
        prop_assert_eq!(good.check(NOW), Ok(good.body.clone()));
    }

    #[test]
    fn no_bytes_make_it_panic(
        authorization in "AWS4-HMAC-SHA256 .{0,80}|.{0,40}",
        time in ".{0,20}",
        query in ".{0,80}",
        path in ".{0,40}",
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (mut headers, _) = documented();
        headers[1].1 = time;
        let request = Request { method: "PUT", path: &path, query: &query, headers: &headers };
        let scope = Scope { region: "us-east-1", service: "s3" };
        let secret = Secret(SECRET.to_owned());
        if let Ok(signature) = Signature::of(&request, scope) {
            prop_assert!(signature.verify(&request, body, &secret, NOW).is_err());
        }
        headers[3].1 = authorization;
        let request = Request { method: "PUT", path: &path, query: &query, headers: &headers };
        prop_assert!(Signature::of(&request, scope).is_err());
    }
}

#[test]
fn our_own_signer_signs_as_awss_does() {
    let theirs = signed(plain(), false);
    let mut ours = plain();
    ours.headers.push(("host".into(), "127.0.0.1:9090".into()));
    let request = Request {
        method: &ours.method,
        path: &ours.path,
        query: &ours.query,
        headers: &ours.headers,
    };
    let secret = Secret(SECRET.to_owned());
    let headers = skiff_lambda::sign(&request, &ours.body, HERE, KEY, &secret, NOW);
    for header in &headers {
        assert!(
            theirs.headers.contains(header),
            "{header:?} is not in {theirs:?}"
        );
    }
    ours.headers.extend(headers);
    assert_eq!(ours.check(NOW), Ok(b"{}".to_vec()));
}
