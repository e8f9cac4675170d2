//! Plain requests: routing, queue, instances, records.
#![allow(clippy::unwrap_used, reason = "helpers outside of test functions")]

mod rig;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rig::{HOST, PATIENCE, Rig, app, at, http_app, ok, refusing, revision, service, wait_for};
use skiff_base::{Clock, Monotonic, SystemClock};
use skiff_gateway::{ColdPhases, GatewayConfig};
use skiff_types::{ErrorKind, ProjectId};

#[test]
fn requests_go_to_an_instance_on_kept_connections() {
    let rig = Rig::new(|_| {});
    let instance = rig.add(http_app(|request| {
        ok(request.head.split(' ').nth(1).unwrap())
    }));
    let mut client = rig.client();
    for n in 0..20 {
        client.send(format!("GET /{n}?a=b HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let answer = client.message();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text(), format!("/{n}?a=b"));
    }
    assert_eq!(instance.connects.load(Ordering::SeqCst), 1);
    let records = rig.records();
    assert_eq!(records.len(), 20);
    for record in &records {
        assert_eq!((record.status, record.cold), (200, false));
        assert_eq!(record.revision, revision(1));
        assert_eq!(record.instance, instance.id);
        assert!(record.bytes_out >= 6);
    }
    let counts = rig.gateway.counts();
    assert_eq!(counts.len(), 1);
    assert_eq!(counts[0].requests, 20);
    assert_eq!(rig.gateway.metrics().answers_by_class[2], 20);
    assert_eq!(rig.fakes.busy.load(Ordering::SeqCst), 20);
    wait_for("idle", || rig.fakes.idle.load(Ordering::SeqCst) == 20);
}

#[test]
fn the_instance_is_told_who_asked() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| ok(&request.head)));
    let mut client = rig.client();
    client.send(format!(
        "POST http://{HOST}:8080/x HTTP/1.1\r\nhost: other\r\nconnection: x-gone\r\nx-gone: 1\r\n\
         x-forwarded-for: 6.6.6.6\r\ncontent-length: 2\r\n\r\nhi"
    ));
    let seen = client.message().text();
    let lower = seen.to_lowercase();
    assert!(seen.starts_with("POST /x HTTP/1.1\r\n"), "{seen}");
    for expected in [
        &format!("\r\nhost: {HOST}:8080\r\n"),
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "traceparent: 00-",
        "x-request-id: ",
        "content-length: 2\r\n",
    ] {
        assert_eq!(lower.matches(expected).count(), 1, "{expected} in {seen}");
    }
    assert!(
        !lower.contains("x-gone") && !lower.contains("6.6.6.6"),
        "{seen}"
    );
    assert_eq!(rig.records()[0].bytes_in, 2);
}

#[test]
fn what_nobody_serves_is_told() {
    let rig = Rig::new(|_| {});
    let ask = |bytes: &str| {
        let mut client = rig.client();
        client.send(bytes);
        let answer = client.message();
        (answer.status(), answer.text())
    };
    let (status, text) = ask("GET / HTTP/1.1\r\nhost: nobody.example:1\r\n\r\n");
    assert_eq!(status, 404);
    assert_eq!(text, "no service answers to the host `nobody.example`\n");
    assert_eq!(ask("GET / HTTP/1.1\r\n\r\n").0, 400);
    assert_eq!(ask("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").0, 400);
    assert_eq!(ask("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n").0, 405);
    assert!(rig.records().is_empty());
    rig.gateway
        .remove_service(&ProjectId::default_project(), &"hello".parse().unwrap());
    assert_eq!(rig.get("/").status(), 404);
}

