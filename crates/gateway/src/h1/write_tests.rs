use super::*;
use crate::h1::parse;

fn framing(facts: &Facts<'_>) -> Framing {
    match (facts.chunked, facts.length) {
        (true, _) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::None,
    }
}

/// The head that an instance sees for the given one.
fn onward(wire: &str, trust: bool) -> String {
    let origin = Origin::new("192.0.2.7".parse().unwrap(), trust);
    let mut out = Vec::new();
    parse::request(wire.as_bytes(), |head| {
        let facts = fields::facts(fields::of(head.headers)).unwrap();
        let onward = Onward {
            method: head.method,
            target: head.target,
            authority: b"hello.example:8080",
            facts: &facts,
            framing: framing(&facts),
            upgrade: facts.switch(),
        };
        request(&mut out, &onward, fields::of(head.headers), &origin);
    })
    .unwrap()
    .expect("a whole head");
    String::from_utf8(out).unwrap()
}

fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.split("\r\n").skip(1);
    let found: Vec<_> = fields
        .filter_map(|line| line.split_once(": "))
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .collect();
    assert!(found.len() <= 1, "{name} in {head}");
    found.first().map(|(_, value)| *value)
}

#[test]
fn hop_by_hop_fields_and_those_that_connection_names_go() {
    let head = onward(
        "GET / HTTP/1.1\r\nconnection: close, X-Mine,host\r\nx-mine: 1\r\nx-other: 2\r\n\
         keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: gzip, trailers\r\n\
         upgrade: websocket\r\nexpect: 100-continue\r\nhost: spoofed\r\n\r\n",
        false,
    );
    for gone in [
        "x-mine",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "expect",
    ] {
        assert_eq!(value(&head, gone), None, "{gone}");
    }
    assert_eq!(value(&head, "te"), Some("trailers"));
    assert_eq!(value(&head, "connection"), Some("te"));
    assert_eq!(value(&head, "x-other"), Some("2"));
    assert!(head.starts_with("GET / HTTP/1.1\r\nhost: hello.example:8080\r\n"));
    assert!(head.ends_with("\r\n\r\n"));
}

