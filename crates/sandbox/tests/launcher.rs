//! The client and the class `container` over it, against a launcher that
//! behaves well and ones that do not.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{
    Act, FakeLauncher, PATIENCE, exit, exited, id, obey, refuse, reply, reply_with, server, spec,
};
use skiff_sandbox::{
    Backend, ContainerBackend, Exits, LauncherClient, LauncherError, LayerFile, SandboxError,
};
use skiff_types::Digest;
use skiff_wire::launcher::{Answer, Envelope, Listed, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

async fn client(socket: OwnedFd) -> LauncherClient {
    LauncherClient::over(socket, server(), Exits::default())
        .await
        .unwrap()
}

async fn backend(socket: OwnedFd) -> ContainerBackend {
    ContainerBackend::new(client(socket).await)
}

async fn eventually(what: &str, state: impl Fn() -> bool) {
    let reached = async {
        while !state() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(PATIENCE, reached).await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn concurrent_creations_share_the_request_for_a_layer() {
    let content = Arc::new(std::sync::Mutex::new(String::new()));
    let seen = content.clone();
    let (launcher, socket) = FakeLauncher::start(move |envelope, fds| {
        if matches!(envelope.request, Request::AddLayer { .. }) {
            let mut file = std::fs::File::from(fds.into_iter().next().unwrap());
            file.read_to_string(&mut seen.lock().unwrap()).unwrap();
        }
        obey(envelope)
    });
    let backend = backend(socket).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.erofs");
    std::fs::write(&path, "a layer").unwrap();
    let layer = LayerFile {
        digest: Digest::from_sha256([1; 32]),
        path,
    };
    let creations = (0..50).map(|number| {
        let mut spec = spec(id(number));
        spec.layers = vec![layer.clone()];
        backend.create(spec)
    });
    for created in futures_util::future::join_all(creations).await {
        let created = created.unwrap();
        assert_eq!(created.steps_us, [("exec".to_owned(), 7)]);
        assert!(created.output.is_some());
    }
    let added = |request: &Request| matches!(request, Request::AddLayer { .. });
    assert_eq!(launcher.count(added), 1);
    assert_eq!(content.lock().unwrap().as_str(), "a layer");
    backend.release(&layer.digest).await.unwrap();
    backend.prepare(std::slice::from_ref(&layer)).await.unwrap();
    assert_eq!(launcher.count(added), 2);
    let missing = LayerFile {
        digest: Digest::from_sha256([2; 32]),
        path: "/no/such/layer".into(),
    };
    let error = backend.prepare(&[missing]).await.unwrap_err();
    assert!(matches!(error, SandboxError::Layer { .. }));
}

#[tokio::test]
async fn a_refusal_keeps_the_step_and_the_words() {
    let (_launcher, socket) = FakeLauncher::start(|envelope, _| match envelope.request {
        Request::Create(_) => vec![refuse(envelope.id, "exec", "no such file")],
        _ => obey(envelope),
    });
    let backend = backend(socket).await;
    let error = backend.create(spec(id(1))).await.unwrap_err();
    let SandboxError::Refused { step, message, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((step.as_str(), message.as_str()), ("exec", "no such file"));
}

#[tokio::test]
async fn an_exit_counts_whenever_it_is_told() {
    let (_launcher, socket) = FakeLauncher::start(|envelope, _| match &envelope.request {
        // Before anybody can know that the sandbox exists.
        Request::Create(spec) => {
            let mut acts = vec![exited(spec.sandbox, exit(3))];
            acts.extend(obey(envelope));
            acts
        }
        _ => obey(envelope),
    });
    let backend = backend(socket).await;
    let sandbox = backend.create(spec(id(1))).await.unwrap().sandbox;
    assert_eq!(timeout(PATIENCE, sandbox.exited()).await.unwrap(), exit(3));
    sandbox.destroy().await.unwrap();
    assert_eq!(sandbox.exited().await, exit(3));
}

#[tokio::test]
async fn a_creation_that_nobody_waits_for_is_undone() {
    let go = Arc::new(AtomicBool::new(false));
    let wait = go.clone();
    let (launcher, socket) = FakeLauncher::start(move |envelope, _| {
        while matches!(envelope.request, Request::Create(_)) && !wait.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        obey(envelope)
    });
    let backend = backend(socket).await;
    {
        let mut create = Box::pin(backend.create(spec(id(1))));
        let asked = eventually("it is asked", || {
            launcher.count(|request| matches!(request, Request::Create(_))) == 1
        });
        tokio::select! {
            _ = &mut create => panic!("nobody answered"),
            () = asked => {}
        }
    }
    go.store(true, Ordering::SeqCst);
    let undone =
        |request: &Request| matches!(request, Request::Destroy { sandbox } if *sandbox == id(1));
    eventually("it is undone", || launcher.count(undone) == 1).await;
}

#[tokio::test]
async fn connections_reach_the_application_once_it_listens() {
    let (launcher, socket) = FakeLauncher::obedient();
    let backend = backend(socket).await;
    let sandbox = backend.create(spec(id(1))).await.unwrap().sandbox;
    // Holds its port without listening yet.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let port = bound.local_addr().unwrap().port();
    for _ in 0..100 {
        let error = sandbox.connect(port).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let sockets = |request: &Request| matches!(request, Request::Sockets { .. });
    assert_eq!(launcher.count(sockets), 1, "a refused socket is used again");
    let listener = bound.listen(16).unwrap();
    let mut near = sandbox.connect(port).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    near.write_all(b"hello").await.unwrap();
    let mut buffer = [0; 5];
    far.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello");
    for _ in 0..10 {
        assert!(sandbox.connect(port).await.is_ok());
    }
    assert!(launcher.count(sockets) <= 3);
}

#[tokio::test]
async fn a_sandbox_gives_the_sockets_its_calls_arrive_at() {
    let asked = std::sync::atomic::AtomicU8::new(2);
    let (_launcher, socket) = FakeLauncher::start(move |envelope, _| match envelope.request {
        Request::Listeners { sandbox } => {
            // Two at first, which is one too few.
            let count = asked.fetch_add(1, Ordering::SeqCst);
            let request = Request::Sockets { sandbox, count };
            let id = envelope.id;
            obey(&Envelope { id, request })
        }
        _ => obey(envelope),
    });
    let backend = backend(socket).await;
    let sandbox = backend.create(spec(id(1))).await.unwrap().sandbox;
    assert!(sandbox.listeners().await.is_err());
    assert!(sandbox.listeners().await.unwrap().is_some());
}

#[tokio::test]
async fn calls_come_from_any_runtime() {
    let (_launcher, socket) = FakeLauncher::obedient();
    let client = client(socket).await;
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    for number in 0..250 {
                        let sandbox = id(number);
                        let request = Request::Sockets { sandbox, count: 2 };
                        let (_, fds) = client.call(request, vec![]).await.unwrap();
                        assert_eq!(fds.len(), 2);
                    }
                });
            })
        })
        .collect();
    eventually("all are done", || threads.iter().all(|t| t.is_finished())).await;
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

