//! Streamed answers, as they come, and what is told behind them.

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Frame, Incoming};
use skiff_lambda::event_stream::{self, InvokeComplete};
use skiff_lambda::{Code, LambdaError};
use skiff_types::invocation::{ERROR_BODY, EXECUTED_VERSION, FUNCTION_ERROR, LOG_RESULT};
use tokio::sync::mpsc;

use super::Front;
use super::call::{Call, Reply};
use super::invoke::{DEADLINE, Invocation, Place, Way, invocation, refused, set, with_warning};
use super::links::Link;
use super::sign::EVENT_BYTES_MAX;

/// Of a streamed answer, on their way to its caller.
const PIECES: usize = 4;
/// Of an answer that is no function's.
const REFUSAL_BYTES_MAX: usize = 4096;
/// What a failure is called whose type nobody told.
pub(crate) const UNHANDLED: &str = "Unhandled";

/// How a streamed answer has begun.
#[derive(Debug)]
pub(crate) enum Begun {
    /// What comes is the function's, or its error if the head says so.
    Answer(HeaderMap, Pieces),
    /// The function has failed, as this says.
    Failed(Reply),
}

/// A streamed answer's body, as it comes; the trailers, if they were asked for.
pub(crate) type Pieces = mpsc::Receiver<Result<Frame<Bytes>, hyper::Error>>;

/// What is told of an invocation behind its answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The function has failed in the middle of it.
    pub error: Option<Failure>,
    /// The end of its log, base 64.
    pub log: Option<String>,
}

/// How a function has failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// AWS's type of the error, or the function's own.
    pub code: String,
    pub details: Vec<u8>,
}

impl Told {
    /// Trailers come from who hands the instance its events, which has seen to
    /// what the function says in them.
    pub(crate) fn of(trailers: &HeaderMap) -> Self {
        let field = |name: &str| Some(trailers.get(name)?.to_str().ok()?.to_owned());
        let details = field(ERROR_BODY).and_then(|details| STANDARD.decode(details).ok());
        let details = details.unwrap_or_default();
        Self {
            error: field(FUNCTION_ERROR).map(|code| Failure { code, details }),
            log: field(LOG_RESULT),
        }
    }

    /// In a reply that is whole, whose head can say it. What came before an error
    /// is no answer.
    pub(crate) fn tell(self, reply: &mut Reply) {
        if let Some(log) = self.log {
            set(&mut reply.headers, LOG_RESULT, &log);
        }
        if let Some(error) = self.error {
            set(&mut reply.headers, FUNCTION_ERROR, UNHANDLED);
            reply.body = Body::from(error.details);
        }
    }
}

impl Front {
    pub(crate) async fn invoke_streaming(
        &self,
        call: &mut Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let way = self.way(call, text).await?;
        if call.header("x-amz-invocation-type") == Some("DryRun") {
            let mut reply = Reply::empty();
            set(&mut reply.headers, EXECUTED_VERSION, &way.version);
            return Ok(reply);
        }
        let place = Place::take(&self.running, &way)?;
        let invocation = invocation(call, EVENT_BYTES_MAX)?.with_trailers();
        let warning = self.warning_of_role(&way);
        let body = match self.begin_stream(&way, invocation, place).await? {
            Begun::Answer(head, pieces) => Body::from_stream(framed(&head, pieces, warning)),
            Begun::Failed(reply) => {
                let body = reply.body.collect().await;
                let details = body.map(|body| body.to_bytes()).unwrap_or_default();
                let error = Failure {
                    code: UNHANDLED.to_owned(),
                    details: details.into(),
                };
                Body::from(complete(Some(&error), None))
            }
        };
        Ok(streamed(&way, body))
    }

