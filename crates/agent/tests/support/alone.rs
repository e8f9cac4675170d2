//! An agent without a machine, in a network namespace of its own, behind a
//! Unix socket as a monitor has it:
//!
//! ```text
//! alone FOLDER DISK...   the socket is FOLDER/vsock, the host's FOLDER/vsock_PORT
//! ```

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use skiff_agent::{Agent, DiskNames, LauncherProcess, Outside, Settings};
use skiff_types::ServerId;
use skiff_wire::agent::{CONTROL_PORT, STREAM_PORT};

fn main() -> ExitCode {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let outcome = match &words[..] {
        [word, folder, server] if word == Path::new("launcher") => run_launcher(folder, server),
        [folder, disks @ ..] => serve(folder, disks),
        [] => Err(anyhow::anyhow!("a folder is missing")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A test shows what this says when it fails.
            writeln!(std::io::stderr(), "alone: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run_launcher(folder: &Path, server: &Path) -> Result<()> {
    let server = server.to_string_lossy().parse()?;
    Ok(skiff_agent::run_launcher(folder.to_owned(), server)?)
}

fn serve(folder: &Path, disks: &[PathBuf]) -> Result<()> {
    // SAFETY: the process has one thread, and the network no part in its open
    // files.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .context("leave the network")?;
    // Others of this host's are not to be taken for this one's leftovers.
    let server = ServerId::from_parts(skiff_base::random::u64(), skiff_base::random::u32());
    let launcher = LauncherProcess::start(&["launcher"], &folder.join("run"), server)?;
    let listen = |port: u32| -> Result<_> {
        let listener = UnixListener::bind(folder.join(format!("agent_{port}")))?;
        listener.set_nonblocking(true)?;
        Ok(listener.into())
    };
    let settings = Settings {
        control: listen(CONTROL_PORT)?,
        streams: listen(STREAM_PORT)?,
        outside: Outside::Unix(folder.join("vsock")),
        disks: DiskNames::Listed(disks.to_vec()),
        launcher,
    };
    // The agent's signals wait in every thread that comes after it.
    let agent = Agent::new(settings)?;
    monitor(folder.to_owned())?;
    Ok(agent.run()?)
}

/// Connects the host's connections on, as a monitor does.
fn monitor(folder: PathBuf) -> Result<()> {
    let listener = UnixListener::bind(folder.join("vsock"))?;
    std::thread::spawn(move || {
        for host in listener.incoming().flatten() {
            let folder = folder.clone();
            // What breaks off ends its own connection and nothing else.
            std::thread::spawn(move || connect_on(host, &folder).ok());
        }
    });
    Ok(())
}

fn connect_on(mut host: UnixStream, folder: &Path) -> Result<()> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        host.read_exact(&mut byte)?;
        line.extend(byte);
    }
    let line = String::from_utf8(line)?;
    let port = line
        .trim()
        .strip_prefix("CONNECT ")
        .context("another word")?;
    let agent = UnixStream::connect(folder.join(format!("agent_{port}")))?;
    host.write_all(b"OK 1024\n")?;
    let (host_too, agent_too) = (host.try_clone()?, agent.try_clone()?);
    std::thread::spawn(move || pass(host_too, agent_too));
    pass(agent, host);
    Ok(())
}

/// One direction, to its end.
fn pass(mut from: UnixStream, mut to: UnixStream) {
    let through = std::io::copy(&mut from, &mut to);
    // A side that has gone needs no more words.
    to.shutdown(Shutdown::Write).ok();
    if through.is_err() {
        from.shutdown(Shutdown::Both).ok();
    }
}
