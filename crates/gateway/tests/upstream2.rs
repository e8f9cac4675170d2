//! Applications that speak HTTP/2, which are gRPC's among others.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers outside of test functions; tasks that end with their runtimes"
)]

mod rig;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rig::{HOST, PATIENCE, Rig, http_app, ok, wait_for};
use skiff_gateway::GatewayConfig;
use skiff_types::Protocol;
use tokio::sync::{Barrier, Notify};

type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// An application: what it does with each stream. It ends with the test's
/// process.
fn app<F>(serve: impl Fn(Asked) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    app_with(None, usize::MAX, serve)
}

/// The same that takes so many streams at once, and says after so many that
/// its connection ends.
fn app_with<F>(
    streams: Option<u32>,
    connection_ends_after: usize,
    serve: impl Fn(Asked) -> F + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let serve = serve.clone();
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    if let Some(streams) = streams {
                        builder.max_concurrent_streams(streams);
                    }
                    let mut connection = builder.handshake(stream).await.unwrap();
                    let mut taken = 0;
                    while let Some(Ok(asked)) = connection.accept().await {
                        tokio::spawn(serve(asked));
                        taken += 1;
                        if taken == connection_ends_after {
                            connection.graceful_shutdown();
                        }
                    }
                });
            }
        });
    });
    address
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Answers whole, with these trailers.
fn answer(mut respond: SendResponse<Bytes>, body: &str, trailers: &[(&'static str, &str)]) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    let body = Bytes::copy_from_slice(body.as_bytes());
    if trailers.is_empty() {
        return stream.send_data(body, true).unwrap();
    }
    stream.send_data(body, false).unwrap();
    stream.send_trailers(map(trailers)).unwrap();
}

fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
    let fields = fields.iter();
    fields
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// Sends all of it as the other side takes it.
async fn write(stream: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let room = room.unwrap().unwrap();
        let ends = room >= data.len();
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part, ends).unwrap();
    }
}

/// One service of HTTP/2 on one serving thread.
fn rig(change: impl FnOnce(&mut skiff_gateway::RevisionRoute)) -> Rig {
    Rig::with(GatewayConfig::default(), 1, |route| {
        route.protocol = Protocol::H2c;
        change(route);
    })
}

/// A client of HTTP/2.
struct Client(SendRequest<Bytes>);

impl Client {
    async fn connect(rig: &Rig) -> Self {
        let stream = tokio::net::TcpStream::connect(rig.address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move {
            // It ends with the client.
            connection.await.ok();
        });
        Self(client.ready().await.unwrap())
    }

