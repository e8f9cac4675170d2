//! The launcher as a child process of the agent.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use skiff_base::{Clock, SystemClock};
use skiff_jail::{LauncherError, LauncherOptions, launcher_main};
use skiff_types::ServerId;

/// For the launcher to listen.
const START_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A launcher that has been started. Dropping it leaves it alone: it ends with
/// the agent.
#[derive(Debug)]
pub struct LauncherProcess {
    pub(crate) pid: u32,
    pub(crate) socket: OwnedFd,
    pub(crate) server: ServerId,
}

impl LauncherProcess {
    /// Starts this program again as the launcher, by these arguments and,
    /// behind them, the folder's name and whose launcher it is; connects to it.
    /// The folder is made.
    ///
    /// # Errors
    /// When it cannot be started, or does not listen in time.
    pub fn start(arguments: &[&str], folder: &Path, server: ServerId) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut command = skiff_base::process::command("/proc/self/exe");
        command
            .args(arguments)
            .arg(folder)
            .arg(server.to_string())
            .stderr(Stdio::inherit());
        let mut child = command.spawn()?;
        let socket = connect(&folder.join("launcher.sock"), &mut child)?;
        Ok(Self {
            pid: child.id(),
            socket,
            server,
        })
    }
}

fn connect(path: &Path, child: &mut Child) -> io::Result<OwnedFd> {
    let clock = SystemClock;
    let deadline = clock.now().plus(START_DEADLINE);
    let address = SocketAddrUnix::new(path)?;
    loop {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {
                skiff_jail::channel::fit_frames(&socket)?;
                return Ok(socket);
            }
            Err(Errno::NOENT | Errno::CONNREFUSED) => {}
            Err(errno) => return Err(errno.into()),
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("the launcher ends with {status}")));
        }
        if clock.now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The child process: a launcher whose sandboxes share the machine's network.
/// It returns once it has ended in order.
///
/// # Errors
/// As [`launcher_main`].
pub fn run_launcher(folder: PathBuf, server: ServerId) -> Result<(), LauncherError> {
    let parent = rustix::process::getppid().map(rustix::process::Pid::as_raw_pid);
    let mut options = LauncherOptions::new(server, folder.clone(), 0);
    options.lock_dir = folder.join("lock");
    options.network.shared = true;
    options.takes_disks = true;
    options.ends_with = parent;
    launcher_main(options)
}
