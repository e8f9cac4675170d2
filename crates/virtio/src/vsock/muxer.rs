//! Many streams over one device: the host's sockets, and whose turn it is.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::{BUFFER_BYTES, Connection, Effect, Phase, Ports};
use super::handshake::{Handshake, Progress};
use super::packet::{HEADER_BYTES, Header, NO_SEND, Op};

/// The host's address.
pub(super) const HOST_CID: u64 = 2;
/// The most streams at once.
pub(super) const MAX_CONNECTIONS: usize = 1023;
/// The most hosts' connections that have not said where they go.
const MAX_HANDSHAKES: usize = 64;
/// The most resets that wait for a buffer before the guest is heard again.
pub(super) const MAX_RESETS: usize = 256;
/// The largest piece of data at once.
pub(super) const MAX_DATA: usize = 64 << 10;
/// The first port of the host's that nobody chose.
const FIRST_PORT: u32 = 1 << 30;
/// The listener's token; the others' count from the next on.
const LISTENER: u64 = 0;
/// How many events are taken at once.
const EVENTS: usize = 64;

#[derive(Debug)]
enum Target {
    Handshake(Handshake),
    Stream(Ports),
}

/// The host's side.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: OwnedFd,
    targets: HashMap<u64, Target>,
    handshakes: usize,
    connections: HashMap<Ports, (u64, Connection)>,
    /// Those that have something for the guest, each once.
    ready: VecDeque<Ports>,
    /// Those that are over, which the guest does not know.
    resets: VecDeque<Ports>,
    next_token: u64,
    next_port: u32,
    scratch: Vec<u8>,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, path: &Path) -> std::io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let data = EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, data, EventFlags::IN)?;
        Ok(Self {
            guest_cid,
            path: path.to_owned(),
            listener,
            epoll,
            targets: HashMap::new(),
            handshakes: 0,
            connections: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: LISTENER + 1,
            next_port: FIRST_PORT,
            scratch: vec![0; MAX_DATA],
        })
    }

    pub(super) fn source(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Whether another packet of the guest's can be answered.
    pub(super) fn has_room(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Drops every connection; hosts see their ends.
    pub(super) fn clear(&mut self) {
        let all: Vec<_> = self.connections.keys().copied().collect();
        for ports in all {
            self.forget(ports);
        }
        self.resets.clear();
        self.ready.clear();
    }

    // What the host does.

    /// Takes what has happened to the host's sockets.
    pub(super) fn poll(&mut self) {
        let mut events = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; EVENTS];
        let none = rustix::time::Timespec::default();
        let count = epoll::wait(&self.epoll, &mut events[..], Some(&none)).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data.u64() {
                LISTENER => self.accept(),
                token => self.happened(token, event.flags),
            }
        }
    }

    fn accept(&mut self) {
        // A round's worth: the listener is asked again.
        for _ in 0..EVENTS {
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            // Over the limits the host sees its connection closed.
            let room = self.connections.len() < MAX_CONNECTIONS && self.has_room();
            if self.handshakes >= MAX_HANDSHAKES {
                self.give_up_oldest();
            }
            if room && stream.set_nonblocking(true).is_ok() {
                let token = self.watch(&stream);
                if let Some(token) = token {
                    self.handshakes += 1;
                    let handshake = Handshake::new(stream);
                    self.targets.insert(token, Target::Handshake(handshake));
                }
            }
        }
    }

    /// Has a socket's changes told: each once, so that one that the guest has
    /// no buffers for does not keep anybody awake.
    fn watch(&mut self, stream: &UnixStream) -> Option<u64> {
        let token = self.next_token;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, stream, EventData::new_u64(token), flags).ok()?;
        self.next_token += 1;
        Some(token)
    }

    fn happened(&mut self, token: u64, flags: EventFlags) {
        match self.targets.get_mut(&token) {
            Some(Target::Handshake(handshake)) => match handshake.advance() {
                Progress::Waits => {}
                Progress::Failed => self.give_up(token),
                Progress::Port(port) => self.request(token, port),
            },
            Some(Target::Stream(ports)) => {
                let ports = *ports;
                self.stream_happened(ports, flags);
            }
            None => {}
        }
    }

    fn give_up(&mut self, token: u64) {
        self.targets.remove(&token);
        self.handshakes -= 1;
    }

    /// Whoever says nothing keeps nobody out.
    fn give_up_oldest(&mut self) {
        let handshakes = self
            .targets
            .iter()
            .filter(|(_, target)| matches!(target, Target::Handshake(_)));
        let oldest = handshakes.map(|(token, _)| *token).min();
        if let Some(token) = oldest {
            self.give_up(token);
        }
    }

    /// A host's connection has said which port it wants.
    fn request(&mut self, token: u64, guest: u32) {
        let Some(host) = self.free_port(guest) else {
            self.give_up(token);
            return;
        };
        let ports = Ports { host, guest };
        let Some(Target::Handshake(handshake)) = self.targets.insert(token, Target::Stream(ports))
        else {
            return;
        };
        self.handshakes -= 1;
        let mut connection = Connection::new(handshake.stream, Phase::Requested);
        connection.pending.request = true;
        self.connections.insert(ports, (token, connection));
        self.list(ports);
    }

    /// A port of the host's that no connection to this one of the guest's has.
    fn free_port(&mut self, guest: u32) -> Option<u32> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_PORT);
            // There are more ports than connections.
            if !self.connections.contains_key(&Ports { host, guest }) {
                return Some(host);
            }
        }
    }

    fn stream_happened(&mut self, ports: Ports, flags: EventFlags) {
        let Some((_, connection)) = self.connections.get_mut(&ports) else {
            return;
        };
        let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        if flags.intersects(EventFlags::IN | ends) {
            connection.readable = true;
        }
        let effect = if flags.contains(EventFlags::OUT) && connection.wants_to_write() {
            connection.flush()
        } else {
            Effect::Fine
        };
        self.settle(ports, effect);
    }

    // What the guest does.

    /// Takes a packet of the guest's, whose data `read` gives in pieces.
    pub(super) fn hear(&mut self, header: &Header, read: impl FnMut(&mut [u8]) -> usize) {
        if header.source_cid != self.guest_cid || header.target_cid != HOST_CID {
            // It is not from this guest, or not for the host: nobody's.
            return;
        }
        let ports = Ports {
            host: header.target_port,
            guest: header.source_port,
        };
        let Some((_, connection)) = self.connections.get_mut(&ports) else {
            match header.op {
                Some(Op::Reset) => {}
                Some(Op::Request) if header.is_stream => self.connect(ports, header),
                _ => self.resets.push_back(ports),
            }
            return;
        };
        connection.hear_credit(header);
        let effect = match header.op {
            Some(Op::Response) if connection.phase == Phase::Requested => {
                answer(connection, ports.host)
            }
            Some(Op::Data) => self.receive(ports, header, read),
            Some(Op::Shutdown) => connection.shut(header.flags),
            Some(Op::CreditUpdate) => Effect::Fine,
            Some(Op::CreditRequest) => {
                connection.pending.credit = true;
                Effect::Fine
            }
            Some(Op::Reset) => Effect::Gone,
            Some(Op::Request | Op::Response) | None => Effect::Reset,
        };
        self.settle(ports, effect);
    }

    /// The guest wants a port of the host's.
    fn connect(&mut self, ports: Ports, header: &Header) {
        let opened = if self.connections.len() < MAX_CONNECTIONS {
            self.open(ports.host).ok()
        } else {
            None
        };
        let Some((token, stream)) = opened else {
            self.resets.push_back(ports);
            return;
        };
        let mut connection = Connection::new(stream, Phase::Open);
        connection.hear_credit(header);
        connection.pending.response = true;
        self.targets.insert(token, Target::Stream(ports));
        self.connections.insert(ports, (token, connection));
        self.list(ports);
    }

    fn open(&mut self, port: u32) -> std::io::Result<(u64, UnixStream)> {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!("_{port}"));
        let address = SocketAddrUnix::new(PathBuf::from(name))?;
        // It does not wait: a listener whose queue is full refuses.
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&socket, &address)?;
        let stream = UnixStream::from(socket);
        let token = self
            .watch(&stream)
            .ok_or_else(|| std::io::Error::from(ErrorKind::OutOfMemory))?;
        Ok((token, stream))
    }

    fn receive(
        &mut self,
        ports: Ports,
        header: &Header,
        mut read: impl FnMut(&mut [u8]) -> usize,
    ) -> Effect {
        let Some((_, connection)) = self.connections.get_mut(&ports) else {
            return Effect::Fine;
        };
        if header.bytes > BUFFER_BYTES {
            return Effect::Reset;
        }
        let mut left = usize::try_from(header.bytes).unwrap_or(usize::MAX);
        while left > 0 {
            let length = left.min(self.scratch.len());
            let piece = self.scratch.get_mut(..length).unwrap_or_default();
            let length = read(piece);
            let piece = piece.get(..length).unwrap_or_default();
            if piece.is_empty() {
                return Effect::Reset;
            }
            left -= piece.len();
            let effect = connection.receive(piece);
            if effect != Effect::Fine {
                return effect;
            }
        }
        Effect::Fine
    }

    /// What follows from what happened to a connection.
    fn settle(&mut self, ports: Ports, effect: Effect) {
        match effect {
            Effect::Fine => self.list(ports),
            Effect::Gone => self.forget(ports),
            Effect::Reset => {
                self.forget(ports);
                self.resets.push_back(ports);
            }
        }
    }

    /// Closing the socket takes it out of the epoll set.
    fn forget(&mut self, ports: Ports) {
        if let Some((token, _)) = self.connections.remove(&ports) {
            self.targets.remove(&token);
        }
    }

    /// Puts a connection into the list of those that have something, once.
    fn list(&mut self, ports: Ports) {
        let Some((_, connection)) = self.connections.get_mut(&ports) else {
            return;
        };
        connection.ask_for_credit();
        if !connection.listed && connection.has_something() {
            connection.listed = true;
            self.ready.push_back(ports);
        }
    }

    // What the guest is given.

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest, with at most `room` bytes of data.
    pub(super) fn next(&mut self, room: usize) -> Option<([u8; HEADER_BYTES], &[u8])> {
        if let Some(ports) = self.resets.pop_front() {
            return Some((self.header(ports, Op::Reset, 0, (0, 0)), &[]));
        }
        while let Some(ports) = self.ready.pop_front() {
            let Some((_, connection)) = self.connections.get_mut(&ports) else {
                continue;
            };
            connection.listed = false;
            if let Some(op) = connection.pending.take() {
                let credit = connection.credit_fields();
                self.list(ports);
                return Some((self.header(ports, op, 0, credit), &[]));
            }
            if !connection.can_send() {
                continue;
            }
            let credit = usize::try_from(connection.credit()).unwrap_or(usize::MAX);
            let length = room.min(credit).min(self.scratch.len());
            let piece = self.scratch.get_mut(..length).unwrap_or_default();
            match connection.stream.read(piece) {
                Ok(0) if length > 0 => {
                    connection.host_ended();
                    if connection.is_over() {
                        self.forget(ports);
                        return Some((self.header(ports, Op::Reset, 0, (0, 0)), &[]));
                    }
                    self.list(ports);
                }
                Ok(read) => {
                    let bytes = u32::try_from(read).unwrap_or(u32::MAX);
                    connection.count_sent(bytes);
                    let credit = connection.credit_fields();
                    // Behind the others.
                    self.list(ports);
                    let header = self.header(ports, Op::Data, bytes, credit);
                    return Some((header, self.scratch.get(..read).unwrap_or_default()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.readable = false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => self.list(ports),
                Err(_) => {
                    self.forget(ports);
                    return Some((self.header(ports, Op::Reset, 0, (0, 0)), &[]));
                }
            }
        }
        None
    }

    fn header(&self, ports: Ports, op: Op, bytes: u32, credit: (u32, u32)) -> [u8; HEADER_BYTES] {
        Header {
            source_cid: HOST_CID,
            target_cid: self.guest_cid,
            source_port: ports.host,
            target_port: ports.guest,
            bytes,
            op: Some(op),
            is_stream: true,
            flags: if op == Op::Shutdown { NO_SEND } else { 0 },
            buffer: credit.0,
            forwarded: credit.1,
        }
        .to_bytes()
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // Whoever removed it before has done the same.
        drop(std::fs::remove_file(&self.path));
    }
}

/// The guest takes a host's connection: the host is told, and bytes may flow.
fn answer(connection: &mut Connection, port: u32) -> Effect {
    let line = format!("OK {port}\n");
    // A socket that nothing was written to takes these few bytes.
    match connection.stream.write(line.as_bytes()) {
        Ok(written) if written == line.len() => {
            connection.phase = Phase::Open;
            connection.readable = true;
            Effect::Fine
        }
        _ => Effect::Reset,
    }
}
