//! Streaming, upgrades, cancelling, deadlines and draining.
#![allow(clippy::unwrap_used, reason = "helpers outside of test functions")]

mod rig;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use rig::{HOST, Raw, Rig, app, at, http_app, ok, revision, wait_for};
use skiff_base::{Clock, SystemClock};
use skiff_gateway::GatewayConfig;
use skiff_types::ProjectId;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n")
}

#[test]
fn bytes_go_both_ways_as_they_come() {
    let rig = Rig::new(|_| {});
    rig.add(app(|mut raw: Raw| {
        let head = raw.head().unwrap();
        assert_eq!(head.field("transfer-encoding"), Some("chunked"));
        raw.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        while let Some(chunk) = raw.chunk() {
            raw.send(format!("{:x}\r\n", chunk.len()));
            raw.send(&chunk);
            raw.send("\r\n");
        }
        raw.send("0\r\n\r\n");
    }));
    let mut client = rig.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n"
    ));
    assert_eq!(client.head().unwrap().status(), 200);
    for byte in b"one by one" {
        client.send([b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
        assert_eq!(client.chunk(), Some(vec![*byte]));
    }
    assert!(rig.records().is_empty(), "it is still a request");
    assert_eq!(rig.gateway.metrics().in_flight, 1);
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk(), None);
    let records = rig.records();
    assert_eq!((records[0].bytes_in, records[0].bytes_out), (10, 10));
}

#[test]
fn the_record_is_there_before_the_answers_end() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| {
        match request.head.split(' ').nth(1).unwrap() {
            "/length" => ok("hello"),
            "/empty" => ok(""),
            "/none" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            _ => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
                .to_owned(),
        }
    }));
    let paths = ["/length", "/empty", "/none", "/chunked"];
    let mut client = rig.client();
    for n in 0..200 {
        client.send(get(paths[n % paths.len()]));
        client.message();
        assert_eq!(rig.records().len(), n + 1);
    }
}

#[test]
fn a_slow_reader_holds_the_instance_back() {
    let rig = Rig::new(|_| {});
    let sent = Arc::new(AtomicU64::new(0));
    let s = sent.clone();
    const TOTAL: usize = 256 * 1024 * 1024;
    rig.add(app(move |mut raw: Raw| {
        raw.message();
        raw.send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {TOTAL}\r\n\r\n"
        ));
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..TOTAL / chunk.len() {
            if std::io::Write::write_all(&mut raw.stream, &chunk).is_err() {
                return;
            }
            s.fetch_add(64 * 1024, Ordering::SeqCst);
        }
    }));
    let mut client = rig.client();
    client.send(get("/"));
    client.head().unwrap();
    // It comes to rest on full sockets, far from the end.
    let mut last = u64::MAX;
    let mut still = 0;
    wait_for("rest", || {
        let now = sent.load(Ordering::SeqCst);
        still = if now == last { still + 1 } else { 0 };
        last = now;
        still > 500
    });
    assert!(last < 64 * 1024 * 1024, "{last} bytes are held somewhere");
    drop(client);
    wait_for("the end", || rig.records().len() == 1);
    assert_eq!(rig.records()[0].status, 200);
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    let rig = Rig::new(|_| {});
    let (reached, cancelled) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let (r, c) = (reached.clone(), cancelled.clone());
    rig.add(app(move |mut raw: Raw| {
        raw.message();
        r.wait();
        raw.rest();
        c.store(true, Ordering::SeqCst);
    }));
    let mut client = rig.client();
    client.send(get("/"));
    reached.wait();
    drop(client);
    wait_for("the cancelling", || cancelled.load(Ordering::SeqCst));
    wait_for("the record", || rig.records().len() == 1);
    assert_eq!(rig.records()[0].status, 499);
    assert_eq!(rig.gateway.metrics().client_gone, 1);
    assert_eq!(rig.gateway.metrics().in_flight, 0);
    assert!(rig.dead().is_empty());
}

