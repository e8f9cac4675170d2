//! DNS queries that come as datagrams: each goes to the host over a stream of
//! its own, behind its length as over TCP (RFC 1035, 4.2.2), and its answer
//! comes back the same way.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags};
use skiff_base::{Clock, Monotonic};
use skiff_wire::agent::DNS_DATAGRAM_PORT;

use crate::agent::{Agent, EDGES, Token};
use crate::sys;

/// Longer ones come over TCP.
const QUERY_BYTES_MAX: usize = 4096;
/// An answer that is longer would not be a datagram's.
const ANSWER_BYTES_MAX: usize = 4096;
const LENGTH_BYTES: usize = 2;
/// Queries without answers; who asks one more asks again by itself.
const QUERIES_MAX: usize = 128;
const QUERIES_PER_TURN: usize = 32;
/// Resolvers ask again sooner.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Query {
    host: OwnedFd,
    from: SocketAddrV4,
    deadline: Monotonic,
    /// What is not sent yet, the length first.
    unsent: Vec<u8>,
    /// What has come back, the length first.
    answer: Vec<u8>,
}

impl Query {
    /// Moves what can be moved; the answer once it is whole.
    fn turn(&mut self) -> io::Result<Option<Vec<u8>>> {
        if !sys::is_connected(self.host.as_fd())? {
            return Ok(None);
        }
        while !self.unsent.is_empty() {
            match retry_on_intr(|| rustix::net::send(&self.host, &self.unsent, SendFlags::NOSIGNAL))
            {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.receive()
    }

    fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut piece = [0; 512];
        loop {
            let wanted = self.wanted()?;
            if wanted == 0 {
                return Ok(Some(self.answer.split_off(LENGTH_BYTES)));
            }
            let space = piece.get_mut(..wanted.min(512)).unwrap_or_default();
            match retry_on_intr(|| rustix::io::read(&self.host, &mut *space)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.answer.extend(space.get(..length).unwrap_or_default()),
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Bytes that are missing of the answer.
    fn wanted(&self) -> io::Result<usize> {
        let Some((length, rest)) = self.answer.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(LENGTH_BYTES - self.answer.len());
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(length - rest.len())
    }
}

/// Every query that waits for its answer.
#[derive(Debug, Default)]
pub(crate) struct Queries {
    table: BTreeMap<u64, Query>,
    next: u64,
}

impl Queries {
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn end_late(&mut self, now: Monotonic, epoll: &OwnedFd) {
        self.table.retain(|_, query| {
            let stays = query.deadline > now;
            if !stays {
                // Closing it does the same.
                epoll::delete(epoll, &query.host).ok();
            }
            stays
        });
    }
}

impl Agent {
    /// Sends on what applications have asked.
    pub(crate) fn take_queries(&mut self) {
        for _ in 0..QUERIES_PER_TURN {
            match self.take_query() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::debug!(%error, "a DNS query is lost"),
            }
        }
    }

    /// Says whether there may be another.
    fn take_query(&mut self) -> io::Result<bool> {
        let Some(socket) = &self.services.dns_udp else {
            return Ok(false);
        };
        let mut text = [0; QUERY_BYTES_MAX];
        let received = rustix::net::recvfrom(socket, &mut text, RecvFlags::DONTWAIT);
        let (length, _, from) = match received {
            Err(Errno::AGAIN) => return Ok(false),
            result => result?,
        };
        let from = from.and_then(|from| SocketAddrV4::try_from(from).ok());
        let (Some(from), Some(text), Ok(size)) = (from, text.get(..length), u16::try_from(length))
        else {
            return Ok(true);
        };
        if self.queries.table.len() >= QUERIES_MAX {
            return Ok(true);
        }
        let host = self.outside.connect(DNS_DATAGRAM_PORT)?;
        self.queries.next += 1;
        let number = self.queries.next;
        self.watch(&host, Token::Query(number), EDGES)?;
        let query = Query {
            host,
            from,
            deadline: self.clock.now().plus(ANSWER_DEADLINE),
            unsent: [&size.to_be_bytes(), text].concat(),
            answer: Vec::new(),
        };
        self.queries.table.insert(number, query);
        self.turn_query(number);
        Ok(true)
    }

    pub(crate) fn turn_query(&mut self, number: u64) {
        let Some(query) = self.queries.table.get_mut(&number) else {
            return;
        };
        let outcome = query.turn();
        let from = query.from;
        if matches!(outcome, Ok(None)) {
            return;
        }
        if let Some(query) = self.queries.table.remove(&number) {
            self.unwatch(&query.host);
        }
        match (outcome, &self.services.dns_udp) {
            (Ok(Some(answer)), Some(socket)) => {
                // A datagram that is lost is asked for again.
                rustix::net::sendto(socket, &answer, SendFlags::DONTWAIT, &from).ok();
            }
            (Err(error), _) => tracing::debug!(%error, "a DNS query has no answer"),
            _ => {}
        }
    }
}
