//! The loop: everything that is waited for, in one place.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use skiff_base::{Clock, Monotonic, SystemClock};

use crate::control::Control;
use crate::disks::{DiskNames, Disks};
use crate::dns::Queries;
use crate::launcher::LauncherProcess;
use crate::link::Link;
use crate::requests::{To, Waiting};
use crate::sandboxes::{Key, Sandbox};
use crate::services::Services;
use crate::streams::Streams;
use crate::sys::{self, Outside};

const EVENTS_MAX: usize = 64;
/// Deadlines are looked at so often while there are any.
const LOOK: Duration = Duration::from_millis(500);
/// What the kernel does not let go of is looked at again after this.
const LOOK_SOON: Duration = Duration::from_millis(5);
/// Accepted in one turn, so that others have theirs.
const ACCEPTS_PER_TURN: usize = 16;

/// What an agent is given.
#[derive(Debug)]
pub struct Settings {
    /// Where the host's control connections arrive, non-blocking.
    pub control: OwnedFd,
    /// Where the host's streams arrive, non-blocking.
    pub streams: OwnedFd,
    /// How the host is reached.
    pub outside: Outside,
    /// What the disks are called.
    pub disks: DiskNames,
    /// Who makes sandboxes.
    pub launcher: LauncherProcess,
}

/// The agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A call of the loop's own failed.
    #[error("{step} fails")]
    Loop {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The launcher does not answer as it should.
    #[error("the launcher cannot be spoken to")]
    Launcher(#[source] io::Error),
    /// The launcher's process has ended, and with it every sandbox.
    #[error("the launcher has ended")]
    LauncherEnded,
}

pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, AgentError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, AgentError> {
        self.map_err(|error| AgentError::Loop {
            step,
            source: error.into(),
        })
    }
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    ControlListener,
    StreamListener,
    Signals,
    Launcher,
    Control,
    Gateway,
    DnsTcp,
    DnsUdp,
    Runtime,
    Stream(u64),
    Query(u64),
}

const KIND_SHIFT: u32 = 56;

impl Token {
    fn encode(self) -> EventData {
        let (kind, number) = match self {
            Self::ControlListener => (0, 0),
            Self::StreamListener => (1, 0),
            Self::Signals => (2, 0),
            Self::Launcher => (3, 0),
            Self::Control => (4, 0),
            Self::Gateway => (5, 0),
            Self::DnsTcp => (6, 0),
            Self::DnsUdp => (7, 0),
            Self::Stream(number) => (8, number),
            Self::Query(number) => (9, number),
            Self::Runtime => (10, 0),
        };
        EventData::new_u64(kind << KIND_SHIFT | number)
    }

    fn decode(data: u64) -> Option<Self> {
        let number = data & ((1 << KIND_SHIFT) - 1);
        Some(match data >> KIND_SHIFT {
            0 => Self::ControlListener,
            1 => Self::StreamListener,
            2 => Self::Signals,
            3 => Self::Launcher,
            4 => Self::Control,
            5 => Self::Gateway,
            6 => Self::DnsTcp,
            7 => Self::DnsUdp,
            8 => Self::Stream(number),
            9 => Self::Query(number),
            10 => Self::Runtime,
            _ => return None,
        })
    }
}

/// Told once when something can be done again, not as long as it can: both
/// ends of a stream are tried until they would wait.
pub(crate) const EDGES: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// An agent at work.
#[derive(Debug)]
pub struct Agent {
    pub(crate) clock: SystemClock,
    epoll: OwnedFd,
    control_listener: OwnedFd,
    stream_listener: OwnedFd,
    signals: OwnedFd,
    pub(crate) outside: Outside,
    launcher_pid: u32,
    pub(crate) link: Link,
    pub(crate) control: Option<Control>,
    /// Control connections so far.
    connections: u64,
    /// What the launcher owes answers to.
    pub(crate) waiting: BTreeMap<u64, Waiting>,
    /// Requests to the launcher so far.
    pub(crate) asked: u64,
    pub(crate) disks: Disks<Option<To>>,
    pub(crate) sandboxes: BTreeMap<Key, Sandbox>,
    pub(crate) streams: Streams,
    pub(crate) services: Services,
    pub(crate) queries: Queries,
    /// Everything has ended; the machine does at this time, or when the host
    /// has closed its connection.
    pub(crate) ending: Option<Monotonic>,
}

impl Agent {
    /// Sets the network up, greets the launcher and watches for the host.
    ///
    /// # Errors
    /// When the kernel or the launcher refuses.
    pub fn new(settings: Settings) -> Result<Self, AgentError> {
        let mut agent = Self {
            clock: SystemClock,
            epoll: epoll::create(CreateFlags::CLOEXEC).step("epoll_create")?,
            control_listener: settings.control,
            stream_listener: settings.streams,
            signals: sys::signals(&[libc::SIGCHLD]).step("signalfd")?,
            outside: settings.outside,
            launcher_pid: settings.launcher.pid,
            link: Link::new(settings.launcher.socket),
            control: None,
            connections: 0,
            waiting: BTreeMap::new(),
            asked: 0,
            disks: Disks::new(settings.disks),
            sandboxes: BTreeMap::new(),
            streams: Streams::new(),
            services: Services::open(),
            queries: Queries::default(),
            ending: None,
        };
        for (listener, token) in [
            (&agent.control_listener, Token::ControlListener),
            (&agent.stream_listener, Token::StreamListener),
            (&agent.signals, Token::Signals),
        ] {
            agent.watch(listener, token, EventFlags::IN).step("epoll")?;
        }
        agent
            .watch(&agent.link, Token::Launcher, EventFlags::IN)
            .step("epoll")?;
        agent.watch_services().step("epoll")?;
        agent.greet_launcher(settings.launcher.server)?;
        Ok(agent)
    }

