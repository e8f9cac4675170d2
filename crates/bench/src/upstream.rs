//! `skiff-bench upstream [PORT [THREADS WORK]]`: answers every request alike, as
//! fast as its threads can, each answer after so many steps of work. Without an
//! argument the port is `PORT`'s, as in an instance.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::epoll;

use crate::response::find;
use crate::time::now;

/// What it answers.
pub const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\nHello, world!";
/// Bytes of requests read at once; requests here are short.
const READ_BYTES: usize = 16 * 1024;
/// Steps that are timed at once, and how often.
const TIMED_STEPS: u64 = 100_000;
const TIMED_RUNS: u32 = 100;

/// Connections that one thread answers.
#[derive(Debug)]
struct Lane {
    poll: OwnedFd,
    streams: Mutex<HashMap<u64, TcpStream>>,
    steps: u64,
}

/// Serves until it is ended.
///
/// # Errors
/// When the port cannot be had, or waiting fails.
pub fn run(port: Option<&str>, threads: usize, steps: u64) -> anyhow::Result<bool> {
    let from_env = std::env::var("PORT").ok();
    let port: u16 = match port.or(from_env.as_deref()) {
        Some(text) => text.parse().with_context(|| format!("port {text}"))?,
        None => 8080,
    };
    let listener = TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port}"))?;
    let mut lanes = Vec::new();
    for _ in 0..threads.max(1) {
        let lane = Arc::new(Lane {
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            streams: Mutex::default(),
            steps,
        });
        lanes.push(Arc::clone(&lane));
        thread::Builder::new().spawn(move || {
            if let Err(error) = lane.serve() {
                eprintln!("upstream: {error:#}");
                std::process::exit(1);
            }
        })?;
    }
    for lane in lanes.iter().cycle() {
        let (stream, _) = listener.accept()?;
        lane.take(stream)?;
    }
    Ok(true)
}

/// Steps of work that take so long on this machine when nothing slows it.
pub fn steps_of(time: Duration) -> u64 {
    let best = (0..TIMED_RUNS)
        .map(|_| {
            let begin = now();
            work(TIMED_STEPS);
            now().since(begin)
        })
        .min()
        .unwrap_or_default();
    let steps = time.as_nanos() * u128::from(TIMED_STEPS) / best.as_nanos().max(1);
    u64::try_from(steps).unwrap_or(u64::MAX)
}

fn work(steps: u64) {
    let mut value = 1u64;
    for _ in 0..steps {
        value = black_box(value.wrapping_mul(3).wrapping_add(1));
    }
}

impl Lane {
    fn streams(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let key = u64::try_from(stream.as_raw_fd())?;
        // Its first event finds it there.
        let mut streams = self.streams();
        let data = epoll::EventData::new_u64(key);
        epoll::add(&self.poll, &stream, data, epoll::EventFlags::IN)?;
        streams.insert(key, stream);
        Ok(())
    }

    fn serve(&self) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(256);
        loop {
            events.clear();
            epoll::wait(
                &self.poll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            )?;
            let mut streams = self.streams();
            for event in &events {
                let key = event.data.u64();
                if let Some(stream) = streams.get_mut(&key)
                    && !answer(stream, self.steps)
                {
                    streams.remove(&key);
                }
            }
        }
    }
}

/// Answers what has arrived; false when the connection is done. A request
/// that arrives in two pieces is answered when its end is there, because only
/// the end is looked for.
fn answer(stream: &mut TcpStream, steps: u64) -> bool {
    let mut bytes = [0; READ_BYTES];
    match stream.read(&mut bytes) {
        Ok(0) => false,
        Ok(count) => {
            let mut rest = &bytes[..count];
            while let Some(at) = find(rest, b"\r\n\r\n") {
                work(steps);
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
