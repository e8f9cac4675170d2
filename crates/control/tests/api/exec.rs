//! A process in an instance, over an upgraded connection.

use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skiff_control::port::{ExecEnd, ExecPlace, ExecProcess, Executed, PortError};
use skiff_types::api::ExecTerminal;
use skiff_types::{ErrorKind, InstanceId};
use skiff_wire::exec::{Frame, HEAD_BYTES, Head, WINDOW_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::support::*;

const PATH: &str = "/v1/projects/default/exec";

/// A process as the test plays it.
struct Played {
    input: DuplexStream,
    output: DuplexStream,
    errors: Option<DuplexStream>,
    end: watch::Sender<Option<ExecEnd>>,
    sizes: Arc<Mutex<Vec<ExecTerminal>>>,
}

#[derive(Debug)]
struct Process {
    end: watch::Receiver<Option<ExecEnd>>,
    sizes: Arc<Mutex<Vec<ExecTerminal>>>,
}

impl ExecProcess for Process {
    fn resize(&self, size: ExecTerminal) -> BoxFuture<'_, Result<(), PortError>> {
        self.sizes.lock().unwrap().push(size);
        async { Ok(()) }.boxed()
    }

    fn exited(&self) -> BoxFuture<'_, ExecEnd> {
        let mut end = self.end.clone();
        async move {
            let known = end.wait_for(Option::is_some).await;
            known.ok().and_then(|end| *end).unwrap_or(ExecEnd::Unknown)
        }
        .boxed()
    }
}

impl Played {
    /// The next process that the server is given.
    fn next(server: &Server, terminal: bool) -> Self {
        let (input, to_input) = duplex(16);
        let (output, from_output) = duplex(1024);
        let (errors, from_errors) = duplex(1024);
        let (end, ended) = watch::channel(None);
        let sizes = Arc::<Mutex<Vec<ExecTerminal>>>::default();
        let executed = Executed {
            instance: InstanceId::from_parts(1, 1),
            process: Box::new(Process {
                end: ended,
                sizes: Arc::clone(&sizes),
            }),
            input: Box::new(to_input),
            output: Box::new(from_output),
            errors: (!terminal).then(|| Box::new(from_errors) as _),
        };
        *server.fleet.exec.lock().unwrap() = Some(Ok(executed));
        Self {
            input,
            output,
            errors: (!terminal).then_some(errors),
            end,
            sizes,
        }
    }

    /// Waits until the server has let go of it.
    async fn dropped(&self) {
        tokio::time::timeout(PATIENCE, self.end.closed())
            .await
            .unwrap();
    }
}

/// A client's connection, upgraded.
struct Client(UnixStream);

impl Client {
    async fn connect(server: &Server, body: Value) -> Self {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        let body = body.to_string();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: skiff\r\nconnection: upgrade\r\n\
             upgrade: skiff-exec\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
            answer.push(byte.unwrap().unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("upgrade: skiff-exec\r\n"), "{answer}");
        Self(stream)
    }

    async fn send(&mut self, frame: Frame) {
        let bytes = frame.encode().unwrap();
        self.0.write_all(&bytes).await.unwrap();
    }

    /// The next frame that is no sign of life; none at the end.
    async fn next(&mut self) -> Option<Frame> {
        let read = async {
            loop {
                let mut head = [0; HEAD_BYTES];
                self.0.read_exact(&mut head).await.ok()?;
                let head = Head::parse(head).unwrap();
                let mut payload = vec![0; head.length];
                self.0.read_exact(&mut payload).await.ok()?;
                match Frame::decode(head, payload).unwrap() {
                    Frame::Alive => {}
                    frame => return Some(frame),
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap()
    }
}

fn in_service() -> Value {
    json!({"service": "hello", "command": ["sh", "-c", "true"]})
}

#[tokio::test]
async fn its_streams_and_its_end_go_through() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let mut played = Played::next(&server, false);
    let body = json!({"service": "hello", "command": ["cat"], "env": ["A=b=c"],
        "workdir": "/tmp"});
    let mut client = Client::connect(&server, body).await;
    let wish = server.fleet.execs.lock().unwrap().pop().unwrap();
    assert_eq!(wish.place, ExecPlace::Service("hello".parse().unwrap()));
    assert_eq!(
        (&*wish.command, &*wish.env),
        (&["cat".to_owned()][..], &["A=b=c".to_owned()][..])
    );
    assert_eq!(
        (wish.workdir.as_deref(), wish.terminal),
        (Some("/tmp"), None)
    );

    client.send(Frame::Input(b"words".to_vec())).await;
    let mut words = [0; 5];
    played.input.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"words");
    assert_eq!(client.next().await, Some(Frame::Taken(5)));
    client.send(Frame::InputEnd).await;
    assert_eq!(played.input.read(&mut words).await.unwrap(), 0);

    played.output.write_all(b"out").await.unwrap();
    assert_eq!(client.next().await, Some(Frame::Output(b"out".to_vec())));
    let mut errors = played.errors.take().unwrap();
    errors.write_all(b"err").await.unwrap();
    assert_eq!(client.next().await, Some(Frame::Errors(b"err".to_vec())));
    played.output.write_all(b"last").await.unwrap();
    played.end.send_replace(Some(ExecEnd::Exited(7)));
    assert_eq!(client.next().await, Some(Frame::Output(b"last".to_vec())));
    // Its errors stay open, as by a process that it has left behind.
    assert_eq!(client.next().await, Some(Frame::Exited(7)));
    assert_eq!(client.next().await, None);
    played.dropped().await;
    drop(errors);
}

#[tokio::test]
async fn a_terminal_has_a_size_and_no_end_of_input() {
    let server = World::new().start().await;
    let mut played = Played::next(&server, true);
    let body = json!({"instance": InstanceId::from_parts(1, 7), "command": ["sh"],
        "terminal": {"columns": 80, "rows": 24}});
    let mut client = Client::connect(&server, body).await;
    let wish = server.fleet.execs.lock().unwrap().pop().unwrap();
    assert_eq!(
        wish.place,
        ExecPlace::Instance(InstanceId::from_parts(1, 7))
    );
    let size = |columns, rows| ExecTerminal { columns, rows };
    assert_eq!(wish.terminal, Some(size(80, 24)));
    client.send(Frame::InputEnd).await;
    client
        .send(Frame::Resize {
            columns: 81,
            rows: 25,
        })
        .await;
    until("its size", || {
        *played.sizes.lock().unwrap() == [size(81, 25)]
    })
    .await;
    // The input is still there.
    played.output.write_all(b"$ ").await.unwrap();
    assert_eq!(client.next().await, Some(Frame::Output(b"$ ".to_vec())));
    assert_eq!(
        played
            .input
            .read_u8()
            .now_or_never()
            .map(|read| read.is_ok()),
        None
    );
    drop(played.output);
    played.end.send_replace(Some(ExecEnd::Killed(9)));
    assert_eq!(client.next().await, Some(Frame::Killed(9)));
}

#[tokio::test]
async fn it_ends_with_its_client_and_with_what_is_no_clients() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let played = Played::next(&server, false);
    drop(Client::connect(&server, in_service()).await);
    played.dropped().await;

