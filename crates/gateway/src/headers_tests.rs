use http::{Method, Request};

use super::*;

fn forwarded_request(request: http::request::Builder, trust: bool) -> Parts {
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    let upgrade = upgrade(&parts);
    let client = HeaderValue::from_static("192.0.2.7");
    let origin = Origin {
        client: &client,
        client_node: "192.0.2.7",
        forwarded: &OnceLock::new(),
        authority: HeaderValue::from_static("hello.example:8080"),
        trust,
    };
    to_instance(&mut parts, origin, upgrade);
    parts
}

fn header<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    assert!(parts.headers.get_all(name).iter().count() <= 1, "{name}");
    parts.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn hop_by_hop_fields_and_those_that_connection_names_go() {
    let request = Request::get("/")
        .header("connection", "close, X-Mine,host")
        .header("x-mine", "1")
        .header("x-other", "2")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("te", "gzip, trailers")
        .header("upgrade", "websocket")
        .header("expect", "100-continue")
        .header("host", "hello.example:8080");
    let parts = forwarded_request(request, false);
    for gone in [
        "x-mine",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "expect",
    ] {
        assert_eq!(header(&parts, gone), None, "{gone}");
    }
    assert_eq!(header(&parts, "te"), Some("trailers"));
    assert_eq!(header(&parts, "connection"), Some("te"));
    assert_eq!(header(&parts, "x-other"), Some("2"));
    assert_eq!(header(&parts, "host"), Some("hello.example:8080"));
}

#[test]
fn who_asked_is_replaced_or_appended() {
    let request = || {
        Request::get("http://hello.example:8080/x?y")
            .header("x-forwarded-for", "10.0.0.1")
            .header("x-forwarded-proto", "https")
            .header("forwarded", "for=10.0.0.1")
            .header("host", "spoofed")
    };
    let parts = forwarded_request(request(), false);
    assert_eq!(parts.uri, "/x?y");
    assert_eq!(header(&parts, "host"), Some("hello.example:8080"));
    assert_eq!(header(&parts, "x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(header(&parts, "x-forwarded-proto"), Some("http"));
    assert_eq!(
        header(&parts, "x-forwarded-host"),
        Some("hello.example:8080")
    );
    let ours = "for=192.0.2.7;host=\"hello.example:8080\";proto=http";
    assert_eq!(header(&parts, "forwarded"), Some(ours));

    let parts = forwarded_request(request(), true);
    let both = format!("for=10.0.0.1, {ours}");
    assert_eq!(
        header(&parts, "x-forwarded-for"),
        Some("10.0.0.1, 192.0.2.7")
    );
    assert_eq!(header(&parts, "x-forwarded-proto"), Some("https"));
    assert_eq!(header(&parts, "forwarded"), Some(both.as_str()));
}

#[test]
fn ids_are_made_when_absent_and_kept_when_not() {
    let parts = forwarded_request(Request::get("/"), false);
    let trace = header(&parts, "traceparent").unwrap().to_owned();
    let fields: Vec<_> = trace.split('-').collect();
    let lengths: Vec<_> = fields.iter().map(|field| field.len()).collect();
    assert_eq!(lengths, [2, 32, 16, 2], "{trace}");
    assert!(trace.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'));
    assert_eq!(header(&parts, "x-request-id"), Some(fields[1]));

    let request = Request::get("/")
        .header("traceparent", &trace)
        .header("x-request-id", "mine");
    let parts = forwarded_request(request, false);
    assert_eq!(header(&parts, "traceparent"), Some(trace.as_str()));
    assert_eq!(header(&parts, "x-request-id"), Some("mine"));
}

#[test]
fn an_upgrade_is_kept_except_to_http2() {
    let request = |protocol: &str| {
        Request::builder()
            .method(Method::GET)
            .uri("/")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", protocol.to_owned())
    };
    let parts = forwarded_request(request("websocket"), false);
    assert_eq!(header(&parts, "upgrade"), Some("websocket"));
    assert_eq!(header(&parts, "connection"), Some("upgrade"));
    let parts = forwarded_request(request("h2c"), false);
    assert_eq!(header(&parts, "upgrade"), None);
}

#[test]
fn only_one_plain_framing_passes() {
    let check = |fields: &[(&str, &str)]| {
        let mut request = Request::post("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check_framing(request.body(()).unwrap().headers())
    };
    assert_eq!(check(&[("content-length", "5")]), Ok(()));
    assert_eq!(check(&[("transfer-encoding", "Chunked")]), Ok(()));
    let both = [("content-length", "5"), ("transfer-encoding", "chunked")];
    assert_eq!(check(&both), Err(FramingError::Both));
    for coding in ["gzip, chunked", "chunked, chunked", "identity", "chunked;x"] {
        assert_eq!(
            check(&[("transfer-encoding", coding)]),
            Err(FramingError::Coding)
        );
    }
}

#[test]
fn a_cold_start_is_told_by_phase() {
    let phases = ColdPhases {
        queue_us: 1_500,
        placement_us: 20,
        app_us: 2_000_001,
        ..ColdPhases::default()
    };
    let value = server_timing(&phases).unwrap();
    assert_eq!(
        value,
        "queue;dur=1.500, placement;dur=0.020, image;dur=0.000, sandbox;dur=0.000, \
         app;dur=2000.001, first_byte;dur=0.000"
    );
}

#[test]
fn a_connections_second_host_has_a_forwarded_of_its_own() {
    let client = HeaderValue::from_static("192.0.2.7");
    let kept = OnceLock::new();
    for host in ["one.example", "one.example", "two.example", "one.example"] {
        let (mut parts, ()) = Request::get("/").body(()).unwrap().into_parts();
        let origin = Origin {
            client: &client,
            client_node: "192.0.2.7",
            forwarded: &kept,
            authority: HeaderValue::from_static(host),
            trust: false,
        };
        to_instance(&mut parts, origin, None);
        let expected = format!("for=192.0.2.7;host=\"{host}\";proto=http");
        assert_eq!(parts.headers[FORWARDED], expected);
    }
}

#[test]
fn ids_differ_however_many_share_memory() {
    let ids: Vec<_> = (0..500).map(|_| new_ids()).collect();
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
    for id in &ids {
        assert_eq!(id.len(), TRACEPARENT_BYTES);
        assert!(id.starts_with(b"00-") && id.ends_with(b"-01"));
    }
}
