//! A worker over a real launcher: busybox in a container, from a tar to an
//! answer. Needs root.
//!
//! The launcher is this program again, started with `--launcher`; that is why
//! it has a `main` of its own.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Diary, PATIENCE, eventually, id, launch, revision};
use skiff_base::{Clock, SystemClock, chain, process};
use skiff_jail::{LauncherOptions, launcher_main};
use skiff_sandbox::{ContainerBackend, Exits, LauncherClient, Sandbox};
use skiff_types::{Digest, ErrorKind, IsolationClass, Launch, ProbeKind, ProjectId, ServerId};
use skiff_worker::{
    Backends, EndReason, LogQuery, ShutdownMode, StartFailure, Worker, WorkerConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const APPLICATION: &str = "echo ready; exec busybox httpd -f -p 8080 -h /www";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--launcher") {
        let server = args.next().unwrap().parse().unwrap();
        return run_launcher(LauncherOptions::new(server, args.next().unwrap().into(), 0));
    }
    if std::env::args().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(a_container_lives_through_two_servers());
    runtime.block_on(failures_are_told_by_their_cause());
    eprintln!("test container: 2 passed");
    ExitCode::SUCCESS
}

fn run_launcher(options: LauncherOptions) -> ExitCode {
    match launcher_main(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// A launcher's process and what a server of it needs.
struct Host {
    server: ServerId,
    folder: tempfile::TempDir,
    layer: (Digest, PathBuf),
    diary: Diary,
    launcher: Launcher,
}

/// Ends with the test, also when that fails.
struct Launcher(Child);

impl Drop for Launcher {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            // SIGTERM is its orderly end.
            let pid = rustix::process::Pid::from_child(&self.0);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            self.0.wait().unwrap();
        }
    }
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = ServerId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32());
        let launcher = process::command("/proc/self/exe")
            .arg("--launcher")
            .arg(server.to_string())
            .arg(folder.path())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let path = folder.path().join("busybox.erofs");
        make_layer(&path);
        Self {
            server,
            layer: (Digest::from_sha256([1; 32]), path),
            folder,
            diary: Diary::default(),
            launcher: Launcher(launcher),
        }
    }

    async fn client(&self) -> LauncherClient {
        let path = self.folder.path().join("launcher.sock");
        LauncherClient::connect(&path, self.server, Exits::default())
            .await
            .unwrap()
    }

    /// A server's worker, with its own connection.
    async fn worker(&self) -> Worker {
        let backend = Arc::new(ContainerBackend::new(self.client().await));
        let config = WorkerConfig::new(self.folder.path().join("logs"));
        let records = Arc::new(self.diary.clone());
        let clock = Arc::new(SystemClock);
        Worker::new(config, Backends::container(backend), records, clock)
            .unwrap()
            .0
    }

    fn launch(&self, script: &str) -> Launch {
        let mut launch = launch();
        launch.layers = vec![self.layer.clone()];
        launch.args = ["/bin/busybox", "sh", "-c", script]
            .map(str::to_owned)
            .into();
        launch.env = vec!["PATH=/bin".to_owned()];
        launch.resources.memory_mib = 64;
        launch.probe.kind = ProbeKind::Http("/".to_owned());
        launch
    }

    /// Ends the launcher; nothing may be left for it to complain about.
    async fn close(mut self) {
        let client = self.client().await;
        assert!(client.list().await.unwrap().is_empty());
        client.shutdown().await.unwrap();
        let ended = tokio::task::spawn_blocking(move || self.launcher.0.wait().unwrap());
        assert!(timeout(PATIENCE, ended).await.unwrap().unwrap().success());
    }
}

/// busybox and a page for its server.
fn make_layer(path: &Path) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, kind: tar::EntryType, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(u64::try_from(data.len()).unwrap());
        tar.append_data(&mut header, name, data).unwrap();
    };
    for folder in ["bin/", "dev/", "proc/", "sys/", "tmp/", "www/"] {
        add(folder, 0o755, tar::EntryType::Directory, b"");
    }
    let busybox = std::fs::read("/bin/busybox").unwrap();
    add("bin/busybox", 0o755, tar::EntryType::Regular, &busybox);
    add(
        "www/index.html",
        0o644,
        tar::EntryType::Regular,
        b"from a container",
    );
    let bytes = tar.into_inner().unwrap();
    let mut options = std::fs::File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    let options = skiff_erofs::LayerOptions::default();
    skiff_erofs::write_layer(bytes.as_slice(), &mut file, &options).unwrap();
}

