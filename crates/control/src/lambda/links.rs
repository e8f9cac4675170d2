//! Connections to the gateway within this process: one request at a time on
//! each, kept for the next.

use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use skiff_base::Tasks;
use skiff_gateway::OWN_ANSWER;
use tokio::net::UnixStream;

use crate::port::Revisions;

/// Connections kept without a request.
const LINKS_KEPT: usize = 256;
/// An event up to this size is kept until its answer begins, to be sent once
/// more; for many large ones there is no room.
const EVENT_KEPT_BYTES_MAX: u64 = 16 * 1024;

/// One connection.
pub(crate) type Link = SendRequest<Full<Bytes>>;

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

impl Links {
    /// Sends an event, and once more if its instance had ended before it could
    /// tell its runtime of it.
    pub(crate) async fn hand_in(
        &self,
        revisions: &dyn Revisions,
        event: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Link), LinkError> {
        let bytes = event.body().size_hint().lower();
        let again = (bytes <= EVENT_KEPT_BYTES_MAX).then(|| event.clone());
        let (response, link) = self.send(revisions, event).await?;
        match again {
            Some(event) if ended_early(response.status(), response.headers()) => {
                self.send(revisions, event).await
            }
            _ => Ok((response, link)),
        }
    }

    /// Sends a request; a kept connection that has ended meanwhile costs
    /// nothing but the next.
    async fn send(
        &self,
        revisions: &dyn Revisions,
        mut request: Request<Full<Bytes>>,
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

    const ENDED: &str = "HTTP/1.1 503 Gone\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    const FULL: &str = "HTTP/1.1 503 Full\r\nx-skiff-own-answer: true\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    const DONE: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

    /// Gives each connection the next answer to an event of so many bytes.
    #[derive(Debug)]
    struct Instances {
        answers: Mutex<Vec<&'static str>>,
        bytes: usize,
    }

    impl Revisions for Instances {
        fn connect(&self) -> io::Result<Socket> {
            let (near, mut far) = Socket::pair()?;
            let answer = self.answers.lock().unwrap().remove(0);
            let bytes = self.bytes;
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                let mut piece = [0; 4096];
                let has_all = |seen: &[u8]| {
                    let head = seen.windows(4).position(|four| four == b"\r\n\r\n");
                    head.is_some_and(|at| seen.len() == at + 4 + bytes)
                };
                while !has_all(&seen) {
                    let read = far.read(&mut piece).unwrap();
                    seen.extend_from_slice(&piece[..read]);
                }
                far.write_all(answer.as_bytes()).unwrap();
            });
            Ok(near)
        }
    }

    #[tokio::test]
    async fn an_event_whose_instance_had_ended_is_sent_once_more() {
        let small = 16 * 1024;
        for (answers, bytes, expected, left) in [
            (&[DONE, DONE][..], small, 200, 1),
            (&[ENDED, DONE], small, 200, 0),
            (&[ENDED, ENDED, DONE], small, 503, 1),
            (&[ENDED, DONE], small + 1, 503, 1),
            (&[FULL, DONE], small, 503, 1),
        ] {
            let instances = Arc::new(Instances {
                answers: Mutex::new(answers.to_vec()),
                bytes,
            });
            let event = Full::new(Bytes::from(vec![b' '; bytes]));
            let event = Request::post("/").header("host", "a").body(event).unwrap();
            let links = Links::default();
            let (response, _link) = links.hand_in(&*instances, event).await.unwrap();
            assert_eq!(response.status(), expected, "{answers:?}");
            assert_eq!(instances.answers.lock().unwrap().len(), left, "{answers:?}");
        }
    }
}