#[test]
fn who_asked_is_replaced_or_appended() {
    let wire = "GET /x?y HTTP/1.1\r\nx-forwarded-for: 10.0.0.1\r\nx-forwarded-for: 10.0.0.2\r\n\
                x-forwarded-proto: https\r\nforwarded: for=10.0.0.1\r\n\r\n";
    let ours = "for=192.0.2.7;host=\"hello.example:8080\";proto=http";
    let head = onward(wire, false);
    assert_eq!(value(&head, "x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(value(&head, "x-forwarded-proto"), Some("http"));
    assert_eq!(value(&head, "x-forwarded-host"), Some("hello.example:8080"));
    assert_eq!(value(&head, "forwarded"), Some(ours));

    let head = onward(wire, true);
    let all = "10.0.0.1, 10.0.0.2, 192.0.2.7";
    assert_eq!(value(&head, "x-forwarded-for"), Some(all));
    assert_eq!(value(&head, "x-forwarded-proto"), Some("https"));
    assert_eq!(value(&head, "x-forwarded-host"), Some("hello.example:8080"));
    let both = format!("for=10.0.0.1, {ours}");
    assert_eq!(value(&head, "forwarded"), Some(both.as_str()));
}

#[test]
fn an_address_of_ipv6_is_quoted_where_the_grammar_asks_for_it() {
    let origin = Origin::new("2001:db8::1".parse().unwrap(), false);
    assert_eq!(origin.address(), "2001:db8::1");
    let forwarded = origin.forwarded(b"a:1");
    assert_eq!(forwarded, b"for=\"[2001:db8::1]\";host=\"a:1\";proto=http");
    let mapped = Origin::new("::ffff:192.0.2.7".parse().unwrap(), false);
    assert_eq!(mapped.address(), "192.0.2.7");
}

#[test]
fn ids_are_made_when_absent_and_kept_when_not() {
    let head = onward("GET / HTTP/1.1\r\ntraceparent: short\r\n\r\n", false);
    let trace = value(&head, "traceparent").unwrap();
    let fields: Vec<_> = trace.split('-').collect();
    let lengths: Vec<_> = fields.iter().map(|field| field.len()).collect();
    assert_eq!(lengths, [2, 32, 16, 2], "{trace}");
    assert!(trace.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'));
    assert_eq!(value(&head, "x-request-id"), Some(fields[1]));

    let wire = format!("GET / HTTP/1.1\r\ntraceparent: {trace}\r\nx-request-id: mine\r\n\r\n");
    let head = onward(&wire, false);
    assert_eq!(value(&head, "traceparent"), Some(trace));
    assert_eq!(value(&head, "x-request-id"), Some("mine"));
}

#[test]
fn ids_differ() {
    let ids: std::collections::HashSet<_> = (0..500).map(|_| new_ids()).collect();
    assert_eq!(ids.len(), 500);
}

#[test]
fn an_upgrade_is_kept_except_to_http2() {
    let head = |protocol: &str| {
        let wire = format!(
            "GET / HTTP/1.1\r\nconnection: keep-alive, Upgrade\r\nupgrade: {protocol}\r\n\r\n"
        );
        onward(&wire, false)
    };
    assert_eq!(value(&head("websocket"), "upgrade"), Some("websocket"));
    assert_eq!(value(&head("websocket"), "connection"), Some("upgrade"));
    assert_eq!(value(&head("h2c"), "upgrade"), None);
    assert_eq!(value(&head("h2c"), "connection"), None);
}

#[test]
fn cookies_in_parts_become_one() {
    let head = onward(
        "GET / HTTP/1.1\r\ncookie: a=1\r\ncookie: b=2\r\n\r\n",
        false,
    );
    assert_eq!(value(&head, "cookie"), Some("a=1; b=2"));
}

#[test]
fn an_answer_keeps_its_reason_and_gets_a_date_and_one_framing() {
    let wire = b"HTTP/1.1 200 Fine with me\r\nconnection: x-hop\r\nx-hop: 1\r\nx-kept: 2\r\n\
                 content-length: 7\r\nkeep-alive: 5\r\n\r\n";
    let mut out = Vec::new();
    parse::response(wire, |head| {
        let facts = fields::facts(fields::of(head.headers)).unwrap();
        let reply = Reply {
            close: true,
            unix_s: 784_111_777,
            ..Reply::default()
        };
        response(&mut out, head, &facts, Framing::Chunked, reply);
    })
    .unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 200 Fine with me\r\nx-kept: 2\r\ntransfer-encoding: chunked\r\n\
         date: Sun, 06 Nov 1994 08:49:37 GMT\r\nconnection: close\r\n\r\n"
    );
}

#[test]
fn a_connections_second_host_has_a_forwarded_of_its_own() {
    let origin = Origin::new("192.0.2.7".parse().unwrap(), false);
    for host in ["one.example", "one.example", "two.example", "one.example"] {
        let mut out = Vec::new();
        origin.put(&mut out, host.as_bytes(), std::iter::empty());
        let text = String::from_utf8(out).unwrap();
        let expected = format!("forwarded: for=192.0.2.7;host=\"{host}\";proto=http\r\n");
        assert!(text.ends_with(&expected), "{text}");
        assert!(text.contains(&format!("x-forwarded-host: {host}\r\n")));
    }
}

#[test]
fn numbers_are_decimal() {
    for value in [0, 9, 10, 12_345, u64::MAX] {
        let mut out = Vec::new();
        put_number(&mut out, value);
        assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
    }
}

const CORPUS: [&str; 6] = [
    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /x?y=z HTTP/1.1\r\nHost: a:8080\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
    "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x\r\nte: trailers\r\n\r\n",
    "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade, x-y\r\nupgrade: websocket\r\nx-y: 1\r\n\r\n",
    "GET / HTTP/1.0\r\nforwarded: for=b\r\nx-forwarded-for: c\r\ncookie: d\r\ncookie: e\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nproxy-connection: close\r\n\r\n",
];

proptest::proptest! {
    /// Whatever of a head is let through goes on as one head with one host,
    /// at most one framing, and nothing that ends at this hop.
    #[test]
    fn what_is_let_through_is_one_plain_head(
        which in 0..CORPUS.len(),
        edits in proptest::collection::vec(
            (0usize..200, proptest::prop_oneof![
                proptest::prelude::Just(b'\r'),
                proptest::prelude::Just(b'\n'),
                proptest::prelude::Just(b':'),
                proptest::prelude::Just(b' '),
                proptest::prelude::Just(b','),
                proptest::prelude::any::<u8>(),
            ], 0u8..3),
            0..6,
        ),
        trust in proptest::bool::ANY,
    ) {
        let mut wire = CORPUS[which].as_bytes().to_vec();
        for (at, byte, how) in edits {
            let at = at % wire.len();
            match how {
                0 => wire[at] = byte,
                1 => wire.insert(at, byte),
                _ => drop(wire.remove(at)),
            }
        }
        let origin = Origin::new("192.0.2.7".parse().unwrap(), trust);
        let mut out = Vec::new();
        let read = parse::request(&wire, |head| {
            let Ok(facts) = fields::facts(fields::of(head.headers)) else {
                return false;
            };
            let onward = Onward {
                method: head.method,
                target: head.target,
                authority: b"hello.example",
                facts: &facts,
                framing: framing(&facts),
                upgrade: facts.switch(),
            };
            request(&mut out, &onward, fields::of(head.headers), &origin);
            true
        });
        if let Ok(Some((_, true))) = read {
            let (length, facts) = parse::request(&out, |head| {
                let names: Vec<_> = fields::of(head.headers).map(|(name, _)| fields::kind(name)).collect();
                let count = |kind| names.iter().filter(|found| **found == kind).count();
                assert_eq!(count(Kind::Host), 1);
                assert!(count(Kind::ContentLength) + count(Kind::TransferEncoding) <= 1);
                assert_eq!(count(Kind::Hop) + count(Kind::Expect), 0);
                assert_eq!(count(Kind::Forwarded), 1);
                fields::facts(fields::of(head.headers)).map(|facts| facts.several_hosts)
            }).unwrap().expect("a whole head");
            assert_eq!(length, out.len(), "one head");
            assert_eq!(facts, Ok(false));
        }
    }
}