async fn get(sandbox: &dyn Sandbox) -> String {
    let asked = async {
        let mut stream = sandbox.connect(8080).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    timeout(PATIENCE, asked).await.unwrap()
}

async fn logged(worker: &Worker, text: &str) -> bool {
    let project = ProjectId::default_project();
    let lines = worker
        .logs(LogQuery::service(project, revision().service))
        .await;
    lines.unwrap().iter().any(|line| line.text.contains(text))
}

async fn a_container_lives_through_two_servers() {
    let host = Host::new();
    let worker = host.worker().await;
    let started = worker
        .start(id(1), Arc::new(host.launch(APPLICATION)))
        .await
        .unwrap();
    eprintln!("{:?}", started.phases);
    assert_eq!(started.class, IsolationClass::Container);
    assert!(started.sandbox.listeners().await.unwrap().is_some());
    assert!(get(&*started.sandbox).await.ends_with("from a container"));
    worker
        .start(id(2), Arc::new(host.launch(APPLICATION)))
        .await
        .unwrap();
    worker
        .start(id(3), Arc::new(host.launch(APPLICATION)))
        .await
        .unwrap();
    worker.pause(id(2)).await.unwrap();
    assert!(worker.stats(id(1)).await.unwrap().memory_bytes > 0);
    // As after kill -9: nobody says anything to anybody.
    drop((worker, started));

    let next = host.worker().await;
    let adopted = next.adopt(|_, instance| instance != id(3)).await.unwrap();
    let mut ids: Vec<_> = adopted.iter().map(|a| (a.instance, a.paused)).collect();
    ids.sort();
    assert_eq!(ids, [(id(1), false), (id(2), true)]);
    assert_eq!(host.diary.ends().len(), 1);
    next.resume(id(2)).await.unwrap();
    for found in &adopted {
        assert!(get(&*found.sandbox).await.ends_with("from a container"));
    }
    next.pause(id(2)).await.unwrap();
    let grace = Duration::from_secs(20);
    next.stop(id(2), grace, "idle").await.unwrap();
    next.shutdown(ShutdownMode::StopAll, PATIENCE).await;
    assert_eq!(host.diary.ends().len(), 3);
    assert!(
        host.diary
            .ends()
            .iter()
            .all(|end| end.cpu_us > 0 && end.lifetime_us > 0)
    );
    assert!(logged(&next, "ready").await);
    host.close().await;
}

async fn failures_are_told_by_their_cause() {
    let host = Host::new();
    let worker = host.worker().await;
    let fail = async |number: u32, launch: Launch| {
        let error = worker
            .start(id(number), Arc::new(launch))
            .await
            .unwrap_err();
        eprintln!("{}", chain(&error));
        error
    };
    let error = fail(1, host.launch("echo no module >&2; exit 3")).await;
    assert!(matches!(
        *error.failure,
        StartFailure::Ended(EndReason::Exited { code: 3 }, 8080)
    ));
    assert!(
        error.log.contains(&"no module".to_owned()),
        "{:?}",
        error.log
    );

    let hungry = "exec busybox dd if=/dev/zero of=/dev/null bs=256M count=1";
    let error = fail(2, host.launch(hungry)).await;
    assert!(matches!(
        *error.failure,
        StartFailure::Ended(EndReason::OutOfMemory, _)
    ));

    let mut missing = host.launch("");
    missing.args = vec!["/no/such/program".to_owned()];
    let error = fail(3, missing).await;
    assert!(matches!(*error.failure, StartFailure::Sandbox(_)));
    assert_eq!(error.kind(), ErrorKind::Failed);

    let mut silent = host.launch("exec busybox sleep 1000");
    silent.probe.start_timeout_s = 1;
    let error = fail(4, silent).await;
    assert!(matches!(*error.failure, StartFailure::NotReady { .. }));

    let ends = host.diary.ends();
    assert_eq!((host.diary.starts(), ends.len()), (4, 4));
    assert!(ends[1].out_of_memory);
    eventually("nothing runs", || worker.instances().is_empty()).await;
    worker.shutdown(ShutdownMode::StopAll, PATIENCE).await;
    host.close().await;
}
