//! The same sandboxes in both classes, made by a real launcher. It takes KVM,
//! a kernel and an initramfs with the agent, which `make test-kvm` has.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::future::Future;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use skiff_base::process::command;
use skiff_base::{Acceptor, ByteStream, Clock, SystemClock, Tasks};
use skiff_net::SERVICE_ADDRESS;
use skiff_net::dns::{DnsClient, DnsDatagrams, DnsForwarder, DnsServing, DnsSockets};
use skiff_sandbox::{
    Backend, ContainerBackend, CreateSpec, Created, Datagrams, ExecRequest, Exits, GuestFiles,
    LauncherClient, LayerFile, Listeners, MicrovmBackend, Sandbox, SandboxError, TerminalSize,
};
use skiff_types::{InstanceId, IsolationClass, ProjectId, ServerId};
use skiff_wire::launcher::{Exit, ProcessSpec, Writable, monitor_folder};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

#[path = "microvm/egress.rs"]
mod egress;
#[path = "microvm/extensions.rs"]
mod extensions;

use egress::{POOL6, World};

/// A machine boots in seconds where it is emulated.
fn patience() -> Duration {
    let slowness = std::env::var("SKIFF_SLOWNESS").map_or(1, |text| text.parse().unwrap());
    Duration::from_secs(180) * slowness
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(patience(), work).await;
    done.unwrap_or_else(|_| panic!("in vain waited for: {what}"))
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Where `vmlinuz` and `agent`, an initramfs, are.
fn guest_files() -> Option<PathBuf> {
    let files = std::env::var_os("SKIFF_TEST_GUEST").map(PathBuf::from);
    if files.is_none() {
        let message = "virtual machines are not tested: make test-kvm does it\n";
        // A message that cannot be written changes no result.
        std::io::stderr().write_all(message.as_bytes()).ok();
    }
    files
}

fn launcher() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.with_file_name("skiff-vmm-launcher")
}

/// A launcher, its layers, and both classes over it.
struct Rig {
    server: ServerId,
    folder: tempfile::TempDir,
    launcher: Child,
    layers: Vec<LayerFile>,
    files: GuestFiles,
}

/// Both classes over one connection.
struct Classes {
    client: LauncherClient,
    containers: ContainerBackend,
    machines: MicrovmBackend,
}

impl Classes {
    fn each(&self) -> [&dyn Backend; 2] {
        [&self.containers, &self.machines]
    }
}

impl Rig {
    fn start(files: &Path) -> Self {
        Self::start_by(files, command(launcher()), None)
    }

    /// On the made-up host.
    fn start_in(files: &Path, world: &World) -> Self {
        let mut inside = world.command(&world.host);
        inside.arg(launcher());
        Self::start_by(files, inside, Some(POOL6))
    }

    fn start_by(files: &Path, mut launcher: Command, pool6: Option<&str>) -> Self {
        let server = ServerId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32());
        let folder = tempfile::tempdir().unwrap();
        let launcher = launcher
            .arg(server.to_string())
            .arg(folder.path())
            .arg(std::env::temp_dir().join("skiff-sandbox-test-locks"))
            .arg("/usr/bin/skiff-vmm")
            .args(pool6)
            .spawn()
            .unwrap();
        let layers = [
            layer(folder.path(), 1, busybox),
            layer(folder.path(), 2, words),
        ];
        Self {
            server,
            launcher,
            layers: layers.into(),
            files: GuestFiles {
                kernel: files.join("vmlinuz"),
                initramfs: files.join("agent"),
            },
            folder,
        }
    }

    async fn connect(&self) -> Classes {
        let path = self.folder.path().join("launcher.sock");
        let connected = LauncherClient::connect(&path, self.server, Exits::default()).await;
        let client = connected.unwrap();
        let containers = ContainerBackend::new(client.clone());
        let run_dir = self.folder.path().to_owned();
        let machines = MicrovmBackend::beside(&containers, run_dir, patience());
        machines.boot_from(self.files.clone());
        Classes {
            client,
            containers,
            machines,
        }
    }

    fn spec(&self, script: &str) -> CreateSpec {
        CreateSpec {
            instance: InstanceId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32()),
            layers: self.layers.clone(),
            process: ProcessSpec {
                args: ["sh", "-c", script].map(str::to_owned).into(),
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
            function: false,
            label: b"label".to_vec(),
        }
    }

    /// Nothing is left of what was destroyed.
    async fn is_empty(&self, classes: &Classes) {
        assert_eq!(classes.client.list().await.unwrap(), []);
        let vms = self.folder.path().join("launcher/vms");
        let left = fs::read_dir(vms).map_or(0, Iterator::count);
        assert_eq!(left, 0, "folders of monitors are left");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.launcher.kill().ok();
        self.launcher.wait().ok();
    }
}

