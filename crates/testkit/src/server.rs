use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use skiff_base::process;

use crate::guardian::Guardian;
use crate::leaks::Leaks;
use crate::speed::wait_for;
use crate::tools::{Finished, Running, finished, run, skiff_binary};

/// Ends the server and the launcher of a folder, and removes the folder: a
/// server that many tests share is never dropped. A process is of the folder
/// when its command line names it.
const ENDS: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
own() {
  for entry in /proc/[0-9]*; do
    tr '\0' ' ' <"$entry/cmdline" 2>/dev/null | grep -qF -- "$GUARDED" && echo "${entry#/proc/}"
  done
}
for pid in $(own); do
  if tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q ' launcher '; then kill -TERM "$pid"; else kill -KILL "$pid"; fi
done 2>/dev/null
for _ in $(seq 300); do [ -z "$(own)" ] && break; sleep 0.1; done
for pid in $(own); do kill -KILL "$pid"; done 2>/dev/null
rm -rf -- "$GUARDED"
"#;

/// How a test wants its server.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// `KEY=VALUE` of the configuration.
    pub set: Vec<String>,
    /// Fixtures to import.
    pub images: Vec<&'static str>,
}

impl ServerOptions {
    /// With these fixtures imported.
    #[must_use]
    pub fn with(images: &[&'static str]) -> Self {
        Self {
            set: Vec::new(),
            images: images.to_vec(),
        }
    }

    /// With this `KEY=VALUE` of the configuration, too.
    #[must_use]
    pub fn set(mut self, setting: impl Into<String>) -> Self {
        self.set.push(setting.into());
        self
    }
}

/// A real server with folders and ports of its own.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    home: PathBuf,
    gateway: String,
    id: String,
    set: Vec<String>,
    program: PathBuf,
    guardian: Option<Guardian>,
}

/// One server for all tests of a binary; a test holds it through [`Self::get`].
#[derive(Debug, Default)]
pub struct SharedServer {
    server: OnceLock<Server>,
    starting: Mutex<()>,
}

/// A test's hold of a shared server: shows the log when the test fails.
#[derive(Debug)]
pub struct Held(&'static Server);

impl SharedServer {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            server: OnceLock::new(),
            starting: Mutex::new(()),
        }
    }

    /// The server, started by whoever comes first.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn get(&'static self, options: impl FnOnce() -> ServerOptions) -> Held {
        let _one = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        Held(self.server.get_or_init(|| Server::start(options())))
    }
}

impl Deref for Held {
    type Target = Server;
    fn deref(&self) -> &Server {
        self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.show_log_of_failure();
    }
}

/// What curl says of one request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status; 0 when there was none.
    pub status: u16,
    /// The header lines, as they came.
    pub head: String,
    /// The body.
    pub body: String,
    /// Until the first byte, seconds.
    pub first_byte_s: f64,
}

impl Reply {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Server {
    /// Starts a server as root, as its user would.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(options: ServerOptions) -> Self {
        let home = tempfile::Builder::new()
            .prefix("skiff-e2e.")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        // The server's user has to pass through.
        let _out = run("chmod", ["711".as_ref(), home.as_os_str()]).ok();
        bring_kernels(&home);
        let mut server = Self {
            child: None,
            guardian: Some(Guardian::of(&home, ENDS).expect("a shell")),
            home,
            gateway: String::new(),
            id: String::new(),
            set: options.set,
            program: skiff_binary(),
        };
        server.launch(&[]);
        for image in options.images {
            server.import(image);
        }
        server
    }

