//! The server's side of the protocol in `skiff_wire::monitor`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use skiff_wire::monitor::{Answer, Envelope, FRAME_BYTES_MAX, Refusal, Reply, Request, VERSION};

use crate::launcher::FrameSocket;

/// Reaching a monitor that starts: it makes its machine first.
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
/// For an answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// A monitor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// It cannot be reached, or its connection has ended.
    #[error("the monitor does not answer `{what}`")]
    Io {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It understood and refused.
    #[error("the monitor refused `{what}`: {refusal}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its words.
        refusal: Refusal,
    },
}

/// A connection to a monitor, for one request after the other.
#[derive(Debug)]
pub struct MonitorClient {
    socket: FrameSocket,
    last_id: u64,
    buffer: Vec<u8>,
}

impl MonitorClient {
    /// Connects to a monitor's control socket and says hello. While nobody
    /// listens, because it still starts, it tries again until the deadline.
    pub async fn connect(path: &Path) -> Result<Self, MonitorError> {
        let connected = tokio::time::timeout(CONNECT_DEADLINE, FrameSocket::connect(path)).await;
        let socket = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed("connect"))?;
        let mut client = Self {
            socket,
            last_id: 0,
            buffer: vec![0; FRAME_BYTES_MAX],
        };
        let hello = Request::Hello { version: VERSION };
        client.ask("hello", hello, None).await?;
        Ok(client)
    }

    /// Maps a file to sectors of a disk.
    pub async fn map(
        &mut self,
        disk: &str,
        first_sector: u64,
        sectors: u64,
        file: OwnedFd,
    ) -> Result<(), MonitorError> {
        let request = Request::Map {
            disk: disk.to_owned(),
            first_sector,
            sectors,
        };
        self.ask("map", request, Some(file)).await?;
        Ok(())
    }

    async fn ask(
        &mut self,
        what: &'static str,
        request: Request,
        file: Option<OwnedFd>,
    ) -> Result<Reply, MonitorError> {
        let asked = tokio::time::timeout(DEADLINE, self.exchange(request, file)).await;
        asked
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed(what))?
            .map_err(|refusal| MonitorError::Refused { what, refusal })
    }

    async fn exchange(
        &mut self,
        request: Request,
        file: Option<OwnedFd>,
    ) -> io::Result<Result<Reply, Refusal>> {
        self.last_id += 1;
        let id = self.last_id;
        let frame = skiff_wire::encode(&Envelope { id, request }).map_err(io::Error::other)?;
        self.socket.send(&frame, file.as_slice()).await?;
        let received = self.socket.receive(&mut self.buffer).await?;
        let frame = self.buffer.get(..received.len).unwrap_or_default();
        if frame.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer: Answer = skiff_wire::decode(frame).map_err(io::Error::other)?;
        if answer.id != id {
            return Err(io::Error::other("the answer is another request's"));
        }
        Ok(answer.result)
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> MonitorError {
    move |source| MonitorError::Io { what, source }
}
