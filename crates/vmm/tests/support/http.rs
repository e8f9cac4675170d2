//! A client of the API that waits.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;
use skiff_base::{Clock, SystemClock};
use skiff_flat::testing::deadline;

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    heard: Vec<u8>,
}

/// A status and a body.
pub type Answer = (u16, Value);

impl Client {
    /// Connects to a path, once it is listened on.
    pub fn connect(path: &Path) -> Self {
        let started = SystemClock.now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => {
                    let waits = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
                    assert!(waits.contains(&error.kind()), "{error}");
                    let waited = SystemClock.now().since(started);
                    assert!(waited < deadline(), "nobody listens");
                    std::thread::yield_now();
                }
            }
        };
        stream.set_read_timeout(Some(deadline())).unwrap();
        Self {
            stream,
            heard: Vec::new(),
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.send(&request(method, path, body));
        self.receive().expect("the API has closed")
    }

    /// Says what must be done: 204 without a body.
    pub fn tell(&mut self, method: &str, path: &str, body: &str) {
        let answer = self.ask(method, path, body);
        assert_eq!(answer, (204, Value::Null), "{method} {path} {body}");
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next answer; nothing when the connection has ended.
    pub fn receive(&mut self) -> Option<Answer> {
        loop {
            if let Some((answer, used)) = whole(&self.heard) {
                self.heard.drain(..used);
                return Some(answer);
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(read) => self.heard.extend(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It had something of ours unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A request as a usual client writes it.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = match body.len() {
        0 => String::new(),
        bytes => format!("Content-Type: application/json\r\nContent-Length: {bytes}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{length}\r\n{body}")
        .into_bytes()
}

fn whole(bytes: &[u8]) -> Option<(Answer, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    let body = bytes.get(end..end + length)?;
    let value = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).unwrap(),
    };
    Some(((status, value), end + length))
}
