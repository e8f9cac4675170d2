//! `skiff run`: an image's process here, to its end, without a server.
//!
//! ```text
//!  root: folders, a launcher of its own, the local image's bytes
//!    │   root is left for good
//!    ▼
//!  image found, pulled or imported ▶ layers added ▶ sandbox created with our
//!  own standard streams ▶ signals passed on ▶ exit ▶ everything removed
//! ```

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio as ProcessStdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use skiff_base::{Clock as _, SystemClock, process};
use skiff_config::Config;
use skiff_image::{
    ImageRecord, ImageStore, ImportOptions, ImportSource, Platform, PullOptions, Reference,
};
use skiff_sandbox::{Exits, LauncherClient};
use skiff_types::api::{ExecTerminal, RegistryAuth};
use skiff_types::{InstanceId, ServerId, limits};
use skiff_wire::launcher::{
    Exit, PoolConfig, ProcessSpec, Reply, Request, SandboxSpec, Stdio, Writable,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::Run;
use super::output::Bar;
use super::services::cpu_millis;
use crate::server::user::User;
use crate::server::{home, launcher};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long the launcher may take to clear up.
const LAUNCHER_END: Duration = Duration::from_secs(30);
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// What has to be done as root, before anything from outside is read.
#[derive(Debug)]
pub struct Prepared {
    args: Run,
    server: ServerId,
    run_dir: PathBuf,
    local: Option<Local>,
    auth: Option<RegistryAuth>,
}

/// An image in a file or folder, opened by who may read it.
#[derive(Debug)]
enum Local {
    File(File),
    /// The standard output of a `tar` that packs the folder.
    Folder(OwnedFd),
}

/// Does the privileged part and leaves root.
///
/// # Errors
/// When a folder cannot be made, or the launcher does not start.
pub fn prepare(args: Run) -> anyhow::Result<Prepared> {
    let user = User::of_server(&Config::default().user)?;
    home::folder(&args.data_dir, &user, 0o700)?;
    home::folder(&args.data_dir.join("images"), &user, 0o700)?;
    let server = ServerId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32());
    home::folder(&args.run_dir, &user, 0o755)?;
    sweep(&args.run_dir);
    let local = open_local(Path::new(&args.image))?;
    let auth = match &local {
        Some(_) => None,
        None => super::images::credentials(&args.image)?,
    };
    let run_dir = home::folder(&args.run_dir.join(format!("run-{server}")), &user, 0o711)?;
    let config = Config::default();
    launcher::ensure(&launcher::Wanted {
        server,
        run_dir: &run_dir,
        user: &user,
        network: &config.network,
        disk_dir: None,
        ends_with_us: true,
    })?;
    user.become_it()?;
    Ok(Prepared {
        args,
        server,
        run_dir,
        local,
        auth,
    })
}

