//! Monitors as a launcher starts them, and what one that was taken over could
//! reach: one row for each claim of the threat model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use skiff_base::process::command;
use skiff_base::{Clock, SystemClock};
use skiff_flat::Program;
use skiff_flat::testing::{deadline, has_kvm};
use skiff_types::{InstanceId, ServerId};
use skiff_wire::FRAME_BYTES_MAX;
use skiff_wire::launcher::{
    Answer, Envelope, Exit, MonitorProgram, MonitorSpec, Refusal, Reply, Request, monitor_folder,
};
use skiff_wire::monitor;

#[path = "support/client.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod client;
#[path = "support/http.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod http;

const MONITOR: &str = env!("CARGO_BIN_EXE_skiff-vmm");
const MEMORY_BYTES: u64 = 64 << 20;

/// A program of the tests, beside which this one is built.
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let beside = own.with_file_name(name);
    if beside.exists() {
        return beside;
    }
    own.parent().unwrap().with_file_name("examples").join(name)
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = SystemClock.now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let waited = SystemClock.now().since(start);
        assert!(waited < deadline(), "in vain waited for: {what}");
        std::thread::yield_now();
    }
}

/// A launcher with the one client that it has here.
struct Launcher {
    server: ServerId,
    folder: tempfile::TempDir,
    process: Child,
    socket: OwnedFd,
    last_id: u64,
    exits: Vec<(InstanceId, Exit)>,
}

/// A monitor that was started.
struct Monitor {
    id: InstanceId,
    stdout: File,
    stderr: File,
}

impl Launcher {
    fn start(monitor: &Path) -> Self {
        Self::start_by(command(program("skiff-vmm-launcher")), monitor)
    }

    /// In a network of its own: ways out lead nowhere, and change nothing on
    /// this host.
    fn start_alone(monitor: &Path) -> Self {
        let mut alone = command("unshare");
        alone.arg("-n").arg(program("skiff-vmm-launcher"));
        Self::start_by(alone, monitor)
    }

