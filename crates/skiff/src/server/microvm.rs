//! Whether this host runs virtual machines, found out by trial.
//!
//! ```text
//!  as root: the monitor is there, a kernel is installed, KVM is no program
//!     │   the verdict is kept until the host boots or the monitor changes
//!  as the server's user: kernel and agent are put together ─▶ one boot to the
//!  agent's hello ─▶ machines are made
//! ```
//!
//! The second part goes on while the server serves. What it found is kept as
//! well, so that a server that starts again on the same host serves at once.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skiff_base::{Clock as _, SystemClock, chain, process};
use skiff_guest::{Agent, BootFiles};
use skiff_sandbox::{GuestFiles, MicrovmBackend};
use skiff_worker::Trial;

use super::home::{Home, KERNELS};
use crate::cli::kernels::{AGENT, of_data_dir};

/// The monitor's program, beside this one.
const MONITOR: &str = "skiff-vmm";
/// What was found out, in the run folder.
const KEPT: &str = "microvm.json";
/// KVM's device.
const KVM: &str = "/dev/kvm";
/// For the monitor to say what KVM is worth.
const PROBE_DEADLINE: Duration = Duration::from_secs(15);

/// The monitor, if it is there.
pub fn monitor() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    Some(program.with_file_name(MONITOR)).filter(|path| path.exists())
}

/// What was found out, and what it depends on.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    boot_id: String,
    monitor: String,
    /// Why KVM is of no use, if so.
    kvm: Option<Result<(), String>>,
    /// The kernel and initramfs with which a machine came up.
    booted: Option<String>,
}

/// Whether machines can be hoped for on this host; otherwise why not. To be
/// asked while the server is root, whom KVM's device may be reserved for.
///
/// # Errors
/// With what is missing, and what to do.
pub fn look(home: &Home, foreign: Option<&Path>) -> Result<Findings, String> {
    let findings = examine(&home.data_dir, &home.run_dir, foreign)?;
    keep(home.user.acting(|| write(&home.run_dir, &findings)));
    findings.hope()?;
    Ok(findings)
}

/// The same for whoever asks, who may be no server.
///
/// # Errors
/// With what is missing, and what to do.
pub fn outlook(
    data_dir: &Path,
    run_dir: &Path,
    foreign: Option<&Path>,
) -> Result<&'static str, String> {
    let findings = examine(data_dir, run_dir, foreign)?;
    findings.hope()?;
    Ok(match findings.booted {
        Some(_) => "virtual machines come up on this host",
        None => "KVM serves, and a server that starts tries whether machines come up",
    })
}

fn examine(data_dir: &Path, run_dir: &Path, foreign: Option<&Path>) -> Result<Findings, String> {
    let own = monitor().ok_or_else(|| format!("{MONITOR} does not lie beside skiff"));
    let monitor = match foreign {
        None => own.clone()?,
        Some(path) if path.is_file() => path.to_owned(),
        Some(path) => {
            return Err(format!("microvm.monitor: {} is not there", path.display()));
        }
    };
    let kernels = data_dir.join(KERNELS);
    match kernels.join("default").try_exists() {
        Ok(true) => {}
        Ok(false) => {
            return Err("no kernel is installed: `skiff kernel install` does it".to_owned());
        }
        Err(error) => return Err(format!("{} cannot be seen: {error}", kernels.display())),
    }
    let mut findings = Findings {
        boot_id: boot_id(),
        monitor: identity(&monitor),
        ..Findings::default()
    };
    let kept = read(run_dir);
    if kept.boot_id == findings.boot_id && kept.monitor == findings.monitor {
        findings = kept;
    }
    let verdict = match findings.kvm.take() {
        Some(verdict) => verdict,
        // What KVM is worth only ours can say: the boot has to tell without it.
        None => match &own {
            Ok(own) => probe(own).map_err(|error| format!("{error:#}")),
            Err(_) if Path::new(KVM).exists() => Ok(()),
            Err(_) => Err(format!("{KVM} is not there")),
        },
    };
    findings.kvm = Some(verdict);
    Ok(findings)
}

impl Findings {
    /// Why there is none, if so.
    fn hope(&self) -> Result<(), String> {
        self.kvm.clone().unwrap_or(Ok(()))
    }
}

/// Makes kernel and agent ready, and boots one machine, unless that is known
/// to work.
///
/// # Errors
/// When one of them is of no use, or the machine does not come up.
pub async fn try_out(
    backend: Arc<MicrovmBackend>,
    home: Arc<Home>,
    foreign: Option<PathBuf>,
    mut findings: Findings,
) -> anyhow::Result<()> {
    let monitor = foreign.or_else(monitor).unwrap_or_default();
    let data_dir = home.data_dir.clone();
    let files = tokio::task::spawn_blocking(move || boot_files(&data_dir));
    let files = files.await.context("the kernel was not made ready")??;
    let booted = format!("{} {}", files.hash, files.initramfs.display());
    backend.boot_from(GuestFiles {
        kernel: files.kernel,
        initramfs: files.initramfs,
    });
    if findings.booted.as_ref() == Some(&booted) {
        return Ok(());
    }
    let tried = backend.try_boot().await.map_err(|error| {
        anyhow!(
            "Linux {} does not come up here with {}: {}",
            files.version,
            monitor.display(),
            chain(&error)
        )
    })?;
    tracing::info!(
        kernel = files.version,
        monitor = %monitor.display(),
        version = tried.monitor,
        took = ?tried.took,
        "virtual machines run here"
    );
    findings.booted = Some(booted);
    keep(write(&home.run_dir, &findings));
    Ok(())
}

