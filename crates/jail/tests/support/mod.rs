//! A real launcher process, a blocking client, and layers made by
//! `mkfs.erofs` from folders with busybox in them.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio as Pipe};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, sockopt,
};
use skiff_base::{Clock, SystemClock, process::command};
use skiff_types::{Digest, InstanceId, ServerId};
use skiff_wire::launcher::{
    Answer, Envelope, Exit, Listed, PoolConfig, ProcessSpec, Refusal, Reply, Request, SandboxSpec,
    Stats, Stdio, Writable,
};

/// How many times slower the machine is than one that computes itself.
pub fn slowness() -> u32 {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    *SLOWNESS.get_or_init(|| match std::env::var("SKIFF_SLOWNESS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 1,
    })
}

/// Generous: the machine may be slow and shared.
pub fn patience() -> Duration {
    Duration::from_secs(60) * slowness()
}

/// Looks until it is so.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = SystemClock.now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            SystemClock.now().since(start) < patience(),
            "in vain waited for: {what}"
        );
        std::thread::yield_now();
    }
}

pub fn new_server() -> ServerId {
    ServerId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32())
}

pub fn new_sandbox() -> InstanceId {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    InstanceId::from_parts(SystemClock.unix_ms(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A launcher process and the folder it runs in.
pub struct Launcher {
    pub server: ServerId,
    pub folder: PathBuf,
    _temp: Option<tempfile::TempDir>,
    child: Child,
}

impl Launcher {
    pub fn start() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().to_owned();
        let mut launcher = Self::start_at(new_server(), &folder);
        launcher._temp = Some(temp);
        launcher
    }

    pub fn start_at(server: ServerId, folder: &Path) -> Self {
        let child = command(env!("CARGO_BIN_EXE_skiff-jail-launcher"))
            .arg(server.to_string())
            .arg(folder)
            .arg(std::env::temp_dir().join("skiff-jail-test-locks"))
            .stderr(Pipe::inherit())
            .spawn()
            .unwrap();
        let mut launcher = Self {
            server,
            folder: folder.to_owned(),
            _temp: None,
            child,
        };
        wait_for("the launcher's socket", || {
            assert!(launcher.child.try_wait().unwrap().is_none(), "it has ended");
            launcher.try_connect().ok()
        });
        launcher
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn try_connect(&self) -> rustix::io::Result<OwnedFd> {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        let path = self.folder.join("launcher.sock");
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Ok(socket)
    }

    /// A client that has not said hello.
    pub fn stranger(&self) -> Client {
        Client::new(self.try_connect().unwrap())
    }

    pub fn connect(&self) -> Client {
        let mut client = self.stranger();
        let hello = client.ask(Request::Hello {
            server: self.server,
        });
        assert!(matches!(hello, Ok(Reply::Hello { .. })), "{hello:?}");
        client
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Ends it in order and looks whether it leaves anything.
    pub fn shut_down(mut self) {
        let mut client = self.connect();
        assert_eq!(client.ask(Request::Shutdown), Ok(Reply::Done));
        assert!(self.wait().success());
        assert_eq!(cgroups_of(self.server), Vec::<PathBuf>::new());
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // SIGTERM is the orderly end.
            let pid = i32::try_from(self.child.id()).unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// The cgroup folders of a server, in every hierarchy.
pub fn cgroups_of(server: ServerId) -> Vec<PathBuf> {
    let name = format!("skiff-{server}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
        .map(|mount| Path::new(mount).join(&name))
        .filter(|path| path.exists())
        .collect()
}

pub struct Client {
    pub socket: OwnedFd,
    next: u64,
    answers: VecDeque<(Answer, Vec<OwnedFd>)>,
}

/// A reply with its descriptors.
pub type Full = (Result<Reply, Refusal>, Vec<OwnedFd>);

impl Client {
    fn new(socket: OwnedFd) -> Self {
        sockopt::set_socket_send_buffer_size(&socket, 2 * skiff_wire::FRAME_BYTES_MAX).unwrap();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(patience())).unwrap();
        Self {
            socket,
            next: 0,
            answers: VecDeque::new(),
        }
    }

    pub fn send_raw(&self, frame: &[u8], fds: &[&OwnedFd]) -> rustix::io::Result<()> {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let frame = [std::io::IoSlice::new(frame)];
        rustix::net::sendmsg(&self.socket, &frame, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Sends a request; its number.
    pub fn send(&mut self, request: Request, fds: &[&OwnedFd]) -> u64 {
        self.next += 1;
        let envelope = Envelope {
            id: self.next,
            request,
        };
        let frame = skiff_wire::encode(&envelope).unwrap();
        self.send_raw(&frame, fds).unwrap();
        self.next
    }

    /// The next frame; nothing when the launcher has closed the connection.
    pub fn receive(&mut self) -> Option<(Answer, Vec<OwnedFd>)> {
        let mut buffer = vec![0; skiff_wire::FRAME_BYTES_MAX];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [std::io::IoSliceMut::new(&mut buffer)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let length = match received {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(errno) => panic!("no answer: {errno}"),
        };
        let mut fds = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        if length == 0 {
            return None;
        }
        Some((skiff_wire::decode(&buffer[..length]).unwrap(), fds))
    }

    pub fn reply_to(&mut self, wanted: u64) -> Full {
        let mut others = VecDeque::new();
        let found = loop {
            let next = self.answers.pop_front().or_else(|| self.receive());
            match next.expect("the launcher has closed the connection") {
                (Answer::Reply { id, result }, fds) if id == wanted => break (result, fds),
                other => others.push_back(other),
            }
        };
        others.append(&mut self.answers);
        self.answers = others;
        found
    }

    pub fn ask_full(&mut self, request: Request, fds: &[&OwnedFd]) -> Full {
        let id = self.send(request, fds);
        self.reply_to(id)
    }

    pub fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.ask_full(request, &[]).0
    }

    /// How a sandbox ended.
    pub fn exit_of(&mut self, wanted: InstanceId) -> Exit {
        let mut others = VecDeque::new();
        let found = loop {
            let next = self.answers.pop_front().or_else(|| self.receive());
            match next.expect("the launcher has closed the connection") {
                (Answer::Exited { sandbox, exit }, _) if sandbox == wanted => break exit,
                other => others.push_back(other),
            }
        };
        others.append(&mut self.answers);
        self.answers = others;
        found
    }

    /// The code and signal by which a further process ended.
    pub fn exec_exit(&mut self, wanted: u64) -> (Option<i32>, Option<i32>) {
        let mut others = VecDeque::new();
        let found = loop {
            let next = self.answers.pop_front().or_else(|| self.receive());
            match next.expect("the launcher has closed the connection") {
                (
                    Answer::ExecExited {
                        exec, code, signal, ..
                    },
                    _,
                ) if exec == wanted => break (code, signal),
                other => others.push_back(other),
            }
        };
        others.append(&mut self.answers);
        self.answers = others;
        found
    }

    pub fn add_layer(&mut self, layer: &Layer) {
        let file = OwnedFd::from(File::open(&layer.path).unwrap());
        let request = Request::AddLayer {
            layer: layer.digest.clone(),
        };
        assert_eq!(self.ask_full(request, &[&file]).0, Ok(Reply::Done));
    }

    pub fn configure(&mut self, networks: u32) {
        let pool = PoolConfig {
            networks,
            egress_networks: 0,
        };
        assert_eq!(self.ask(Request::Configure(pool)), Ok(Reply::Done));
    }

    pub fn create(&mut self, spec: SandboxSpec) -> Result<Running, Refusal> {
        let sandbox = spec.sandbox;
        let (result, fds) = self.ask_full(Request::Create(Box::new(spec)), &[]);
        let Reply::Created { steps_us } = result? else {
            panic!("another reply");
        };
        Ok(Running {
            sandbox,
            steps_us,
            outputs: fds,
        })
    }

    pub fn destroy(&mut self, sandbox: InstanceId) {
        assert_eq!(self.ask(Request::Destroy { sandbox }), Ok(Reply::Done));
    }

    pub fn stats(&mut self, sandbox: InstanceId) -> Stats {
        match self.ask(Request::Stats { sandbox }) {
            Ok(Reply::Stats(stats)) => stats,
            other => panic!("{other:?}"),
        }
    }

    pub fn list(&mut self) -> Vec<Listed> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let after = all.last().map(|listed| listed.sandbox);
            match self.ask(Request::List { after }) {
                Ok(Reply::List(page)) if page.is_empty() => return all,
                Ok(Reply::List(page)) => all.extend(page),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs to completion: how it ended, what it wrote.
    pub fn run(&mut self, spec: SandboxSpec) -> (Exit, String, String) {
        let running = self.create(spec).unwrap();
        let sandbox = running.sandbox;
        let exit = self.exit_of(sandbox);
        let (out, err) = running.read();
        self.destroy(sandbox);
        (exit, out, err)
    }

    /// What a shell script writes, in a sandbox of its own; it must succeed.
    pub fn shell(&mut self, layers: &[&Layer], script: &str) -> String {
        let (exit, out, err) = self.run(shell(layers, script));
        assert_eq!((exit.code, &*err), (Some(0), ""), "{out}");
        out
    }
}

/// A sandbox that has started.
#[derive(Debug)]
pub struct Running {
    pub sandbox: InstanceId,
    pub steps_us: Vec<(String, u32)>,
    pub outputs: Vec<OwnedFd>,
}

impl Running {
    /// Everything on stdout and stderr, to their ends.
    pub fn read(self) -> (String, String) {
        let mut texts = self.outputs.into_iter().map(|output| {
            let mut text = String::new();
            File::from(output).read_to_string(&mut text).unwrap();
            text
        });
        (texts.next().unwrap(), texts.next().unwrap_or_default())
    }

    /// Reads stdout until a whole line is there.
    pub fn line(&self) -> String {
        read_line(&self.outputs[0])
    }
}

pub fn read_line(output: &OwnedFd) -> String {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match rustix::io::read(output, &mut byte) {
            Ok(0) => panic!("the end came after {:?}", String::from_utf8_lossy(&line)),
            Ok(_) if byte[0] == b'\n' => return String::from_utf8(line).unwrap(),
            Ok(_) => line.push(byte[0]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// An EROFS file and its name.
pub struct Layer {
    pub digest: Digest,
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

/// Makes a layer of what `fill` puts into a folder.
pub fn layer(fill: impl FnOnce(&Path)) -> Layer {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    fill(&root);
    let path = folder.path().join("layer.erofs");
    let made = command("mkfs.erofs")
        .arg(&path)
        .arg(&root)
        .status()
        .unwrap();
    assert!(made.success(), "mkfs.erofs failed");
    let digest = format!(
        "sha256:{:064x}",
        u128::from(skiff_base::random::u64()) << 64 | u128::from(skiff_base::random::u64())
    );
    Layer {
        digest: digest.parse().unwrap(),
        path,
        _folder: folder,
    }
}

pub fn add_busybox(root: &Path) {
    let bin = root.join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for name in [
        "sh", "cat", "ls", "id", "env", "pwd", "sleep", "echo", "mount", "head", "dd", "ps",
        "hostname", "mkdir", "touch", "chown", "grep", "true", "kill", "yes", "wc", "stat", "nc",
        "unshare", "readlink", "tr", "rm", "test", "sync", "su", "ifconfig", "tail", "seq", "tty",
        "stty", "chmod", "mknod", "cut",
    ] {
        symlink("busybox", bin.join(name)).unwrap();
    }
}

/// busybox and nothing else.
pub fn busybox() -> &'static Layer {
    static LAYER: OnceLock<Layer> = OnceLock::new();
    LAYER.get_or_init(|| layer(add_busybox))
}

pub fn spec(layers: &[&Layer], args: &[&str]) -> SandboxSpec {
    SandboxSpec {
        sandbox: new_sandbox(),
        layers: layers.iter().map(|layer| layer.digest.clone()).collect(),
        process: ProcessSpec {
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            additional_gids: Vec::new(),
            nofile: 1024,
        },
        hostname: "box".to_owned(),
        memory_bytes: 64 << 20,
        cpu_millis: 1000,
        pids: 64,
        writable: Writable::Tmpfs { bytes: 16 << 20 },
        readonly_root: false,
        egress: false,
        stdio: Stdio::Piped,
        label: Vec::new(),
    }
}

pub fn shell(layers: &[&Layer], script: &str) -> SandboxSpec {
    spec(layers, &["sh", "-c", script])
}
