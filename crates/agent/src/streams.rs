//! Streams between the host and what runs here.
//!
//! ```text
//!  accepted ──opening──▶ joining ──connected──▶ open ──both flows through──▶ gone
//!     │ late                │ refused, late       │ an end breaks
//!     └──▶ gone             └──▶ told why, gone   └──▶ gone
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use skiff_base::{Clock, Monotonic};
use skiff_types::InstanceId;
use skiff_wire::agent::{OPENING_BYTES_MAX, Opened, Opening};
use skiff_wire::launcher::Refusal;
use skiff_wire::{FrameReader, framed};

use crate::agent::{Agent, EDGES, Token};
use crate::end::End;
use crate::flow::{Flow, PIECE_BYTES, Turn};
use crate::requests::{kernel, refuse};
use crate::sandboxes::Key;
use crate::sys;

const STEP: &str = "stream";
/// At a time, of every kind together.
const STREAMS_MAX: usize = 1024;
/// From the connection to the first byte.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Of a refusal's words; the frame has room for no more.
const MESSAGE_CHARS_MAX: usize = 200;

/// A sandbox's stream. Of each there is one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Which {
    Stdin,
    /// Or its terminal.
    Stdout,
    Stderr,
}

#[derive(Debug)]
enum Phase {
    /// The host has yet to say what it wants.
    Opening(FrameReader),
    /// The guest's end is being connected, and the host told of it.
    JoiningGuest,
    /// The host's end is being connected.
    JoiningHost,
    Open,
}

/// One stream.
#[derive(Debug)]
struct Stream {
    host: End,
    /// None while it is not known, or was refused.
    guest: Option<End>,
    phase: Phase,
    deadline: Monotonic,
    /// To the host.
    down: Flow,
    /// From the host.
    up: Flow,
    sandbox: Option<(Key, Which)>,
}

impl Stream {
    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Moves what can be moved; nothing when the stream is over.
    fn turn(&mut self, scratch: &mut [u8]) -> io::Result<Option<Turn>> {
        let Some(guest) = &self.guest else {
            let turn = self.down.turn(&self.host, &self.host, scratch)?;
            return Ok((turn != Turn::Finished).then_some(turn));
        };
        let down = self.down.turn(guest, &self.host, scratch)?;
        let up = self.up.turn(&self.host, guest, scratch)?;
        let (through_down, through_up) = (self.down.is_finished(), self.up.is_finished());
        let over = match guest {
            End::Socket(_) => through_down && through_up,
            // What the host sends here goes nowhere: its end means that
            // nobody reads any more.
            End::Reader(_) | End::Terminal(_) => through_down || through_up,
            End::Writer(_) => through_up,
        };
        let turn = if [down, up].contains(&Turn::Again) {
            Turn::Again
        } else {
            Turn::Waits
        };
        Ok((!over).then_some(turn))
    }
}

/// Every stream.
#[derive(Debug)]
pub(crate) struct Streams {
    table: BTreeMap<u64, Stream>,
    next: u64,
    /// Those that have more to move than one turn does.
    ready: VecDeque<u64>,
    scratch: Vec<u8>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            table: BTreeMap::new(),
            next: 0,
            ready: VecDeque::new(),
            scratch: vec![0; PIECE_BYTES],
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(crate) fn has_deadlines(&self) -> bool {
        self.table.values().any(|stream| !stream.is_open())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.table.len() >= STREAMS_MAX
    }
}

impl Agent {
    /// A connection of the host's that has yet to say what it wants.
    pub(crate) fn add_host_stream(&mut self, socket: OwnedFd) {
        self.add_stream(
            End::Socket(socket),
            None,
            Phase::Opening(FrameReader::new(OPENING_BYTES_MAX)),
        );
    }

    /// A connection from inside, and one to the host that is being made.
    pub(crate) fn add_service_stream(&mut self, guest: OwnedFd, host: OwnedFd) {
        self.add_stream(
            End::Socket(host),
            Some(End::Socket(guest)),
            Phase::JoiningHost,
        );
    }

