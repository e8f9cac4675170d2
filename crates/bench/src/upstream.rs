//! `skiff-bench upstream [PORT]`: answers every request alike, as fast as one
//! thread can. Without an argument the port is `PORT`'s, as in an instance.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use rustix::event::epoll;

use crate::response::find;

/// What it answers.
pub const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\nHello, world!";
const LISTENER: u64 = u64::MAX;
/// Bytes of requests read at once; requests here are short.
const READ_BYTES: usize = 16 * 1024;

/// Serves until it is ended.
///
/// # Errors
/// When the port cannot be had, or waiting fails.
pub fn run(port: Option<&str>) -> anyhow::Result<bool> {
    let from_env = std::env::var("PORT").ok();
    let port: u16 = match port.or(from_env.as_deref()) {
        Some(text) => text.parse().with_context(|| format!("port {text}"))?,
        None => 8080,
    };
    let listener = TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port}"))?;
    listener.set_nonblocking(true)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let readable = epoll::EventFlags::IN;
    epoll::add(
        &poll,
        &listener,
        epoll::EventData::new_u64(LISTENER),
        readable,
    )?;
    let mut streams: HashMap<u64, TcpStream> = HashMap::new();
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let key = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
                    epoll::add(&poll, &stream, epoll::EventData::new_u64(key), readable)?;
                    streams.insert(key, stream);
                }
            } else if let Some(stream) = streams.get_mut(&key)
                && !answer(stream)
            {
                streams.remove(&key);
            }
        }
    }
}

/// Answers what has arrived; false when the connection is done. A request
/// that arrives in two pieces is answered when its end is there, because only
/// the end is looked for.
fn answer(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; READ_BYTES];
    match stream.read(&mut bytes) {
        Ok(0) => false,
        Ok(count) => {
            let mut rest = &bytes[..count];
            while let Some(at) = find(rest, b"\r\n\r\n") {
                if stream.write_all(ANSWER).is_err() {
                    return false;
                }
                rest = &rest[at + 4..];
            }
            true
        }
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}