    /// The function's answer as it begins.
    pub(crate) async fn begin_stream(
        &self,
        way: &Way,
        invocation: Invocation,
        place: Option<Place>,
    ) -> Result<Begun, LambdaError> {
        let id = invocation.request_id.clone();
        let sent = self.send(way, invocation);
        let sent = tokio::time::timeout(DEADLINE, sent).await;
        let (response, link) = sent
            .map_err(|_| LambdaError::new(Code::Service, "the function did not answer in time"))?
            .map_err(LambdaError::from)?;
        let (head, body) = response.into_parts();
        if head.status == StatusCode::OK {
            return Ok(Begun::Answer(
                head.headers,
                self.pieces(body, (place, link)),
            ));
        }
        let read = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
        let text = read.map(|read| read.to_bytes()).unwrap_or_default();
        Ok(Begun::Failed(refused(&id, way, &head, &text)?))
    }

    /// Reads a streamed answer to its end, also when nobody takes it any more:
    /// until then the invocation is under way. The gateway limits its time.
    fn pieces(&self, mut body: Incoming, held: (Option<Place>, Link)) -> Pieces {
        let (sender, pieces) = mpsc::channel(PIECES);
        let tasks = &self.control.inner.tasks;
        tasks.spawn("streamed answer", async move {
            let broken = loop {
                match body.frame().await {
                    // Who has hung up needs no more of it.
                    Some(Ok(frame)) => sender.send(Ok(frame)).await.ok(),
                    Some(Err(error)) => break Some(error),
                    None => break None,
                };
            };
            // Before the end of the answer is seen.
            drop(held);
            if let Some(error) = broken {
                sender.send(Err(error)).await.ok();
            }
        });
        pieces
    }
}

fn streamed(way: &Way, body: Body) -> Reply {
    let mut headers = HeaderMap::new();
    set(&mut headers, "content-type", event_stream::CONTENT_TYPE);
    set(&mut headers, EXECUTED_VERSION, &way.version);
    Reply {
        status: StatusCode::OK,
        headers,
        body,
    }
}

fn complete(error: Option<&Failure>, log: Option<String>) -> Vec<u8> {
    let details = |error: &Failure| String::from_utf8_lossy(&error.details).into_owned();
    InvokeComplete {
        error_code: error.map(|error| error.code.clone()),
        error_details: error.map(details),
        log_result: log,
    }
    .message()
}

/// The answer in messages, as it comes; how it has ended is told in the last.
fn framed(
    head: &HeaderMap,
    pieces: Pieces,
    warning: Option<String>,
) -> impl Stream<Item = Result<Bytes, hyper::Error>> + Send + 'static {
    let state = Framing {
        pieces,
        is_error: head.contains_key(FUNCTION_ERROR),
        told: Told::of(head),
        warning,
    };
    stream::unfold(Some(state), |state| async move { state?.next().await })
}

struct Framing {
    pieces: Pieces,
    /// What comes is not the answer but what the function says of its failure.
    is_error: bool,
    told: Told,
    /// Of its missing role, behind a log's end.
    warning: Option<String>,
}

type Step = Option<(Result<Bytes, hyper::Error>, Option<Framing>)>;

impl Framing {
    async fn next(mut self) -> Step {
        while let Some(piece) = self.pieces.recv().await {
            let Ok(piece) = piece else {
                self.told.error = Some(Failure {
                    code: UNHANDLED.to_owned(),
                    details: b"the answer ended early".to_vec(),
                });
                break;
            };
            let piece = match piece.into_data() {
                Ok(piece) => piece,
                Err(frame) => {
                    // Told when the invocation is over, which it is about to be.
                    if let Ok(trailers) = frame.into_trailers() {
                        self.learn(&trailers);
                    }
                    continue;
                }
            };
            match &mut self.told.error {
                Some(error) if self.is_error => {
                    let room = EVENT_BYTES_MAX.saturating_sub(error.details.len());
                    error.details.extend(&piece[..piece.len().min(room)]);
                }
                _ if piece.is_empty() => {}
                _ => {
                    let message = Bytes::from(event_stream::payload_chunk(&piece));
                    return Some((Ok(message), Some(self)));
                }
            }
        }
        let log = self.log();
        let end = complete(self.told.error.as_ref(), log);
        Some((Ok(end.into()), None))
    }

