use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::bridge::{Origin, Reply};
use crate::fake::{Fake, bridge_of, invocation};

const PIPE_BYTES: usize = 64 * 1024;
const NEXT: &str = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nhost: a\r\n\r\n";

/// What comes until this stands there.
async fn read_to(stream: &mut DuplexStream, end: &str) -> String {
    let mut read = String::new();
    while !read.contains(end) {
        let mut piece = [0; 4096];
        let bytes = stream.read(&mut piece).await.unwrap();
        assert!(bytes > 0, "{read}");
        read.push_str(std::str::from_utf8(&piece[..bytes]).unwrap());
    }
    read
}

/// What a caller is told when a runtime posts this, in a body whose length it
/// tells first or in chunks; and the runtime, which goes on by the same
/// connection.
async fn posted(end: &str, body: &[u8], chunked: bool) -> (Reply, String) {
    let (tasks, sandbox) = (Tasks::new(), Arc::new(Fake::obedient()));
    let bridge = bridge_of(&sandbox, Origin::Made);
    let (mut runtime, theirs) = tokio::io::duplex(PIPE_BYTES);
    let serving = connection(ByteStream::Memory(theirs), bridge.clone());
    tasks.spawn("connection", serving);
    runtime.write_all(NEXT.as_bytes()).await.unwrap();
    let id = words::uuid();
    let mut invocation = invocation(&id);
    invocation.event.body = Bytes::from_static(b"{\"event\": 1}");
    let (reply, outcome) = oneshot::channel();
    tasks.spawn("invocation", async move {
        bridge.invoke(invocation, reply).await;
    });
    let event = read_to(&mut runtime, "{\"event\": 1}").await;
    assert!(event.contains(&id), "{event}");

    let head = format!("POST /2018-06-01/runtime/invocation/{id}/{end} HTTP/1.1\r\nhost: a\r\n");
    let bytes = body.len();
    let (head, tail) = match chunked {
        false => (format!("{head}content-length: {bytes}\r\n\r\n"), ""),
        true => (
            format!("{head}transfer-encoding: chunked\r\n\r\n{bytes:x}\r\n"),
            "\r\n0\r\n\r\n",
        ),
    };
    for part in [head.as_bytes(), body, tail.as_bytes()] {
        runtime.write_all(part).await.unwrap();
    }
    let told = read_to(&mut runtime, "}").await;
    runtime.write_all(NEXT.as_bytes()).await.unwrap();
    (outcome.await.unwrap().reply, told)
}

#[tokio::test]
async fn a_runtime_whose_answer_is_too_large_sends_all_of_it_is_told_so_and_goes_on() {
    let most = vec![b'a'; ANSWER_BYTES_MAX];
    let over = vec![b'a'; ANSWER_BYTES_MAX + 2_000_000];
    for chunked in [false, true] {
        let (reply, told) = posted("response", &most, chunked).await;
        assert!(told.starts_with("HTTP/1.1 202 "), "{told}");
        let Reply::Payload { body, .. } = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(body, most);

        let (reply, told) = posted("response", &over, chunked).await;
        assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
        assert!(told.contains(&over.len().to_string()), "{told}");
        assert!(!told.contains("connection: close"), "{told}");
        let Reply::Failed(body) = reply else {
            panic!("{reply:?}");
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(body.contains("Function.ResponseSizeTooLarge"), "{body}");

        let (reply, told) = posted("error", &over, chunked).await;
        assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
        assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    }
}
