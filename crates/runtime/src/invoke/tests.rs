use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::bridge::Origin;
use crate::fake::{Fake, bridge_of, killed, streams};

const PIPE_BYTES: usize = 64 * 1024;
const TAKES_TRAILERS: &str = "te: trailers\r\n";
/// The head's end, and the only chunk.
const PIECE: &str = "\r\n\r\n5\r\nfirst\r\n";

/// How a streamed answer ends behind its first piece.
#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    Failed,
    /// The runtime's connection breaks, and it goes on.
    Broken,
    /// The same, and it ends.
    Crashed,
    /// The same, only that its end is seen first.
    CrashSeen,
    /// It says no more.
    Silent,
    /// Nobody sees to it any more.
    CutOff,
}

/// What a runtime streams to an invocation whose request has these lines more:
/// the answer as it is on the wire.
async fn streamed(lines: &str, end: End) -> String {
    let (sandbox, tasks) = (Arc::new(Fake::obedient()), Tasks::new());
    let bridge = bridge_of(&sandbox, Origin::Made);
    let call = bridge.next().unwrap();
    let (mut ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (serving, invocations) = (bridge.clone(), Tasks::new());
    tasks.spawn("front", serve(theirs, serving, invocations.clone()));
    let request = format!(
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{lines}content-length: 2\r\n\r\n{{}}"
    );
    ours.write_all(request.as_bytes()).await.unwrap();
    let event = call.event().await.unwrap();
    let (sender, done) = streams(&bridge, &event.id);
    sender.send(Bytes::from_static(b"first")).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(PIECE.as_bytes()) {
        ours.read_buf(&mut answer).await.unwrap();
    }
    match end {
        End::Whole => done.send(Ok(())).unwrap(),
        End::Failed => {
            let told = StreamError {
                kind: "Its.Own".to_owned(),
                body: "words".to_owned(),
            };
            done.send(Err(told)).unwrap();
        }
        End::Broken => drop(done),
        End::Crashed => {
            drop(done);
            bridge.has_exited(killed());
        }
        End::CrashSeen => {
            bridge.has_exited(killed());
            drop(done);
        }
        End::Silent => bridge.takes_no_more().await,
        End::CutOff => invocations.abort(),
    }
    drop(sender);
    ours.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// What stands behind the piece.
fn rest(answer: &str) -> &str {
    let at = answer.find(PIECE).unwrap();
    &answer[at + PIECE.len()..]
}

#[tokio::test(start_paused = true)]
async fn who_takes_trailers_is_told_in_them_how_an_answer_ends() {
    let answer = streamed(TAKES_TRAILERS, End::Whole).await;
    assert_eq!(rest(&answer), "0\r\n\r\n");
    let names = Ending::names();
    let announced = format!("trailer: {}\r\n", names.to_str().unwrap());
    assert!(answer.contains(&announced), "{answer}");
    let answer = streamed(TAKES_TRAILERS, End::Failed).await;
    let told = format!(
        "0\r\nx-amz-function-error: Its.Own\r\nlambda-runtime-function-error-body: {}\r\n\r\n",
        STANDARD.encode("words")
    );
    assert_eq!(rest(&answer), told);
    for (end, kind, words) in [
        (End::Broken, "Runtime.TruncatedResponse", "broke off"),
        (End::Crashed, "Runtime.ExitError", "signal: killed"),
        (End::CrashSeen, "Runtime.ExitError", "signal: killed"),
        (End::Silent, "Sandbox.Timedout", "timed out after 3.00 s"),
    ] {
        let answer = streamed(TAKES_TRAILERS, end).await;
        let told = rest(&answer).strip_prefix("0\r\nx-amz-function-error: ");
        let (told, rest) = told.unwrap_or(&answer).split_once("\r\n").unwrap();
        assert_eq!(told, kind, "{end:?}");
        let (name, body) = rest.trim_end().split_once(": ").unwrap();
        assert_eq!(name, invocation::ERROR_BODY);
        let body: Value = serde_json::from_slice(&STANDARD.decode(body).unwrap()).unwrap();
        assert_eq!(body["errorType"], kind);
        let message = body["errorMessage"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_takes_none_sees_a_failing_answer_break_off() {
    let answer = streamed("", End::Whole).await;
    assert_eq!(rest(&answer), "0\r\n\r\n");
    assert!(!answer.contains("trailer: "), "{answer}");
    for end in [End::Failed, End::Broken, End::Crashed, End::Silent] {
        assert_eq!(rest(&streamed("", end).await), "", "{end:?}");
    }
    // Whoever sends these looks at the answer's end alone.
    let event = format!(
        "{TAKES_TRAILERS}ce-specversion: 1.0\r\nce-id: 1\r\nce-source: a\r\nce-type: b\r\n"
    );
    assert_eq!(rest(&streamed(&event, End::Failed).await), "");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_sees_to_the_end_breaks_off() {
    for lines in [TAKES_TRAILERS, ""] {
        assert_eq!(rest(&streamed(lines, End::CutOff).await), "", "{lines}");
    }
}

/// What is answered to an event whose request has these lines more, when its
/// runtime ends before it asks for it.
async fn unreached(lines: &str) -> String {
    let (sandbox, tasks) = (Arc::new(Fake::obedient()), Tasks::new());
    let bridge = bridge_of(&sandbox, Origin::Made);
    // It has come up, and asks no more.
    drop(bridge.next().unwrap());
    let (mut ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    tasks.spawn("front", serve(theirs, bridge.clone(), Tasks::new()));
    let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}content-length: 2\r\n\r\n{{}}");
    ours.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    bridge.has_exited(killed());
    let mut answer = String::new();
    ours.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    answer
}

#[tokio::test(start_paused = true)]
async fn an_event_that_reaches_no_runtime_is_given_back_to_who_asks_for_it() {
    const ASKS: &str = "x-skiff-return-event: true\r\n";
    let answer = unreached(ASKS).await;
    assert!(answer.contains(ASKS), "{answer}");
    assert!(answer.ends_with("\r\n\r\n{}"), "{answer}");
    // What a CloudEvent has become is not what was sent.
    let cloud_event = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: a\r\nce-type: b\r\n";
    for lines in ["", &format!("{ASKS}{cloud_event}")] {
        let answer = unreached(lines).await;
        assert!(!answer.contains("x-skiff-return-event"), "{answer}");
        assert!(
            answer.ends_with("before the event reached it\n"),
            "{answer}"
        );
    }
}
