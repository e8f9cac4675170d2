//! Ambiguous messages are refused, or go on with exactly one framing: raw
//! bytes in, raw bytes seen by the instance.
#![allow(clippy::unwrap_used, reason = "helpers outside of test functions")]

mod rig;

use std::sync::{Arc, Mutex};

use rig::{HOST, Raw, Rig, app, http_app, ok};

/// Everything the instance has read, and an answer to each head.
fn witness(seen: Arc<Mutex<Vec<String>>>) -> std::net::SocketAddr {
    http_app(move |request| {
        let body = request.text();
        seen.lock().unwrap().push(format!("{}{body}", request.head));
        ok("seen")
    })
}

/// Status of the first answer and what the instance saw.
fn send(bytes: &str) -> (u16, Vec<String>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let rig = Rig::new(|_| {});
    rig.add(witness(seen.clone()));
    let mut client = rig.client();
    client.send(bytes);
    let status = client.head().map_or(0, |head| head.status());
    let seen = seen.lock().unwrap().clone();
    (status, seen)
}

#[test]
fn ambiguous_requests_are_refused() {
    for (what, fields, body) in [
        (
            "two lengths",
            "content-length: 5\r\ncontent-length: 6\r\n",
            "hello!",
        ),
        ("a list of lengths", "content-length: 5, 6\r\n", "hello!"),
        ("a signed length", "content-length: +5\r\n", "hello"),
        ("a negative length", "content-length: -5\r\n", "hello"),
        ("a hexadecimal length", "content-length: 0x5\r\n", "hello"),
        (
            "a length too large",
            "content-length: 99999999999999999999\r\n",
            "hello",
        ),
        ("a folded field", "x-a: 1\r\n x-b: 2\r\n", ""),
        (
            "a blank before the colon",
            "content-length : 5\r\n",
            "hello",
        ),
        ("a blank in a name", "content length: 5\r\n", "hello"),
        ("an empty name", ": 5\r\n", ""),
        (
            "chunked is not last",
            "transfer-encoding: chunked, gzip\r\n",
            "0\r\n\r\n",
        ),
        (
            "an unknown coding",
            "transfer-encoding: xchunked\r\n",
            "0\r\n\r\n",
        ),
        (
            "twice chunked",
            "transfer-encoding: chunked, chunked\r\n",
            "0\r\n\r\n",
        ),
        (
            "two codings",
            "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
        ("identity", "transfer-encoding: identity\r\n", ""),
        ("a control byte in a value", "x-a: \x01\r\n", ""),
        ("a NUL in a value", "x-a: a\0b\r\n", ""),
        ("a CR in a value", "x-a: a\rb\r\n", ""),
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n{body}");
        let (status, seen) = send(&request);
        assert_eq!(status, 400, "{what}");
        assert!(seen.is_empty(), "{what}: {seen:?}");
    }
}

#[test]
fn malformed_heads_are_refused() {
    for head in [
        "POST / HTTP/1.0\r\nhost: HOST\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: HOST\r\n\r\n",
        "GET / HTTP/1.1 x\r\nhost: HOST\r\n\r\n",
        "GET / HTTP/3.0\r\nhost: HOST\r\n\r\n",
        "G@T / HTTP/1.1\r\nhost: HOST\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nhost: HOST\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: HOST\r\nhost: HOST\r\n\r\n",
        "GET http://user@HOST/ HTTP/1.1\r\nhost: HOST\r\n\r\n",
    ] {
        let (status, seen) = send(&head.replace("HOST", HOST));
        assert_eq!(status, 400, "{head}");
        assert!(seen.is_empty(), "{head}: {seen:?}");
    }
}

#[test]
fn a_head_too_large_is_refused() {
    let large = "x".repeat(200 * 1024);
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-a: {large}\r\n\r\n");
    let rig = Rig::new(|_| {});
    let mut client = rig.client();
    // The gateway may close before it has read all.
    let sent = std::io::Write::write_all(&mut client.stream, request.as_bytes());
    if sent.is_ok() {
        let status = client.head().map_or(431, |head| head.status());
        assert_eq!(status, 431);
    }
    let fields: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let (status, seen) = send(&format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n"));
    assert_eq!((status, seen.len()), (431, 0));
}

#[test]
fn what_is_let_through_has_exactly_one_framing() {
    for (what, fields, body, expected) in [
        ("one length", "content-length: 5\r\n", "hello", "hello"),
        (
            "the same length twice",
            "content-length: 5\r\ncontent-length: 5\r\n",
            "hello",
            "hello",
        ),
        (
            "chunked",
            "transfer-encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        (
            "chunked counts, not the length",
            "content-length: 50\r\ntransfer-encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        (
            "an extension",
            "transfer-encoding: chunked\r\n",
            "5;a=b\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        (
            "upper case",
            "Transfer-Encoding: CHUNKED\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        (
            "nominated",
            "connection: content-length\r\ncontent-length: 5\r\n",
            "hello",
            "hello",
        ),
        ("no body", "", "", ""),
    ] {
        let request = format!("POST /one HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n{body}");
        let next = format!("GET /two HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let rig = Rig::new(|_| {});
        rig.add(witness(seen.clone()));
        let mut client = rig.client();
        client.send(format!("{request}{next}"));
        let first = client.message();
        assert_eq!(first.status(), 200, "{what}");
        // What had two framings is the connection's last request (RFC 9112 §6.1).
        let closes = first.field("connection") == Some("close");
        assert_eq!(closes, what.contains("not the length"), "{what}");
        assert_eq!(client.try_message().is_none(), closes, "{what}");
        let seen = seen.lock().unwrap();
        let lower = seen[0].to_lowercase();
        let lengths = lower.matches("content-length:").count();
        let codings = lower.matches("transfer-encoding:").count();
        assert_eq!(lengths + codings, 1, "{what}: {seen:?}");
        let end = format!("\r\n\r\n{expected}");
        assert!(seen[0].ends_with(&end), "{what}: {seen:?}");
        assert!(
            closes || seen[1].starts_with("GET /two"),
            "{what}: {seen:?}"
        );
    }
}

#[test]
fn a_bare_line_feed_ends_no_other_line_than_here() {
    // Whatever is read of it, the instance sees lines that end in CR LF.
    let request = format!("GET / HTTP/1.1\nhost: {HOST}\nx-a: b\n\n");
    let (status, seen) = send(&request);
    assert!(status == 400 || status == 200);
    for seen in seen {
        assert_eq!(seen.matches('\n').count(), seen.matches("\r\n").count());
    }
}

#[test]
fn a_bad_chunk_never_completes_a_request() {
    for body in [
        "g\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        let ended = Arc::new(Mutex::new(None));
        let rig = Rig::new(|_| {});
        let e = ended.clone();
        rig.add(app(move |mut raw: Raw| {
            let whole = raw.rest();
            *e.lock().unwrap() = Some(String::from_utf8_lossy(&whole).into_owned());
        }));
        let mut client = rig.client();
        client.send(&request);
        let status = client.head().map_or(0, |head| head.status());
        assert!(matches!(status, 0 | 400 | 502), "{body:?}: {status}");
        drop(client);
        if rig.gateway.metrics().upstream_connects > 0 {
            rig::wait_for("the instance's end", || ended.lock().unwrap().is_some());
            let seen = ended.lock().unwrap().clone().unwrap();
            assert!(!seen.ends_with("0\r\n\r\n"), "{body:?}: {seen}");
        }
    }
}

#[test]
fn an_instances_answer_gets_one_framing() {
    for (what, answer, expected) in [
        (
            "both",
            "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        ("until the end", "\r\nhello", "hello"),
        (
            "a length",
            "content-length: 5\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: 5\r\n\r\nhello",
            "hello",
        ),
    ] {
        let rig = Rig::new(|_| {});
        rig.add(app(move |mut raw: Raw| {
            raw.message();
            raw.send(format!("HTTP/1.1 200 OK\r\n{answer}"));
            raw.stream.shutdown(std::net::Shutdown::Both).unwrap();
        }));
        let message = rig.get("/");
        let framings = message.all("content-length").len() + message.all("transfer-encoding").len();
        assert_eq!(framings, 1, "{what}: {}", message.head);
        assert_eq!(message.text(), expected, "{what}");
        assert!(!message.head.to_lowercase().contains("x-hop"), "{what}");
        assert!(
            !message.head.to_lowercase().contains("keep-alive"),
            "{what}"
        );
    }
}

#[test]
fn an_instance_that_smuggles_a_second_answer_does_not_reach_the_next_client() {
    let rig = Rig::new(|_| {});
    rig.add(app(|mut raw: Raw| {
        while let Some(request) = raw.try_message() {
            let path = request.head.split(' ').nth(1).unwrap().to_owned();
            let evil = ok("evil");
            raw.send(format!("{}{evil}", ok(&path)));
        }
    }));
    for n in 0..10 {
        let path = format!("/{n}");
        let answer = rig.get(&path);
        assert!(
            answer.status() == 502 || answer.text() == path,
            "{answer:?}"
        );
    }
}

#[test]
fn a_client_of_http_1_0_gets_what_it_understands() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| {
        match request.head.split(' ').nth(1).unwrap() {
            "/length" => ok("hello"),
            _ => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
                .to_owned(),
        }
    }));
    let mut client = rig.client();
    for _ in 0..3 {
        client.send(format!(
            "GET /length HTTP/1.0\r\nhost: {HOST}\r\nconnection: keep-alive\r\n\r\n"
        ));
        let answer = client.message();
        assert_eq!(answer.field("connection"), Some("keep-alive"));
        assert_eq!(answer.text(), "hello");
    }
    client.send(format!("GET /length HTTP/1.0\r\nhost: {HOST}\r\n\r\n"));
    assert_eq!(client.message().field("connection"), Some("close"));
    assert_eq!(client.rest(), b"");
    // It knows no chunks, so the body ends with the connection.
    let mut client = rig.client();
    client.send(format!(
        "GET /chunks HTTP/1.0\r\nhost: {HOST}\r\nconnection: keep-alive\r\n\r\n"
    ));
    let head = client.head().unwrap();
    assert_eq!(head.field("transfer-encoding"), None);
    assert_eq!(head.field("connection"), Some("close"));
    assert_eq!(client.rest(), b"hello");
}

#[test]
fn an_answer_that_cannot_be_followed_is_a_502() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        "SSH-2.0-OpenSSH_9\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ] {
        let rig = Rig::new(|_| {});
        rig.add(app(move |mut raw: Raw| {
            raw.message();
            raw.send(answer);
            raw.rest();
        }));
        assert_eq!(rig.get("/").status(), 502, "{answer:?}");
        assert_eq!(rig.records()[0].status, 502, "{answer:?}");
        assert_eq!(rig.get("/").status(), 502, "the connection was not kept");
    }
}

