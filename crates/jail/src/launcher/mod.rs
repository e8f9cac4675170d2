//! The launcher: one thread, one loop.
//!
//! ```text
//!  clients ──requests──▶ loop ──plans──▶ inits ──pidfds, reports──▶ loop
//!     ▲                   │ idle: prepare one network, seat, monitor or disk
//!     └──answers, events──┘ timer: what the kernel has not let go of yet
//! ```
//!
//! Nothing in the loop waits for a process, a client or the kernel's
//! clean-up: what is not ready is looked at again.

mod client;
mod create;
mod destroy;
mod disks;
mod events;
mod exec;
mod kept;
mod monitor;
mod observe;
mod requests;
mod sandbox;
mod seat;
mod start;
mod upgrade;
mod warm;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use skiff_base::{Clock, Monotonic, SystemClock};
use skiff_net::{NetOptions, Networks};
use skiff_types::{InstanceId, ServerId};

use crate::cgroup::Cgroups;
use crate::failure::{Context, Step};
use crate::seccomp::Filters;

use kept::Kept;
pub use start::{LauncherError, launcher_main};

/// What a launcher is told at its start.
#[derive(Debug, Clone)]
pub struct LauncherOptions {
    /// Whose launcher it is: every kernel object carries it.
    pub server: ServerId,
    /// The server's run folder, which exists; the launcher keeps
    /// `launcher.sock`, `launcher.lock` and `launcher/` in it.
    pub run_dir: PathBuf,
    /// The user, beside root, who may connect.
    pub allowed_uid: u32,
    /// Where servers of one host divide user ids among themselves.
    pub lock_dir: PathBuf,
    /// Where writable layers on disk are; without it there are none. The file
    /// system must know files without names (O_TMPFILE).
    pub disk_dir: Option<PathBuf>,
    /// Writable layers on disk are block devices that come with the requests.
    /// Only for a launcher whose client may show its kernel any file system,
    /// as an agent may in its machine.
    pub takes_disks: bool,
    /// The program that runs virtual machines; without it there are none.
    pub monitor: Option<PathBuf>,
    /// Of instances' networks.
    pub network: NetOptions,
    /// The process with whose end it ends in order, for a launcher that
    /// serves one caller. A death signal would not reach it: the caller may
    /// not send signals to root any more.
    pub ends_with: Option<i32>,
    /// The descriptor of an earlier launcher's state (`--resume`).
    pub resume: Option<std::os::fd::RawFd>,
}

impl LauncherOptions {
    /// The options of a host's launcher.
    #[must_use]
    pub fn new(server: ServerId, run_dir: PathBuf, allowed_uid: u32) -> Self {
        Self {
            server,
            run_dir,
            allowed_uid,
            lock_dir: PathBuf::from("/run/lock/skiff"),
            disk_dir: None,
            takes_disks: false,
            monitor: None,
            network: NetOptions::default(),
            ends_with: None,
            resume: None,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("launcher.sock")
    }

    pub(crate) fn own_folder(&self) -> PathBuf {
        self.run_dir.join("launcher")
    }

    pub(crate) fn stage(&self) -> PathBuf {
        self.own_folder().join("stage")
    }
}

/// How often the kernel is asked whether it has let go.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How often networks that the kernel still removes are looked at.
const NETWORK_LOOK: Duration = Duration::from_secs(1);
const EVENTS_MAX: usize = 64;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Listener,
    Signal,
    Owner,
    Client(u64),
    Control(u64),
    Process(u64),
    /// Who makes a file system ahead.
    Maker,
    /// Who brings a further process into a sandbox.
    Helper(u64),
    /// What that one reports.
    HelperControl(u64),
}

const KIND_SHIFT: u32 = 56;

impl Token {
    fn encode(self) -> EventData {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Signal => (1, 0),
            Self::Client(number) => (2, number),
            Self::Control(number) => (3, number),
            Self::Process(number) => (4, number),
            Self::Owner => (5, 0),
            Self::Maker => (6, 0),
            Self::Helper(number) => (7, number),
            Self::HelperControl(number) => (8, number),
        };
        EventData::new_u64(kind << KIND_SHIFT | number)
    }

    fn decode(data: u64) -> Option<Self> {
        let number = data & ((1 << KIND_SHIFT) - 1);
        Some(match data >> KIND_SHIFT {
            0 => Self::Listener,
            1 => Self::Signal,
            2 => Self::Client(number),
            3 => Self::Control(number),
            4 => Self::Process(number),
            5 => Self::Owner,
            6 => Self::Maker,
            7 => Self::Helper(number),
            8 => Self::HelperControl(number),
            _ => return None,
        })
    }
}