#[test]
fn time_runs_out_at_concurrency_one_and_the_instance_is_dead() {
    let rig = Rig::new(|route| {
        route.concurrency = 1;
        route.timeout_ms = 200;
    });
    let cancelled = Arc::new(AtomicBool::new(false));
    let c = cancelled.clone();
    let instance = rig.add(app(move |mut raw: Raw| {
        raw.message();
        raw.rest();
        c.store(true, Ordering::SeqCst);
    }));
    let answer = rig.get("/");
    assert_eq!(answer.status(), 504);
    assert_eq!(rig.dead()[0].0, instance.id);
    wait_for("the cancelling", || cancelled.load(Ordering::SeqCst));
    wait_for("out", || rig.gateway.instance_load(instance.id) == 0);
    assert_eq!(rig.records()[0].status, 504);
    rig.add(http_app(|_| ok("next")));
    assert_eq!(rig.get("/").text(), "next");
}

#[test]
fn time_runs_out_at_higher_concurrency_and_only_the_connection_goes() {
    let rig = Rig::new(|route| route.timeout_ms = 200);
    let cancelled = Arc::new(AtomicBool::new(false));
    let c = cancelled.clone();
    rig.add(app(move |mut raw: Raw| {
        while let Some(request) = raw.try_message() {
            if request.head.starts_with("GET /slow") {
                raw.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
                raw.rest();
                c.store(true, Ordering::SeqCst);
                return;
            }
            raw.send(ok("quick"));
        }
    }));
    let mut slow = rig.client();
    slow.send(get("/slow"));
    assert_eq!(slow.head().unwrap().status(), 200);
    assert_eq!(slow.rest(), b"half", "cut, for the head is gone");
    wait_for("the cancelling", || cancelled.load(Ordering::SeqCst));
    assert_eq!(rig.get("/").text(), "quick");
    assert!(rig.dead().is_empty());
    assert_eq!(rig.gateway.metrics().timeouts, 1);
}

#[test]
fn a_client_that_does_not_read_is_cut_at_its_deadline() {
    let rig = Rig::new(|route| route.timeout_ms = 300);
    rig.add(app(|mut raw: Raw| {
        raw.message();
        raw.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        let chunk = vec![b'x'; 64 * 1024];
        while std::io::Write::write_all(&mut raw.stream, &chunk).is_ok() {}
    }));
    let mut client = rig.client();
    client.send(get("/"));
    client.head().unwrap();
    wait_for("the cut", || rig.records().len() == 1);
    assert_eq!(rig.gateway.metrics().in_flight, 0);
}

#[test]
fn a_broken_answer_is_not_retried_and_cut_or_502() {
    let rig = Rig::new(|_| {});
    let (tries, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    let (t, s) = (tries.clone(), seen.clone());
    rig.add(app(move |mut raw: Raw| {
        let request = raw.message();
        t.fetch_add(1, Ordering::SeqCst);
        if request.head.starts_with("GET /half") {
            raw.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            s.wait();
        }
    }));
    assert_eq!(rig.get("/").status(), 502);
    assert_eq!(
        tries.load(Ordering::SeqCst),
        1,
        "it may have been processed"
    );
    let mut client = rig.client();
    client.send(get("/half"));
    client.head().unwrap();
    seen.wait();
    assert_eq!(client.rest(), b"half");
    wait_for("records", || rig.records().len() == 2);
    let statuses: Vec<_> = rig.records().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [502, 200]);
    assert!(rig.dead().is_empty());
}