fn layer(folder: &Path, number: u32, fill: fn(&Path)) -> LayerFile {
    let root = folder.join(format!("root-{number}"));
    let path = folder.join(format!("layer-{number}"));
    fs::create_dir(&root).unwrap();
    fill(&root);
    let made = command("mkfs.erofs")
        .arg("--quiet")
        .arg(&path)
        .arg(&root)
        .status();
    assert!(made.unwrap().success(), "mkfs.erofs fails");
    LayerFile {
        digest: format!("sha256:{number:064x}").parse().unwrap(),
        path,
    }
}

fn busybox(root: &Path) {
    let bin = root.join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "sleep", "stty", "tail", "true", "httpd", "hostname", "id", "wget",
        "head", "wc", "rm", "sync", "ls", "dd", "timeout", "grep",
    ] {
        symlink("busybox", bin.join(name)).unwrap();
    }
}

fn words(root: &Path) {
    fs::write(root.join("greeting"), "hello from a layer\n").unwrap();
    fs::create_dir(root.join("www")).unwrap();
    fs::write(root.join("www/page"), "page ".repeat(20_000)).unwrap();
}

async fn read_all(fd: OwnedFd) -> String {
    let text = tokio::task::spawn_blocking(move || {
        rustix::io::ioctl_fionbio(&fd, false).unwrap();
        std::io::read_to_string(fs::File::from(fd)).unwrap()
    });
    within("the end of output", text).await.unwrap()
}

/// Its output, its end, and nothing left of it.
async fn run(backend: &dyn Backend, spec: CreateSpec) -> (String, String, Exit) {
    let created = within("a sandbox", backend.create(spec)).await.unwrap();
    let exit = within("its end", created.sandbox.exited()).await;
    let output = created.output.unwrap();
    within("its destruction", created.sandbox.destroy())
        .await
        .unwrap();
    (
        read_all(output.stdout).await,
        read_all(output.stderr).await,
        exit,
    )
}