/// Ends a trial with what [`try_out`] finds.
pub async fn conclude(
    trial: Trial,
    backend: Arc<MicrovmBackend>,
    home: Arc<Home>,
    foreign: Option<PathBuf>,
    findings: Findings,
    warm: u32,
) {
    let verdict = try_out(Arc::clone(&backend), home, foreign, findings).await;
    // Without any, each start makes its own.
    if verdict.is_ok()
        && let Err(error) = backend.keep_warm(warm).await
    {
        tracing::warn!(error = %chain(&error), "no monitors are started ahead");
    }
    if let Err(error) = &verdict {
        tracing::warn!(error = format!("{error:#}"), "no virtual machines are made");
    }
    trial.end(verdict.map_err(|error| format!("{error:#}")));
}

fn boot_files(data_dir: &Path) -> anyhow::Result<BootFiles> {
    let kernels = of_data_dir(data_dir);
    let kernel = kernels.default()?.context("no kernel is installed")?;
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let agent = Agent::read(&program.with_file_name(AGENT))?;
    Ok(kernels.boot_files(&kernel, &agent)?)
}

/// Has the monitor say what KVM is worth.
fn probe(monitor: &Path) -> anyhow::Result<()> {
    let mut child = process::command(monitor)
        .arg("--probe")
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be started", monitor.display()))?;
    let clock = SystemClock;
    let begun = clock.now();
    while child.try_wait()?.is_none() {
        if clock.now().since(begun) > PROBE_DEADLINE {
            child.kill()?;
            child.wait()?;
            bail!("the monitor does not say what KVM is worth");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut said = String::new();
    let output = child.stdout.as_mut();
    output
        .context("the monitor has no output")?
        .read_to_string(&mut said)?;
    judge(&serde_json::from_str(&said).context("the monitor's verdict cannot be read")?)
}

fn judge(verdict: &Value) -> anyhow::Result<()> {
    let number = |name: &str| verdict[name].as_u64().unwrap_or_default();
    match verdict["kvm"].as_str() {
        Some("usable") => Ok(()),
        Some("emulated") => bail!(
            "this host's KVM is a program and too slow: {} instructions took {} ms instead of {} at most",
            number("instructions"),
            number("took_us") / 1000,
            number("limit_us") / 1000,
        ),
        _ => bail!(
            "{}",
            verdict["reason"].as_str().unwrap_or("there is no KVM here")
        ),
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Another file has another.
fn identity(path: &Path) -> String {
    std::fs::metadata(path).map_or_else(
        |_| String::new(),
        |file| {
            format!(
                "{}:{}:{}:{}",
                file.dev(),
                file.ino(),
                file.size(),
                file.mtime_nsec() + file.mtime() * 1_000_000_000
            )
        },
    )
}

/// What cannot be read was not found out.
fn read(run_dir: &Path) -> Findings {
    let text = std::fs::read(run_dir.join(KEPT)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn write(run_dir: &Path, findings: &Findings) -> anyhow::Result<()> {
    let text = serde_json::to_vec(findings)?;
    Ok(std::fs::write(run_dir.join(KEPT), text)?)
}

/// What cannot be kept is found out again.
fn keep(written: anyhow::Result<()>) {
    if let Err(error) = written {
        tracing::warn!(
            error = format!("{error:#}"),
            "what this host can do is not kept"
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_verdict_says_why_not() {
        let why = |verdict: Value| judge(&verdict).map_err(|error| error.to_string());
        assert_eq!(why(json!({"kvm": "usable", "took_us": 58})), Ok(()));
        let slow = json!({
            "kvm": "emulated", "took_us": 104_211, "limit_us": 20_000, "instructions": 100_000
        });
        assert_eq!(
            why(slow).unwrap_err(),
            "this host's KVM is a program and too slow: 100000 instructions took 104 ms instead \
             of 20 at most"
        );
        let absent = json!({"kvm": "absent", "reason": "/dev/kvm cannot be opened"});
        assert_eq!(why(absent).unwrap_err(), "/dev/kvm cannot be opened");
        assert!(why(json!({})).is_err());
    }

    #[test]
    fn what_was_found_out_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), Findings::default());
        let findings = Findings {
            boot_id: boot_id(),
            monitor: identity(folder.path()),
            kvm: Some(Err("too slow".to_owned())),
            booted: Some("hash".to_owned()),
        };
        write(folder.path(), &findings).unwrap();
        assert_eq!(read(folder.path()), findings);
        std::fs::write(folder.path().join(KEPT), "half of").unwrap();
        assert_eq!(read(folder.path()), Findings::default());
    }
}
