//! How a launcher begins, and how it ends.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::event::epoll::{self, CreateFlags, EventFlags};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use skiff_base::{Monotonic, SystemClock};
use skiff_net::{NetError, Networks};
use skiff_wire::FRAME_BYTES_MAX;
use skiff_wire::launcher::{PoolConfig, Refusal, Reply};

use super::kept::{Kept, Saved};
use super::{Launcher, LauncherOptions, Token, make_folder};
use crate::cgroup::{Cgroups, LayoutError};
use crate::failure::{Context, Step, refuse};
use crate::handle::Handle;
use crate::ids::Ranges;
use crate::layers::Layers;
use crate::seccomp::Filters;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why a launcher cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// Another launcher of the same run folder lives.
    #[error("another launcher holds {0}")]
    Locked(std::path::PathBuf),
    /// The process has more than one thread, which its copies would not have.
    #[error("the launcher's process has {0} threads instead of one")]
    Threads(usize),
    /// The machine's cgroups do not serve.
    #[error("the machine's cgroups cannot hold sandboxes to their limits")]
    Cgroups(#[from] LayoutError),
    /// The networks of instances.
    #[error("the networks of instances cannot be opened")]
    Network(#[from] NetError),
    /// A step of the start or of the loop.
    #[error("the launcher cannot go on")]
    Step(#[from] Refusal),
}

/// Runs a launcher until it is told to end.
///
/// # Errors
/// When it cannot start, or the loop itself fails. Sandboxes die with it.
pub fn launcher_main(options: LauncherOptions) -> Result<(), LauncherError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(LauncherError::Threads(threads));
    }
    let mut launcher = match options.resume {
        None => begin(options)?,
        Some(state) => resume(options, state)?,
    };
    launcher.run()?;
    close(launcher)
}

fn begin(options: LauncherOptions) -> Result<Launcher, LauncherError> {
    let lock = lock(&options.run_dir.join("launcher.lock"))?;
    isolate()?;
    make_folder(&options.own_folder())?;
    make_folder(&options.stage())?;
    super::monitor::sweep(&options)?;
    let cgroups = Cgroups::open(options.server)?;
    let mut networks = Networks::open(options.server, options.network.clone())?;
    let swept = cgroups.sweep()?;
    let report = networks.sweep()?;
    tracing::info!(cgroups = swept, networks = ?report, "leftovers are removed");
    cgroups.establish()?;
    let kept = Kept {
        server: options.server,
        lock,
        listener: listen(&options)?,
        clients: std::collections::BTreeMap::new(),
        sandboxes: std::collections::BTreeMap::new(),
        seats: std::collections::BTreeMap::new(),
        execs: std::collections::BTreeMap::new(),
        layers: Layers::open(options.own_folder().join("layers"))?,
        ranges: Ranges::new(options.lock_dir.clone(), options.server),
        pool: PoolConfig {
            networks: 0,
            egress_networks: 0,
        },
        warm: 0,
        next: 0,
        shutting_down: false,
        shutdown_waiters: Vec::new(),
    };
    assemble(options, kept, networks, cgroups)
}

fn resume(options: LauncherOptions, state: i32) -> Result<Launcher, LauncherError> {
    // SAFETY: the number was given for this and names nobody else's file.
    let state = unsafe { OwnedFd::from_raw_fd(state) };
    let saved: Saved = super::upgrade::load(state)?;
    if saved.kept.server != options.server {
        let message = format!("the state is of server {}", saved.kept.server);
        return Err(refuse("resume", message).into());
    }
    let fds = saved.network_fds.into_iter().map(OwnedFd::from).collect();
    let network_options = options.network.clone();
    let mut networks = Networks::from_parts(options.server, network_options, saved.networks, fds)?;
    networks.configure(saved.kept.pool);
    let cgroups = Cgroups::open(options.server)?;
    let mut launcher = assemble(options, saved.kept, networks, cgroups)?;
    launcher.watch_clients()?;
    launcher.watch_seats()?;
    launcher.reply(saved.upgraded, Ok(Reply::Done), Vec::new());
    Ok(launcher)
}