    /// Starts a server again, or one that takes over, on the same folders.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn launch(&mut self, flags: &[&str]) {
        self.spawn(flags);
        let version = wait_for("the server answers", 60, || {
            let child = self.child.as_mut()?;
            let ended = child.try_wait().expect("the server can be waited for");
            assert!(ended.is_none(), "the server ended: {}", self.log());
            self.api("GET", "/v1/version", None)
        });
        self.id = version["server_id"].as_str().unwrap_or_default().to_owned();
        self.gateway = version["gateway"][0]
            .as_str()
            .unwrap_or_default()
            .to_owned();
    }

    /// Starts a server and does not wait for it.
    ///
    /// # Panics
    /// When its process cannot be started.
    pub fn spawn(&mut self, flags: &[&str]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("server.log"));
        let mut command = process::command(&self.program);
        command.arg("server").args(flags);
        let listen = if self.gateway.is_empty() {
            "127.0.0.1:0"
        } else {
            &self.gateway
        };
        for setting in [
            format!("data_dir={}", self.data_dir().display()),
            format!("run_dir={}", self.run_dir().display()),
            format!("secrets.key_file={}", self.key_file().display()),
            format!("gateway.listen={listen}"),
        ] {
            command.arg("--set").arg(setting);
        }
        for setting in &self.set {
            command.arg("--set").arg(setting);
        }
        command.stderr(log.expect("the server's log"));
        self.child = Some(command.spawn().expect("the server starts"));
    }

    /// Starts a server that takes over from this one, and waits until this
    /// one has ended.
    ///
    /// # Panics
    /// When this one does not end in order, or the other does not answer.
    pub fn replace(&mut self) {
        let mut old = self.child.take().expect("a server runs");
        self.spawn(&["--replace"]);
        let status = wait_for("the server hands over", 90, || {
            let new = self.child.as_mut().expect("it was started");
            let ended = new.try_wait().expect("the server can be waited for");
            assert!(ended.is_none(), "the new server ended: {}", self.log());
            old.try_wait().expect("the server can be waited for")
        });
        assert!(status.success(), "the server ended with {status}");
        wait_for("the new server answers", 60, || {
            self.api("GET", "/v1/version", None)
        });
    }

    /// Changes a setting for the next start.
    pub fn configure(&mut self, setting: impl Into<String>) {
        self.set.push(setting.into());
    }

    /// Uses another program file for the next start.
    pub fn install(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Runs `skiff ARGS` against it.
    ///
    /// # Panics
    /// When the CLI cannot be started.
    pub fn cli(&self, args: &[&str]) -> Finished {
        let output = self.command(args).output();
        finished(output.expect("the CLI runs"))
    }

    /// Runs `skiff ARGS` against it with this on standard input.
    ///
    /// # Panics
    /// When the CLI cannot be started.
    pub fn cli_with_input(&self, args: &[&str], input: &[u8]) -> Finished {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(input)
            .and_then(|()| file.rewind())
            .expect("the input");
        let output = self.command(args).stdin(file).output();
        finished(output.expect("the CLI runs"))
    }

    /// Starts `skiff ARGS` against it; its output can be read as it comes.
    ///
    /// # Panics
    /// When the CLI cannot be started.
    #[must_use]
    pub fn cli_started(&self, args: &[&str]) -> Running {
        Running(self.command(args).spawn().expect("the CLI runs"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = process::command(skiff_binary());
        command
            .args(args)
            .env("SKIFF_HOST", self.host())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `skiff ARGS --output json` and reads what it prints.
    ///
    /// # Panics
    /// When it fails or prints something else.
    #[track_caller]
    #[must_use]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.cli(&[args, &["--output", "json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Imports a fixture as `NAME:1`, once.
    pub fn import(&self, name: &str) {
        let layout = crate::tools::fixture(name).display().to_string();
        let _out = self
            .cli(&["image", "import", &layout, "--name", &format!("{name}:1")])
            .ok();
    }

    /// Deploys the test application with flags, and answers its host.
    ///
    /// # Panics
    /// When it does not come to serve.
    #[track_caller]
    pub fn deploy(&self, name: &str, flags: &[&str]) -> String {
        let args = [
            &["deploy", name, "--image", "testapp:1", "--memory", "64"],
            flags,
        ]
        .concat();
        let _out = self.cli(&args).ok();
        self.host_of(name)
    }

    /// A service's host in the default project.
    #[must_use]
    pub fn host_of(&self, name: &str) -> String {
        format!("{name}.skiff.localhost")
    }

    /// Asks the gateway with curl.
    #[must_use]
    pub fn get(&self, host: &str, path: &str) -> Reply {
        self.curl(host, path, &[])
    }

    /// Asks the gateway with curl and its flags.
    ///
    /// # Panics
    /// When curl cannot be started.
    #[must_use]
    pub fn curl(&self, host: &str, path: &str, flags: &[&str]) -> Reply {
        let body = tempfile::NamedTempFile::new().expect("a temporary file");
        let head = tempfile::NamedTempFile::new().expect("a temporary file");
        let finished = process::command("curl")
            .args(["--silent", "--max-time", "120", "--resolve"])
            .arg(format!("{host}:{}:127.0.0.1", self.port()))
            .args(["--write-out", "%{http_code} %{time_starttransfer}"])
            .arg("--output")
            .arg(body.path())
            .arg("--dump-header")
            .arg(head.path())
            .args(flags)
            .arg(format!("http://{host}:{}{path}", self.port()))
            .stdout(Stdio::piped())
            .output()
            .expect("curl is installed by scripts/setup.sh");
        let told = String::from_utf8_lossy(&finished.stdout).into_owned();
        let (status, first_byte) = told.split_once(' ').unwrap_or(("0", "0"));
        let read = |path: &Path| {
            String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
        };
        Reply {
            status: status.parse().unwrap_or(0),
            head: read(head.path()),
            body: read(body.path()),
            first_byte_s: first_byte.parse().unwrap_or(0.0),
        }
    }

    /// The ids of a service's instances.
    #[track_caller]
    #[must_use]
    pub fn instances(&self, name: &str) -> Vec<String> {
        let service = self.json(&["describe", name]);
        let instances = service["instances"].as_array().cloned().unwrap_or_default();
        instances
            .iter()
            .filter_map(|instance| instance["id"].as_str().map(str::to_owned))
            .collect()
    }

    /// Waits until a service has this many instances.
    #[track_caller]
    pub fn wait_for_instances(&self, name: &str, count: usize) {
        wait_for(&format!("{name} has {count} instances"), 60, || {
            (self.instances(name).len() == count).then_some(())
        });
    }

    /// Waits until all services together have this many instances.
    #[track_caller]
    pub fn wait_for_instances_of_all(&self, count: usize) {
        wait_for(&format!("there are {count} instances"), 60, || {
            let services = self.json(&["ls"]);
            let services = services.as_array()?.iter();
            let sum: usize = services
                .map(|service| service["instances"].as_array().map_or(0, Vec::len))
                .sum();
            (sum == count).then_some(())
        });
    }

    /// One call of the admin API with curl.
    #[must_use]
    pub fn api(&self, method: &str, path: &str, body: Option<&str>) -> Option<Value> {
        let socket = self.run_dir().join("skiff.sock");
        let mut command = process::command("curl");
        command
            .args([
                "--silent",
                "--fail",
                "--max-time",
                "60",
                "--request",
                method,
                "--unix-socket",
            ])
            .arg(socket);
        if let Some(body) = body {
            command.args(["--header", "content-type: application/json", "--data", body]);
        }
        let output = command
            .arg(format!("http://skiff{path}"))
            .stdout(Stdio::piped())
            .output()
            .ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Sends a signal to the server's process.
    ///
    /// # Panics
    /// When there is none.
    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.as_ref().expect("a server runs")), signal)
            .expect("the server takes signals");
    }

    /// Waits for the server's end; answers its exit code.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(&mut self) -> i32 {
        let mut child = self.child.take().expect("a server runs");
        let status = wait_for("the server ends", 60, || {
            child.try_wait().expect("the server can be waited for")
        });
        status.code().unwrap_or(-1)
    }

    /// Ends the server with SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _code = self.wait();
    }

    /// The server's process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a server runs").id()
    }

    /// The launcher's process id, from its command line.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn launcher(&self) -> i32 {
        let found = self.launchers();
        *found.first().expect("a launcher runs")
    }

    /// The process ids of its launchers: one, or none.
    #[must_use]
    pub fn launchers(&self) -> Vec<i32> {
        let mark = format!("launcher --server {} ", self.id);
        if self.id.is_empty() {
            return Vec::new();
        }
        let found = crate::leaks::processes_with(&[&mark]);
        let pids: Vec<i32> = found.into_iter().map(|(pid, _)| pid).collect();
        // Sandboxes' first processes are its copies, and may have smaller ids.
        let is_copy = |pid: &i32| parent(*pid).is_some_and(|parent| pids.contains(&parent));
        pids.iter().copied().filter(|pid| !is_copy(pid)).collect()
    }

    /// What is left of it on this machine.
    #[must_use]
    pub fn leaks(&self) -> Leaks {
        Leaks::of(&self.id, &self.home)
    }

    /// Ends everything as `skiff server --stop-all` does at its end.
    ///
    /// # Panics
    /// When something is left.
    pub fn stop_all(&mut self) {
        if self.child.is_some() {
            self.signal(Signal::TERM);
            let _code = self.wait();
        }
        self.launch(&["--stop-all"]);
        self.signal(Signal::TERM);
        let _code = self.wait();
        let left = wait_for("nothing is left", 30, || {
            let left = self.leaks();
            left.none().then_some(left)
        });
        assert!(left.none());
    }

    /// The server's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What `SKIFF_HOST` is for it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.run_dir().join("skiff.sock").display())
    }

    /// Where the gateway listens: `HOST:PORT`.
    #[must_use]
    pub fn gateway(&self) -> &str {
        &self.gateway
    }

    /// The gateway's port.
    #[must_use]
    pub fn port(&self) -> &str {
        self.gateway.rsplit(':').next().unwrap_or_default()
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Where the key that encrypts secrets is.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.home.join("keys/secrets.key")
    }

    /// The folder of everything that it has.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Its run folder.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.home.join("run")
    }

    /// What it has said.
    #[must_use]
    pub fn log(&self) -> String {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        read(self.home.join("server.log")) + &read(self.run_dir().join("launcher.log"))
    }
}

impl Server {
    fn show_log_of_failure(&self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", self.log());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.show_log_of_failure();
        if let Some(child) = &mut self.child {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
        // The launcher takes its instances with it.
        drop(self.guardian.take());
    }
}

/// Kernels that are installed in the folder `SKIFF_KERNELS`, if it is given, for
/// a server that is about to have this home.
fn bring_kernels(home: &Path) {
    if let Some(kernels) = std::env::var_os("SKIFF_KERNELS") {
        let data = home.join("data");
        std::fs::create_dir(&data).expect("the data folder");
        let _out = run("cp", ["-a".as_ref(), kernels.as_os_str(), data.as_os_str()]).ok();
    }
}

fn pid(child: &Child) -> Pid {
    let raw = i32::try_from(child.id()).expect("a process id fits");
    Pid::from_raw(raw).expect("a process id is not 0")
}

/// The parent of a process, unless it has ended.
fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}