async fn fetch(sandbox: &dyn Sandbox) -> Option<String> {
    let mut stream = sandbox.connect(8080).await.ok()?;
    let asked = stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").await;
    asked.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_classes_do_the_same() {
    let Some(files) = guest_files() else {
        return;
    };
    let rig = Rig::start(&files);
    let classes = rig.connect().await;
    // Machines are those of monitors that have waited, wherever one has had
    // the time to be made.
    classes.machines.keep_warm(1).await.unwrap();
    for backend in classes.each() {
        output_and_end_are_told(&rig, backend).await;
        too_much_memory_is_told(&rig, backend).await;
        what_it_writes_may_be_on_disk(&rig, backend).await;
        a_port_is_reached_and_it_can_stand(&rig, backend).await;
        services_and_names_are_reached(&rig, backend).await;
        a_function_s_runtime_is_served(&rig, backend).await;
        extensions::a_function_begins_after_its_extensions(&rig, backend).await;
        further_processes_run_in_it(&rig, backend).await;
        rig.is_empty(&classes).await;
    }
    what_it_removes_is_given_back(&rig, &classes).await;
    sandboxes_are_adopted(&rig, classes).await;
}

async fn output_and_end_are_told(rig: &Rig, backend: &dyn Backend) {
    let script = "cat /greeting; hostname; id -u; echo err >&2; exit 3";
    let (out, err, exit) = run(backend, rig.spec(script)).await;
    assert_eq!(
        out,
        "hello from a layer\nbox\n1000\n",
        "{:?}",
        backend.class()
    );
    assert_eq!(err, "err\n");
    assert_eq!(
        (exit.code, exit.signal, exit.out_of_memory),
        (Some(3), None, false)
    );
    assert!(exit.cpu_us > 0, "{exit:?}");
}

async fn too_much_memory_is_told(rig: &Rig, backend: &dyn Backend) {
    let (_, _, exit) = run(backend, rig.spec("exec tail /dev/zero")).await;
    assert_eq!(
        (exit.signal, exit.out_of_memory),
        (Some(9), true),
        "{exit:?}"
    );
}

/// More than its memory, and no more than its disk; each has its own.
async fn what_it_writes_may_be_on_disk(rig: &Rig, backend: &dyn Backend) {
    let script = "ls /file; head -c 40000000 /dev/zero >/file && wc -c </file; \
                  dd if=/dev/zero of=/more bs=1M count=40 2>&1 | head -n 1";
    for _ in 0..2 {
        let mut spec = rig.spec(script);
        spec.process.uid = 0;
        spec.writable = Writable::Disk { bytes: 48 << 20 };
        let (out, _, exit) = run(backend, spec).await;
        assert!(out.starts_with("40000000\n"), "{out}");
        assert!(out.trim_end().ends_with("No space left on device"), "{out}");
        assert!(!exit.out_of_memory, "{exit:?}");
    }
}

async fn a_port_is_reached_and_it_can_stand(rig: &Rig, backend: &dyn Backend) {
    let spec = rig.spec("while :; do :; done & exec httpd -f -p 8080 -h /www");
    let created = within("a sandbox", backend.create(spec)).await.unwrap();
    let steps = format!("{:?}: {:?}\n", backend.class(), created.steps_us);
    std::io::stderr().write_all(steps.as_bytes()).ok();
    let sandbox = created.sandbox;
    let answer = until("an answer", async || fetch(&*sandbox).await).await;
    assert!(
        answer.ends_with(&"page ".repeat(20_000)),
        "{}",
        answer.len()
    );
    let nobody = sandbox.connect(9).await.unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::ConnectionRefused);

    let used = sandbox.stats().await.unwrap();
    assert!(used.memory_bytes > 0 && used.pids >= 2, "{used:?}");
    assert!(
        used.memory_bytes <= 32 << 20,
        "a machine's overhead is not its application's"
    );
    until("it to use its processor", async || {
        (sandbox.stats().await.unwrap().cpu_us > used.cpu_us).then_some(())
    })
    .await;
    within("it to stand", sandbox.pause()).await.unwrap();
    let cpu = async || sandbox.stats().await.unwrap().cpu_us;
    // A monitor that is not ours has yet to end its answer.
    let stands = until("it to stand", async || {
        let before = cpu().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        (cpu().await == before).then_some(before)
    })
    .await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(cpu().await, stands);
    }
    within("it to go on", sandbox.resume()).await.unwrap();
    until("it to use its processor again", async || {
        (cpu().await > stands).then_some(())
    })
    .await;
    assert!(within("an answer", fetch(&*sandbox)).await.is_some());

    within("a signal", sandbox.signal(15)).await.unwrap();
    let exit = within("its end", sandbox.exited()).await;
    assert_eq!((exit.code, exit.signal), (None, Some(15)), "{exit:?}");
    within("its destruction", sandbox.destroy()).await.unwrap();
}

/// An application that calls a service and a name of the world over and over,
/// while they are served, when nobody does, and when somebody does again.
async fn services_and_names_are_reached(rig: &Rig, backend: &dyn Backend) {
    let script = "while :; do for name in called.skiff.internal somewhere.example; do \
        wget -q -O - http://$name/ 2>/dev/null || echo no $name; done; sleep 1; done";
    let created = within("a sandbox", backend.create(rig.spec(script))).await;
    let Created {
        sandbox, output, ..
    } = created.unwrap();
    let output = output.unwrap();
    let mut said = lines(output.stdout);
    for _ in 0..2 {
        let served = until("its sockets", async || sandbox.listeners().await.ok()).await;
        let served = Served::new(served.unwrap());
        heard("hello to called.skiff.internal", &mut said).await;
        heard("hello to somewhere.example", &mut said).await;
        served.end().await;
        // Soon, and not never.
        heard("no called.skiff.internal", &mut said).await;
    }
    within("its destruction", sandbox.destroy()).await.unwrap();
    drop(output.stderr);
}