fn assemble(
    options: LauncherOptions,
    kept: Kept,
    networks: Networks,
    cgroups: Cgroups,
) -> Result<Launcher, LauncherError> {
    let epoll = epoll::create(CreateFlags::CLOEXEC).at("start", "epoll_create")?;
    let launcher = Launcher {
        signals: termination_signals()?,
        owner: options.ends_with.map(owner).transpose()?,
        options,
        kept,
        networks,
        epoll,
        cgroups,
        filters: Filters::compile()?,
        clock: SystemClock,
        disks: super::disks::Disks::default(),
        warm: super::warm::Warm::default(),
        starting: std::collections::BTreeSet::new(),
        freezing: std::collections::BTreeSet::new(),
        tidying: std::collections::BTreeSet::new(),
        buffer: vec![0; FRAME_BYTES_MAX],
        ended: false,
        refill_networks: true,
        refill_after: Monotonic::default(),
        refill_told: None,
        runtime_sockets: BTreeMap::new(),
    };
    launcher.watch(&launcher.kept.listener, Token::Listener, EventFlags::IN)?;
    launcher.watch(&launcher.signals, Token::Signal, EventFlags::IN)?;
    if let Some(owner) = &launcher.owner {
        launcher.watch(owner, Token::Owner, EventFlags::IN)?;
    }
    Ok(launcher)
}

/// The orderly end: nothing of this launcher is left.
fn close(mut launcher: Launcher) -> Result<(), LauncherError> {
    launcher.drop_disks();
    let networks = launcher.networks.close();
    launcher.kept.layers.close();
    launcher.cgroups.abolish();
    // Gone already, if somebody has cleared the run folder.
    std::fs::remove_file(launcher.options.socket()).ok();
    std::fs::remove_dir_all(launcher.options.own_folder()).ok();
    Ok(networks?)
}

/// The process that started this one, to be watched.
fn owner(pid: i32) -> Step<OwnedFd> {
    const STEP: &str = "start";
    let gone = || refuse(STEP, format!("the process {pid} is not there any more"));
    let parent = rustix::process::getppid().filter(|parent| parent.as_raw_pid() == pid);
    let watched = rustix::process::pidfd_open(
        parent.ok_or_else(gone)?,
        rustix::process::PidfdFlags::empty(),
    )
    .at(STEP, "pidfd_open")?;
    // It may have ended between the two, and its number have another's meaning.
    let still = rustix::process::getppid().is_some_and(|parent| parent.as_raw_pid() == pid);
    if still { Ok(watched) } else { Err(gone()) }
}

fn lock(path: &Path) -> Result<Handle, LauncherError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file =
        rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).at("start", path.display())?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| LauncherError::Locked(path.to_owned()))?;
    Ok(file.into())
}

/// A mount namespace that no mount leaves, and that ends with the last
/// process in it.
fn isolate() -> Step<()> {
    // SAFETY: the process has one thread, and mounts have no part in its open
    // files.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .at("start", "unshare the mount namespace")?;
    // What the host unmounts goes here too, and is not held by us.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).at("start", "make mounts private")
}

fn listen(options: &LauncherOptions) -> Step<Handle> {
    let path = options.socket();
    let say = || path.display().to_string();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).at("listen", say());
        }
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).at("listen", "socket")?;
    let address = SocketAddrUnix::new(&path).at("listen", say())?;
    // Nobody else may connect, not even between bind and chmod.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(umask);
    bound.at("listen", say())?;
    let owner = rustix::fs::Uid::from_raw(options.allowed_uid);
    // The folder may be another's: never through a link.
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(rustix::fs::CWD, &path, Some(owner), None, flags).at("listen", say())?;
    rustix::net::listen(&socket, BACKLOG).at("listen", say())?;
    Ok(socket.into())
}

/// SIGTERM comes as an event; a terminal's interrupt is the server's affair.
fn termination_signals() -> Step<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used; the
    // ignored signals run no code.
    let fd = unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).at("start", "signalfd");
    }
    // SAFETY: the kernel has just opened it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    tracing::trace!(fd = fd.as_raw_fd(), "signals come as events");
    Ok(fd)
}