    fn learn(&mut self, trailers: &HeaderMap) {
        let Told { error, log } = Told::of(trailers);
        self.told.error = error.or(self.told.error.take());
        self.told.log = log.or(self.told.log.take());
    }

    fn log(&mut self) -> Option<String> {
        let log = self.told.log.take()?;
        match &self.warning {
            Some(warning) => with_warning(&log, warning).or(Some(log)),
            None => Some(log),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use http::HeaderValue;
    use serde_json::{Value, json};

    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, hyper::Error> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    /// Chunks' texts, and what the last message says.
    async fn told(
        head: &HeaderMap,
        frames: Vec<Result<Frame<Bytes>, hyper::Error>>,
        warning: Option<&str>,
    ) -> (Vec<String>, Value) {
        let (sender, pieces) = mpsc::channel(frames.len());
        for frame in frames {
            sender.send(frame).await.unwrap();
        }
        drop(sender);
        let messages = framed(head, pieces, warning.map(str::to_owned));
        let messages: Vec<_> = messages.map(Result::unwrap).collect().await;
        let (last, chunks) = messages.split_last().unwrap();
        let payload = |message: &Bytes| {
            let headers = u32::from_be_bytes(message[4..8].try_into().unwrap());
            let from = 12 + usize::try_from(headers).unwrap();
            message[from..message.len() - 4].to_vec()
        };
        let text = |message| String::from_utf8(payload(message)).unwrap();
        let end = serde_json::from_slice(&payload(last)).unwrap();
        (chunks.iter().map(text).collect(), end)
    }

    #[tokio::test]
    async fn an_answer_ends_with_what_stands_behind_it() {
        let head = HeaderMap::new();
        let (chunks, end) = told(&head, vec![data("a"), data(""), data("b")], None).await;
        assert_eq!(chunks, ["a", "b"]);
        assert_eq!(end, json!({}));
        let details = STANDARD.encode("its words");
        let log = STANDARD.encode("line\n");
        let trailers = map(&[
            (FUNCTION_ERROR, "Its.Own"),
            (ERROR_BODY, &details),
            (LOG_RESULT, &log),
        ]);
        let frames = vec![data("a"), Ok(Frame::trailers(trailers))];
        let (chunks, end) = told(&head, frames, None).await;
        assert_eq!(chunks, ["a"]);
        let expected =
            json!({"ErrorCode": "Its.Own", "ErrorDetails": "its words", "LogResult": log});
        assert_eq!(end, expected);
        let trailers = map(&[(FUNCTION_ERROR, "A"), (ERROR_BODY, "no base64")]);
        let (_, end) = told(&head, vec![Ok(Frame::trailers(trailers))], None).await;
        assert_eq!(end, json!({"ErrorCode": "A", "ErrorDetails": ""}));
    }

    #[tokio::test]
    async fn a_failure_that_is_no_stream_is_told_at_the_end() {
        let log = STANDARD.encode("line\n");
        let head = map(&[(FUNCTION_ERROR, UNHANDLED), (LOG_RESULT, &log)]);
        let (chunks, end) = told(&head, vec![data("wo"), data("rds")], None).await;
        assert!(chunks.is_empty(), "{chunks:?}");
        let expected = json!({"ErrorCode": UNHANDLED, "ErrorDetails": "words", "LogResult": log});
        assert_eq!(end, expected);
    }

    #[tokio::test]
    async fn a_warning_stands_at_the_log_s_end() {
        let log = STANDARD.encode("line\n");
        let trailers = map(&[(LOG_RESULT, &log)]);
        let frames = || vec![Ok(Frame::trailers(trailers.clone()))];
        let head = HeaderMap::new();
        let (_, end) = told(&head, frames(), Some("WARN\n")).await;
        assert_eq!(end, json!({"LogResult": STANDARD.encode("line\nWARN\n")}));
        let (_, end) = told(&head, vec![data("a")], Some("WARN\n")).await;
        assert_eq!(end, json!({}), "nobody has asked");
    }
}