#[test]
fn a_kept_connection_that_the_instance_closed_costs_no_request() {
    let rig = Rig::with(GatewayConfig::default(), 1, |_| {});
    let closed = Arc::new(AtomicUsize::new(0));
    let c = closed.clone();
    let instance = rig.add(app(move |mut raw: Raw| {
        raw.message();
        raw.send(ok("once"));
        raw.stream.shutdown(Shutdown::Both).unwrap();
        c.fetch_add(1, Ordering::SeqCst);
    }));
    for n in 1..=50 {
        let mut client = rig.client();
        // A body of the client's must survive the second try, too.
        client.send(format!(
            "POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 5\r\n\r\nhello"
        ));
        assert_eq!(client.message().text(), "once");
        wait_for("the close", || closed.load(Ordering::SeqCst) == n);
        // What comes later on the same thread is answered: so it knows.
        let mut later = rig.client();
        later.send("GET / HTTP/1.1\r\nhost: nobody.example\r\n\r\n");
        assert_eq!(later.message().status(), 404);
        assert_eq!(instance.connects.load(Ordering::SeqCst), n);
    }
    assert!(rig.dead().is_empty());
}

#[test]
fn a_websocket_is_one_request_until_it_ends() {
    let rig = Rig::new(|_| {});
    let instance = rig.add(app(|mut raw: Raw| {
        let head = raw.head().unwrap();
        assert_eq!(head.field("upgrade"), Some("websocket"));
        assert_eq!(head.field("connection"), Some("upgrade"));
        raw.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nearly",
        );
        loop {
            let word = raw.take(4);
            raw.send(&word);
            if word == b"stop" {
                return;
            }
        }
    }));
    let mut client = rig.client();
    client.send(format!(
        "GET /chat HTTP/1.1\r\nhost: {HOST}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    ));
    let head = client.head().unwrap();
    assert_eq!(head.status(), 101);
    assert_eq!(head.field("upgrade"), Some("websocket"));
    assert_eq!(client.take(5), b"early");
    for _ in 0..10 {
        client.send("ping");
        assert_eq!(client.take(4), b"ping");
    }
    assert_eq!(rig.gateway.instance_load(instance.id), 1);
    assert!(rig.records().is_empty());
    client.send("stop");
    assert_eq!(client.rest(), b"stop");
    let records = rig.records();
    assert_eq!(records.len(), 1, "before the end of the stream");
    assert_eq!(records[0].status, 101);
    assert_eq!((records[0].bytes_in, records[0].bytes_out), (44, 49));
    wait_for("the slot", || rig.gateway.instance_load(instance.id) == 0);
}

#[test]
fn an_upgrade_may_be_refused_and_ends_with_its_client() {
    let rig = Rig::new(|_| {});
    let refused = rig.add(http_app(|_| ok("no")));
    let upgrade =
        format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
    let mut client = rig.client();
    client.send(&upgrade);
    assert_eq!(client.message().text(), "no");
    client.send(get("/"));
    assert_eq!(client.message().text(), "no", "the connection goes on");
    drop(rig.gateway.drain_instance(refused.id));
    let ended = Arc::new(AtomicBool::new(false));
    let e = ended.clone();
    rig.add(app(move |mut raw: Raw| {
        raw.head().unwrap();
        raw.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
        raw.rest();
        e.store(true, Ordering::SeqCst);
    }));
    client.send(&upgrade);
    assert_eq!(client.head().unwrap().status(), 101);
    drop(client);
    wait_for("the end", || ended.load(Ordering::SeqCst));
    wait_for("the record", || rig.records().len() == 3);
}

#[test]
fn continue_is_said_when_the_body_is_wanted() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| {
        assert_eq!(request.field("expect"), None);
        ok(&request.text())
    }));
    let mut client = rig.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    ));
    assert_eq!(client.head().unwrap().status(), 100);
    client.send("hello");
    assert_eq!(client.message().text(), "hello");
}

