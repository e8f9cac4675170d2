//! `skiff-agent`, the first process of a virtual machine. As any other
//! process it refuses to run.

mod log;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use skiff_agent::{Agent, DiskNames, LauncherProcess, Outside, Settings};
use skiff_types::ServerId;
use skiff_wire::agent::{CONTROL_PORT, STREAM_PORT};

/// What the child process is told by.
const LAUNCHER: &str = "launcher";
const RUN_FOLDER: &str = "/run/skiff";
/// Whose launcher it is: a machine has one.
const SERVER: ServerId = ServerId::from_parts(0, 0);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        [LAUNCHER, folder, server] => run_launcher(folder, server),
        _ if std::process::id() == 1 => run_machine(),
        _ => Err(anyhow::anyhow!(
            "skiff-agent is the first process of a virtual machine, and no other's program"
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run_launcher(folder: &str, server: &str) -> Result<()> {
    log::begin();
    Ok(skiff_agent::run_launcher(folder.into(), server.parse()?)?)
}

/// The end of this process is the kernel's panic and the machine's end.
fn run_machine() -> Result<()> {
    skiff_agent::boot()?;
    log::begin();
    let settings = Settings {
        control: skiff_agent::listen(CONTROL_PORT).context("listen for the host")?,
        streams: skiff_agent::listen(STREAM_PORT).context("listen for the host")?,
        outside: Outside::Vsock,
        disks: DiskNames::Virtio,
        launcher: LauncherProcess::start(&[LAUNCHER], Path::new(RUN_FOLDER), SERVER)
            .context("start the launcher")?,
    };
    Agent::new(settings)?.run()?;
    bail!("the machine stays on: {}", skiff_agent::power_off())
}