/// A runtime that asks for one event after the other: its first call waits from
/// before anybody serves it; the next ones end with a server, which another one
/// follows. What comes while it stands is there when it goes on.
async fn a_function_s_runtime_is_served(rig: &Rig, backend: &dyn Backend) {
    let mut spec = rig.spec(
        "while :; do wget -q -O - http://127.0.0.1:9001/next 2>/dev/null || \
         { echo nobody; sleep 1; }; done",
    );
    spec.function = true;
    spec.readonly_root = true;
    let created = within("a sandbox", backend.create(spec)).await.unwrap();
    let sandbox = created.sandbox;
    let output = created.output.unwrap();
    let mut said = lines(output.stdout);
    for (event, before) in [("first", None), ("second", Some("nobody"))] {
        if let Some(before) = before {
            heard(before, &mut said).await;
        }
        let listener = until("its socket", async || sandbox.runtime_listener().await.ok()).await;
        let api = listener.unwrap().into_acceptor().unwrap();
        let mut call = within("a call", next_call(&api)).await;
        within("it to stand", sandbox.pause()).await.unwrap();
        give(&mut call, event).await;
        within("it to go on", sandbox.resume()).await.unwrap();
        heard(event, &mut said).await;
        drop(within("another call", next_call(&api)).await);
    }
    within("its destruction", sandbox.destroy()).await.unwrap();
    drop(output.stderr);
}

async fn next_call(api: &Acceptor) -> ByteStream {
    let (mut stream, _) = api.accept().await.unwrap();
    assert!(head_of(&mut stream).await.starts_with("GET /next "));
    stream
}

async fn give(call: &mut ByteStream, event: &str) {
    let answer = format!("HTTP/1.0 200 OK\r\n\r\n{event}\n");
    call.write_all(answer.as_bytes()).await.unwrap();
    call.shutdown().await.unwrap();
}

/// What stands for the server at a sandbox's sockets.
struct Served {
    tasks: Tasks,
    dns: DnsServing,
}

impl Served {
    fn new(listeners: Listeners) -> Self {
        let tasks = Tasks::new();
        let gateway = listeners.gateway.into_acceptor().unwrap();
        tasks.spawn("gateway", greet(gateway));
        let lookup =
            Arc::new(|_: &ProjectId, name: &str| (name == "called").then_some(SERVICE_ADDRESS));
        let forwarder = DnsForwarder::new(lookup, vec![resolver()], Arc::new(SystemClock));
        let client = DnsClient {
            project: ProjectId::default_project(),
            egress: true,
        };
        let sockets = DnsSockets {
            streams: listeners.dns,
            datagrams: match listeners.dns_datagrams {
                Datagrams::Socket(socket) => DnsDatagrams::Socket(socket),
                Datagrams::Carried(listener) => DnsDatagrams::Carried(listener),
            },
        };
        let dns = forwarder.serve(&tasks, client, sockets).unwrap();
        Self { tasks, dns }
    }

    /// As the end of a server: its sockets are closed.
    async fn end(self) {
        drop(self.dns);
        self.tasks.abort();
        until("the end of serving", async || {
            self.tasks.is_empty().then_some(())
        })
        .await;
    }
}

/// Greets whoever asks with the name that was asked for.
async fn greet(gateway: Acceptor) {
    loop {
        let (mut stream, _) = gateway.accept().await.unwrap();
        let host = host_of(&mut stream).await;
        let answer = format!("HTTP/1.0 200 OK\r\n\r\nhello to {host}\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    }
}

async fn head_of(stream: &mut ByteStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn host_of(stream: &mut ByteStream) -> String {
    let head = head_of(stream).await;
    let host = head.lines().find_map(|line| line.strip_prefix("Host: "));
    host.unwrap().to_owned()
}

/// A resolver of the world, which ends with the test's process.
fn resolver() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            socket.send_to(&resolved(&query[..length]), from).unwrap();
        }
    });
    address
}

/// Every name has the services' address (RFC 1035, 4.1).
fn resolved(query: &[u8]) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let asks_address = query[end - 4..end - 2] == [0, 1];
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(asks_address), 0, 0, 0, 0]);
    answer.extend(&query[12..end]);
    if asks_address {
        answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(SERVICE_ADDRESS.octets());
    }
    answer
}