#[test]
fn answers_without_a_body_have_none() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| match &request.head[..9] {
        "HEAD /len" => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_owned(),
        "HEAD /chu" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
        "GET /none" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "GET /same" => {
            "HTTP/1.1 304 Not Modified\r\netag: x\r\ncontent-length: 5\r\n\r\n".to_owned()
        }
        "GET /hint" => format!("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{}", ok("late")),
        other => panic!("{other}"),
    }));
    let mut client = rig.client();
    for (request, status, length) in [
        ("HEAD /length", 200, Some("5")),
        ("HEAD /chunked", 200, None),
        ("GET /none", 204, None),
        ("GET /same", 304, None),
    ] {
        client.send(format!("{request} HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
        let head = client.head().unwrap();
        assert_eq!(head.status(), status, "{request}");
        assert_eq!(head.field("content-length"), length, "{request}");
    }
    client.send(get("/hint"));
    let mut answer = client.message();
    if answer.status() == 103 {
        answer = client.message();
    }
    assert_eq!(answer.text(), "late");
    assert_eq!(rig.records().len(), 5);
    assert!(
        rig.records()[..4]
            .iter()
            .all(|record| record.bytes_out == 0)
    );
}

#[test]
fn trailers_go_both_ways() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| {
        let sum = request.trailers.trim().to_owned();
        format!(
            "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
             2\r\nhi\r\n0\r\nx-sum: {}\r\n\r\n",
            sum.trim_start_matches("x-sum: ")
        )
    }));
    let mut client = rig.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n"
    ));
    let answer = client.message();
    assert_eq!(answer.text(), "hi");
    assert_eq!(answer.trailers.to_lowercase(), "x-sum: 42\r\n");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| {
        ok(request.head.split(' ').nth(1).unwrap())
    }));
    let mut client = rig.client();
    let all: String = (0..50).map(|n| get(&format!("/{n}"))).collect();
    client.send(all);
    for n in 0..50 {
        assert_eq!(client.message().text(), format!("/{n}"));
    }
}

#[test]
fn slow_heads_and_idle_connections_are_cut() {
    let config = GatewayConfig {
        header_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(300),
        ..GatewayConfig::default()
    };
    let rig = Rig::with(config, 1, |_| {});
    rig.add(http_app(|_| ok("hello")));
    let mut silent = rig.client();
    let mut slow = rig.client();
    slow.send("GET / HTTP/1.1\r\nhost: ");
    let mut preface = rig.client();
    preface.send("PRI *");
    let mut idle = rig.client();
    idle.send(get("/"));
    assert_eq!(idle.message().status(), 200);
    for client in [&mut silent, &mut slow, &mut preface, &mut idle] {
        client.rest();
    }
    wait_for("none is left", || rig.gateway.metrics().connections == 0);
}

#[test]
fn connections_over_the_bound_are_told_at_once() {
    let config = GatewayConfig {
        max_connections: Some(2),
        ..GatewayConfig::default()
    };
    let rig = Rig::with(config, 1, |route| route.queue_ms = 50);
    let (one, two) = (rig.client(), rig.client());
    wait_for("two", || rig.gateway.metrics().connections == 2);
    let answer = rig.client().message();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.field("retry-after"), Some("1"));
    assert_eq!(answer.text(), "the gateway has no more connections\n");
    drop((one, two));
    wait_for("none", || rig.gateway.metrics().connections == 0);
    assert_eq!(rig.get("/x").status(), 503, "no instance, but room");
}

#[test]
fn a_client_over_the_bound_hears_it_whatever_it_has_sent() {
    let config = GatewayConfig {
        max_connections: Some(1),
        ..GatewayConfig::default()
    };
    let rig = Rig::with(config, 1, |_| {});
    let one = rig.client();
    wait_for("one", || rig.gateway.metrics().connections == 1);
    // More than one read takes, and still coming when the answer is there.
    let body = "x".repeat(40_000);
    for _ in 0..20 {
        let mut client = rig.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 40001\r\n\r\n{body}"
        ));
        let answer = client.message();
        assert_eq!(answer.status(), 503);
        client.send("x");
        client.rest();
    }
    assert_eq!(rig.gateway.metrics().rejected_connections, 20);
    drop(one);
}