/// Removes the folders of runs that were killed: nobody holds their locks.
fn sweep(run_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(run_dir) else {
        return;
    };
    for entry in entries.flatten() {
        let is_run = entry.file_name().to_string_lossy().starts_with("run-");
        let lock = entry.path().join("launcher.lock");
        if is_run && home::is_free(&lock) {
            // Somebody else may be removing it, too.
            let _gone = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn open_local(path: &Path) -> anyhow::Result<Option<Local>> {
    // A reference is not a path unless it looks like one: a folder named
    // `python` beside us does not hide the image of that name.
    let looks = path.is_absolute()
        || path.starts_with(".")
        || path.starts_with("..")
        || path.extension().is_some_and(|e| e == "tar");
    if !looks || !path.exists() {
        return Ok(None);
    }
    if path.is_file() {
        let file =
            File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
        return Ok(Some(Local::File(file)));
    }
    let mut tar = process::command("tar");
    tar.args(["--create", "--file=-", "--directory"])
        .arg(path)
        .arg(".")
        .stdout(ProcessStdio::piped());
    let mut child = tar.spawn().context("tar cannot be started")?;
    let out = child.stdout.take().context("tar has no output")?;
    Ok(Some(Local::Folder(out.into())))
}

impl Prepared {
    /// Runs the process; answers its exit code, 128 and the number for a signal.
    ///
    /// # Errors
    /// When the image cannot be had or its process not be started.
    pub async fn execute(self) -> anyhow::Result<u8> {
        let client = LauncherClient::connect(
            &launcher::socket(&self.run_dir),
            self.server,
            Exits::default(),
        )
        .await?;
        let result = self.with_launcher(&client).await;
        // Whatever happened, nothing stays behind.
        let ended = client.shutdown().await;
        if tokio::time::timeout(LAUNCHER_END, client.closed())
            .await
            .is_err()
        {
            bail!(
                "the launcher does not end; see {}",
                self.run_dir.join("launcher.log").display()
            );
        }
        let removed = std::fs::remove_dir_all(&self.run_dir);
        let code = result?;
        ended.context("the launcher did not end in order")?;
        removed.with_context(|| format!("{} cannot be removed", self.run_dir.display()))?;
        Ok(code)
    }

    async fn with_launcher(&self, client: &LauncherClient) -> anyhow::Result<u8> {
        let store = ImageStore::open(&self.args.data_dir.join("images"))?;
        let image = self.image(&store).await?;
        let networks = PoolConfig {
            networks: u32::from(!self.args.egress),
            egress_networks: u32::from(self.args.egress),
        };
        client.configure(networks).await?;
        for layer in &image.layers {
            let file = store.open_layer(layer)?;
            client
                .call(
                    Request::AddLayer {
                        layer: layer.clone(),
                    },
                    vec![file.into()],
                )
                .await?;
        }
        let spec = self.spec(&store, &image)?;
        let sandbox = spec.sandbox;
        let mut signals = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ];
        let mut exit = client.exits().watch(sandbox);
        let descriptors = match spec.stdio {
            Stdio::Given => own_streams()?,
            Stdio::Piped | Stdio::PipedInput | Stdio::Terminal { .. } => Vec::new(),
        };
        let (reply, fds) = client
            .call(Request::Create(Box::new(spec)), descriptors)
            .await?;
        let Reply::Created { .. } = reply else {
            bail!("the launcher answered something else")
        };
        let terminal = match fds.into_iter().next() {
            Some(terminal) => Some(super::terminal::attach(terminal)?),
            None => None,
        };
        let exit = loop {
            tokio::select! {
                changed = exit.wait_for(Option::is_some) => {
                    break changed.ok().and_then(|exit| *exit).context("the launcher is gone, and the process with it")?;
                }
                number = either(&mut signals) => {
                    client.call(Request::Signal { sandbox, signal: number }, Vec::new()).await?;
                }
            }
        };
        if let Some(terminal) = terminal {
            terminal.finish().await;
        }
        code_of(exit)
    }

    async fn image(&self, store: &ImageStore) -> anyhow::Result<ImageRecord> {
        let bar = Arc::new(Bar::new("pulling"));
        let shown = Arc::clone(&bar);
        let progress = Arc::new(move |bytes, total| shown.set(bytes, total));
        let found = match &self.local {
            Some(local) => {
                let file = match local {
                    Local::File(file) => file.try_clone()?,
                    Local::Folder(pipe) => File::from(pipe.try_clone()?),
                };
                let stream = ImportSource::Stream(Box::pin(tokio::fs::File::from_std(file)));
                store
                    .import(stream, ImportOptions::default(), progress)
                    .await
            }
            None => self.named(store, progress).await?,
        };
        bar.clear();
        Ok(found?)
    }

    async fn named(
        &self,
        store: &ImageStore,
        progress: Arc<dyn skiff_image::Progress>,
    ) -> anyhow::Result<Result<ImageRecord, skiff_image::ImageError>> {
        let reference: Reference = self.args.image.parse()?;
        if let Some(record) = store.resolve(&reference, &Platform::host()).await? {
            return Ok(Ok(record));
        }
        let options = PullOptions {
            auth: self.auth.clone(),
            insecure_hosts: self.args.plain_http.clone(),
            ..PullOptions::default()
        };
        Ok(store.pull(&reference, options, progress).await)
    }

    fn spec(&self, store: &ImageStore, image: &ImageRecord) -> anyhow::Result<SandboxSpec> {
        let user = self.args.user.as_deref().unwrap_or(&image.config.user);
        let user = store.resolve_user(image, user)?;
        let command = &self.args.command;
        let args: Vec<String> = match command.is_empty() {
            true => image
                .config
                .entrypoint
                .iter()
                .chain(&image.config.cmd)
                .cloned()
                .collect(),
            false => command.clone(),
        };
        if args.is_empty() {
            bail!(
                "the image {} names no program: give one behind --",
                self.args.image
            );
        }
        let mut env = image.config.env.clone();
        if !env.iter().any(|line| line.starts_with("PATH=")) {
            env.push(DEFAULT_PATH.to_owned());
        }
        env.extend(self.args.env.iter().cloned());
        let memory_bytes = u64::from(self.args.memory) << 20;
        let stdio = match self.args.tty {
            true => {
                let ExecTerminal { columns, rows } = super::terminal::size()?;
                Stdio::Terminal { columns, rows }
            }
            false => Stdio::Given,
        };
        let (least, most) = limits::MEMORY_MIB_RANGE;
        if !(least..=most).contains(&self.args.memory) {
            bail!(
                "--memory is {}: between {least} and {most} MiB is expected",
                self.args.memory
            );
        }
        Ok(SandboxSpec {
            sandbox: InstanceId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32()),
            layers: image.layers.clone(),
            process: ProcessSpec {
                args,
                env,
                cwd: self
                    .args
                    .workdir
                    .clone()
                    .unwrap_or_else(|| image.config.working_dir.clone()),
                uid: user.uid,
                gid: user.gid,
                additional_gids: user.additional_gids,
                nofile: 1024 * 16,
            },
            hostname: "skiff".to_owned(),
            memory_bytes,
            cpu_millis: cpu_millis(self.args.cpu)?,
            pids: limits::DEFAULT_PIDS,
            writable: Writable::Tmpfs {
                bytes: memory_bytes / 2,
            },
            readonly_root: false,
            egress: self.args.egress,
            stdio,
            label: Vec::new(),
        })
    }
}

fn own_streams() -> anyhow::Result<Vec<OwnedFd>> {
    let copies = [
        std::io::stdin().as_fd().try_clone_to_owned(),
        std::io::stdout().as_fd().try_clone_to_owned(),
        std::io::stderr().as_fd().try_clone_to_owned(),
    ];
    copies
        .into_iter()
        .collect::<Result<_, _>>()
        .context("the standard streams cannot be passed on")
}

async fn either(signals: &mut [Signal; 2]) -> i32 {
    let [interrupt, terminate] = signals;
    tokio::select! {
        _ = interrupt.recv() => SIGINT,
        _ = terminate.recv() => SIGTERM,
    }
}

fn code_of(exit: Exit) -> anyhow::Result<u8> {
    if exit.out_of_memory {
        super::output::note(
            "skiff: the kernel killed a process in it for want of memory; give it more with --memory",
        );
    }
    let code = exit.code.unwrap_or_else(|| 128 + exit.signal.unwrap_or(0));
    u8::try_from(code & 0xff).context("an exit code has 8 bits")
}
