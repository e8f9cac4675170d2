//! Finds or starts the launcher, the privileged half.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Pid;
use skiff_base::{Clock as _, SystemClock, chain, process};
use skiff_config::Network;
use skiff_sandbox::{Exits, LauncherClient};
use skiff_types::ServerId;

use super::microvm;
use super::user::User;

/// How long a launcher may take until it accepts.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the launcher of a run folder listens.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("launcher.sock")
}

/// Which launcher.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub server: ServerId,
    pub run_dir: &'a Path,
    /// Who may connect.
    pub user: &'a User,
    /// Of instances with egress.
    pub network: &'a Network,
    /// Where writable layers on disk are made.
    pub disk_dir: Option<&'a Path>,
    /// It ends with this process, instead of serving the next one.
    pub ends_with_us: bool,
}

/// Starts a launcher unless one answers. It is nobody's child to be ended
/// with: it outlives the server, and a later server finds it here.
///
/// # Errors
/// When it cannot be started or does not answer.
pub fn ensure(wanted: &Wanted<'_>) -> anyhow::Result<()> {
    let path = socket(wanted.run_dir);
    if let Some(pid) = answers(&path) {
        if network_args_of(pid).is_some_and(|told| told != network_args(wanted.network)) {
            tracing::warn!(
                "the launcher keeps the network settings that it was started with: end it by `skiff server --stop-all`, and start again"
            );
        }
        return refresh(wanted, pid);
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the launcher has to be started as root: run `skiff server` as root; it gives up root itself"
        );
    }
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let log = wanted.run_dir.join("launcher.log");
    let log_file = wanted.user.acting(|| {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log);
        file.with_context(|| format!("{} cannot be opened", log.display()))
    })?;
    let mut command = process::command(program);
    command
        .arg("launcher")
        .args(["--server", &wanted.server.to_string()])
        .arg("--run-dir")
        .arg(wanted.run_dir)
        .args(["--uid", &wanted.user.uid.as_raw().to_string()])
        .args(network_args(wanted.network))
        .args(
            wanted
                .disk_dir
                .map(|folder| format!("--disk-dir={}", folder.display())),
        )
        .args(microvm::monitor().map(|path| format!("--monitor={}", path.display())))
        .args(
            wanted
                .ends_with_us
                .then(|| format!("--ends-with={}", std::process::id())),
        )
        // Its environment is its own: nothing of the caller's is in it.
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        // Ctrl-C at the server's terminal is not for it.
        .process_group(0)
        .stderr(log_file);
    let mut child = command.spawn().context("the launcher cannot be started")?;
    let clock = SystemClock;
    let start = clock.now();
    while clock.now().since(start) < START_TIMEOUT {
        if answers(&path).is_some() {
            return Ok(());
        }
        if let Some(status) = child
            .try_wait()
            .context("the launcher cannot be waited for")?
        {
            bail!("the launcher ended with {status}: {}", last_line(&log));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child
        .kill()
        .context("a launcher that does not answer cannot be ended")?;
    child
        .wait()
        .context("a launcher that does not answer cannot be waited for")?;
    bail!(
        "the launcher does not answer within {} s: {}",
        START_TIMEOUT.as_secs(),
        last_line(&log)
    )
}

const POOL: &str = "--pool";
const IPV6_POOL: &str = "--ipv6-pool";
const ALLOW: &str = "--allow";

/// A flag and its value in turn.
fn network_args(network: &Network) -> Vec<String> {
    let mut args = vec![POOL.to_owned(), network.pool.into()];
    if network.ipv6 {
        args.extend([IPV6_POOL.to_owned(), network.ipv6_pool.to_string()]);
    }
    for net in &network.allow {
        args.extend([ALLOW.to_owned(), net.to_string()]);
    }
    args
}

/// Those that a launcher was started with, unless it has gone meanwhile.
fn network_args_of(pid: Pid) -> Option<Vec<String>> {
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_pid())).ok()?;
    Some(network_args_in(&line))
}