#[test]
fn draining_ends_what_is_under_way_and_nothing_else() {
    // Probes and listeners inside do not hold it up.
    let rig = Rig::new(|route| route.liveness_period_ms = 60_000);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let project = ProjectId::default_project();
    let _inside = rig
        .gateway
        .serve_inner(listener.into(), rig::CALLER, project)
        .unwrap();
    let gate = Arc::new(Barrier::new(2));
    let g = gate.clone();
    rig.add(app(move |mut raw: Raw| {
        raw.message();
        raw.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na");
        g.wait();
        raw.send("b");
        raw.rest();
    }));
    let mut idle = rig.client();
    let mut busy = rig.client();
    busy.send(get("/"));
    busy.head().unwrap();
    let address = rig.address;
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| rig.drain(Duration::from_secs(30)));
        idle.rest();
        wait_for("nobody listens", || {
            std::net::TcpStream::connect(address).is_err()
        });
        gate.wait();
        assert_eq!(busy.take(2), b"ab");
        assert_eq!(busy.rest(), b"", "closed after its answer");
        assert_eq!(draining.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_request_on_a_kept_connection_is_served_while_draining() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|_| ok("hello")));
    let mut kept: Vec<_> = (0..4).map(|_| rig.client()).collect();
    for client in &mut kept {
        client.send(get("/"));
        let answer = client.message();
        assert_eq!((answer.status(), answer.field("connection")), (200, None));
    }
    // The first request of a connection is no different.
    kept.push(rig.client());
    wait_for("all", || rig.gateway.metrics().connections == 5);
    let address = rig.address;
    let patience = Duration::from_secs(600);
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| rig.drain(patience));
        wait_for("nobody listens", || {
            std::net::TcpStream::connect(address).is_err()
        });
        for client in &mut kept[1..] {
            client.send(get("/"));
            let answer = client.message();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.field("connection"), Some("close"));
            assert_eq!(client.rest(), b"");
        }
        // The last connection ends, and the drain with it.
        drop(kept.swap_remove(0));
        assert_eq!(draining.join().unwrap(), Ok(()));
    });
}

#[test]
fn idle_connections_are_closed_after_the_grace_and_before_the_deadline() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|_| ok("hello")));
    let mut idle = rig.client();
    idle.send(get("/"));
    assert_eq!(idle.message().status(), 200);
    let mut silent = rig.client();
    wait_for("both", || rig.gateway.metrics().connections == 2);
    let clock = SystemClock;
    let begin = clock.now();
    // Half of it is less than the grace of a longer drain.
    let deadline = Duration::from_secs(4);
    assert_eq!(rig.drain(deadline), Ok(()));
    assert!(clock.now().since(begin) >= deadline / 2, "closed at once");
    assert_eq!(idle.rest(), b"");
    assert_eq!(silent.rest(), b"");
}

#[test]
fn an_http2_stream_under_way_ends_while_draining() {
    let rig = Rig::new(|_| {});
    let gate = Arc::new(Barrier::new(2));
    let g = gate.clone();
    rig.add(http_app(move |request| {
        g.wait();
        ok(&request.text())
    }));
    let address = rig.address;
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let runtime = runtime();
            runtime.block_on(async {
                let mut sender = h2(address).await;
                let answer = sender.send_request(post("slow")).await.unwrap();
                assert_eq!(collect(answer).await, b"slow");
                // The server has said GOAWAY.
                assert!(sender.ready().await.is_err());
            });
        });
        wait_for("under way", || rig.gateway.metrics().in_flight == 1);
        let draining = scope.spawn(|| rig.drain(Duration::from_secs(600)));
        wait_for("nobody listens", || {
            std::net::TcpStream::connect(address).is_err()
        });
        gate.wait();
        client.join().unwrap();
        assert_eq!(draining.join().unwrap(), Ok(()));
    });
}

#[test]
fn draining_is_bounded() {
    let rig = Rig::new(|_| {});
    rig.add(app(|mut raw: Raw| {
        raw.message();
        raw.rest();
    }));
    let mut stuck = rig.client();
    stuck.send(get("/"));
    wait_for("under way", || rig.gateway.metrics().in_flight == 1);
    let fakes = rig.fakes.clone();
    let cut = rig.drain(Duration::from_millis(100)).unwrap_err();
    assert_eq!(cut.0, 1);
    stuck.rest();
    assert_eq!(fakes.requests.lock().unwrap()[0].status, 499);
}

