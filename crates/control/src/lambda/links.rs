//! Connections to the gateway within this process: one request at a time on
//! each, kept for the next.

use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use skiff_base::Tasks;
use tokio::net::UnixStream;

use crate::port::Revisions;

/// Connections kept without a request.
const LINKS_KEPT: usize = 256;

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

impl Links {
    /// Sends a request; a kept connection that has ended meanwhile costs
    /// nothing but the next.
    pub(crate) async fn send(
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
