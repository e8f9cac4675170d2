//! What is true of an agent, in a machine or without one.

pub mod disk;
pub mod scenarios;

use std::path::{Path, PathBuf};
use std::time::Duration;

use skiff_base::{Clock, SystemClock};
use skiff_flat::testing::deadline;
use skiff_sandbox::{AgentClient, AgentError, Exits};
use skiff_types::{Digest, InstanceId};
use skiff_wire::agent::Opening;
use skiff_wire::launcher::{Exit, ProcessSpec, SandboxSpec, Stdio, Writable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub use disk::LayerDisk;

/// An agent to test.
pub struct Machine {
    /// Its monitor's socket.
    pub socket: PathBuf,
    pub client: AgentClient,
    pub disk: LayerDisk,
    /// How often what fails is tried.
    pub attempts: u32,
}

impl Machine {
    /// Waits until the agent answers, and adds the layers.
    pub async fn new(socket: &Path, disk: LayerDisk, attempts: u32) -> Self {
        let client = connect(socket).await;
        for layer in &disk.layers {
            let added = client.add_layer(layer.digest.clone(), layer.window).await;
            added.unwrap();
        }
        Self {
            socket: socket.to_owned(),
            client,
            disk,
            attempts,
        }
    }

    pub fn layers(&self) -> Vec<Digest> {
        let layers = self.disk.layers.iter();
        layers.map(|layer| layer.digest.clone()).collect()
    }

    /// A shell with this script, on both layers.
    pub fn shell(&self, script: &str) -> SandboxSpec {
        self.spec(&["sh", "-c", script])
    }

    pub fn spec(&self, args: &[&str]) -> SandboxSpec {
        let random = skiff_base::random::u64();
        SandboxSpec {
            sandbox: InstanceId::from_parts(random, skiff_base::random::u32()),
            layers: self.layers(),
            process: ProcessSpec {
                args: args.iter().map(|&arg| arg.to_owned()).collect(),
                env: vec!["PATH=/bin".to_owned()],
                cwd: "/".to_owned(),
                uid: 1000,
                gid: 1000,
                additional_gids: Vec::new(),
                nofile: 1024,
            },
            hostname: "box".to_owned(),
            memory_bytes: 32 << 20,
            cpu_millis: 1000,
            pids: 32,
            writable: Writable::Tmpfs { bytes: 8 << 20 },
            readonly_root: false,
            egress: false,
            stdio: Stdio::Piped,
            label: b"label".to_vec(),
        }
    }

    /// Starts it; its id.
    pub async fn start(&self, spec: SandboxSpec) -> InstanceId {
        let sandbox = spec.sandbox;
        self.client.create(spec).await.unwrap();
        sandbox
    }

    pub async fn open(&self, opening: Opening) -> UnixStream {
        self.client.open(opening).await.unwrap()
    }

    pub async fn stdout(&self, sandbox: InstanceId) -> UnixStream {
        self.open(Opening::Stdout { sandbox }).await
    }

    pub async fn stdin(&self, sandbox: InstanceId) -> UnixStream {
        self.open(Opening::Stdin { sandbox }).await
    }

    pub async fn exit(&self, sandbox: InstanceId) -> Exit {
        exit_of(&self.client, sandbox).await
    }

    pub async fn destroy(&self, sandbox: InstanceId) {
        self.client.destroy(sandbox).await.unwrap();
    }

    /// Runs a script to its end: its exit, and all that it wrote to stdout.
    pub async fn run(&self, script: &str) -> (Exit, String) {
        let sandbox = self.start(self.shell(script)).await;
        let mut stdout = self.stdout(sandbox).await;
        let text = read_all(&mut stdout).await;
        let exit = self.exit(sandbox).await;
        self.destroy(sandbox).await;
        (exit, text)
    }
}

pub async fn connect(socket: &Path) -> AgentClient {
    let connected = AgentClient::connect(socket, Exits::default(), deadline()).await;
    connected.unwrap()
}

/// How a sandbox ended, as this client hears of it.
pub async fn exit_of(client: &AgentClient, sandbox: InstanceId) -> Exit {
    let mut exit = client.exits().watch(sandbox);
    let known = within("an exit", exit.wait_for(Option::is_some)).await;
    let exit = *known.unwrap();
    exit.unwrap()
}

/// Fails when it takes too long.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(deadline(), future).await;
    waited.unwrap_or_else(|_| panic!("in vain waited for {what}"))
}

pub async fn read_all(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    within("a stream's end", stream.read_to_end(&mut text))
        .await
        .unwrap();
    String::from_utf8(text).unwrap()
}

/// Up to the next line feed, without it or a terminal's carriage return.
pub async fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    loop {
        match within("a line", stream.read_u8()).await.unwrap() {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

pub async fn write(stream: &mut UnixStream, bytes: impl AsRef<[u8]>) {
    let written = within("room for bytes", stream.write_all(bytes.as_ref()));
    written.await.unwrap();
}

/// Tries until it succeeds; between two tries others have their turn.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = SystemClock.now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        let waited = SystemClock.now().since(started);
        assert!(waited < deadline(), "in vain waited for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What the agent said when it refused.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, AgentError>) -> (String, i32) {
    match result {
        Err(AgentError::Refused { refusal, .. }) => (refusal.step, refusal.errno),
        other => panic!("it was not refused: {other:?}"),
    }
}