    let wrong: [&[u8]; 4] = [
        &Frame::Output(vec![1]).encode().unwrap(),
        b"\x09\0\0\0\0",
        b"\x00\xff\xff\xff\xff",
        &[
            Frame::InputEnd.encode().unwrap(),
            Frame::Input(vec![1]).encode().unwrap(),
        ]
        .concat(),
    ];
    for bytes in wrong {
        let played = Played::next(&server, false);
        let mut client = Client::connect(&server, in_service()).await;
        client.0.write_all(bytes).await.unwrap();
        played.dropped().await;
        while client.next().await.is_some() {}
    }
}

#[tokio::test]
async fn input_that_is_not_taken_is_bounded() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    // It takes nothing, so that 16 bytes at most are gone from the window.
    let played = Played::next(&server, false);
    let mut client = Client::connect(&server, in_service()).await;
    for _ in 0..4 {
        client.send(Frame::Input(vec![0; WINDOW_BYTES / 4])).await;
    }
    client
        .send(Frame::Resize {
            columns: 1,
            rows: 1,
        })
        .await;
    until("what follows to be heard", || {
        played.sizes.lock().unwrap().len() == 1
    })
    .await;
    client.send(Frame::Input(vec![0; 64])).await;
    played.dropped().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_it_begins() {
    let server = World::new().start().await;
    let headers = [("connection", "upgrade"), ("upgrade", "skiff-exec")];
    let ask = async |headers: &[(&str, &str)], body: Value| {
        let body = body.to_string().into();
        send(server.connect().await, "POST", PATH, headers, body).await
    };
    ask(&headers, in_service()).await.is(404).says("hello");
    server.deployed("hello", 1).await;
    ask(&headers, in_service())
        .await
        .is(409)
        .says("no instance runs");
    let refused = PortError::new(ErrorKind::Failed, "sh is not there");
    *server.fleet.exec.lock().unwrap() = Some(Err(refused));
    ask(&headers, in_service())
        .await
        .is(422)
        .says("sh is not there");
    for headers in [
        &[][..],
        &headers[..1],
        &[("connection", "upgrade"), ("upgrade", "h2c")],
    ] {
        ask(headers, in_service())
            .await
            .is(400)
            .says("Upgrade: skiff-exec");
    }
    for (body, part) in [
        (
            json!({"command": ["sh"]}),
            "either a service or an instance",
        ),
        (json!({"service": "hello", "command": []}), "empty"),
        (
            json!({"service": "hello", "command": ["a\u{0}"]}),
            "zero byte",
        ),
        (
            json!({"service": "hello", "command": ["a".repeat(65_537)]}),
            "over 65536 bytes",
        ),
        (
            json!({"service": "hello", "command": ["a"], "env": ["=b"]}),
            "NAME=VALUE",
        ),
        (
            json!({"service": "hello", "command": ["a"], "workdir": "b"}),
            "begin with /",
        ),
        (
            json!({"service": "hello", "command": ["a"], "shell": true}),
            "shell",
        ),
    ] {
        ask(&headers, body).await.is(400).says(part);
    }
}

#[tokio::test]
async fn a_server_that_stops_says_so() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let played = Played::next(&server, false);
    let mut client = Client::connect(&server, in_service()).await;
    let control = server.control.clone();
    let (stopped, last) = tokio::join!(control.stop(PATIENCE), client.next());
    let () = stopped;
    assert_eq!(
        last,
        Some(Frame::Broken("the server is stopping".to_owned()))
    );
    played.dropped().await;
}
