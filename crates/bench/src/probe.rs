//! The one client of both sides of a cold start: connects, and again every
//! millisecond, until the first byte of an answer is there.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use skiff_base::Monotonic;

use crate::load::get;
use crate::response::{parse, receive};
use crate::time::{ms, now};

/// Between two attempts of a client alone.
const AGAIN: Duration = Duration::from_millis(1);

/// Milliseconds from `start` to the first byte of a 200.
///
/// # Errors
/// When there is none in time, or another status.
pub fn first_byte(
    address: SocketAddr,
    host: &str,
    path: &str,
    start: Monotonic,
    limit: Duration,
) -> anyhow::Result<f64> {
    first_byte_every(AGAIN, address, host, path, start, limit)
}

/// As [`first_byte`], with this between two attempts.
///
/// # Errors
/// When there is none in time, or another status.
pub fn first_byte_every(
    again: Duration,
    address: SocketAddr,
    host: &str,
    path: &str,
    start: Monotonic,
    limit: Duration,
) -> anyhow::Result<f64> {
    let request = get(host, path);
    let end = start.plus(limit);
    loop {
        if let Some((status, took)) = attempt(address, &request, start, limit) {
            ensure!(status == "200", "{host} at {address} answered {status}");
            return Ok(took);
        }
        ensure!(
            now() < end,
            "{host} at {address}: no answer within {} s",
            limit.as_secs()
        );
        std::thread::sleep(again);
    }
}

/// The body of a 200 to a POST.
///
/// # Errors
/// When there is none in time, or another status.
pub fn post(
    address: SocketAddr,
    host: &str,
    body: &str,
    limit: Duration,
) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    let length = body.len();
    let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    let bytes = receive(&mut stream).with_context(|| format!("{host} at {address}"))?;
    let response = parse(&bytes).context("half an answer")?;
    let text = String::from_utf8_lossy(response.body).into_owned();
    ensure!(
        response.status == 200,
        "{host} at {address} answered {}: {text}",
        response.status
    );
    Ok(text)
}

fn attempt(
    address: SocketAddr,
    request: &[u8],
    start: Monotonic,
    limit: Duration,
) -> Option<(String, f64)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.write_all(request).ok()?;
    let mut bytes = [0; 1024];
    let count = stream.read(&mut bytes).ok().filter(|count| *count > 0)?;
    let took = ms(now().since(start));
    let line = String::from_utf8_lossy(&bytes[..count]).into_owned();
    Some((
        line.split_whitespace()
            .nth(1)
            .unwrap_or_default()
            .to_owned(),
        took,
    ))
}