    /// Serves until the host asks for the machine's end.
    ///
    /// # Errors
    /// When nothing can be served any more.
    pub fn run(mut self) -> Result<(), AgentError> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_MAX);
        while !self.is_over() {
            events.clear();
            let timeout = self.timeout().map(|wait| rustix::time::Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            });
            let waited = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            );
            match waited {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).step("epoll_wait"),
            }
            for event in &events {
                if let Some(token) = Token::decode(event.data.u64()) {
                    self.dispatch(token)?;
                }
            }
            self.look_again()?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        match self.ending {
            None => false,
            Some(deadline) => self.control.is_none() || self.clock.now() >= deadline,
        }
    }

    /// How long to wait for events.
    fn timeout(&self) -> Option<Duration> {
        if self.streams.has_ready() {
            return Some(Duration::ZERO);
        }
        if self.disks.is_leaving() {
            return Some(LOOK_SOON);
        }
        let has_deadlines = self.ending.is_some()
            || self.streams.has_deadlines()
            || !self.queries.is_empty()
            || self.sandboxes.values().any(Sandbox::is_draining);
        has_deadlines.then_some(LOOK)
    }

    fn dispatch(&mut self, token: Token) -> Result<(), AgentError> {
        match token {
            Token::ControlListener => self.accept_controls(),
            Token::StreamListener => self.accept_streams(),
            Token::Signals => return self.reap(),
            Token::Launcher => return self.hear_launcher(),
            Token::Control => self.serve_control()?,
            Token::Gateway | Token::DnsTcp | Token::Runtime => self.accept_service(token),
            Token::DnsUdp => self.take_queries(),
            Token::Stream(number) => self.turn_stream(number),
            Token::Query(number) => self.turn_query(number),
        }
        Ok(())
    }

    fn look_again(&mut self) -> Result<(), AgentError> {
        let now = self.clock.now();
        self.turn_ready_streams();
        self.end_late_streams(now);
        self.queries.end_late(now, &self.epoll);
        self.tell_late_exits(now);
        for (to, result) in self.disks.look_again(now) {
            self.part_left(to, result);
        }
        // A connection whose requests could not be taken may have room again.
        if self.control.as_ref().is_some_and(|one| one.held_back) {
            self.serve_control()?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), AgentError> {
        let mut information = [0; 128];
        // What is waited for is asked of the kernel, not read here.
        while rustix::io::read(&self.signals, &mut information).is_ok() {}
        while let Some(pid) = sys::reap() {
            if u32::try_from(pid) == Ok(self.launcher_pid) {
                // The answer to a shutdown may be among its last words.
                self.hear_launcher()?;
                if self.ending.is_none() {
                    return Err(AgentError::LauncherEnded);
                }
            }
        }
        Ok(())
    }

    /// Connections that wait at a listener, at most one turn's.
    pub(crate) fn accept(&self, listener: impl AsFd) -> Vec<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let mut accepted = Vec::new();
        while accepted.len() < ACCEPTS_PER_TURN {
            match rustix::net::accept_with(&listener, flags) {
                Ok(socket) => accepted.push(socket),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    tracing::error!(%errno, "a connection cannot be accepted");
                    break;
                }
            }
        }
        accepted
    }

    /// The latest connection counts: the one before is one that the host has
    /// lost.
    fn accept_controls(&mut self) {
        for socket in self.accept(&self.control_listener) {
            if !sys::is_from_host(socket.as_fd()) {
                continue;
            }
            self.drop_control("another one follows");
            self.connections += 1;
            let watched = self.watch(&socket, Token::Control, EventFlags::IN);
            match watched {
                Ok(()) => self.control = Some(Control::new(socket, self.connections)),
                Err(errno) => tracing::error!(%errno, "a connection cannot be watched"),
            }
        }
    }

    fn accept_streams(&mut self) {
        for socket in self.accept(&self.stream_listener) {
            if sys::is_from_host(socket.as_fd()) {
                self.add_host_stream(socket);
            }
        }
    }

    /// Ends the host's connection. What it asked for goes on.
    pub(crate) fn drop_control(&mut self, reason: &str) {
        if let Some(control) = self.control.take() {
            tracing::info!(reason, number = control.number, "a control connection ends");
            self.unwatch(&control);
        }
    }

    pub(crate) fn watch(
        &self,
        fd: impl AsFd,
        token: Token,
        flags: EventFlags,
    ) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, token.encode(), flags)
    }

    pub(crate) fn watch_again(
        &self,
        fd: impl AsFd,
        token: Token,
        flags: EventFlags,
    ) -> rustix::io::Result<()> {
        epoll::modify(&self.epoll, fd, token.encode(), flags)
    }

    pub(crate) fn unwatch(&self, fd: impl AsFd) {
        // Closing would do as well, if nobody else held the same file.
        epoll::delete(&self.epoll, fd).ok();
    }
}