/// Those in a process's arguments, each of which ends in a zero byte.
fn network_args_in(line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split_terminator('\0').collect();
    words
        .windows(2)
        .filter(|pair| [POOL, IPV6_POOL, ALLOW].contains(&pair[0]))
        .flatten()
        .map(|word| (*word).to_owned())
        .collect()
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}

/// The process id of the launcher that listens there.
fn answers(path: &Path) -> Option<Pid> {
    let address = SocketAddrUnix::new(path).ok()?;
    let probe = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .ok()?;
    connect(&probe, &address).ok()?;
    Some(rustix::net::sockopt::socket_peercred(&probe).ok()?.pid)
}

/// Has a launcher of another program file execute this one in its place.
/// Only root may: whoever chooses the program is root by it.
fn refresh(wanted: &Wanted<'_>, pid: Pid) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() || same_program(pid) {
        return Ok(());
    }
    let program =
        File::open("/proc/self/exe").context("this program's own file cannot be opened")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let upgraded = runtime.block_on(async {
        let client =
            LauncherClient::connect(&socket(wanted.run_dir), wanted.server, Exits::default())
                .await?;
        client.upgrade(program.into()).await
    });
    match upgraded {
        Ok(()) => tracing::info!("the launcher runs this program now"),
        // The old one serves on; its next start is the new one.
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the launcher keeps its former program")
        }
    }
    Ok(())
}

fn same_program(pid: Pid) -> bool {
    let file = |path: &str| {
        std::fs::metadata(path)
            .map(|file| (file.dev(), file.ino()))
            .ok()
    };
    let own = file("/proc/self/exe");
    own.is_some() && own == file(&format!("/proc/{}/exe", pid.as_raw_pid()))
}

/// A Unix socket at a path, in place of what a former server left there.
///
/// # Errors
/// When it cannot be bound.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("{} cannot be replaced", path.display()));
        }
    }
    UnixListener::bind(path).with_context(|| format!("{} cannot be listened on", path.display()))
}

/// `skiff launcher`: the privileged half itself.
///
/// # Errors
/// When it cannot start; its last line says why.
pub fn main(args: &crate::cli::args::Launcher) -> anyhow::Result<()> {
    skiff_telemetry::init("info", false)?;
    let missing = "the launcher is started by `skiff server`";
    let server = args.server.context(missing)?;
    let run_dir = args.run_dir.clone().context(missing)?;
    let mut options = skiff_jail::LauncherOptions::new(server, run_dir, args.uid.context(missing)?);
    options.disk_dir = args.disk_dir.clone();
    options.monitor = args.monitor.clone();
    if let Some(pool) = &args.pool {
        options.network.pool = pool
            .parse()
            .with_context(|| format!("--pool {pool} is no IPv4 network"))?;
    }
    if let Some(pool) = &args.ipv6_pool {
        let pool = pool
            .parse()
            .with_context(|| format!("{IPV6_POOL} {pool} is no IPv6 network"))?;
        options.network.ipv6_pool = Some(pool);
    }
    for net in &args.allow {
        let net = net
            .parse()
            .with_context(|| format!("{ALLOW} {net} is no network"))?;
        options.network.allowed.push(net);
    }
    options.ends_with = args.ends_with;
    options.resume = args.resume;
    skiff_jail::launcher_main(options)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_settings_are_told_and_read_back() {
        let settings = [
            Network::default(),
            Network {
                ipv6: true,
                allow: vec!["10.1.0.0/16".parse().unwrap(), "fd01::/16".parse().unwrap()],
                ..Network::default()
            },
        ];
        let args = settings.each_ref().map(network_args);
        assert_eq!(args[0], ["--pool", "100.96.0.0/16"]);
        assert_ne!(args[0], args[1]);
        for args in args {
            let line = ["launcher", "--uid", "7"]
                .into_iter()
                .chain(args.iter().map(String::as_str))
                .chain(["--resume", "9"]);
            let line: String = line.map(|word| format!("{word}\0")).collect();
            assert_eq!(network_args_in(&line), args);
        }
        assert_eq!(network_args_in(""), [""; 0]);
    }
}