#[test]
fn a_second_answer_behind_the_first_is_nobodys() {
    let rig = Rig::with(skiff_gateway::GatewayConfig::default(), 1, |_| {});
    let instance = rig.add(app(|mut raw: Raw| {
        while let Some(request) = raw.try_message() {
            let path = request.head.split(' ').nth(1).unwrap().to_owned();
            raw.send(ok(&path));
            // It comes when the connection is kept already.
            std::thread::park_timeout(std::time::Duration::from_millis(5));
            raw.send(ok("evil"));
        }
    }));
    for n in 1..=10 {
        assert_eq!(rig.get(&format!("/{n}")).text(), format!("/{n}"));
        // The lane looks at what it keeps several times a second.
        rig::wait_for("the second answer", || {
            std::thread::park_timeout(std::time::Duration::from_millis(10));
            rig.gateway.instance_load(instance.id) == 0
        });
    }
}

#[test]
fn a_refused_body_does_not_hide_the_answer() {
    let rig = Rig::new(|_| {});
    let mut client = rig.client();
    let body = "x".repeat(300 * 1024);
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: nobody.example\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    let answer = client.message();
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.field("connection"), Some("close"));
    assert_eq!(client.rest(), b"");
    // A small one is read over, and the connection goes on.
    let mut client = rig.client();
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nhost: nobody.example\r\ncontent-length: 5\r\n\r\nhello");
        let answer = client.message();
        assert_eq!((answer.status(), answer.field("connection")), (404, None));
    }
}

