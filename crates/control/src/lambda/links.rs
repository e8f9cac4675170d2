//! Connections to the gateway within this process: one request at a time on
//! each, kept for the next.

use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use skiff_base::Tasks;
use skiff_gateway::OWN_ANSWER;
use skiff_types::invocation;
use tokio::net::UnixStream;

use crate::port::Revisions;

/// Connections kept without a request.
const LINKS_KEPT: usize = 256;
const RETURN_EVENT: HeaderName = HeaderName::from_static(invocation::RETURN_EVENT);

/// One connection.
pub(crate) type Link = SendRequest<Event>;
/// An event, or one that comes back.
type Event = Either<Full<Bytes>, Incoming>;

#[derive(Debug, Default)]
pub(crate) struct Links {
    idle: Mutex<Vec<Link>>,
    tasks: Tasks,
}

/// No answer came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("no connection to the gateway can be made")]
    Connect(#[source] io::Error),
    #[error("the gateway broke the connection off")]
    Broken(#[source] hyper::Error),
}

/// The instance was not there any more: nothing of the event was processed.
pub(crate) fn ended_early(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::SERVICE_UNAVAILABLE && !headers.contains_key(OWN_ANSWER)
}

/// The same, and the body is the event.
fn is_returned<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    ended_early(response.status(), headers) && headers.contains_key(RETURN_EVENT)
}

impl Links {
    /// Sends an event, and once more if its instance had ended before it could
    /// tell its runtime of it: whoever had it until then gives it back, so that
    /// it takes no room here while the function works.
    pub(crate) async fn hand_in(
        &self,
        revisions: &dyn Revisions,
        event: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Link), LinkError> {
        let (head, event) = event.into_parts();
        let mut first = Request::from_parts(head.clone(), Either::Left(event));
        let asks = HeaderValue::from_static("true");
        first.headers_mut().insert(RETURN_EVENT, asks);
        let (response, link) = self.send(revisions, first).await?;
        if !is_returned(&response) {
            return Ok((response, link));
        }
        let event = Either::Right(response.into_body());
        self.send(revisions, Request::from_parts(head, event)).await
    }

    /// Sends a request; a kept connection that has ended meanwhile costs
    /// nothing but the next.
    async fn send(
        &self,
        revisions: &dyn Revisions,
        mut request: Request<Event>,
    ) -> Result<(Response<Incoming>, Link), LinkError> {
        while let Some(mut link) = self.take() {
            match link.try_send_request(request).await {
                Ok(response) => return Ok((response, link)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(LinkError::Broken(error.into_error())),
                },
            }
        }
        let mut link = self.connect(revisions).await?;
        let response = link.send_request(request).await;
        Ok((response.map_err(LinkError::Broken)?, link))
    }

    /// Keeps a connection whose answer has been read.
    pub(crate) fn keep(&self, link: Link) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < LINKS_KEPT && !link.is_closed() {
            idle.push(link);
        }
    }

    fn take(&self) -> Option<Link> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(link) = idle.pop() {
            if link.is_ready() {
                return Some(link);
            }
        }
        None
    }

    async fn connect(&self, revisions: &dyn Revisions) -> Result<Link, LinkError> {
        let stream = revisions.connect().map_err(LinkError::Connect)?;
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream))
            .map_err(LinkError::Connect)?;
        let shaken = handshake(TokioIo::new(stream)).await;
        let (link, connection) = shaken.map_err(LinkError::Broken)?;
        self.tasks.spawn("link to the gateway", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a link to the gateway ended early");
            }
        });
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream as Socket;
    use std::sync::Arc;

    use super::*;

    const ENDED: &str = "HTTP/1.1 503 Gone\r\nx-skiff-return-event: true\r\nconnection: close\r\n";
    const FULL: &str = "HTTP/1.1 503 Full\r\nx-skiff-own-answer: true\r\nconnection: close\r\n";
    const DONE: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n";

    /// Gives each connection the next answer, with its event as the body if it
    /// asks for that. They are of so many bytes.
    #[derive(Debug)]
    struct Instances {
        answers: Mutex<Vec<&'static str>>,
        bytes: usize,
        /// Whether the first event asked to come back, and the second.
        asked: Arc<Mutex<Vec<bool>>>,
    }

    impl Revisions for Instances {
        fn connect(&self) -> io::Result<Socket> {
            let (near, mut far) = Socket::pair()?;
            let answer = self.answers.lock().unwrap().remove(0);
            let (bytes, asked) = (self.bytes, self.asked.clone());
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                let mut piece = [0; 4096];
                let body = |seen: &[u8]| {
                    let head = seen.windows(4).position(|four| four == b"\r\n\r\n");
                    head.map(|at| at + 4)
                };
                while body(&seen[..seen.len().min(4096)]).is_none_or(|at| seen.len() < at + bytes) {
                    let read = far.read(&mut piece).unwrap();
                    assert!(read > 0);
                    seen.extend_from_slice(&piece[..read]);
                }
                let (head, event) = seen.split_at(body(&seen).unwrap());
                let head = String::from_utf8_lossy(head);
                assert!(
                    head.contains(&format!("content-length: {bytes}\r\n")),
                    "{head}"
                );
                assert!(event.iter().all(|byte| *byte == b' '));
                let asks = head.contains("x-skiff-return-event: true\r\n");
                asked.lock().unwrap().push(asks);
                let event = if asks { event } else { &[] };
                let length = format!("content-length: {}\r\n\r\n", event.len());
                for part in [answer.as_bytes(), length.as_bytes(), event] {
                    far.write_all(part).unwrap();
                }
            });
            Ok(near)
        }
    }

    #[tokio::test]
    async fn an_event_whose_instance_had_ended_comes_back_and_is_sent_once_more() {
        for bytes in [2, 6 * 1024 * 1024] {
            for (answers, expected, asked) in [
                (&[DONE, DONE][..], 200, &[true][..]),
                (&[ENDED, DONE], 200, &[true, false]),
                (&[ENDED, ENDED, DONE], 503, &[true, false]),
                (&[FULL, DONE], 503, &[true]),
            ] {
                let instances = Instances {
                    answers: Mutex::new(answers.to_vec()),
                    bytes,
                    asked: Arc::default(),
                };
                let event = Full::new(Bytes::from(vec![b' '; bytes]));
                let event = Request::post("/").header("host", "a").body(event).unwrap();
                let links = Links::default();
                let (response, _link) = links.hand_in(&instances, event).await.unwrap();
                assert_eq!(response.status(), expected, "{answers:?}");
                assert_eq!(*instances.asked.lock().unwrap(), asked, "{answers:?}");
            }
        }
    }
}