    fn add_stream(&mut self, host: End, guest: Option<End>, phase: Phase) {
        if self.streams.is_full() {
            tracing::warn!("there are {STREAMS_MAX} streams: another one is refused");
            return;
        }
        self.streams.next += 1;
        let number = self.streams.next;
        for end in [Some(&host), guest.as_ref()].into_iter().flatten() {
            if let Err(errno) = self.watch(end, Token::Stream(number), EDGES) {
                tracing::error!(%errno, "a stream cannot be watched");
                return;
            }
        }
        let stream = Stream {
            host,
            guest,
            phase,
            deadline: self.clock.now().plus(OPEN_DEADLINE),
            down: Flow::default(),
            up: Flow::default(),
            sandbox: None,
        };
        self.streams.table.insert(number, stream);
        self.turn_stream(number);
    }

    /// Something has happened at one of a stream's ends.
    pub(crate) fn turn_stream(&mut self, number: u64) {
        let Some(stream) = self.streams.table.get_mut(&number) else {
            return;
        };
        let joined = match &mut stream.phase {
            Phase::Open => return self.move_stream(number),
            Phase::Opening(reader) => {
                match read_opening(&stream.host, reader) {
                    Ok(None) => {}
                    Ok(Some(opening)) => self.open_stream(number, opening),
                    Err(error) => self.drop_stream(number, &error),
                }
                return;
            }
            Phase::JoiningGuest => match &stream.guest {
                Some(guest) => sys::is_connected(guest.as_fd()),
                None => Ok(true),
            },
            Phase::JoiningHost => sys::is_connected(stream.host.as_fd()),
        };
        match (joined, matches!(stream.phase, Phase::JoiningGuest)) {
            (Ok(false), _) => {}
            (Ok(true), true) => self.accept_stream(number),
            (Ok(true), false) => {
                stream.phase = Phase::Open;
                self.move_stream(number);
            }
            (Err(error), true) => self.refuse_stream(number, &refusal_of(&error)),
            (Err(error), false) => self.drop_stream(number, &error),
        }
    }

    fn open_stream(&mut self, number: u64, opening: Opening) {
        let opened = match opening {
            Opening::Stdin { sandbox } => self.attach(number, sandbox.into(), Which::Stdin),
            Opening::Stdout { sandbox } => self.attach(number, sandbox.into(), Which::Stdout),
            Opening::Stderr { sandbox } => self.attach(number, sandbox.into(), Which::Stderr),
            Opening::Terminal { sandbox } => self.attach_terminal(number, sandbox.into()),
            Opening::ExecStdin { sandbox, exec } => {
                self.attach(number, of_exec(sandbox, exec), Which::Stdin)
            }
            Opening::ExecStdout { sandbox, exec } => {
                self.attach(number, of_exec(sandbox, exec), Which::Stdout)
            }
            Opening::ExecStderr { sandbox, exec } => {
                self.attach(number, of_exec(sandbox, exec), Which::Stderr)
            }
            Opening::ExecTerminal { sandbox, exec } => {
                self.attach_terminal(number, of_exec(sandbox, exec))
            }
            Opening::Forward { port } => connect(port)
                .map(End::Socket)
                .map_err(|error| refusal_of(&error)),
        };
        let joined = opened.and_then(|end| self.join(number, end));
        match joined {
            Ok(()) => self.turn_stream(number),
            Err(refusal) => self.refuse_stream(number, &refusal),
        }
    }

    /// Gives a stream its guest's end.
    fn join(&mut self, number: u64, end: End) -> Result<(), Refusal> {
        self.watch(&end, Token::Stream(number), EDGES)
            .map_err(|errno| kernel(STEP, "watch the guest's end", errno))?;
        let Some(stream) = self.streams.table.get_mut(&number) else {
            self.unwatch(&end);
            return Ok(());
        };
        let connecting = matches!(end, End::Socket(_));
        stream.guest = Some(end);
        stream.phase = Phase::JoiningGuest;
        if !connecting {
            self.accept_stream(number);
        }
        Ok(())
    }

    fn attach(&mut self, number: u64, id: Key, which: Which) -> Result<End, Refusal> {
        let (end, before) = self.sandbox(id)?.attach(which, number)?;
        self.attached(number, id, which, before);
        Ok(end)
    }

    fn attach_terminal(&mut self, number: u64, id: Key) -> Result<End, Refusal> {
        let (end, before) = self.sandbox(id)?.attach_terminal(number)?;
        self.attached(number, id, Which::Stdout, before);
        Ok(end)
    }