#[test]
fn three_failed_probes_make_an_instance_dead() {
    let rig = Rig::new(|route| {
        // Long enough for an answer on a busy machine, too.
        route.liveness_period_ms = 300;
        route.liveness_path = Some("/alive".to_owned());
    });
    let sick = Arc::new(AtomicBool::new(false));
    let (s, probes) = (sick.clone(), Arc::new(AtomicUsize::new(0)));
    let p = probes.clone();
    let instance = rig.add(http_app(move |request| {
        if !request.head.starts_with("GET /alive") {
            return ok("hello");
        }
        p.fetch_add(1, Ordering::SeqCst);
        if s.load(Ordering::SeqCst) {
            "HTTP/1.1 500 Sick\r\ncontent-length: 0\r\n\r\n".to_owned()
        } else {
            ok("")
        }
    }));
    wait_for("probes", || probes.load(Ordering::SeqCst) > 2);
    assert!(rig.dead().is_empty());
    sick.store(true, Ordering::SeqCst);
    wait_for("the death", || rig.dead().len() == 1);
    assert_eq!(rig.dead()[0].0, instance.id);
    assert!(rig.dead()[0].1.contains("three times"));
}

#[test]
fn a_connection_within_the_process_leads_to_revisions_by_name() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| ok(request.field("host").unwrap())));
    let ask = |host: &str| {
        let mut inside = rig.gateway.connect_to_revisions().unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        inside.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        inside.read_to_string(&mut answer).unwrap();
        answer
    };
    let name = format!("hello-00001.{}", ProjectId::default_project());
    let answer = ask(&name);
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&name),
        "{answer}"
    );
    // Whoever asks from within is told who has answered.
    assert!(!answer.contains("x-skiff-own-answer"), "{answer}");
    for stranger in ["hello-00009.000000000001", "hello-00001", HOST] {
        let answer = ask(stranger);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{stranger}");
        assert!(answer.contains("\r\nx-skiff-own-answer: "), "{answer}");
    }
    wait_for("its record", || rig.records().len() == 1);
    let mut outside = rig.client();
    outside.send(format!("GET / HTTP/1.1\r\nhost: {name}\r\n\r\n"));
    let answer = outside.message();
    assert_eq!(
        (answer.status(), answer.field("x-skiff-own-answer")),
        (404, None)
    );
}

#[test]
fn http2_clients_reach_http1_instances() {
    let rig = Rig::new(|_| {});
    let seen = Arc::new(Mutex::new(Vec::new()));
    let s = seen.clone();
    rig.add(http_app(move |request| {
        s.lock().unwrap().push(request.head.clone());
        ok(&request.text())
    }));
    let runtime = runtime();
    let address = rig.address;
    runtime.block_on(async {
        let mut sender = h2(address).await;
        let sends: Vec<_> = (0..20)
            .map(|n| sender.send_request(post(&format!("body {n}"))))
            .collect();
        for (n, send) in sends.into_iter().enumerate() {
            let answer = send.await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(collect(answer).await, format!("body {n}").as_bytes());
        }
    });
    assert_eq!(rig.records().len(), 20);
    for head in seen.lock().unwrap().iter() {
        let lower = head.to_lowercase();
        assert!(lower.starts_with("post /h2 http/1.1\r\n"), "{head}");
        assert_eq!(
            lower.matches(&format!("\r\nhost: {HOST}\r\n")).count(),
            1,
            "{head}"
        );
    }
}