    fn send(&mut self, path: &str, ends: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let request = Request::post(format!("http://{HOST}{path}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        self.0.send_request(request, ends).unwrap()
    }

    /// A whole exchange: status, body, trailers.
    async fn ask(&mut self, path: &str, body: &str) -> (u16, String, HeaderMap) {
        let (response, mut stream) = self.send(path, false);
        let body = Bytes::copy_from_slice(body.as_bytes());
        stream.send_data(body, true).unwrap();
        let response = response.await.unwrap();
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let text = String::from_utf8(read(&mut body).await.unwrap()).unwrap();
        let trailers = body.trailers().await.unwrap().unwrap_or_default();
        (status, text, trailers)
    }
}

/// Runs a client, with patience.
fn run<T>(work: impl Future<Output = T>) -> T {
    runtime()
        .block_on(async { tokio::time::timeout(PATIENCE, work).await })
        .expect("it ends in time")
}

#[test]
fn both_sides_stream_and_the_trailers_pass() {
    let rig = rig(|_| {});
    let heads: Arc<Mutex<Vec<Request<()>>>> = Arc::default();
    let seen = heads.clone();
    rig.add(app(move |(request, mut respond)| {
        let seen = seen.clone();
        async move {
            let (parts, mut body) = request.into_parts();
            seen.lock().unwrap().push(Request::from_parts(parts, ()));
            let mut head = Response::new(());
            *head.headers_mut() = map(&[("content-type", "application/grpc")]);
            let mut stream = respond.send_response(head, false).unwrap();
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                stream.send_data(data, false).unwrap();
            }
            let asked = body.trailers().await.unwrap().unwrap();
            let mut trailers = map(&[("grpc-status", "0"), ("grpc-message", "")]);
            trailers.insert("x-asked", asked["x-last"].clone());
            stream.send_trailers(trailers).unwrap();
        }
    }));
    run(async {
        let mut client = Client::connect(&rig).await;
        let (response, mut up) = client.send("/a.Service/Method?x", false);
        up.send_data(Bytes::from_static(b"1"), false).unwrap();
        let mut down = response.await.unwrap().into_body();
        for n in 1..10u8 {
            let got = down.data().await.unwrap().unwrap();
            assert_eq!(got, (n).to_string());
            let next = Bytes::from((n + 1).to_string());
            up.send_data(next, false).unwrap();
        }
        assert!(rig.records().is_empty(), "it is still a request");
        up.send_trailers(map(&[("x-last", "said")])).unwrap();
        assert_eq!(read(&mut down).await.unwrap(), b"10");
        let trailers = down.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["grpc-message"], "");
        assert_eq!(trailers["x-asked"], "said");
    });
    let records = rig.records();
    assert_eq!((records[0].bytes_in, records[0].bytes_out), (11, 11));
    assert_eq!(records[0].status, 200);
    let head = heads.lock().unwrap().remove(0);
    assert_eq!(
        head.uri().to_string(),
        format!("http://{HOST}/a.Service/Method?x")
    );
    assert_eq!(head.headers()["te"], "trailers");
    assert_eq!(head.headers()["x-forwarded-for"], "127.0.0.1");
    assert!(head.headers().contains_key("traceparent"));
    for gone in ["host", "connection", "transfer-encoding"] {
        assert!(!head.headers().contains_key(gone), "{gone}");
    }
}

#[test]
fn an_answer_may_be_trailers_alone() {
    let rig = rig(|_| {});
    rig.add(app(async |(_, mut respond): Asked| {
        let mut head = Response::new(());
        *head.headers_mut() = map(&[("grpc-status", "12")]);
        respond.send_response(head, true).unwrap();
    }));
    run(async {
        let mut client = Client::connect(&rig).await;
        let (response, _up) = client.send("/", true);
        let response = response.await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "12");
        assert!(response.body().is_end_stream());
    });
    assert_eq!(rig.records().len(), 1);
}