    fn attached(&mut self, number: u64, id: Key, which: Which, before: Option<u64>) {
        if let Some(stream) = self.streams.table.get_mut(&number) {
            stream.sandbox = Some((id, which));
        }
        if let Some(before) = before {
            self.drop_stream(before, &io::Error::other("another one follows"));
        }
    }

    /// The guest's end is there: the host is told, and bytes follow.
    fn accept_stream(&mut self, number: u64) {
        let Some(stream) = self.streams.table.get_mut(&number) else {
            return;
        };
        let words = framed::<Opened>(&Ok(())).unwrap_or_default();
        stream.phase = Phase::Open;
        stream.down = match &stream.guest {
            Some(guest) if !guest.is_read() => Flow::only_words(words),
            _ => Flow::with_words(words),
        };
        self.move_stream(number);
    }

    /// Tells the host why not, and ends the stream.
    fn refuse_stream(&mut self, number: u64, refusal: &Refusal) {
        let mut refusal = refusal.clone();
        refusal.message = refusal.message.chars().take(MESSAGE_CHARS_MAX).collect();
        let Some(stream) = self.streams.table.get_mut(&number) else {
            return;
        };
        let guest = stream.guest.take();
        stream.phase = Phase::Open;
        stream.down = Flow::only_words(framed::<Opened>(&Err(refusal)).unwrap_or_default());
        if let Some(guest) = guest {
            self.unwatch(&guest);
        }
        self.move_stream(number);
    }

    fn move_stream(&mut self, number: u64) {
        let Streams {
            table,
            ready,
            scratch,
            ..
        } = &mut self.streams;
        let Some(stream) = table.get_mut(&number) else {
            return;
        };
        match stream.turn(scratch) {
            Ok(Some(Turn::Again)) => {
                if !ready.contains(&number) {
                    ready.push_back(number);
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => self.end_stream(number),
            Err(error) => self.drop_stream(number, &error),
        }
    }

    /// Gives each stream that has more to move one turn.
    pub(crate) fn turn_ready_streams(&mut self) {
        for number in std::mem::take(&mut self.streams.ready) {
            self.move_stream(number);
        }
    }

    pub(crate) fn end_late_streams(&mut self, now: Monotonic) {
        if !self.streams.has_deadlines() {
            return;
        }
        let table = self.streams.table.iter();
        let late: Vec<u64> = table
            .filter(|(_, stream)| !stream.is_open() && stream.deadline <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            self.drop_stream(number, &io::ErrorKind::TimedOut.into());
        }
    }

    fn drop_stream(&mut self, number: u64, reason: &io::Error) {
        tracing::debug!(number, %reason, "a stream breaks off");
        self.end_stream(number);
    }

    fn end_stream(&mut self, number: u64) {
        let Some(stream) = self.streams.table.remove(&number) else {
            return;
        };
        for end in [Some(&stream.host), stream.guest.as_ref()]
            .into_iter()
            .flatten()
        {
            self.unwatch(end);
        }
        if let Some((id, which)) = stream.sandbox {
            let through = stream.up.is_finished();
            // Whoever is told of the exit finds the stream's end already.
            drop(stream);
            self.detached(number, id, which, through);
        }
    }
}

pub(crate) fn of_exec(sandbox: InstanceId, exec: u64) -> Key {
    Key {
        sandbox,
        exec: Some(exec),
    }
}

fn read_opening(host: &End, reader: &mut FrameReader) -> io::Result<Option<Opening>> {
    let mut piece = [0; OPENING_BYTES_MAX];
    loop {
        let wanted = reader.wanted().min(OPENING_BYTES_MAX);
        let space = piece.get_mut(..wanted).unwrap_or_default();
        let length = match retry_on_intr(|| rustix::io::read(host, &mut *space)) {
            Err(Errno::AGAIN) => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            result => result?,
        };
        let read = space.get(..length).unwrap_or_default();
        if let Some(frame) = reader.push(read).map_err(io::Error::other)? {
            return skiff_wire::decode(&frame)
                .map(Some)
                .map_err(io::Error::other);
        }
    }
}

/// A socket that is connected, or about to be, to a port of the loopback
/// address.
fn connect(port: u16) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(ipproto::TCP),
    )?;
    // Without it a small answer would wait for the acknowledgement of the
    // one before.
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

fn refusal_of(error: &io::Error) -> Refusal {
    match Errno::from_io_error(error) {
        Some(errno) => kernel(STEP, "connect", errno),
        None => refuse(STEP, error),
    }
}