#[test]
fn an_http2_stream_times_out_alone() {
    let rig = Rig::new(|route| route.timeout_ms = 300);
    rig.add(app(|mut raw: Raw| {
        let Some(request) = raw.try_message() else {
            return;
        };
        if request.text() == "slow" {
            raw.rest();
        } else {
            raw.send(ok("quick"));
        }
    }));
    let runtime = runtime();
    let address = rig.address;
    runtime.block_on(async {
        let mut sender = h2(address).await;
        let slow = sender.send_request(post("slow"));
        assert_eq!(slow.await.unwrap().status(), 504);
        let quick = sender.send_request(post("quick")).await.unwrap();
        assert_eq!(collect(quick).await, b"quick");
    });
    assert!(rig.dead().is_empty());
}

#[test]
fn an_http2_streams_deadline_is_not_its_connections() {
    let rig = Rig::new(|_| {});
    let gate = Arc::new(Barrier::new(2));
    let g = gate.clone();
    rig.add(http_app(move |request| {
        g.wait();
        ok(&request.text())
    }));
    let mut hasty = rig::route(2);
    hasty.timeout_ms = 100;
    rig.gateway.put_revision(hasty);
    let mut service = rig::service(vec![(revision(1), 100)]);
    service.tags = vec![("hasty".parse().unwrap(), revision(2))];
    rig.gateway.put_service(&service).unwrap();
    let silent = at(app(|mut raw: Raw| drop(raw.rest())));
    rig.gateway
        .add_instance(&revision(2), silent, None)
        .unwrap();
    let runtime = runtime();
    runtime.block_on(async {
        let mut sender = h2(rig.address).await;
        let mut slow = std::pin::pin!(sender.send_request(post("slow")));
        while rig.gateway.metrics().in_flight == 0 {
            tokio::task::yield_now().await;
        }
        let request = http::Request::post(format!("http://hasty---{HOST}/h2"));
        let request = request.body(Full::new(bytes::Bytes::new())).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 504);
        // The gateway cuts an HTTP/1 connection a second after its deadline.
        let late = rig.gateway.metrics();
        assert_eq!((late.timeouts, late.in_flight), (1, 1));
        let cut = tokio::time::timeout(Duration::from_secs(3), slow.as_mut()).await;
        assert!(cut.is_err(), "the other stream was cut");
        gate.wait();
        assert_eq!(collect(slow.await.unwrap()).await, b"slow");
    });
}

/// A client's, of one thread.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

type Full = http_body_util::Full<bytes::Bytes>;

async fn h2(address: std::net::SocketAddr) -> hyper::client::conn::http2::SendRequest<Full> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(Spawn, io)
        .await
        .unwrap();
    hyper::rt::Executor::execute(&Spawn, async move {
        connection.await.ok();
    });
    sender
}

#[derive(Clone)]
struct Spawn;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawn {
    fn execute(&self, future: F) {
        tokio::runtime::Handle::current().spawn(future);
    }
}

fn post(body: &str) -> http::Request<Full> {
    http::Request::post(format!("http://{HOST}/h2"))
        .body(Full::new(bytes::Bytes::from(body.to_owned())))
        .unwrap()
}

async fn collect(answer: http::Response<hyper::body::Incoming>) -> Vec<u8> {
    use http_body_util::BodyExt;
    answer
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
        .to_vec()
}

#[test]
fn an_instance_of_an_unknown_revision_is_refused() {
    let rig = Rig::new(|_| {});
    let error = rig
        .gateway
        .add_instance(&revision(7), at(rig.address), None)
        .unwrap_err();
    assert!(error.to_string().contains("hello-00007"), "{error}");
    let upstream = at(rig.address);
    rig.gateway
        .add_instance(&revision(1), upstream.clone(), None)
        .unwrap();
    assert!(
        rig.gateway
            .add_instance(&revision(1), upstream, None)
            .is_err()
    );
}

/// A revision whose instances go on with what they have begun, and one such
/// instance that answers when it is told to.
fn outliving() -> (Rig, Arc<Barrier>) {
    // One thread, so that it has seen the client go before the next one comes.
    let rig = Rig::with(GatewayConfig::default(), 1, |route| {
        route.concurrency = 1;
        route.outlives_client = true;
    });
    let gate = Arc::new(Barrier::new(2));
    let g = gate.clone();
    rig.add(http_app(move |request| {
        if request.text() == "slow" || request.head.starts_with("GET /slow") {
            g.wait();
            g.wait();
        }
        ok("one")
    }));
    (rig, gate)
}