/// A launcher at work: what it keeps across upgrades, and what it makes anew.
struct Launcher {
    options: LauncherOptions,
    kept: Kept,
    networks: Networks,
    epoll: OwnedFd,
    /// SIGTERM asks for an orderly end.
    signals: OwnedFd,
    /// The process with whose end it ends.
    owner: Option<OwnedFd>,
    cgroups: Cgroups,
    filters: Filters,
    clock: SystemClock,
    /// File systems for writable layers, prepared ahead.
    disks: disks::Disks,
    /// Monitors that wait for their machines.
    warm: warm::Warm,
    /// Sandboxes whose start has a deadline.
    starting: BTreeSet<InstanceId>,
    /// Sandboxes that do not all stand yet.
    freezing: BTreeSet<InstanceId>,
    /// Dead seats whose cgroups the kernel still holds.
    tidying: BTreeSet<u64>,
    /// One frame, for all clients in turn.
    buffer: Vec<u8>,
    ended: bool,
    /// The last look at the prepared networks found one missing.
    refill_networks: bool,
    /// A seat or a network could not be prepared: not again before this.
    refill_after: Monotonic,
    /// Why, as it was last told.
    refill_told: Option<String>,
    /// Where functions' runtimes call, until somebody asks for them.
    runtime_sockets: BTreeMap<InstanceId, OwnedFd>,
}

impl Launcher {
    fn run(&mut self) -> Step<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_MAX);
        while !self.ended {
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
                Err(errno) => return Err(errno).at("loop", "wait for events"),
            }
            if events.is_empty() {
                self.refill();
            }
            for event in &events {
                self.dispatch(*event);
            }
            self.look_again();
        }
        Ok(())
    }

    /// How long to wait: not at all while something can be prepared.
    fn timeout(&self) -> Option<Duration> {
        let now = self.clock.now();
        if self.wants_refill() && now >= self.refill_after {
            return Some(Duration::ZERO);
        }
        if !self.tidying.is_empty() || !self.freezing.is_empty() {
            return Some(LOOK_AGAIN);
        }
        let busy = !self.starting.is_empty()
            || self.wants_refill()
            || self.networks.leaving() > 0
            || self.makes_disk()
            || self.has_starting_execs()
            || self.kept.is_destroying();
        busy.then_some(NETWORK_LOOK)
    }

    fn dispatch(&mut self, event: Event) {
        let flags = event.flags;
        match Token::decode(event.data.u64()) {
            Some(Token::Listener) => self.accept(),
            Some(Token::Owner) => {
                tracing::info!("who started this launcher has ended");
                self.owner = None;
                self.shut_down(None);
            }
            Some(Token::Signal) => {
                self.unwatch(&self.signals);
                self.shut_down(None);
            }
            Some(Token::Client(number)) => self.serve(number, flags),
            Some(Token::Control(seat)) => self.hear(seat),
            Some(Token::Process(seat)) => self.bury(seat),
            Some(Token::Maker) => self.disk_made(),
            Some(Token::Helper(exec)) => self.helper_ended(exec),
            Some(Token::HelperControl(exec)) => self.hear_helper(exec),
            None => tracing::error!("an event is about nothing"),
        }
    }

    fn watch(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> Step<()> {
        epoll::add(&self.epoll, fd, token.encode(), flags).at("loop", "watch a descriptor")
    }

    fn unwatch(&self, fd: impl AsFd) {
        // Closing would do as well, if nobody else held the same file.
        epoll::delete(&self.epoll, fd).ok();
    }
}

/// A folder that was there is used only if it is one and our own: whoever
/// owns the run folder could have laid a link there.
fn own_folder(path: &Path) -> Step<()> {
    let about = || path.display().to_string();
    let found = std::fs::symlink_metadata(path).at("start", about())?;
    let own = rustix::process::geteuid().as_raw();
    if found.is_dir() && std::os::unix::fs::MetadataExt::uid(&found) == own {
        return Ok(());
    }
    Err(crate::failure::refuse(
        "start",
        format!("{} is not the launcher's own folder", about()),
    ))
}

fn make_folder(path: &Path) -> Step<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => own_folder(path),
        result => result.at("start", path.display()),
    }
}
