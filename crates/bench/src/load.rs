//! A load generator on one thread: open loop (requests come when they come,
//! and a latency counts from when the request was due, so that a slow server
//! cannot hide what waited) or closed loop (each connection asks again as soon
//! as it has its answer).

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::response::{Response, parse};
use crate::stats::Random;
use crate::time::now;

const TIMER: u64 = u64::MAX;
const READ_BYTES: usize = 16 * 1024;
/// A response larger than this is not what was asked for.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// When requests come.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    Closed,
    /// At random times, this many a second on average.
    Open(f64),
}

/// What is asked, of whom, how often.
#[derive(Clone, Debug)]
pub struct Load {
    pub address: SocketAddr,
    /// Whole requests, asked in turn.
    pub requests: Vec<Vec<u8>>,
    pub connections: usize,
    pub pace: Pace,
    pub duration: Duration,
    /// What has not been answered after this is given up.
    pub patience: Duration,
    /// What has found no idle connection after this is given up.
    pub unsent: Duration,
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Of each correct answer, nanoseconds since it was due.
    pub latencies_ns: Vec<u64>,
    /// What else came: statuses, or how a connection broke.
    pub others: BTreeMap<String, u64>,
    /// Requests that were due.
    pub offered: u64,
    /// From the first request to the last answer or the end of patience.
    pub elapsed: Duration,
}

impl Outcome {
    /// Correct answers within a while.
    pub fn within(&self, limit: Duration) -> usize {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.latencies_ns
            .iter()
            .filter(|latency| **latency <= limit)
            .count()
    }

    /// Requests without a correct answer.
    pub fn failed(&self) -> u64 {
        self.offered.saturating_sub(self.latencies_ns.len() as u64)
    }

    /// A quantile of the latencies, milliseconds.
    pub fn quantile_ms(&self, permille: usize) -> f64 {
        let mut sorted = self.latencies_ns.clone();
        sorted.sort_unstable();
        let at = sorted.len().saturating_sub(1) * permille / 1000;
        sorted
            .get(at)
            .map_or(f64::NAN, |nanos| crate::time::ns_to_ms(*nanos))
    }
}

/// A GET for a host.
pub fn get(host: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: skiff-bench\r\n\r\n").into_bytes()
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// When the request in flight was due.
    due: Option<u64>,
    received: Vec<u8>,
}

#[derive(Debug)]
struct Generator<'a, F> {
    load: &'a Load,
    correct: F,
    poll: OwnedFd,
    timer: OwnedFd,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    waiting: VecDeque<u64>,
    random: Random,
    outcome: Outcome,
    next_request: usize,
    next_due: u64,
    end: u64,
}

