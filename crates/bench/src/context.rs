//! What every group of figures uses: a folder, processes that end, rounds.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};
use skiff_base::process;
use skiff_testkit::{Guardian, Server, ServerOptions};

use crate::time::{now, wait_until};

/// How long a process may take to end before it is killed.
const ENDING: Duration = Duration::from_secs(5);

/// Ends everything of a run when this process has ended. A process is of the
/// run when its command line or its environment names the run's folder. Servers
/// have guardians of their own, which end them in order.
const ENDS: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
own() {
  for entry in /proc/[0-9]*; do
    [ "${entry#/proc/}" = "$$" ] && continue
    if tr '\0' '\n' <"$entry/cmdline" | grep -qF -- "$GUARDED/" ||
       tr '\0' '\n' <"$entry/environ" | grep -qxF -- "SKIFF_BENCH_HOME=$GUARDED"; then
      echo "${entry#/proc/}"
    fi
  done 2>/dev/null
}
for signal in TERM KILL KILL; do
  pids=$(own)
  [ -z "$pids" ] && break
  for pid in $pids; do kill -$signal "$pid" 2>/dev/null; done
  for _ in 1 2 3 4 5 6 7 8 9 10; do [ -z "$(own)" ] && break; sleep 0.1; done
done
name=$(basename "$GUARDED" | tr . -)
for _ in 1 2 3; do
  awk -v home="$GUARDED/" 'index($5, home) == 1 {print $5}' /proc/self/mountinfo | sort -r |
    while read -r mount; do umount -l "$mount"; done 2>/dev/null
done
find /sys/fs/cgroup -depth -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null
rm -rf -- "$GUARDED"
"#;

/// One run.
#[derive(Debug)]
pub struct Context {
    home: PathBuf,
    scale: f64,
    _guardian: Guardian,
}

/// A process of a run; ended when this is dropped.
#[derive(Debug)]
pub struct Service(Child);

impl Context {
    /// With a folder of its own outside of the repository.
    ///
    /// # Errors
    /// When it cannot be made, or `BENCH_ROUNDS` is no number.
    pub fn new() -> anyhow::Result<Self> {
        let scale = match std::env::var("BENCH_ROUNDS") {
            Ok(text) => text
                .parse()
                .with_context(|| format!("BENCH_ROUNDS={text}"))?,
            Err(_) => 1.0,
        };
        ensure!(scale > 0.0, "BENCH_ROUNDS has to be more than 0");
        let home = tempfile::Builder::new()
            .prefix("skiff-bench.")
            .tempdir()?
            .keep();
        let guardian = Guardian::of(&home, ENDS).context("/bin/sh cannot be started")?;
        // nginx's worker and the server's user pass through.
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o711))?;
        Ok(Self {
            home,
            scale,
            _guardian: guardian,
        })
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A name for what has no path: containers' and cgroups' folders.
    pub fn name(&self) -> String {
        let name = self.home.file_name().unwrap_or_default();
        name.to_string_lossy().replace('.', "-")
    }

    /// So many rounds, scaled; at least one.
    pub fn rounds(&self, full: u32) -> usize {
        let scaled = Duration::from_secs_f64(f64::from(full) * self.scale);
        usize::try_from(scaled.as_secs()).unwrap_or(1).max(1)
    }

    /// A duration, scaled when that is shorter.
    pub fn shortened(&self, full: Duration) -> Duration {
        full.mul_f64(self.scale.min(1.0))
            .max(Duration::from_secs(1))
    }

    /// A server with meter, traces and access log on.
    pub fn server(&self, set: &[&str]) -> Server {
        let mut options = ServerOptions::default()
            .set("gateway.access_log=true")
            .set("log.level=warn")
            .set("worker.cpu_overcommit=1000.0");
        for setting in set {
            options = options.set(*setting);
        }
        Server::start(options)
    }

    /// Starts a process that is ended with this run; its output goes to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, program: &str, args: &[&str]) -> anyhow::Result<Service> {
        self.spawn_with(program, args, &[])
    }

    /// As [`Self::spawn`], with this in its environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_with(
        &self,
        program: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> anyhow::Result<Service> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("peers.log"))?;
        let child = process::command(program)
            .args(args)
            .env("SKIFF_BENCH_HOME", &self.home)
            .envs(env.iter().copied())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        Ok(Service(child))
    }

    /// Runs a command that has to succeed; its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        let output = process::command(program)
            .args(args)
            .env("SKIFF_BENCH_HOME", &self.home)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .with_context(|| format!("{program} cannot be started"))?;
        ensure!(
            output.status.success(),
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Service {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap_or(0)
    }

    /// Waits for its end; whether it succeeded.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn finish(mut self, limit: Duration) -> anyhow::Result<bool> {
        let mut status = None;
        wait_until("the process ends", limit, || {
            status = self.0.try_wait()?;
            Ok(status.is_some())
        })?;
        Ok(status.is_some_and(|status| status.success()))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.pid())
            && let Ok(None) = self.0.try_wait()
        {
            let _gone = kill_process(pid, Signal::TERM);
        }
        let end = now().plus(ENDING);
        while let Ok(None) = self.0.try_wait() {
            if now() > end {
                let _gone = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What each of these gives, at once on a thread each.
///
/// # Errors
/// The first one's that fails.
pub fn at_once<T, W>(works: impl Iterator<Item = W>) -> anyhow::Result<Vec<T>>
where
    T: Send,
    W: FnOnce() -> anyhow::Result<T> + Send,
{
    std::thread::scope(|scope| {
        let threads: Vec<_> = works.map(|work| scope.spawn(work)).collect();
        let threads = threads.into_iter();
        threads
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect()
    })
}

/// A port that was free just now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Why a program cannot be used, if so.
pub fn lacking(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    (!found).then(|| format!("{program} is not installed; scripts/setup.sh bench installs it"))
}