/// The instance is busy for others though its client has gone, and free
/// afterwards, with one record of the whole time.
fn is_busy_until_it_is_over(rig: &Rig, gate: &Barrier) {
    assert_eq!(rig.gateway.metrics().in_flight, 1);
    let mut next = rig.client();
    next.send(get("/next"));
    wait_for("a place in the queue", || {
        rig.fakes.last_waiting.load(Ordering::SeqCst) == 1
    });
    rig.add(http_app(|_| ok("two")));
    assert_eq!(next.message().text(), "two");
    assert!(rig.records().iter().all(|record| record.status == 200));
    gate.wait();
    wait_for("the end", || rig.gateway.metrics().in_flight == 0);
    let gone = rig.records();
    assert_eq!(gone.iter().filter(|record| record.status == 499).count(), 1);
    assert_eq!(rig.gateway.metrics().client_gone, 1);
    assert!(rig.dead().is_empty());
    for _ in 0..2 {
        assert_eq!(rig.get("/").status(), 200);
    }
}

#[test]
fn what_outlives_its_client_keeps_its_instance_busy() {
    let (rig, gate) = outliving();
    let mut client = rig.client();
    client.send(get("/slow"));
    gate.wait();
    drop(client);
    is_busy_until_it_is_over(&rig, &gate);
}

#[test]
fn an_http2_stream_that_is_reset_keeps_its_instance_busy() {
    let (rig, gate) = outliving();
    let runtime = runtime();
    runtime.block_on(async {
        let mut sender = h2(rig.address).await;
        let mut slow = std::pin::pin!(sender.send_request(post("slow")));
        let begun = async {
            while rig.gateway.metrics().in_flight == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = slow.as_mut() => panic!("it was answered"),
            () = begun => {}
        }
    });
    gate.wait();
    drop(runtime);
    is_busy_until_it_is_over(&rig, &gate);
}

#[test]
fn trailers_of_an_answer_that_outlives_its_client_are_read_over() {
    let rig = Rig::with(GatewayConfig::default(), 1, |route| {
        route.concurrency = 1;
        route.outlives_client = true;
    });
    let gate = Arc::new(Barrier::new(2));
    let g = gate.clone();
    let instance = rig.add(http_app(move |request| {
        if request.head.starts_with("GET /slow") {
            g.wait();
            g.wait();
        }
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n"
            .to_owned()
    }));
    let mut client = rig.client();
    client.send(format!(
        "GET /slow HTTP/1.1\r\nhost: {HOST}\r\nte: trailers\r\n\r\n"
    ));
    gate.wait();
    drop(client);
    let mut next = rig.client();
    next.send(get("/next"));
    wait_for("a place in the queue", || {
        rig.fakes.last_waiting.load(Ordering::SeqCst) == 1
    });
    gate.wait();
    assert_eq!(next.message().text(), "hi");
    assert_eq!(rig.gateway.metrics().client_gone, 1);
    assert_eq!(instance.connects.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answer_that_outlives_its_client_has_its_time_and_no_more() {
    let rig = Rig::new(|route| {
        route.concurrency = 1;
        route.outlives_client = true;
        route.timeout_ms = 300;
    });
    let instance = rig.add(app(|mut raw: Raw| {
        raw.message();
        raw.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
        raw.rest();
    }));
    let mut client = rig.client();
    client.send(get("/"));
    assert_eq!(client.head().unwrap().status(), 200);
    drop(client);
    wait_for("its end", || !rig.dead().is_empty());
    assert_eq!(rig.dead()[0].0, instance.id);
    wait_for("out", || rig.gateway.instance_load(instance.id) == 0);
    assert_eq!(rig.gateway.metrics().timeouts, 1);
}