/// What is written, by lines, as long as somebody listens.
fn lines(fd: OwnedFd) -> tokio::sync::mpsc::Receiver<String> {
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    std::thread::spawn(move || {
        rustix::io::ioctl_fionbio(&fd, false).unwrap();
        for line in BufReader::new(fs::File::from(fd)).lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn heard(wanted: &str, lines: &mut tokio::sync::mpsc::Receiver<String>) {
    within(wanted, async {
        loop {
            let line = lines.recv().await;
            if line.expect("it goes on") == wanted {
                return;
            }
        }
    })
    .await;
}

fn exec(rig: &Rig, script: &str, terminal: Option<TerminalSize>) -> ExecRequest {
    ExecRequest {
        process: rig.spec(script).process,
        terminal,
    }
}

async fn read_to_end(output: &mut (dyn AsyncRead + Send + Unpin)) -> String {
    let mut text = String::new();
    let read = output.read_to_string(&mut text);
    within("the end of output", read).await.unwrap();
    text
}

async fn read_until(output: &mut (dyn AsyncRead + Send + Unpin), end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        bytes.push(within(end, output.read_u8()).await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

async fn further_processes_run_in_it(rig: &Rig, backend: &dyn Backend) {
    // Each has a helper beside it, which counts.
    let mut spec = rig.spec("exec sleep 100000");
    (spec.pids, spec.memory_bytes) = (128, 96 << 20);
    let created = within("a sandbox", backend.create(spec));
    let sandbox = created.await.unwrap().sandbox;
    let start = async |script: &str, terminal| {
        let started = sandbox.exec(exec(rig, script, terminal));
        within("a process", started).await.unwrap()
    };

    let mut one = start("cat; id -u; echo bad >&2; exit 7", None).await;
    within("its input", one.input.write_all(b"words\n"))
        .await
        .unwrap();
    drop(one.input);
    assert_eq!(read_to_end(&mut *one.output).await, "words\n1000\n");
    assert_eq!(read_to_end(&mut *one.errors.unwrap()).await, "bad\n");
    let end = within("its end", one.process.exited()).await;
    assert_eq!((end.code, end.signal), (Some(7), None));
    drop(one.process);

    let size = |columns, rows| TerminalSize { columns, rows };
    let script = "stty size; read word; stty size; echo $word";
    let mut one = start(script, Some(size(91, 17))).await;
    assert!(one.errors.is_none());
    read_until(&mut *one.output, "17 91\r\n").await;
    within("a size", one.process.resize(size(40, 12)))
        .await
        .unwrap();
    within("its input", one.input.write_all(b"typed\n"))
        .await
        .unwrap();
    read_until(&mut *one.output, "12 40\r\ntyped\r\n").await;
    assert_eq!(within("its end", one.process.exited()).await.code, Some(0));
    drop(one);

    let mut one = start("echo on; exec sleep 100000", None).await;
    read_until(&mut *one.output, "on\n").await;
    within("a signal", one.process.signal(15)).await.unwrap();
    let end = within("its end", one.process.exited()).await;
    assert_eq!((end.code, end.signal), (None, Some(15)));
    drop(one);

    // Of those that nobody has any more nothing is left, and there is room.
    let mut several = Vec::new();
    for _ in 0..26 {
        let mut one = start("echo on; exec sleep 100000", None).await;
        read_until(&mut *one.output, "on\n").await;
        several.push(one);
    }
    let full = sandbox.exec(exec(rig, "true", None)).await.unwrap_err();
    assert!(matches!(full, SandboxError::ExecsFull { .. }), "{full}");
    drop(several);
    until("the application alone", async || {
        (sandbox.stats().await.unwrap().pids <= 2).then_some(())
    })
    .await;
    until("room for another", async || {
        sandbox.exec(exec(rig, "true", None)).await.ok()
    })
    .await;

    let mut absent = exec(rig, "true", None);
    absent.process.args = vec!["/no/such/program".to_owned()];
    let refused = within("a refusal", sandbox.exec(absent)).await.unwrap_err();
    assert!(
        refused.to_string().contains("/no/such/program"),
        "{refused}"
    );

    // It ends with its sandbox.
    let mut one = start("echo on; exec sleep 100000", None).await;
    read_until(&mut *one.output, "on\n").await;
    within("a signal", sandbox.signal(9)).await.unwrap();
    within("its end", one.process.exited()).await;
    within("its destruction", sandbox.destroy()).await.unwrap();
}

/// Of the host's file system, while it runs and at its end.
async fn what_it_removes_is_given_back(rig: &Rig, classes: &Classes) {
    const WRITTEN: u64 = 24 << 20;
    let script = format!(
        "trap 'rm /file; sync; echo removed' USR1; head -c {WRITTEN} /dev/zero >/file; sync; \
         echo written; while :; do sleep 0.1; done"
    );
    let mut spec = rig.spec(&script);
    spec.process.uid = 0;
    spec.writable = Writable::Disk { bytes: 48 << 20 };
    let created = within("a sandbox", classes.machines.create(spec)).await;
    let created = created.unwrap();
    let disk = monitors(rig).into_iter().find_map(scratch_of);
    let disk = disk.expect("a monitor has a disk to write to");
    // Bytes that the file takes; it has no name.
    let taken = || {
        let status = fs::metadata(&disk).unwrap();
        assert_eq!(status.nlink(), 0);
        status.blocks() * 512
    };
    until("it to be written", async || {
        (taken() >= WRITTEN).then_some(())
    })
    .await;
    within("a signal", created.sandbox.signal(10))
        .await
        .unwrap();
    until("its blocks", async || (taken() < WRITTEN / 2).then_some(())).await;
    within("its destruction", created.sandbox.destroy())
        .await
        .unwrap();
    assert!(!disk.exists());
    rig.is_empty(classes).await;
}

/// The file without a name that a monitor has mapped.
fn scratch_of(pid: u32) -> Option<PathBuf> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    files.find(|path| {
        let target = fs::read_link(path).unwrap_or_default();
        target.starts_with("/var/tmp") && target.to_string_lossy().ends_with("(deleted)")
    })
}

async fn sandboxes_are_adopted(rig: &Rig, classes: Classes) {
    let mut before = Vec::new();
    for (backend, stands) in [
        (classes.each()[0], false),
        (classes.each()[1], false),
        (classes.each()[1], true),
    ] {
        let spec = rig.spec("exec httpd -f -p 8080 -h /www");
        let created = within("a sandbox", backend.create(spec)).await.unwrap();
        until("an answer", async || fetch(&*created.sandbox).await).await;
        if stands {
            within("it to stand", created.sandbox.pause())
                .await
                .unwrap();
        }
        before.push((backend.class(), created.sandbox.id(), stands));
    }
    // As a server that is killed.
    drop(classes);
    let classes = rig.connect().await;
    for backend in classes.each() {
        let mut found = within("adoption", backend.adopt()).await.unwrap();
        found.sort_by_key(|found| found.created.sandbox.id());
        let mut expected: Vec<_> = before
            .iter()
            .filter(|(class, ..)| *class == backend.class())
            .map(|(_, id, stands)| (*id, *stands))
            .collect();
        expected.sort();
        let got: Vec<_> = found
            .iter()
            .map(|found| (found.created.sandbox.id(), found.created.paused))
            .collect();
        assert_eq!(got, expected, "{:?}", backend.class());
        for one in found {
            assert_eq!(one.label, b"label");
            let Created {
                sandbox, output, ..
            } = one.created;
            if one.created.paused {
                within("it to go on", sandbox.resume()).await.unwrap();
            }
            assert!(within("an answer", fetch(&*sandbox)).await.is_some());
            within("a signal", sandbox.signal(9)).await.unwrap();
            assert_eq!(within("its end", sandbox.exited()).await.signal, Some(9));
            within("its destruction", sandbox.destroy()).await.unwrap();
            drop(output);
        }
    }
    rig.is_empty(&classes).await;
}

/// Skiff's own monitor speaks Firecracker's API, and stands in for it here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_that_the_operator_names_serves_by_its_api() {
    let Some(files) = guest_files() else {
        return;
    };
    let rig = Rig::start(&files);
    let classes = rig.connect().await;
    let driving = |classes: &Classes| {
        let run_dir = rig.folder.path().to_owned();
        let disks = rig.folder.path().join("disks");
        let machines = MicrovmBackend::beside(&classes.containers, run_dir, patience());
        let machines = machines.driving("/usr/bin/skiff-vmm".into(), disks);
        machines.boot_from(rig.files.clone());
        machines
    };
    let machines = driving(&classes);
    let tried = within("a machine", machines.try_boot()).await.unwrap();
    let monitor = tried.monitor.unwrap();
    assert!(monitor.contains(env!("CARGO_PKG_VERSION")), "{monitor}");
    rig.is_empty(&classes).await;

    output_and_end_are_told(&rig, &machines).await;
    too_much_memory_is_told(&rig, &machines).await;
    a_port_is_reached_and_it_can_stand(&rig, &machines).await;
    a_function_s_runtime_is_served(&rig, &machines).await;
    further_processes_run_in_it(&rig, &machines).await;
    it_is_confined_before_it_begins(&rig, &machines).await;
    rig.is_empty(&classes).await;

    let spec = rig.spec("exec httpd -f -p 8080 -h /www");
    let created = within("a sandbox", machines.create(spec)).await.unwrap();
    until("an answer", async || fetch(&*created.sandbox).await).await;
    within("it to stand", created.sandbox.pause())
        .await
        .unwrap();
    drop((created, machines, classes));
    let classes = rig.connect().await;
    let machines = driving(&classes);
    let mut found = within("adoption", machines.adopt()).await.unwrap();
    let Created {
        sandbox, paused, ..
    } = found.pop().unwrap().created;
    assert!(paused && found.is_empty());
    within("it to go on", sandbox.resume()).await.unwrap();
    assert!(within("an answer", fetch(&*sandbox)).await.is_some());
    within("its destruction", sandbox.destroy()).await.unwrap();
    rig.is_empty(&classes).await;
    for layer in &rig.layers {
        machines.release(&layer.digest).await.unwrap();
    }
    assert_eq!(
        fs::read_dir(rig.folder.path().join("disks"))
            .unwrap()
            .count(),
        0
    );
}

async fn it_is_confined_before_it_begins(rig: &Rig, machines: &MicrovmBackend) {
    let created = within("a sandbox", machines.create(rig.spec("exec sleep 100000")));
    let sandbox = created.await.unwrap().sandbox;
    let [pid] = *monitors(rig) else {
        panic!("there is not one monitor");
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"]);
    let ids = field("Uid:");
    assert!(ids[0].parse::<u32>().unwrap() >= 65_536 && ids.iter().all(|id| *id == ids[0]));
    let link = |path: String| fs::read_link(path).unwrap();
    for namespace in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let theirs = link(format!("/proc/{pid}/ns/{namespace}"));
        assert_ne!(
            theirs,
            link(format!("/proc/self/ns/{namespace}")),
            "{namespace}"
        );
    }
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let mut seen: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.retain(|name| !["lib", "lib64", "usr"].contains(&&**name));
    seen.sort();
    assert_eq!(seen, ["dev", "empty", "proc", "run"]);
    within("its destruction", sandbox.destroy()).await.unwrap();
}

fn monitors(rig: &Rig) -> Vec<u32> {
    let pid = rig.launcher.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let is_monitor = |pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|line| line.contains("--no-api") || line.contains("--api-sock"))
    };
    let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.filter(is_monitor).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_is_told_and_leaves_nothing() {
    let Some(files) = guest_files() else {
        return;
    };
    let mut rig = Rig::start(&files);
    let classes = rig.connect().await;
    let machines = &classes.machines;
    assert_eq!(machines.class(), IsolationClass::Microvm);

    let tried = within("a machine", machines.try_boot()).await.unwrap();
    assert!(tried.took > Duration::ZERO);
    assert_eq!(tried.monitor, None);
    rig.is_empty(&classes).await;
    let mut spec = rig.spec("true");
    spec.process.args = vec!["/no/such/program".to_owned()];
    let refused = within("a refusal", machines.create(spec))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("/no/such/program"),
        "{refused}"
    );
    rig.is_empty(&classes).await;

    // A monitor that dies takes its application along.
    let created = within("a sandbox", machines.create(rig.spec("exec sleep 100000"))).await;
    let sandbox: Arc<dyn Sandbox> = created.unwrap().sandbox;
    let [pid] = *monitors(&rig) else {
        panic!("there is not one monitor");
    };
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let exit = within("its end", sandbox.exited()).await;
    assert_eq!((exit.code, exit.signal), (None, Some(9)), "{exit:?}");
    assert!(sandbox.connect(8080).await.is_err());
    within("its destruction", sandbox.destroy()).await.unwrap();

    // Nobody waits for it any more.
    let spec = rig.spec("true");
    let folder = monitor_folder(rig.folder.path(), spec.instance);
    let creation = machines.create(spec);
    let begun = until("its folder", async || folder.exists().then_some(()));
    tokio::select! {
        _ = creation => panic!("it is there already"),
        () = begun => {}
    }
    until("the undoing", async || (!folder.exists()).then_some(())).await;
    rig.is_empty(&classes).await;

    rig.files.kernel = rig.layers[0].path.clone();
    let classes = rig.connect().await;
    let refused = within("a refusal", classes.machines.create(rig.spec("true"))).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("kernel"), "{refused}");
    let refused = within("a refusal", classes.machines.try_boot())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("no bzImage"), "{refused}");
    rig.is_empty(&classes).await;
}