/// What a broken launcher does on `Stats`, and a word of the reason given.
async fn breaks(act: impl Fn(&Envelope) -> Vec<Act> + Send + 'static, reason: &str) {
    let (_launcher, socket) = FakeLauncher::start(move |envelope, _| match envelope.request {
        Request::Stats { .. } => act(envelope),
        // Never answered: it is pending when the connection breaks.
        Request::Freeze { .. } => vec![],
        _ => obey(envelope),
    });
    let client = client(socket).await;
    let backend = ContainerBackend::new(client.clone());
    let sandbox = backend.create(spec(id(1))).await.unwrap().sandbox;
    let pending = sandbox.pause();
    let (paused, stats) = futures_util::future::join(pending, sandbox.stats()).await;
    assert!(matches!(paused, Err(SandboxError::Launcher(_))), "{reason}");
    assert!(matches!(stats, Err(SandboxError::Launcher(_))), "{reason}");
    let why = timeout(PATIENCE, client.closed()).await.unwrap();
    assert!(why.contains(reason), "{why}");
    assert!(client.is_closed());
    let later = client.list().await.unwrap_err();
    assert!(matches!(later, LauncherError::Closed(_)), "{later:?}");
}

#[tokio::test]
async fn a_broken_connection_fails_everything_that_waits() {
    breaks(|_| vec![Act::Close], "was closed").await;
    breaks(
        |_| vec![Act::Raw(b"\x01garbage\xff".to_vec(), vec![])],
        "message that is due",
    )
    .await;
    breaks(|_| vec![Act::Raw(vec![9, 0, 0], vec![])], "version 9").await;
    breaks(
        |envelope| vec![reply(envelope.id + 500, Reply::Done)],
        "a reply to no request",
    )
    .await;
    let trailing = |envelope: &Envelope| {
        let answer = Answer::Reply {
            id: envelope.id,
            result: Ok(Reply::Done),
        };
        let mut frame = skiff_wire::encode(&answer).unwrap();
        frame.push(0);
        vec![Act::Raw(frame, vec![])]
    };
    breaks(trailing, "behind its message").await;
}

#[tokio::test]
async fn a_launcher_of_another_server_is_refused() {
    let (_launcher, socket) = FakeLauncher::start(|envelope, _| {
        vec![refuse(
            envelope.id,
            "hello",
            "this launcher serves another server",
        )]
    });
    let error = LauncherClient::over(socket, server(), Exits::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("serves another server"));
}