/// Loads until the duration is over and all is answered or given up.
/// `correct` judges a whole response.
///
/// # Errors
/// When the server cannot be reached at all.
pub fn run(load: &Load, correct: impl Fn(&Response<'_>) -> bool) -> anyhow::Result<Outcome> {
    let mut generator = Generator::new(load, correct)?;
    let start = now().as_nanos();
    generator.next_due = start;
    generator.end = start + nanos(load.duration);
    let give_up = generator.end + nanos(load.patience);
    let mut events = Vec::with_capacity(1024);
    loop {
        let time = now().as_nanos();
        generator.begin(time)?;
        if time >= generator.end && generator.settled() || time >= give_up {
            break;
        }
        generator.arm(time, give_up)?;
        events.clear();
        match epoll::wait(
            &generator.poll,
            rustix::buffer::spare_capacity(&mut events),
            None,
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for answers"),
        }
        for event in &events {
            let key = event.data.u64();
            if key == TIMER {
                let mut count = [0; 8];
                let _expirations = rustix::io::read(&generator.timer, &mut count);
            } else {
                generator.receive(usize::try_from(key)?)?;
            }
        }
    }
    let unanswered = generator.in_flight() + generator.waiting.len();
    let mut outcome = generator.outcome;
    if unanswered > 0 {
        *outcome.others.entry("no answer".to_owned()).or_default() += unanswered as u64;
    }
    outcome.elapsed = Duration::from_nanos(now().as_nanos() - start);
    Ok(outcome)
}

impl<'a, F: Fn(&Response<'_>) -> bool> Generator<'a, F> {
    fn new(load: &'a Load, correct: F) -> anyhow::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        epoll::add(
            &poll,
            &timer,
            epoll::EventData::new_u64(TIMER),
            epoll::EventFlags::IN,
        )?;
        let mut generator = Self {
            load,
            correct,
            poll,
            timer,
            connections: Vec::with_capacity(load.connections),
            idle: (0..load.connections).collect(),
            waiting: VecDeque::new(),
            random: Random::new(load.seed),
            outcome: Outcome::default(),
            next_request: 0,
            next_due: 0,
            end: 0,
        };
        for index in 0..load.connections {
            let connection = generator.connect(index)?;
            generator.connections.push(connection);
        }
        Ok(generator)
    }

    fn connect(&self, index: usize) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect_timeout(&self.load.address, self.load.patience)
            .with_context(|| self.load.address.to_string())?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let key = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.poll, &stream, key, epoll::EventFlags::IN)?;
        Ok(Connection {
            stream,
            due: None,
            received: Vec::new(),
        })
    }

    /// Counts what is due and sends what has a connection.
    fn begin(&mut self, time: u64) -> anyhow::Result<()> {
        match self.load.pace {
            Pace::Open(per_second) => {
                while self.next_due <= time && self.next_due < self.end {
                    self.waiting.push_back(self.next_due);
                    self.outcome.offered += 1;
                    let gap = -self.random.unit().ln() / per_second;
                    self.next_due += nanos(Duration::from_secs_f64(gap)).max(1);
                }
            }
            Pace::Closed if time < self.end => {
                while self.waiting.len() < self.idle.len() {
                    self.waiting.push_back(time);
                    self.outcome.offered += 1;
                }
            }
            Pace::Closed => {}
        }
        let too_old = time.saturating_sub(nanos(self.load.unsent));
        while let Some(due) = self.waiting.front().copied() {
            if due < too_old {
                self.waiting.pop_front();
                self.other("no connection in time");
            } else if let Some(index) = self.idle.pop() {
                self.waiting.pop_front();
                self.send(index, due)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn send(&mut self, index: usize, due: u64) -> anyhow::Result<()> {
        let request = &self.load.requests[self.next_request % self.load.requests.len()];
        self.next_request += 1;
        let connection = &mut self.connections[index];
        connection.due = Some(due);
        // Requests are short: they fit an empty socket buffer whole.
        match connection.stream.write(request) {
            Ok(count) if count == request.len() => Ok(()),
            Ok(_) | Err(_) => self.broken(index, "broken while sending"),
        }
    }

    fn receive(&mut self, index: usize) -> anyhow::Result<()> {
        let mut bytes = [0; READ_BYTES];
        let connection = &mut self.connections[index];
        match connection.stream.read(&mut bytes) {
            Ok(0) => return self.broken(index, "closed without an answer"),
            Ok(count) => connection.received.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return self.broken(index, "broken while receiving"),
        }
        if connection.received.len() > RESPONSE_BYTES_MAX {
            return self.broken(index, "too long an answer");
        }
        let Some(response) = parse(&connection.received) else {
            return Ok(());
        };
        let Some(due) = connection.due.take() else {
            return self.broken(index, "an answer without a request");
        };
        let good = (self.correct)(&response);
        let (status, close, length) = (response.status, response.close, response.length);
        connection.received.drain(..length);
        if good {
            self.outcome
                .latencies_ns
                .push(now().as_nanos().saturating_sub(due));
        } else {
            self.other(&format!("status {status}"));
        }
        if close {
            self.connections[index] = self.connect(index)?;
        }
        self.idle.push(index);
        Ok(())
    }

    /// A connection has ended; the request in flight is lost.
    fn broken(&mut self, index: usize, how: &str) -> anyhow::Result<()> {
        let lost = self.connections[index].due.is_some();
        if lost {
            self.other(how);
        }
        self.connections[index] = self.connect(index)?;
        if lost {
            self.idle.push(index);
        }
        Ok(())
    }

    fn other(&mut self, what: &str) {
        match self.outcome.others.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.outcome.others.insert(what.to_owned(), 1);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.connections.len() - self.idle.len()
    }

    fn settled(&self) -> bool {
        self.waiting.is_empty() && self.in_flight() == 0
    }

    /// Wakes at the next request that is due, or when all is given up.
    fn arm(&self, time: u64, give_up: u64) -> anyhow::Result<()> {
        let at = match self.load.pace {
            Pace::Open(_) if self.next_due < self.end => self.next_due,
            _ if time < self.end => self.end,
            _ => give_up,
        };
        let value = Timespec {
            tv_sec: i64::try_from(at / 1_000_000_000)?,
            tv_nsec: i64::try_from(at % 1_000_000_000)?,
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers so many requests on each connection, then closes.
    fn server(answers: usize, wait: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let mut bytes = [0; 4096];
                    for _ in 0..answers {
                        if stream.read(&mut bytes).unwrap_or(0) == 0 {
                            return;
                        }
                        std::thread::sleep(wait);
                        if stream.write_all(crate::upstream::ANSWER).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    fn load(address: SocketAddr, pace: Pace) -> Load {
        Load {
            address,
            requests: vec![get("a", "/")],
            connections: 1,
            pace,
            duration: Duration::from_millis(500),
            patience: Duration::from_secs(20),
            unsent: Duration::from_secs(20),
            seed: 1,
        }
    }

    #[test]
    fn a_latency_counts_from_when_the_request_was_due() {
        // 100 a second are offered, about 20 can be served: the queue shows.
        let address = server(usize::MAX, Duration::from_millis(50));
        let outcome = run(&load(address, Pace::Open(100.0)), |r| r.status == 200).unwrap();
        assert_eq!(outcome.failed(), 0);
        assert!(outcome.offered > 20);
        assert!(
            outcome.quantile_ms(900) > 500.0,
            "{}",
            outcome.quantile_ms(900)
        );
    }

    #[test]
    fn a_closed_loop_asks_as_fast_as_it_is_answered() {
        let address = server(usize::MAX, Duration::from_millis(50));
        let outcome = run(&load(address, Pace::Closed), |r| r.status == 200).unwrap();
        assert_eq!(outcome.failed(), 0);
        assert!(outcome.offered <= 11, "{}", outcome.offered);
    }

    #[test]
    fn what_is_not_correct_does_not_count() {
        let address = server(usize::MAX, Duration::ZERO);
        let outcome = run(&load(address, Pace::Closed), |_| false).unwrap();
        assert_eq!(outcome.latencies_ns.len(), 0);
        assert_eq!(outcome.others.get("status 200"), Some(&outcome.offered));
    }

    #[test]
    fn a_connection_that_breaks_off_loses_only_its_request() {
        let address = server(3, Duration::from_millis(5));
        let outcome = run(&load(address, Pace::Closed), |r| r.status == 200).unwrap();
        // It closes while idle: nothing is lost but what raced with it.
        assert!(outcome.latencies_ns.len() > 10);
        let sum = outcome.latencies_ns.len() as u64 + outcome.others.values().sum::<u64>();
        assert_eq!(sum, outcome.offered);
    }
}