#[test]
fn an_instance_may_answer_before_it_has_read_all() {
    let rig = Rig::new(|_| {});
    rig.add(app(|mut raw: Raw| {
        raw.head().unwrap();
        raw.send("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig");
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        raw.rest();
    }));
    let mut client = rig.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000000\r\n\r\n{}",
        "x".repeat(100_000)
    ));
    let answer = client.message();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "big"));
    assert_eq!(client.rest(), b"", "the connection is not kept");
    assert_eq!(rig.records()[0].status, 413);
}

/// One request as it is written, and what its answer says.
fn written(kind: usize, length: usize) -> (String, String) {
    let body: String = ('a'..='z').cycle().take(length).collect();
    let host = format!("host: {HOST}\r\n");
    let chunks: String = body
        .as_bytes()
        .chunks(7)
        .map(|chunk| {
            let text = std::str::from_utf8(chunk).unwrap();
            format!("{:X};n=v\r\n{text}\r\n", chunk.len())
        })
        .collect();
    match kind {
        0 => (format!("GET / HTTP/1.1\r\n{host}\r\n"), String::new()),
        1 => (
            format!("POST / HTTP/1.1\r\n{host}content-length: {length}\r\n\r\n{body}"),
            body,
        ),
        2 => (
            format!(
                "PUT / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\n{chunks}0\r\nx: y\r\n\r\n"
            ),
            body,
        ),
        _ => (
            format!("\r\nPOST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n"),
            String::new(),
        ),
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    /// However the bytes of several requests are parted, each reaches the
    /// instance once, whole and in its turn.
    #[test]
    fn requests_mean_the_same_in_whatever_pieces(
        requests in proptest::collection::vec((0usize..4, 0usize..40), 1..6),
        pieces in proptest::collection::vec(1usize..90, 1..60),
        chunked_answers in proptest::bool::ANY,
    ) {
        let rig = Rig::with(skiff_gateway::GatewayConfig::default(), 1, |_| {});
        rig.add(http_app(move |request| {
            let body = request.text();
            match (chunked_answers, body.len()) {
                (true, 1..) => format!(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                    body.len()
                ),
                _ => ok(&body),
            }
        }));
        let written: Vec<_> = requests.iter().map(|&(kind, length)| written(kind, length)).collect();
        let wire: String = written.iter().map(|(wire, _)| wire.as_str()).collect();
        let mut client = rig.client();
        let mut rest = wire.as_bytes();
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            client.send(now);
            rest = later;
        }
        for (_, body) in &written {
            proptest::prop_assert_eq!(&client.message().text(), body);
        }
        proptest::prop_assert_eq!(rig.records().len(), written.len());
    }
}

#[test]
fn long_trailers_pass_as_they_are_to_those_who_take_them() {
    let rig = Rig::new(|_| {});
    // As many as a function's front has for one answer.
    let trailers = format!(
        "x-amz-function-error: Its.Own\r\nlambda-runtime-function-error-body: {}\r\n\
         x-amz-log-result: {}\r\n",
        "b".repeat(8 * 1024),
        "l".repeat(6 * 1024)
    );
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = format!("{head}2\r\nhi\r\n0\r\n{trailers}\r\n");
    rig.add(http_app(move |_| answer.clone()));
    let mut client = rig.client();
    for (lines, expected) in [
        ("te: trailers\r\n", &*trailers),
        ("", ""),
        ("te: trailers\r\n", &trailers),
    ] {
        client.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{lines}\r\n"));
        let answer = client.message();
        assert_eq!((&*answer.text(), &*answer.trailers), ("hi", expected));
    }
}