#[test]
fn a_cold_request_waits_for_its_instance_and_tells_the_phases() {
    let rig = Rig::new(|_| {});
    let address = http_app(|_| ok("hello"));
    *rig.fakes.on_queued.lock().unwrap() = Some(Box::new(move |gateway, revision| {
        let decided = SystemClock.now();
        let phases = ColdPhases {
            placement_us: 100,
            image_us: 200,
            sandbox_us: 300,
            app_us: 400,
            decided,
            ready: decided.plus(Duration::from_micros(1000)),
            ..ColdPhases::default()
        };
        gateway
            .add_instance(revision, at(address), Some(phases))
            .unwrap();
    }));
    let cold = rig.get("/");
    assert_eq!(cold.status(), 200);
    let timing = cold.field("server-timing").unwrap();
    let names: Vec<_> = timing
        .split(", ")
        .map(|phase| phase.split(';').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "queue",
            "placement",
            "image",
            "sandbox",
            "app",
            "first_byte"
        ]
    );
    wait_for("the cold start", || {
        rig.fakes.cold.lock().unwrap().len() == 1
    });
    let (of, _, phases) = rig.fakes.cold.lock().unwrap()[0].clone();
    assert_eq!(of, revision(1));
    let told = &rig.fakes;
    assert_eq!(
        told.queued.load(Ordering::SeqCst),
        2,
        "one waits, then none"
    );
    assert_eq!(told.last_waiting.load(Ordering::SeqCst), 0);
    assert_eq!((phases.placement_us, phases.app_us), (100, 400));
    assert!(phases.unix_ms > 1_700_000_000_000);
    assert_ne!(phases.ready, Monotonic::default());
    assert!(rig.get("/").field("server-timing").is_none(), "warm");
    let cold: Vec<_> = rig.records().iter().map(|record| record.cold).collect();
    assert_eq!(cold, [true, false]);
}

#[test]
fn shares_and_tags_choose_the_revision() {
    let rig = Rig::new(|_| {});
    rig.gateway.put_revision(rig::route(2));
    for number in [1, 2] {
        let address = http_app(move |_| ok(&number.to_string()));
        rig.gateway
            .add_instance(&revision(number), at(address), None)
            .unwrap();
    }
    let mut split = service(vec![(revision(1), 80), (revision(2), 20)]);
    split.tags = vec![("next".parse().unwrap(), revision(2))];
    rig.gateway.put_service(&split).unwrap();
    let mut client = rig.client();
    let mut ask = |host: &str| {
        client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        client.message().text()
    };
    let twos = (0..1000).filter(|_| ask(HOST) == "2").count();
    // 20 % of 1,000, seven standard deviations either way.
    assert!((110..290).contains(&twos), "{twos}");
    assert_eq!(ask(&format!("next---{HOST}:80")), "2");
    rig.gateway
        .put_service(&service(vec![(revision(1), 100)]))
        .unwrap();
    assert!((0..50).all(|_| ask(HOST) == "1"));
    assert!(ask(&format!("next---{HOST}")).starts_with("no service"));
    let missing = rig.gateway.put_service(&service(vec![(revision(9), 100)]));
    assert!(missing.unwrap_err().to_string().contains("hello-00009"));
    assert_eq!(ask(HOST), "1", "nothing has changed");
}

#[test]
fn a_full_queue_and_a_passed_deadline_answer_503() {
    let rig = Rig::new(|route| {
        route.queue_requests = 1;
        route.queue_ms = 300;
    });
    let mut waiting = rig.client();
    waiting.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    wait_for("one waits", || rig.gateway.metrics().waiting == 1);
    let full = rig.get("/");
    assert_eq!(full.status(), 503);
    assert_eq!(full.field("retry-after"), Some("1"));
    assert!(full.text().contains("full"));
    let late = waiting.message();
    assert_eq!(late.status(), 503);
    assert_eq!(late.field("retry-after"), Some("1"));
    assert!(late.text().contains("deadline"));
    let metrics = rig.gateway.metrics();
    assert_eq!(metrics.rejected_queue_full, 1);
    assert_eq!(metrics.rejected_queue_deadline, 1);
    assert_eq!(metrics.waiting, 0);
    assert!(rig.records().is_empty());
}

