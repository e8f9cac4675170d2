//! The least that a runtime asks for: a Runtime API for one runtime, which
//! hands over one event after the other and takes its answers.
//!
//! Source: AWS, "Using the Lambda runtime API for custom runtimes".

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use skiff_base::Monotonic;

use crate::response::{field, find};
use crate::time::{ms, now};

/// An event, or how long its answer took.
type Asked = (Vec<u8>, Sender<f64>);

/// One, which ends with this process.
#[derive(Debug)]
pub struct RuntimeApi {
    address: SocketAddr,
    events: Sender<Asked>,
}

/// What the connections of a runtime share.
#[derive(Debug)]
struct Shared {
    events: Mutex<Receiver<Asked>>,
    asked: Mutex<Option<(Monotonic, Sender<f64>)>>,
}

impl RuntimeApi {
    /// # Errors
    /// When no port can be had.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (events, waiting) = channel();
        let shared = Arc::new(Shared {
            events: Mutex::new(waiting),
            asked: Mutex::default(),
        });
        std::thread::Builder::new().spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A connection that breaks ends the runtime's, not this.
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        })?;
        Ok(Self { address, events })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Milliseconds from the event's first byte out to its answer's last byte
    /// in.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn invoke(&self, event: &[u8], limit: Duration) -> anyhow::Result<f64> {
        let (answered, answer) = channel();
        self.events
            .send((event.to_vec(), answered))
            .context("the Runtime API has ended")?;
        answer
            .recv_timeout(limit)
            .context("the runtime has not answered")
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let mut bytes = Vec::new();
        while let Some(length) = read_request(&mut stream, &mut bytes)? {
            if bytes.starts_with(b"GET ") {
                let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
                let (event, answered) = events.recv()?;
                drop(events);
                let mut reply = format!(
                    "HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\r\n\
                     Lambda-Runtime-Deadline-Ms: 4102444800000\r\n\
                     Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:000000000000:function:bare\r\n\
                     Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    event.len()
                )
                .into_bytes();
                reply.extend(event);
                *self.asked() = Some((now(), answered));
                stream.write_all(&reply)?;
            } else {
                if let Some((since, answered)) = self.asked().take() {
                    // Who has given up has no use for it.
                    let _told = answered.send(ms(now().since(since)));
                }
                stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")?;
            }
            bytes.drain(..length);
        }
        Ok(())
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Option<(Monotonic, Sender<f64>)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads until a request is whole; its length, or nothing at the end.
pub(super) fn read_request(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
) -> anyhow::Result<Option<usize>> {
    loop {
        if let Some(end) = find(bytes, b"\r\n\r\n") {
            let head = std::str::from_utf8(&bytes[..end])?;
            let body: usize = field(head, "content-length").map_or(Ok(0), str::parse)?;
            if bytes.len() >= end + 4 + body {
                return Ok(Some(end + 4 + body));
            }
        }
        let mut more = [0; 16 * 1024];
        match stream.read(&mut more)? {
            0 => return Ok(None),
            count => bytes.extend_from_slice(&more[..count]),
        }
    }
}