    fn start_by(mut program: Command, monitor: &Path) -> Self {
        let server = ServerId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32());
        let folder = tempfile::tempdir().unwrap();
        let process = program
            .arg(server.to_string())
            .arg(folder.path())
            .arg(std::env::temp_dir().join("skiff-vmm-test-locks"))
            .arg(monitor)
            .spawn()
            .unwrap();
        let path = folder.path().join("launcher.sock");
        let socket = wait_for("the launcher's socket", || client::connected(&path).ok());
        let mut launcher = Self {
            server,
            folder,
            process,
            socket,
            last_id: 0,
            exits: Vec::new(),
        };
        let hello = launcher.ask(Request::Hello { server }, &[]);
        assert!(matches!(hello, Ok((Reply::Hello { .. }, _))), "{hello:?}");
        launcher
    }

    /// Asks, and waits for the reply.
    fn ask(&mut self, request: Request, files: &[&File]) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        self.last_id += 1;
        let id = self.last_id;
        let frame = skiff_wire::encode(&Envelope { id, request }).unwrap();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        client::send(&self.socket, &frame, &fds);
        loop {
            match self.hear() {
                (Answer::Reply { id: to, result }, fds) => {
                    assert_eq!(to, id);
                    return result.map(|reply| (reply, fds));
                }
                (Answer::Exited { sandbox, exit }, _) => self.exits.push((sandbox, exit)),
                (Answer::ExecExited { exec, .. }, _) => panic!("nobody has started {exec}"),
            }
        }
    }

    fn hear(&self) -> (Answer, Vec<OwnedFd>) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let slices = &mut [std::io::IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.socket, slices, &mut ancillary, flags).unwrap();
        let fds = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let fds = fds.collect();
        (skiff_wire::decode(&buffer[..received.bytes]).unwrap(), fds)
    }

    fn create(&mut self, config: &str, kernel: &File) -> Result<Monitor, Refusal> {
        self.create_with(config, kernel, false)
    }

    /// With egress its tap is descriptor 5.
    fn create_with(
        &mut self,
        config: &str,
        kernel: &File,
        egress: bool,
    ) -> Result<Monitor, Refusal> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(config.as_bytes()).unwrap();
        file.rewind().unwrap();
        let id = InstanceId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32());
        let request = create_monitor(id, MonitorProgram::Own, egress);
        let (reply, fds) = self.ask(request, &[&file, kernel])?;
        let Reply::MonitorCreated { network, .. } = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(network.is_some(), egress);
        let [stdout, stderr] = <[OwnedFd; 2]>::try_from(fds).unwrap();
        Ok(Monitor {
            id,
            stdout: stdout.into(),
            stderr: stderr.into(),
        })
    }

    fn run_guest(&mut self, program: Program, more: &str) -> Monitor {
        self.run_guest_with(program, more, false)
    }

    fn run_guest_with(&mut self, program: Program, more: &str, egress: bool) -> Monitor {
        let mut kernel = tempfile::tempfile().unwrap();
        kernel.write_all(&skiff_flat::elf(program)).unwrap();
        kernel.rewind().unwrap();
        let config = format!(
            r#"{{"boot-source":{{"kernel_image_path":"fd:4","boot_args":""}},
                "machine-config":{{"vcpu_count":1,"mem_size_mib":4}}{more}}}"#
        );
        self.create_with(&config, &kernel, egress).unwrap()
    }

    /// Waits for a monitor's end.
    fn exit(&mut self, id: InstanceId) -> Exit {
        loop {
            if let Some((_, exit)) = self.exits.iter().find(|(sandbox, _)| *sandbox == id) {
                return *exit;
            }
            match self.hear() {
                (Answer::Exited { sandbox, exit }, _) => self.exits.push((sandbox, exit)),
                (Answer::ExecExited { exec, .. }, _) => panic!("nobody has started {exec}"),
                (answer, _) => panic!("{answer:?}"),
            }
        }
    }

    fn destroy(&mut self, monitor: &Monitor) {
        let sandbox = monitor.id;
        let (reply, _) = self.ask(Request::Destroy { sandbox }, &[]).unwrap();
        assert_eq!(reply, Reply::Done);
        assert!(!self.folder_of(monitor).exists());
    }

    fn folder_of(&self, monitor: &Monitor) -> PathBuf {
        monitor_folder(self.folder.path(), monitor.id)
    }

    /// Links of its server's in its network.
    fn ways_out(&self) -> usize {
        let links = fs::read_to_string(format!("/proc/{}/net/dev", self.process.id())).unwrap();
        let server = self.server.to_string();
        let prefix = format!("sk{}", &server[server.len() - 7..]);
        let names = links.lines().map(str::trim_start);
        names.filter(|name| name.starts_with(&prefix)).count()
    }

    fn control(&self, monitor: &Monitor) -> client::Client {
        client::Client::connect(&self.folder_of(monitor).join("control"))
    }

    /// Ends it in order, and looks that nothing is left.
    fn shut_down(mut self) {
        let (reply, _) = self.ask(Request::Shutdown, &[]).unwrap();
        assert_eq!(reply, Reply::Done);
        assert!(self.process.wait().unwrap().success());
        let name = format!("skiff-{}", self.server);
        assert_eq!(groups_named(&name), Vec::<PathBuf>::new());
        assert!(!self.folder.path().join("launcher").exists());
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It may have ended in order.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn create_monitor(sandbox: InstanceId, program: MonitorProgram, egress: bool) -> Request {
    Request::CreateMonitor(Box::new(MonitorSpec {
        program,
        sandbox,
        memory_bytes: MEMORY_BYTES,
        cpu_millis: 1000,
        pids: 16,
        egress,
        label: b"label".to_vec(),
    }))
}

impl Monitor {
    fn output(&mut self) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.stderr.read_to_string(&mut err).unwrap();
        (out, err)
    }
}