fn listed(number: u32) -> Listed {
    Listed {
        sandbox: id(number),
        label: vec![7; 10],
        exit: (number == 3).then(|| exit(4)),
        frozen: number == 2,
        monitor: false,
    }
}

/// Pages of two.
fn list_pages(envelope: &Envelope, all: &[u32]) -> Vec<Act> {
    let Request::List { after } = envelope.request else {
        return obey(envelope);
    };
    let rest = all.iter().filter(|n| Some(id(**n)) > after);
    let page = rest.take(2).map(|n| listed(*n)).collect();
    vec![reply(envelope.id, Reply::List(page))]
}

#[tokio::test]
async fn everything_that_is_there_is_adopted() {
    let (_launcher, socket) =
        FakeLauncher::start(|envelope, _| list_pages(envelope, &[1, 2, 3, 4, 5]));
    let backend = backend(socket).await;
    let mut found = backend.adopt().await.unwrap();
    found.sort_by_key(|found| found.created.sandbox.id());
    assert_eq!(found.len(), 5);
    assert!(
        found
            .iter()
            .all(|f| f.label == [7; 10] && f.created.output.is_some())
    );
    let paused: Vec<bool> = found.iter().map(|f| f.created.paused).collect();
    assert_eq!(paused, [false, true, false, false, false]);
    assert_eq!(found[2].created.sandbox.exited().await, exit(4));
}

#[tokio::test]
async fn a_list_that_never_ends_is_refused() {
    let (_launcher, socket) = FakeLauncher::start(|envelope, _| match envelope.request {
        Request::List { .. } => vec![reply(envelope.id, Reply::List(vec![listed(1)]))],
        _ => obey(envelope),
    });
    let error = client(socket).await.list().await.unwrap_err();
    assert!(matches!(error, LauncherError::Unexpected { .. }));
}

#[tokio::test]
async fn a_new_connection_tells_who_is_gone_and_removes_strangers() {
    let (_first, socket) = FakeLauncher::obedient();
    let exits = Exits::default();
    let old = LauncherClient::over(socket, server(), exits.clone())
        .await
        .unwrap();
    let backend = ContainerBackend::new(old);
    let stays = backend.create(spec(id(1))).await.unwrap().sandbox;
    let goes = backend.create(spec(id(9))).await.unwrap().sandbox;
    let (second, socket) = FakeLauncher::start(|envelope, _| match envelope.request {
        Request::Freeze { sandbox } => {
            let mut acts = obey(envelope);
            acts.push(exited(sandbox, exit(5)));
            acts
        }
        _ => list_pages(envelope, &[1, 2]),
    });
    let new = LauncherClient::over(socket, server(), exits).await.unwrap();
    backend.reconnect(new).await.unwrap();
    let gone = timeout(PATIENCE, goes.exited()).await.unwrap();
    assert_eq!((gone.code, gone.signal), (None, None));
    let stranger =
        |request: &Request| matches!(request, Request::Destroy { sandbox } if *sandbox == id(2));
    assert_eq!(second.count(stranger), 1);
    assert_eq!(second.count(|r| matches!(r, Request::Destroy { .. })), 1);
    stays.pause().await.unwrap();
    assert_eq!(timeout(PATIENCE, stays.exited()).await.unwrap(), exit(5));
}

#[tokio::test]
async fn the_longest_frames_pass_both_ways() {
    let (_launcher, socket) = FakeLauncher::start(|envelope, _| match &envelope.request {
        Request::Create(_) => {
            let steps_us = (0..25_000).map(|n| ("12345".to_owned(), n)).collect();
            vec![reply_with(envelope.id, Reply::Created { steps_us }, vec![])]
        }
        _ => obey(envelope),
    });
    let backend = backend(socket).await;
    let mut long = spec(id(1));
    long.process.env = vec!["x".repeat(200 * 1024)];
    let created = backend.create(long).await.unwrap();
    assert_eq!(created.steps_us.len(), 25_000);
    let mut too_long = spec(id(2));
    too_long.process.env = vec!["x".repeat(300 * 1024)];
    let error = backend.create(too_long).await.unwrap_err();
    assert!(error.to_string().contains("over the limit"), "{error}");
}

#[tokio::test]
async fn a_launcher_that_is_just_starting_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("launcher.sock");
    let connecting = LauncherClient::connect(&path, server(), Exits::default());
    let listening = async {
        tokio::task::yield_now().await;
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        tokio::task::spawn_blocking(move || rustix::net::accept(&socket).unwrap())
            .await
            .unwrap()
    };
    // Accepted, and closed without a word.
    let accepted = async { drop(listening.await) };
    let (connected, ()) = futures_util::future::join(connecting, accepted).await;
    assert!(matches!(connected, Err(LauncherError::Closed(_))));
}