#[test]
fn clients_of_http_1_are_served_with_trailers_for_those_who_take_them() {
    let rig = rig(|_| {});
    rig.add(app(async |(mut request, respond): Asked| {
        let body = read(request.body_mut()).await.unwrap();
        let method = request.method().as_str();
        match request.uri().path() {
            "/length" => {
                let mut respond = respond;
                let mut head = Response::new(());
                *head.headers_mut() = map(&[("content-length", "5")]);
                let ends = method == "HEAD";
                let mut stream = respond.send_response(head, ends).unwrap();
                if !ends {
                    stream
                        .send_data(Bytes::from_static(b"hello"), true)
                        .unwrap();
                }
            }
            _ => {
                let text = format!("{method} {}", String::from_utf8(body).unwrap());
                answer(
                    respond,
                    &text,
                    &[("grpc-status", "0"), ("content-type", "no")],
                );
            }
        }
    }));
    let mut client = rig.client();
    let head = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\n");
    client.send(format!(
        "{head}te: trailers\r\nconnection: te\r\ncontent-length: 2\r\n\r\nhi"
    ));
    let told = client.message();
    assert_eq!((told.status(), &*told.text()), (200, "POST hi"));
    assert_eq!(told.trailers, "grpc-status: 0\r\n");
    client.send(format!(
        "{head}transfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    ));
    let told = client.message();
    assert_eq!((&*told.text(), &*told.trailers), ("POST ab", ""));
    client.send(format!("GET /length HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    let told = client.message();
    assert_eq!(
        (told.field("content-length"), &*told.text()),
        (Some("5"), "hello")
    );
    client.send(format!("HEAD /length HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    assert_eq!(client.head().unwrap().field("content-length"), Some("5"));
    // A switch of protocols is not among what HTTP/2 has.
    client.send(format!(
        "{head}connection: upgrade\r\nupgrade: x\r\ncontent-length: 0\r\n\r\n"
    ));
    assert_eq!(client.message().text(), "POST ");
    assert_eq!(rig.records().len(), 5);
}

#[test]
fn requests_share_a_connection_and_none_is_over_the_concurrency() {
    let rig = rig(|route| route.concurrency = 8);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (n, m) = (now.clone(), most.clone());
    let full = Arc::new(Barrier::new(8));
    let instance = rig.add(app(move |(request, respond)| {
        let (now, most, full) = (n.clone(), m.clone(), full.clone());
        async move {
            if request.uri().path() == "/first" {
                return answer(respond, "done", &[]);
            }
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            full.wait().await;
            now.fetch_sub(1, Ordering::SeqCst);
            answer(respond, "done", &[]);
        }
    }));
    run(async {
        let mut client = Client::connect(&rig).await;
        // After it the gateway knows how many streams the instance takes.
        assert_eq!(client.ask("/first", "").await.0, 200);
        let asked: Vec<_> = (0..24).map(|_| client.send("/", true)).collect();
        for (response, _up) in asked {
            assert_eq!(response.await.unwrap().status(), 200);
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), 8);
    assert_eq!(instance.connects.load(Ordering::SeqCst), 1);
}

#[test]
fn no_connection_has_more_streams_than_the_instance_takes() {
    let rig = rig(|route| route.concurrency = 6);
    let full = Arc::new(Barrier::new(6));
    let instance = rig.add(app_with(Some(2), usize::MAX, move |(_, respond)| {
        let full = full.clone();
        async move {
            full.wait().await;
            answer(respond, "done", &[]);
        }
    }));
    run(async {
        let mut client = Client::connect(&rig).await;
        let asked: Vec<_> = (0..6).map(|_| client.send("/", true)).collect();
        for (response, _up) in asked {
            assert_eq!(response.await.unwrap().status(), 200);
        }
    });
    assert!(instance.connects.load(Ordering::SeqCst) >= 3);
    assert_eq!(rig.gateway.metrics().retries, 0);
}

#[test]
fn a_client_that_resets_a_stream_ends_that_request_alone() {
    let rig = rig(|_| {});
    let reset: Arc<Mutex<Option<Reason>>> = Arc::default();
    let (r, go) = (reset.clone(), Arc::new(Notify::new()));
    let g = go.clone();
    let instance = rig.add(app(move |(request, mut respond)| {
        let (reset, go) = (r.clone(), g.clone());
        async move {
            if request.uri().path() == "/left" {
                let head = respond.send_response(Response::new(()), false);
                let mut stream = head.unwrap();
                let why = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
                *reset.lock().unwrap() = Some(why.unwrap());
                go.notify_one();
                return;
            }
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream
                .send_data(Bytes::from_static(b"before, "), false)
                .unwrap();
            go.notified().await;
            stream
                .send_data(Bytes::from_static(b"after"), true)
                .unwrap();
        }
    }));
    run(async {
        let mut client = Client::connect(&rig).await;
        let (stays, _up) = client.send("/stays", true);
        let mut stays = stays.await.unwrap().into_body();
        let (left, mut up) = client.send("/left", false);
        let left = left.await.unwrap();
        up.send_reset(Reason::CANCEL);
        drop((left, up));
        assert_eq!(read(&mut stays).await.unwrap(), b"before, after");
    });
    assert_eq!(*reset.lock().unwrap(), Some(Reason::CANCEL));
    assert_eq!(instance.connects.load(Ordering::SeqCst), 1);
    assert!(rig.dead().is_empty());
    wait_for("both records", || rig.records().len() == 2);
}

#[test]
fn time_that_runs_out_resets_the_stream_and_at_concurrency_one_ends_the_instance() {
    for (concurrency, dead) in [(10, 0), (1, 1)] {
        let rig = rig(|route| {
            route.concurrency = concurrency;
            route.timeout_ms = 300;
        });
        let reset: Arc<Mutex<Option<Reason>>> = Arc::default();
        let r = reset.clone();
        let instance = rig.add(app(move |(request, mut respond)| {
            let reset = r.clone();
            async move {
                if request.uri().path() == "/" {
                    return answer(respond, "quick", &[]);
                }
                let why = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                *reset.lock().unwrap() = Some(why.unwrap());
            }
        }));
        run(async {
            let mut client = Client::connect(&rig).await;
            let (status, text, _) = client.ask("/hang", "").await;
            assert_eq!(status, 504, "{text}");
        });
        wait_for("the reset", || {
            *reset.lock().unwrap() == Some(Reason::CANCEL)
        });
        assert_eq!(rig.dead().len(), dead);
        if dead == 0 {
            // Whether the connection is to blame nobody knows.
            wait_for("an answer", || rig.get("/").text() == "quick");
            assert!(instance.connects.load(Ordering::SeqCst) > 1);
        }
    }
}

#[test]
fn what_is_refused_unprocessed_is_sent_again_and_nothing_else() {
    let rig = rig(|_| {});
    let calls = Arc::new(AtomicUsize::new(0));
    let c = calls.clone();
    rig.add(app(move |(mut request, mut respond)| {
        let call = c.fetch_add(1, Ordering::SeqCst);
        async move {
            match request.uri().path() {
                "/broken" => respond.send_reset(Reason::INTERNAL_ERROR),
                "/always" => respond.send_reset(Reason::REFUSED_STREAM),
                _ if call < 2 => respond.send_reset(Reason::REFUSED_STREAM),
                _ => {
                    let body = read(request.body_mut()).await.unwrap();
                    answer(respond, std::str::from_utf8(&body).unwrap(), &[]);
                }
            }
        }
    }));
    run(async {
        let mut client = Client::connect(&rig).await;
        let (status, text, _) = client.ask("/", "the body").await;
        assert_eq!((status, &*text), (200, "the body"));
        assert_eq!(calls.swap(10, Ordering::SeqCst), 3);
        let (status, text, _) = client.ask("/broken", "x").await;
        assert_eq!(status, 502, "{text}");
        assert_eq!(calls.swap(10, Ordering::SeqCst), 11);
        // As many instances are tried as for any request.
        let (status, text, _) = client.ask("/always", "x").await;
        assert_eq!(status, 503, "{text}");
        assert_eq!(calls.load(Ordering::SeqCst), 14);
        // A client of HTTP/1.1, too.
        calls.store(0, Ordering::SeqCst);
    });
    let mut client = rig.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\nbody"
    ));
    let told = client.message();
    assert_eq!((told.status(), &*told.text()), (200, "body"));
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let statuses: Vec<_> = rig.records().iter().map(|record| record.status).collect();
    assert_eq!(statuses, [200, 502, 200]);
    assert!(rig.dead().is_empty());
}

#[test]
fn a_connection_that_is_going_away_takes_no_further_requests() {
    let rig = rig(|_| {});
    let instance = rig.add(app_with(None, 1, async |(mut request, respond): Asked| {
        let body = read(request.body_mut()).await.unwrap();
        answer(respond, std::str::from_utf8(&body).unwrap(), &[]);
    }));
    run(async {
        let mut client = Client::connect(&rig).await;
        for n in 0..10 {
            let body = n.to_string();
            let (status, text, _) = client.ask("/", &body).await;
            assert_eq!((status, text), (200, body));
        }
    });
    assert_eq!(rig.records().len(), 10);
    assert!(instance.connects.load(Ordering::SeqCst) > 1);
}

#[test]
fn large_bodies_pass_both_ways_as_they_are_taken() {
    let rig = rig(|_| {});
    rig.add(app(async |(request, mut respond): Asked| {
        let mut body = request.into_body();
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        let all = read(&mut body).await.unwrap();
        write(&mut stream, all.into()).await;
    }));
    let body: Vec<u8> = (0..4 << 20)
        .map(|n: u32| n.to_le_bytes()[n as usize % 3])
        .collect();
    let sent = Bytes::from(body.clone());
    let got = run(async {
        let mut client = Client::connect(&rig).await;
        let (response, mut up) = client.send("/", false);
        let mut down = response.await.unwrap().into_body();
        write(&mut up, sent).await;
        read(&mut down).await.unwrap()
    });
    assert!(got == body, "{} bytes of {}", got.len(), body.len());
}

#[test]
fn one_who_does_not_read_holds_nobody_else_up() {
    let rig = rig(|route| route.concurrency = 100);
    let instance = rig.add(app(async |(_, mut respond): Asked| {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        write(&mut stream, vec![b'x'; 1 << 20].into()).await;
    }));
    run(async {
        let mut lazy = Client::connect(&rig).await;
        let mut held = Vec::new();
        for _ in 0..20 {
            let (response, up) = lazy.send("/", true);
            held.push((response.await.unwrap(), up));
        }
        let mut client = Client::connect(&rig).await;
        for _ in 0..20 {
            let (response, _up) = client.send("/", true);
            let mut body = response.await.unwrap().into_body();
            assert_eq!(read(&mut body).await.unwrap().len(), 1 << 20);
        }
        drop(held);
    });
    assert_eq!(instance.connects.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_no_http_2_is_told() {
    let rig = rig(|_| {});
    rig.add(http_app(|_| ok("in HTTP/1.1")));
    let told = rig.get("/");
    assert_eq!(told.status(), 502);
    assert!(told.text().contains("HTTP/2"), "{}", told.text());
    assert!(rig.dead().is_empty());
    rig.add(rig::refusing());
    wait_for("the dead one", || {
        rig.get("/");
        rig.dead().len() == 1
    });
}

#[test]
fn a_drain_waits_for_streams_and_not_for_connections() {
    let rig = rig(|_| {});
    let go = Arc::new(Notify::new());
    let g = go.clone();
    rig.add(app(move |(request, respond)| {
        let go = g.clone();
        async move {
            if request.uri().path() == "/waits" {
                go.notified().await;
            }
            answer(respond, "done", &[]);
        }
    }));
    assert_eq!(rig.get("/").text(), "done");
    let mut client = rig.client();
    client.send(format!("GET /waits HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    wait_for("the stream", || rig.gateway.metrics().in_flight == 1);
    let fakes = rig.fakes.clone();
    let drained = std::thread::spawn(move || rig.drain(PATIENCE * 4));
    go.notify_one();
    assert_eq!(client.message().text(), "done");
    drop(client);
    assert_eq!(drained.join().unwrap(), Ok(()));
    assert_eq!(fakes.requests.lock().unwrap().len(), 2);
}

/// Long enough to be seen, short enough to be waited for.
const UNUSED: Duration = Duration::from_millis(300);

#[test]
fn a_connection_that_nobody_uses_is_closed() {
    let config = GatewayConfig {
        upstream_idle_timeout: UNUSED,
        ..GatewayConfig::default()
    };
    let rig = Rig::with(config, 1, |route| route.protocol = Protocol::H2c);
    let instance = rig.add(app(async |(_, respond): Asked| {
        answer(respond, "done", &[])
    }));
    assert_eq!(rig.get("/").text(), "done");
    wait_for("another connection", || {
        std::thread::park_timeout(UNUSED * 3);
        assert_eq!(rig.get("/").text(), "done");
        instance.connects.load(Ordering::SeqCst) > 1
    });
}