/// Cgroups of that name, wherever hierarchies are mounted.
fn groups_named(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = mounts.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let place = place.split(' ').nth(4)?;
        kind.starts_with("cgroup").then(|| PathBuf::from(place))
    });
    roots
        .map(|root| root.join(name))
        .filter(|path| path.exists())
        .collect()
}

/// How a monitor comes to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Birth {
    /// It is started for it.
    Cold,
    /// It has waited for it.
    Warm,
}

/// What holds however a monitor came to its machine.
fn for_each_birth(check: fn(Birth)) {
    if has_kvm() {
        [Birth::Cold, Birth::Warm].into_iter().for_each(check);
    }
}

impl Launcher {
    /// With one monitor that waits, or none.
    fn start_with(monitor: &Path, birth: Birth) -> Self {
        Self::start(monitor).keeping(birth)
    }

    fn keeping(mut self, birth: Birth) -> Self {
        if birth == Birth::Warm {
            self.keep(1);
        }
        self
    }

    fn keep(&mut self, count: u32) {
        let kept = self.ask(Request::KeepMonitors { count }, &[]);
        assert_eq!(kept.unwrap().0, Reply::Done);
    }

    /// The processes of monitors that wait, once there are as many.
    fn waiting(&self, count: usize) -> BTreeSet<u32> {
        wait_for("monitors that wait", || {
            let waiting = monitors(self, "--await-fd");
            let all_wait = waiting.iter().all(|pid| sleeps(*pid));
            (waiting.len() == count && all_wait).then_some(waiting)
        })
    }

    /// Makes the next monitor's machine that of one that waits, if that is so;
    /// its process.
    fn next(&self, birth: Birth) -> Option<u32> {
        (birth == Birth::Warm).then(|| *self.waiting(1).first().unwrap())
    }
}

/// The launcher's children that have this word in their command line.
fn monitors(launcher: &Launcher, word: &str) -> BTreeSet<u32> {
    let pid = launcher.process.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let has_word = |child: &&str| {
        let line = fs::read_to_string(format!("/proc/{child}/cmdline"));
        line.is_ok_and(|line| line.contains(word))
    };
    let children = children.split_whitespace().filter(has_word);
    children.map(|child| child.parse().unwrap()).collect()
}

/// Whether it has come to its program, and to where it waits there: in the midst
/// of its execve the launcher does not take it for one that waits.
fn sleeps(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" S"))
    })
}

/// Whether a process of the host's lives.
fn lives(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/ns/pid")).exists()
}

#[test]
fn a_confined_monitor_runs_its_guest_and_leaves_nothing() {
    for_each_birth(runs_its_guest_and_leaves_nothing);
}