#[test]
fn an_overload_is_refused_at_the_door() {
    let rig = Rig::new(|route| route.concurrency = 1);
    rig.add(http_app(|request| {
        std::thread::park_timeout(Duration::from_millis(10));
        ok(&request.head)
    }));
    rig.gateway.set_limited(&revision(1), true);
    // Twice as many come as can be served.
    let mut clients = VecDeque::new();
    wait_for("an overload", || {
        std::thread::park_timeout(Duration::from_millis(4));
        let mut client = rig.client();
        client.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
        clients.push_back(client);
        if clients.len() > 400 {
            clients.pop_front();
        }
        rig.gateway.metrics().rejected_overload > 0
    });
    let refused = clients.back_mut().unwrap().message();
    assert_eq!(refused.status(), 503);
    let seconds: u32 = refused.field("retry-after").unwrap().parse().unwrap();
    assert!(seconds >= 1);
    assert!(refused.text().contains("would wait"), "{}", refused.text());
    // An instance may be added: everybody may wait again.
    rig.gateway.set_limited(&revision(1), false);
    let before = rig.gateway.metrics().rejected_overload;
    drop(clients);
    assert_eq!(rig.get("/").status(), 200);
    assert_eq!(rig.gateway.metrics().rejected_overload, before);
}

#[test]
fn a_refused_revision_fails_what_waits() {
    let rig = Rig::new(|_| {});
    let mut waiting = rig.client();
    waiting.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    wait_for("one waits", || rig.gateway.metrics().waiting == 1);
    rig.gateway.refuse(
        &revision(1),
        "memory is short by 64 MiB",
        ErrorKind::Unavailable,
    );
    let refused = waiting.message();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.text(), "memory is short by 64 MiB\n");
    wait_for("the end of waiting", || {
        rig.fakes.queued.load(Ordering::SeqCst) == 2
    });
    assert_eq!(rig.fakes.last_waiting.load(Ordering::SeqCst), 0);
}

#[test]
fn a_client_that_leaves_the_queue_takes_no_slot() {
    let rig = Rig::new(|route| route.concurrency = 1);
    let mut gone = rig.client();
    gone.send(format!("GET /gone HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    wait_for("one waits", || rig.gateway.metrics().waiting == 1);
    drop(gone);
    wait_for("nobody waits", || rig.gateway.metrics().waiting == 0);
    rig.add(http_app(|request| ok(&request.head)));
    assert!(rig.get("/stays").text().starts_with("GET /stays"));
    assert_eq!(rig.records().len(), 1);
}

#[test]
fn a_projects_quota_answers_429() {
    let rig = Rig::new(|_| {});
    let project = ProjectId::default_project();
    rig.gateway.set_quota(&project, 1);
    let mut waiting = rig.client();
    waiting.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    wait_for("one waits", || rig.gateway.metrics().waiting == 1);
    let over = rig.get("/");
    assert_eq!(over.status(), 429);
    assert_eq!(over.field("retry-after"), Some("1"));
    rig.add(http_app(|_| ok("")));
    assert_eq!(waiting.message().status(), 200);
    wait_for("room again", || rig.get("/").status() == 200);
}

#[test]
fn concurrency_is_never_exceeded() {
    let rig = Rig::new(|route| route.concurrency = 3);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (n, m) = (now.clone(), most.clone());
    rig.add(http_app(move |_| {
        m.fetch_max(n.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        for _ in 0..100 {
            std::thread::yield_now();
        }
        n.fetch_sub(1, Ordering::SeqCst);
        ok("")
    }));
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut client = rig.client();
                for _ in 0..50 {
                    client.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
                    assert_eq!(client.message().status(), 200);
                }
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) <= 3, "{most:?}");
    assert_eq!(rig.records().len(), 600);
}

#[test]
fn an_instance_that_takes_no_connection_is_dead_and_another_serves() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|_| ok("alive")));
    let dead = rig.add(refusing());
    assert_eq!(rig.get("/").text(), "alive");
    let told = rig.dead();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, dead.id);
    assert!(told[0].1.contains("takes no connection"), "{told:?}");
    assert_eq!(rig.records().len(), 1);
    assert_eq!(rig.gateway.metrics().dead_instances, 1);
}

