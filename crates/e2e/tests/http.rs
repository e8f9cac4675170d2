//! Requests through the gateway: framing, streaming, upgrades, deadlines.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::time::Duration;

use skiff_e2e::{at_once, connect, good, raw, read_until, timed};
use skiff_testkit::{Held, Server, ServerOptions, SharedServer, wait_for};

static SHARED: SharedServer = SharedServer::new();

fn server() -> Held {
    SHARED.get(|| ServerOptions::with(&["testapp", "h2app"]))
}

#[test]
fn a_request_arrives_as_it_was_sent() {
    let server = server();
    let host = server.deploy("plain", &[]);
    let flags = ["--header", "X-Mine: 1", "--header", "Forwarded: for=evil"];
    let head = good(server.curl(&host, "/headers?a=1&b=%20", &flags));
    assert!(
        head.starts_with("GET /headers?a=1&b=%20 HTTP/1.1\r\n") || head.starts_with("hello"),
        "{head}"
    );
    let head = good(server.curl(&host, "/headers", &flags));
    assert!(head.to_lowercase().contains("x-mine: 1"), "{head}");
    assert!(head.contains("x-forwarded-for: 127.0.0.1"), "{head}");
    let traced = head.lines().filter(|line| line.starts_with("traceparent:"));
    assert_eq!(traced.count(), 1, "{head}");
    let reply = server.curl(&host, "/bytes/5000", &["--head"]);
    assert_eq!(
        (reply.status, reply.header("content-length")),
        (200, Some("5000")),
        "{reply:?}"
    );
    assert!(
        reply.body.is_empty() || reply.body.starts_with("HTTP/1.1"),
        "{reply:?}"
    );
    let body = "x".repeat(3_000_000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let upload = format!("@{}", file.path().display());
    for more in [
        ["--header", "Expect: 100-continue"],
        ["--header", "Transfer-Encoding: chunked"],
    ] {
        let reply = server.curl(
            &host,
            "/echo",
            &[&["--data-binary", &upload][..], &more].concat(),
        );
        assert_eq!(good(reply).len(), body.len(), "{more:?}");
    }
}

/// Deploys the application that speaks HTTP/2 alone, as this protocol.
fn deploy_h2app(server: &Server, name: &str, protocol: &str) -> String {
    let image = ["--image", "h2app:1", "--memory", "64"];
    let args = [&["deploy", name, "--protocol", protocol][..], &image].concat();
    let _out = server.cli(&args).ok();
    server.host_of(name)
}

#[test]
fn an_application_of_http_2_is_reached_as_it_speaks() {
    let server = server();
    let host = deploy_h2app(&server, "grpc", "h2c");
    let two = "--http2-prior-knowledge";
    let reply = server.curl(&host, "/a.Service/Method", &[two, "--data", "x"]);
    assert_eq!(reply.header("grpc-status"), Some("0"), "{reply:?}");
    assert_eq!(good(reply), "HTTP/2.0 POST /a.Service/Method\n");
    let one = server.curl(&host, "/", &["--http1.1", "--header", "TE: trailers"]);
    assert_eq!(one.header("grpc-status"), Some("0"), "{one:?}");
    assert_eq!(good(one), "HTTP/2.0 GET /\n");
    let body = "0123456789abcdef".repeat(200_000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let upload = format!("@{}", file.path().display());
    let replies = at_once(8, |index| {
        let version = [two, "--http1.1"][index % 2];
        server.curl(&host, "/echo", &[version, "--data-binary", &upload])
    });
    for reply in replies {
        assert!(good(reply) == body);
    }
    let described = server.json(&["describe", "grpc"]);
    let container = &described["revisions"][0]["spec"]["containers"][0];
    assert_eq!(container["protocol"], "h2c", "{described}");

    // Asked in HTTP/1.1 it does not answer in it.
    let host = deploy_h2app(&server, "not-told", "http1");
    let reply = server.get(&host, "/");
    assert_eq!(reply.status, 502, "{reply:?}");
    let told = server.cli(&[
        "deploy",
        "f",
        "--image",
        "h2app:1",
        "--function",
        "--protocol",
        "h2c",
    ]);
    assert_ne!(told.code, 0, "{}", told.out);
}

#[test]
fn http_2_without_tls_is_served_beside_http_1() {
    let server = server();
    let host = server.deploy("second", &[]);
    let flags = ["--http2-prior-knowledge", "--data", "over h2"];
    let reply = server.curl(&host, "/echo", &flags);
    assert!(reply.head.starts_with("HTTP/2 200"), "{reply:?}");
    assert_eq!(reply.body, "over h2");
    let many = at_once(8, |index| {
        server.curl(&host, &format!("/bytes/{}", index * 1000), &flags[..1])
    });
    for (index, reply) in many.into_iter().enumerate() {
        assert_eq!(good(reply).len(), index * 1000);
    }
}

#[test]
fn an_answer_streams_as_it_is_made() {
    let server = server();
    let host = server.deploy("stream", &[]);
    let mut stream = connect(&server);
    let request = format!("GET /stream/3/400 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let (_, first) = timed(|| read_until(&mut stream, "chunk 0\n"));
    let (_, rest) = timed(|| read_until(&mut stream, "0\r\n\r\n"));
    // Held back until its end, the answer would come in one piece.
    assert!(rest > Duration::from_millis(600), "{first:?} and {rest:?}");
}

#[test]
fn an_upgraded_connection_carries_bytes_both_ways() {
    let server = server();
    let host = server.deploy("socket", &["--keep-alive", "1"]);
    let mut stream = connect(&server);
    let request = format!(
        "GET /upgrade HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let head = read_until(&mut stream, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let serving = server.instances("socket");
    for round in 0..20 {
        let text = format!("message {round};");
        stream.write_all(text.as_bytes()).unwrap();
        assert_eq!(read_until(&mut stream, ";"), text);
    }
    // An open stream counts as a request: keep-alive does not end it.
    let service = server.json(&["describe", "socket"]);
    assert_eq!(service["instances"][0]["in_flight"], 1, "{service}");
    assert_eq!(server.instances("socket"), serving);
    drop(stream);
    server.wait_for_instances("socket", 0);
}

#[test]
fn ambiguous_framing_is_refused() {
    let server = server();
    let host = server.deploy("framing", &[]);
    let tail = "0\r\n\r\nGET /exit/9 HTTP/1.1\r\nHost: x\r\n\r\n";
    for fields in [
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: 4, 5\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: 0x4\r\n",
    ] {
        let request = format!("POST /echo HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n{tail}");
        let reply = raw(&server, request.as_bytes());
        assert!(
            reply.starts_with("HTTP/1.1 400"),
            "{fields:?} was answered {reply}"
        );
        assert_eq!(
            reply.matches("HTTP/1.1 ").count(),
            1,
            "{fields:?} was answered {reply}"
        );
    }
    // RFC 9112 § 6.3: refused, or read as chunks and forwarded as nothing else.
    let both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n";
    let request = format!("POST /headers HTTP/1.1\r\nHost: {host}\r\n{both}\r\n{tail}");
    let reply = raw(&server, request.as_bytes());
    assert_eq!(
        reply.matches("HTTP/1.1 200").count() + reply.matches("HTTP/1.1 400").count(),
        1,
        "{reply}"
    );
    let lengths = reply.matches("\r\ncontent-length: ").count()
        + reply.matches("\r\nContent-Length: 4").count();
    assert!(reply.starts_with("HTTP/1.1 400") || lengths <= 2, "{reply}");
    assert!(!reply.contains("ontent-length: 4\r\n"), "{reply}");
    for request in [
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "G\0T / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03\r\n\r\n",
    ] {
        let reply = raw(&server, request.as_bytes());
        assert!(
            reply.is_empty() || reply.starts_with("HTTP/1.1 400"),
            "{request:?}: {reply}"
        );
    }
    assert!(good(server.get(&host, "/")).starts_with("hello"));
}

#[test]
fn an_unknown_host_is_told_so() {
    let server = server();
    for host in [
        "nobody.skiff.localhost",
        "a.b.c.skiff.localhost",
        "skiff.localhost",
        "example.test",
    ] {
        let reply = server.get(host, "/");
        assert_eq!(reply.status, 404, "{reply:?}");
        assert!(reply.body.contains(host), "{reply:?}");
    }
}

#[test]
fn a_request_out_of_time_is_ended() {
    let server = server();
    let host = server.deploy("slow", &["--timeout", "1", "--concurrency", "10"]);
    let before = server.instances("slow");
    let reply = server.get(&host, "/sleep/20000");
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    // Others may be in it: it stays.
    assert_eq!(server.instances("slow"), before);
}

#[test]
fn alone_in_its_instance_a_request_out_of_time_takes_it_along() {
    let server = server();
    let host = server.deploy(
        "alone",
        &["--timeout", "1", "--concurrency", "1", "--max", "1"],
    );
    let before = server.instances("alone");
    assert_eq!(server.get(&host, "/sleep/20000").status, 504);
    serves_again(&server, &host);
    wait_for("another instance serves", 30, || {
        let now = server.instances("alone");
        (now.len() == 1 && now != before).then_some(())
    });
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let server = server();
    let host = server.deploy("left", &["--concurrency", "1", "--max", "1"]);
    let mut stream = connect(&server);
    let request = format!("GET /stream/1000/50 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let _first = read_until(&mut stream, "chunk 0\n");
    drop(stream);
    let (reply, took) = timed(|| server.get(&host, "/"));
    assert!(good(reply).starts_with("hello"));
    assert!(took < Duration::from_secs(25), "{took:?}");
}

#[test]
fn an_instance_that_ends_in_an_answer_shows_as_502() {
    let server = server();
    let host = server.deploy("dies", &[]);
    let before = server.instances("dies");
    let reply = server.get(&host, "/exit/3");
    assert_eq!(reply.status, 502, "{reply:?}");
    serves_again(&server, &host);
    assert_ne!(server.instances("dies"), before);
}

/// After an instance's early end a request may be told to come again soon.
fn serves_again(server: &Server, host: &str) {
    wait_for("it serves again", 20, || {
        let reply = server.get(host, "/");
        assert!(matches!(reply.status, 200 | 503), "{reply:?}");
        (reply.status == 200).then_some(())
    });
}

#[test]
fn slow_clients_hold_nobody_up() {
    let server = server();
    let host = server.deploy("patient", &["--concurrency", "1", "--max", "1"]);
    let mut slow: Vec<_> = (0..50).map(|_| connect(&server)).collect();
    for stream in &mut slow {
        // A head that never ends holds no slot.
        stream
            .write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-").as_bytes())
            .unwrap();
    }
    let (reply, took) = timed(|| server.get(&host, "/"));
    assert!(good(reply).starts_with("hello"));
    assert!(took < Duration::from_secs(10), "{took:?}");
    // One that finishes is served all the same.
    let mut last = slow.pop().unwrap();
    last.write_all(b"Late: 1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut reply = String::new();
    last.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}