fn runs_its_guest_and_leaves_nothing(birth: Birth) {
    let mut launcher = Launcher::start_with(Path::new(MONITOR), birth);
    let waits = launcher.next(birth);
    let mut monitor = launcher.run_guest(skiff_flat::HELLO, r#", "serial": {}"#);
    let (out, err) = monitor.output();
    assert_eq!(out, skiff_flat::HELLO_SAYS, "{err}");
    assert!(err.trim_end().ends_with("[reset]"), "{err}");
    let exit = launcher.exit(monitor.id);
    assert_eq!((exit.code, exit.signal), (Some(0), None));
    assert!(exit.cpu_us > 0 && !exit.out_of_memory, "{exit:?}");
    launcher.destroy(&monitor);
    if let Some(pid) = waits {
        assert!(!lives(pid), "another one ran the guest");
        // The next one.
        launcher.waiting(1);
    }
    launcher.shut_down();
}

#[test]
fn as_many_monitors_wait_as_are_wanted() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("monitor");
    fs::copy(MONITOR, &program).unwrap();
    let mut launcher = Launcher::start(&program);
    launcher.keep(2);
    let first = launcher.waiting(2);
    // One that dies is replaced.
    let dead = *first.first().unwrap();
    let pid = rustix::process::Pid::from_raw(dead.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_for("its death", || (!lives(dead)).then_some(()));
    let second = launcher.waiting(2);
    assert!(!second.contains(&dead));

    // Those of another program are not told of a machine.
    fs::remove_file(&program).unwrap();
    fs::copy(MONITOR, &program).unwrap();
    let mut monitor = launcher.run_guest(skiff_flat::HELLO, r#", "serial": {}"#);
    assert_eq!(monitor.output().0, skiff_flat::HELLO_SAYS);
    launcher.exit(monitor.id);
    launcher.destroy(&monitor);
    let third = wait_for("others", || {
        let waiting = launcher.waiting(2);
        waiting.is_disjoint(&second).then_some(waiting)
    });
    assert!(third.iter().all(|pid| lives(*pid)));

    launcher.keep(0);
    launcher.waiting(0);
    launcher.shut_down();
}

#[test]
fn a_monitor_that_always_dies_holds_nobody_up() {
    if !has_kvm() {
        return;
    }
    // It ends at once, whatever it is told; busybox's does not like its name.
    let mut launcher = Launcher::start(Path::new("/bin/true"));
    launcher.keep(1);
    let nothing = tempfile::tempfile().unwrap();
    for _ in 0..8 {
        let monitor = launcher.create("{}", &nothing).unwrap();
        let exit = launcher.exit(monitor.id);
        assert!([Some(0), Some(127)].contains(&exit.code), "{exit:?}");
        launcher.destroy(&monitor);
    }
    launcher.shut_down();
}

#[test]
fn its_end_is_told_whatever_it_is() {
    if !has_kvm() {
        return;
    }
    let mut launcher = Launcher::start(Path::new(MONITOR));
    let mut died = launcher.run_guest(skiff_flat::TRIPLE_FAULT, "");
    assert_eq!(launcher.exit(died.id).code, Some(3), "{:?}", died.output());
    let mut wrong = launcher.run_guest(skiff_flat::HELLO, r#", "nonsense": 1"#);
    assert_eq!(launcher.exit(wrong.id).code, Some(1));
    assert!(wrong.output().1.contains("nonsense"));
    let killed = launcher.run_guest(skiff_flat::HALT, "");
    launcher.control(&killed);
    let sandbox = killed.id;
    let signal = Request::Signal { sandbox, signal: 9 };
    launcher.ask(signal, &[]).unwrap();
    assert_eq!(launcher.exit(killed.id).signal, Some(9));
    for monitor in [died, wrong, killed] {
        launcher.destroy(&monitor);
    }
    launcher.shut_down();
}

/// The process of the monitor with this word, once there is one.
fn monitor_with(launcher: &Launcher, word: &str) -> u32 {
    wait_for("the monitor's process", || {
        monitors(launcher, word).pop_first()
    })
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// A task of this status has no capability, can get none, and is no user or
/// group of the host's.
fn expect_powerless(status: &str) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(status, "NoNewPrivs"), "1");
    for ids in ["Uid", "Gid"] {
        let ids = field(status, ids);
        let own = |id: &str| (0x6000_0000..0x8000_0000).contains(&id.parse::<u32>().unwrap());
        assert!(ids.split_whitespace().all(own), "{ids}");
    }
}

fn expect_own_namespaces(pid: u32, kinds: &[&str]) {
    for kind in kinds {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(theirs, ours, "{kind}");
    }
}

#[test]
fn a_monitor_holds_nothing_that_it_does_not_need() {
    for_each_birth(holds_nothing_that_it_does_not_need);
}

fn holds_nothing_that_it_does_not_need(birth: Birth) {
    let vsock = r#", "vsock": {"guest_cid": 3, "uds_path": "vsock"}"#;
    let launcher = Launcher::start_with(Path::new(MONITOR), birth);
    holds_nothing_more(launcher, birth, vsock, &[]);

    let tap = r#", "network-interfaces": [{"iface_id": "eth0", "tap_fd": 5}]"#;
    let launcher = Launcher::start_alone(Path::new(MONITOR)).keeping(birth);
    let devices = ["/dev/net/tun"];
    holds_nothing_more(launcher, birth, &format!("{vsock}{tap}"), &devices);
}

/// Beside what each monitor holds, these devices, once each.
fn holds_nothing_more(mut launcher: Launcher, birth: Birth, more: &str, devices: &[&str]) {
    let waits = launcher.next(birth);
    let monitor = launcher.run_guest_with(skiff_flat::HALT, more, !devices.is_empty());
    let mut control = launcher.control(&monitor);
    let pid = waits.unwrap_or_else(|| monitor_with(&launcher, "--no-api"));
    let of = |path: &str| PathBuf::from(format!("/proc/{pid}/{path}"));

    let threads = || {
        let tasks = fs::read_dir(of("task")).unwrap();
        let status = |task: std::io::Result<fs::DirEntry>| {
            fs::read_to_string(task.unwrap().path().join("status")).unwrap()
        };
        tasks.map(status).collect::<Vec<_>>()
    };
    // A thread that has not run yet has no filter yet.
    wait_for("every thread's filter", || {
        let filtered = |status: &String| field(status, "Seccomp") == "2";
        threads().iter().all(filtered).then_some(())
    });
    for status in threads() {
        expect_powerless(&status);
    }
    expect_own_namespaces(pid, &["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"]);
    let mounts = fs::read_to_string(of("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    for word in ["nosuid", "nodev", "noexec"] {
        assert!(mounts.contains(word), "{mounts}");
    }
    let names: BTreeSet<_> = fs::read_dir(of("root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["control", "vsock"].map(String::from).into());
    let mut held = Vec::new();
    for descriptor in fs::read_dir(of("fd")).unwrap() {
        let target = fs::read_link(descriptor.unwrap().path()).unwrap();
        let target = target.to_str().unwrap().to_owned();
        let expected = ["socket:", "pipe:", "anon_inode:", "/dev/null"];
        if !expected.iter().any(|kind| target.starts_with(kind)) {
            held.push(target);
        }
    }
    assert_eq!(held, devices);
    let interfaces = fs::read_to_string(of("net/dev")).unwrap();
    assert_eq!(interfaces.lines().count(), 3, "{interfaces}");
    let groups = fs::read_to_string(of("cgroup")).unwrap();
    let name = format!("/skiff-{}/s", launcher.server);
    let inside = |line: &str| line.contains(&name) || line.contains("name=");
    let named = groups.lines().filter(|line| inside(line)).count();
    assert!(named > 0 && named >= groups.lines().count() / 2, "{groups}");
    let limits = fs::read_to_string(of("limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core"))
        .unwrap();
    assert!(
        core.split_whitespace().filter(|word| *word == "0").count() == 2,
        "{core}"
    );

    assert_eq!(launcher.ways_out(), devices.len());
    control.ask(monitor::Request::Stop, &[]).unwrap();
    assert_eq!(launcher.exit(monitor.id).code, Some(0));
    launcher.destroy(&monitor);
    wait_for("its way out to be gone", || {
        (launcher.ways_out() == 0).then_some(())
    });
    launcher.shut_down();
}

/// A monitor that is not ours, for which ours stands in: it is given open files,
/// is told its machine over its API, and cannot confine itself.
#[test]
fn a_monitor_that_came_along_is_confined_before_it_begins() {
    if !has_kvm() {
        return;
    }
    let mut launcher = Launcher::start(Path::new("/nonexistent"));
    let path = launcher.folder.path().join("kernel");
    fs::write(&path, skiff_flat::elf(skiff_flat::COUNT)).unwrap();
    let kernel = File::open(path).unwrap();
    let id = InstanceId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32());
    let args = ["monitor", "--api-sock", "api"].map(str::to_owned).into();
    let request = create_monitor(id, MonitorProgram::Given { args }, false);
    let (_, fds) = launcher
        .ask(request, &[&File::open(MONITOR).unwrap(), &kernel])
        .unwrap();
    let [stdout, stderr] = <[OwnedFd; 2]>::try_from(fds).unwrap();
    let mut monitor = Monitor {
        id,
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    let mut api = http::Client::connect(&launcher.folder_of(&monitor).join("api"));
    let source = r#"{"kernel_image_path":"/proc/self/fd/3","boot_args":""}"#;
    api.tell("PUT", "/boot-source", source);
    let size = r#"{"vcpu_count":1,"mem_size_mib":4}"#;
    api.tell("PUT", "/machine-config", size);
    let vsock = r#"{"guest_cid":3,"uds_path":"vsock"}"#;
    api.tell("PUT", "/vsock", vsock);
    api.tell("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    assert!(launcher.folder_of(&monitor).join("vsock").exists());

    let pid = monitor_with(&launcher, "--api-sock");
    let of = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let status = fs::read_to_string(of("status")).unwrap();
    expect_powerless(&status);
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "Groups"), "");
    expect_own_namespaces(pid, &["mnt", "pid", "net", "ipc", "uts", "cgroup"]);
    let groups = fs::read_to_string(of("cgroup")).unwrap();
    assert!(groups.contains(&launcher.server.to_string()), "{groups}");
    let names = |folder: PathBuf| {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let mut root = names(of("root"));
    root.retain(|name| !["lib", "lib64", "usr"].contains(&&**name));
    assert_eq!(root, ["dev", "empty", "proc", "run"]);
    assert_eq!(names(of("root/run")), ["api", "vsock"]);
    assert_eq!(fs::read_link(of("cwd")).unwrap(), Path::new("/run"));

    api.tell("PATCH", "/vm", r#"{"state":"Paused"}"#);
    api.tell("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    let kill = Request::Signal {
        sandbox: id,
        signal: libc::SIGKILL,
    };
    launcher.ask(kill, &[]).unwrap();
    assert_eq!(launcher.exit(id).signal, Some(libc::SIGKILL));
    let (out, err) = monitor.output();
    assert_eq!(out, "");
    assert!(!err.contains("cannot"), "{err}");
    launcher.destroy(&monitor);

    // What is no program, and one without a word, leave nothing.
    for (file, args) in [(&kernel, vec!["monitor".to_owned()]), (&kernel, Vec::new())] {
        let request = create_monitor(id, MonitorProgram::Given { args }, false);
        let refused = launcher.ask(request, &[file]).unwrap_err();
        assert!(
            ["monitor", "request"].contains(&&*refused.step),
            "{refused}"
        );
        assert!(!launcher.folder_of(&monitor).exists());
    }
    launcher.shut_down();
}

/// What a monitor that was taken over asks for, and the answer: an error
/// number, or nothing where the call is its end.
const REACH: &[(&str, Option<i32>)] = &[
    // With its filter.
    ("write", Some(0)),
    ("open", None),
    ("execute", None),
    ("clone", None),
    ("internet", None),
    ("vsock", None),
    ("signal-parent", None),
    ("trace", None),
    ("mount", None),
    ("namespace", None),
    ("become-root", None),
    ("execute-memory", None),
    ("ioctl", None),
    ("bpf", None),
    ("io-uring", None),
    ("keys", None),
    // As the thread that serves the API.
    ("write api", Some(0)),
    // It may open what is there, of which it sees its own folder alone.
    ("open api", Some(libc::ENOENT)),
    ("open-above api", Some(libc::ENOENT)),
    ("execute api", None),
    ("clone api", None),
    ("internet api", None),
    ("execute-memory api", None),
    // And if it had none.
    ("open unfiltered", Some(libc::ENOENT)),
    ("open-above unfiltered", Some(libc::ENOENT)),
    ("open-own unfiltered", Some(0)),
    ("execute unfiltered", Some(libc::ENOENT)),
    ("reach-internet unfiltered", Some(libc::ENETUNREACH)),
    ("signal-parent unfiltered", Some(libc::ESRCH)),
    ("signal-all unfiltered", Some(libc::ESRCH)),
    ("mount unfiltered", Some(libc::EPERM)),
    ("leave-root unfiltered", Some(libc::EPERM)),
    ("namespace unfiltered", Some(libc::EPERM)),
    ("become-root unfiltered", Some(libc::EPERM)),
    ("device unfiltered", Some(libc::EPERM)),
];

/// The same of one that holds a tap.
const REACH_WITH_TAP: &[(&str, Option<i32>)] = &[
    ("tap-send", Some(0)),
    ("tap-keep", None),
    ("tap-attach", None),
    ("tap-address", None),
    ("tap-namespace", None),
    ("tap-keep api", None),
    ("tap-attach unfiltered", Some(libc::EEXIST)),
    ("tap-namespace unfiltered", Some(libc::EPERM)),
    ("reach-internet unfiltered", Some(libc::ENETUNREACH)),
];

#[test]
fn a_monitor_that_was_taken_over_reaches_nothing() {
    for_each_birth(was_taken_over_and_reaches_nothing);
}

fn was_taken_over_and_reaches_nothing(birth: Birth) {
    let taken = program("skiff-vmm-taken");
    let launcher = Launcher::start_with(&taken, birth);
    is_answered(launcher, birth, REACH, false);
    let launcher = Launcher::start_alone(&taken).keeping(birth);
    is_answered(launcher, birth, REACH_WITH_TAP, true);
}

fn is_answered(mut launcher: Launcher, birth: Birth, reach: &[(&str, Option<i32>)], egress: bool) {
    let nothing = tempfile::tempfile().unwrap();
    for (wish, answer) in reach {
        let waits = launcher.next(birth);
        let mut monitor = launcher.create_with(wish, &nothing, egress).unwrap();
        let exit = launcher.exit(monitor.id);
        let (out, err) = monitor.output();
        match answer {
            Some(errno) => assert_eq!(out, format!("{errno}\n"), "{wish}: {exit:?} {err}"),
            None => assert_eq!(exit.signal, Some(libc::SIGSYS), "{wish}: {out}{err}"),
        }
        launcher.destroy(&monitor);
        assert!(waits.is_none_or(|pid| !lives(pid)), "{wish}");
    }
    launcher.shut_down();
}

#[test]
fn a_monitor_dies_with_its_launcher() {
    if !has_kvm() {
        return;
    }
    let mut launcher = Launcher::start(Path::new(MONITOR));
    let monitor = launcher.run_guest(skiff_flat::HALT, "");
    launcher.control(&monitor);
    let pid = monitor_with(&launcher, "--no-api");
    launcher.process.kill().unwrap();
    launcher.process.wait().unwrap();
    wait_for("its death", || (!lives(pid)).then_some(()));
    // The next launcher of the same server removes what it has left.
    for group in groups_named(&format!("skiff-{}", launcher.server)) {
        let children = fs::read_dir(&group).unwrap().filter_map(Result::ok);
        for child in children.filter(|child| child.path().is_dir()) {
            wait_for("an empty group", || fs::remove_dir(child.path()).ok());
        }
        fs::remove_dir(group).unwrap();
    }
}

#[test]
fn what_is_no_monitor_is_refused_and_leaves_nothing() {
    let mut launcher = Launcher::start(Path::new("/nonexistent/monitor"));
    let nothing = tempfile::tempfile().unwrap();
    let refusal = launcher.create("{}", &nothing).map(|_| ()).unwrap_err();
    assert!(
        refusal.message.contains("/nonexistent/monitor"),
        "{refusal}"
    );
    launcher.shut_down();
    let mut launcher = Launcher::start(Path::new("/proc/version"));
    let refusal = launcher.create("{}", &nothing).map(|_| ()).unwrap_err();
    assert!(refusal.message.contains("execute the monitor"), "{refusal}");
    launcher.shut_down();
}