#[test]
fn a_draining_instance_gets_nothing_new_and_ends_when_empty() {
    let rig = Rig::new(|_| {});
    let address = app(|mut raw| {
        raw.message();
        raw.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na");
        // The second byte never comes.
        raw.rest();
    });
    let instance = rig.add(address);
    let mut client = rig.client();
    client.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    client.head().unwrap();
    assert_eq!(rig.gateway.instance_load(instance.id), 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut drained = Box::pin(rig.gateway.drain_instance(instance.id));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut drained).await;
        assert!(early.is_err(), "a request is in it");
        drop(client);
        tokio::time::timeout(PATIENCE, drained).await.unwrap();
        rig.gateway.drain_instance(instance.id).await;
    });
    assert_eq!(rig.gateway.instance_load(instance.id), 0);
    rig.add(http_app(|_| ok("other")));
    assert_eq!(rig.get("/").text(), "other");
}

#[test]
fn a_paused_instance_is_woken_before_its_request() {
    let rig = Rig::new(|_| {});
    let instance = rig.add(http_app(|_| ok("awake")));
    assert!(rig.gateway.set_paused(instance.id, true));
    assert_eq!(rig.get("/").text(), "awake");
    assert_eq!(rig.get("/").text(), "awake");
    assert_eq!(rig.fakes.woken.load(Ordering::SeqCst), 1);
    wait_for("idle", || rig.gateway.instance_load(instance.id) == 0);
    rig.fakes.wake_fails.store(1, Ordering::SeqCst);
    assert!(rig.gateway.set_paused(instance.id, true));
    let mut client = rig.client();
    client.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    wait_for("the death", || rig.dead().len() == 1);
    assert!(rig.dead()[0].1.contains("frozen for good"));
    // The request has lost nothing but time.
    rig.add(http_app(|_| ok("other")));
    assert_eq!(client.message().text(), "other");
    assert_eq!(rig.records().len(), 3);
}

#[test]
fn loads_tell_active_revisions_only() {
    let rig = Rig::new(|_| {});
    assert!(rig.gateway.loads().is_empty());
    let mut waiting = rig.client();
    waiting.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    wait_for("one waits", || rig.gateway.metrics().waiting == 1);
    let loads = rig.gateway.loads();
    assert_eq!(loads.len(), 1);
    assert_eq!((loads[0].waiting, loads[0].in_flight), (1, 0));
    rig.add(http_app(|_| ok("")));
    waiting.message();
    wait_for("silence", || rig.gateway.loads().is_empty());
}

#[test]
fn the_access_log_has_a_line_for_each_request() {
    let path = std::env::temp_dir().join(format!("skiff-access-{}", std::process::id()));
    let config = GatewayConfig {
        access_log: Some(std::fs::File::create(&path).unwrap()),
        ..GatewayConfig::default()
    };
    let rig = Rig::with(config, 1, |_| {});
    rig.add(http_app(|_| ok("hello")));
    rig.get("/a?secret=1");
    let mut other = rig.client();
    other.send("GET /b HTTP/1.1\r\nhost: none\r\n\r\n");
    assert_eq!(other.message().status(), 404);
    let read = || std::fs::read_to_string(&path).unwrap();
    wait_for("two lines", || read().lines().count() == 2);
    let text = read();
    std::fs::remove_file(&path).unwrap();
    let mut lines: Vec<Vec<_>> = text.lines().map(|l| l.split(' ').collect()).collect();
    lines.sort_by_key(|line| line[4].to_owned());
    assert_eq!(
        lines[0][1..8],
        ["127.0.0.1", "GET", HOST, "/a", "200", "0", "5"]
    );
    assert_eq!(lines[0][9], "000000000001/hello-1");
    assert_eq!(lines[1][3..6], ["none", "/b", "404"]);
}
