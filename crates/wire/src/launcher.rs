//! What the server asks of the launcher, and what the launcher answers.
//!
//! The server sends [`Envelope`]s, the launcher [`Answer`]s: a reply to each
//! envelope, in any order, and events in between. The launcher checks every
//! field again: it trusts the server with sandboxes, not with the host.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skiff_types::{Digest, InstanceId, ServerId};

/// One request with the number its reply will carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Chosen by the server, unique among the requests that wait.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the launcher sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To the envelope of this id.
    Reply {
        /// The envelope's.
        id: u64,
        /// How it went.
        result: Result<Reply, Refusal>,
    },
    /// A sandbox's first process has ended; everything in it is dead and its
    /// last output is in the pipes. Sent once for each sandbox and again
    /// after each [`Request::Hello`] until it is destroyed.
    Exited {
        /// Which.
        sandbox: InstanceId,
        /// How it ended.
        exit: Exit,
    },
    /// A process of [`Request::Exec`] has ended, or a function's first one that
    /// has extensions, before its sandbox. Sent once.
    ExecExited {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which; [`FIRST_PROCESS`] is none of `Exec`.
        exec: u64,
        /// wait(2)'s: the code of an exit.
        code: Option<i32>,
        /// wait(2)'s: the signal that ended it.
        signal: Option<i32>,
    },
}

/// What the server asks. Descriptors that go along are named in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first request of a connection.
    Hello {
        /// Must be the launcher's own: a launcher serves one data folder.
        server: ServerId,
    },
    /// Sizes of what is prepared ahead. Idempotent.
    Configure(PoolConfig),
    /// Makes a layer mountable [its EROFS file, read-only]. Idempotent.
    AddLayer {
        /// Names it in [`SandboxSpec::layers`].
        layer: Digest,
    },
    /// Unmounts a layer that no sandbox uses.
    RemoveLayer {
        /// Which.
        layer: Digest,
    },
    /// Makes and starts a sandbox [with `Stdio::Given`: stdin, stdout,
    /// stderr; with [`Writable::Disk`], if this launcher takes disks: the
    /// block device]. The reply comes once the application's `execve` has
    /// succeeded, or with the step that failed, everything undone.
    Create(Box<SandboxSpec>),
    /// Starts the monitor of a virtual machine, which confines itself before
    /// its guest runs [its configuration, then the files that it names: `fd:4`
    /// is the first]; or of another's monitor, which is confined before it
    /// begins [its program, then files: `/proc/self/fd/3` is the first]. With
    /// egress, which another's cannot have, a tap follows them, by the next
    /// number (`IFF_NO_PI`, `IFF_VNET_HDR`). The reply comes once its `execve`
    /// has succeeded, with its stdout and stderr; its sockets are in
    /// [`monitor_folder`], where it begins.
    CreateMonitor(Box<MonitorSpec>),
    /// Sends a signal to the first process. SIGKILL ends all of a function that
    /// has extensions.
    Signal {
        /// Which sandbox.
        sandbox: InstanceId,
        /// Its number, signal(7).
        signal: i32,
    },
    /// Stops every process from running (cgroup freezer).
    Freeze {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// Lets them run again.
    Thaw {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// Kills what still runs and removes every kernel object of the sandbox.
    /// The reply comes when nothing is left; a sandbox that is not there is
    /// no error.
    Destroy {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// TCP sockets in the sandbox's network namespace, non-blocking and not
    /// yet connected. The reply carries them.
    Sockets {
        /// Which sandbox.
        sandbox: InstanceId,
        /// How many, at most [`crate::FRAME_FDS_MAX`].
        count: u8,
    },
    /// Sockets in the sandbox's network namespace where the application's
    /// calls to Skiff's own services arrive. The reply carries three: the
    /// gateway's (TCP, listening), the DNS forwarder's UDP and TCP.
    Listeners {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// What the sandbox uses.
    Stats {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// Sandboxes in the order of their ids, a page at a time: the first page
    /// follows no sandbox, and an empty one is the end.
    List {
        /// The last sandbox of the page before.
        after: Option<InstanceId>,
    },
    /// The read ends of a sandbox's output: the reply carries stdout, stderr.
    /// For a server that has just started.
    Output {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// Executes another program file in place of the launcher's own, keeping
    /// every sandbox [the program file].
    Upgrade,
    /// Destroys every sandbox, unmounts everything and ends.
    Shutdown,
    /// Starts a further process in a sandbox that runs, confined as its first
    /// one is [with `Stdio::Given`: stdin, stdout, stderr]. The reply comes
    /// once `execve` has succeeded. It ends with the connection that asked.
    Exec(Box<ExecSpec>),
    /// Sends a signal to such a process.
    SignalExec {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which.
        exec: u64,
        /// Its number, signal(7).
        signal: i32,
    },
    /// How many monitors wait for their machines, at most 64; none at first.
    /// Those that are too many end. Idempotent.
    KeepMonitors {
        /// How many.
        count: u32,
    },
    /// A file without a name for a virtual machine's writable layer, with an
    /// empty ext4 on it, which nobody else has. The reply carries it, once it
    /// is made.
    Disk {
        /// Its size.
        bytes: u64,
    },
    /// As [`Request::Create`], of a function: before it starts, there is a
    /// socket at [`RUNTIME_API`] where its runtime's calls wait. One that has
    /// files in [`EXTENSIONS`] is held just before its `execve` until
    /// [`Request::Begin`], and the reply is [`Reply::Held`]; it ends with the
    /// connection that asked, as its extensions' processes do. When its first
    /// process ends, these have [`LINGER`] to come to their ends.
    CreateFunction(Box<SandboxSpec>),
    /// The socket of a function where its runtime's calls arrive (TCP,
    /// listening), made anew unless it was never asked for. The reply carries it.
    RuntimeListener {
        /// Of which sandbox.
        sandbox: InstanceId,
    },
    /// As [`Request::CreateFunction`], without that socket: whoever asks
    /// serves there already.
    CreateServed(Box<SandboxSpec>),
    /// Lets a function's first process that is held go on to its `execve`,
    /// whose failure then ends it: code 127, and why on its standard error.
    Begin {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// What a function had in [`EXTENSIONS`] when it was made.
    Extensions {
        /// Which sandbox.
        sandbox: InstanceId,
    },
}

/// Where a function's runtime finds the Runtime API, inside.
pub const RUNTIME_API: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9001);
/// The folder of a function's external extensions, inside. Each file in it
/// that is no folder is one.
pub const EXTENSIONS: &str = "/opt/extensions";
/// Extensions of one function (AWS's bound).
pub const EXTENSIONS_MAX: usize = 10;
/// How long a function's sandbox outlives its first process at most, for its
/// extensions' sake. Whoever asked for it ends it before.
pub const LINGER: Duration = Duration::from_secs(10);
/// What [`Answer::ExecExited`] calls a first process.
pub const FIRST_PROCESS: u64 = u64::MAX;

/// A further process in a sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Where.
    pub sandbox: InstanceId,
    /// Chosen by the client, unique among those of the sandbox that run, and
    /// not [`FIRST_PROCESS`].
    pub exec: u64,
    /// What runs. Its working folder must be there.
    pub process: ProcessSpec,
    /// Where its standard streams go. The launcher keeps none of them.
    pub stdio: Stdio,
}

/// Sizes of what is prepared ahead of demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolConfig {
    /// Network namespaces without egress.
    pub networks: u32,
    /// Network namespaces with egress.
    pub egress_networks: u32,
}

/// What a sandbox is made of: the OCI runtime-spec's process and root, as far
/// as Skiff uses them, with every name resolved to a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The instance's id names every kernel object.
    pub sandbox: InstanceId,
    /// Lowest first; each was added before.
    pub layers: Vec<Digest>,
    /// What runs.
    pub process: ProcessSpec,
    /// The host name inside.
    pub hostname: String,
    /// Bytes of memory, tmpfs included; no swap.
    pub memory_bytes: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Where writes go.
    pub writable: Writable,
    /// The root cannot be written; `/tmp` and `/dev/shm` can.
    pub readonly_root: bool,
    /// Whether it reaches the public internet.
    pub egress: bool,
    /// Where its standard streams go.
    pub stdio: Stdio,
    /// Kept for the server and given back by [`Request::List`]; at most 16 KiB.
    pub label: Vec<u8>,
}

/// A monitor and what holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorSpec {
    /// The instance's id names every kernel object.
    pub sandbox: InstanceId,
    /// What is started.
    pub program: MonitorProgram,
    /// Bytes of memory: the guest's and the monitor's own.
    pub memory_bytes: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Threads: one for each vCPU and a few of the monitor's own.
    pub pids: u32,
    /// Whether it reaches the public internet: the launcher gives it a tap.
    pub egress: bool,
    /// Kept for the server and given back by [`Request::List`]; at most 16 KiB.
    pub label: Vec<u8>,
}

/// Which monitor is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MonitorProgram {
    /// Skiff's, which the launcher knows.
    Own,
    /// One that came along.
    Given {
        /// Its words, its own name first.
        args: Vec<String>,
    },
}

/// The link address of every machine that has egress, and of its tap: neither
/// asks for the other's.
pub const MACHINE_MAC: [u8; 6] = [0x02, 0x73, 0x6b, 0, 0, 2];
/// The largest packet on that link, bytes.
pub const MACHINE_MTU: u16 = 1500;

/// What a machine with egress is to be told of that link, where nobody else
/// is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineNetwork {
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The same of IPv6; without, it has none.
    pub address6: Option<Ipv6Addr>,
    /// The largest packet, bytes.
    pub mtu: u16,
}

/// The folder that becomes a monitor's root, with the sockets that its
/// configuration names: where server and monitor meet.
#[must_use]
pub fn monitor_folder(run_dir: &Path, sandbox: InstanceId) -> PathBuf {
    run_dir.join("launcher/vms").join(sandbox.to_string())
}

/// What runs in a sandbox (OCI runtime-spec, config.md § Process).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments; a program without `/` is looked up in
    /// the environment's `PATH`.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// An absolute path, made when it is not there.
    pub cwd: String,
    /// In the sandbox.
    pub uid: u32,
    /// In the sandbox.
    pub gid: u32,
    /// In the sandbox.
    pub additional_gids: Vec<u32>,
    /// The limit of open files.
    pub nofile: u64,
}

/// Where a sandbox's writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writable {
    /// A tmpfs of this many bytes at most.
    Tmpfs {
        /// Its size.
        bytes: u64,
    },
    /// A sparse ext4 file of this many bytes from the prepared pool, or the
    /// block device that came with the request.
    Disk {
        /// Its size.
        bytes: u64,
    },
}

/// Where a sandbox's standard streams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// stdin is empty; stdout and stderr are pipes that the launcher keeps
    /// open and whose read ends the reply carries.
    Piped,
    /// Three descriptors that came with the request.
    Given,
    /// A terminal whose controlling side the reply carries.
    Terminal {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// As `Piped`, but stdin is a pipe too, whose write end the reply carries
    /// third.
    PipedInput,
}

/// What the launcher answers to a request that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing more to say.
    Done,
    /// To `Hello`.
    Hello {
        /// The launcher's process id.
        pid: u32,
        /// The version of its program.
        version: String,
    },
    /// To `Create` [stdout and stderr with `Stdio::Piped`, then stdin with
    /// `Stdio::PipedInput`, the terminal with `Stdio::Terminal`]: how long each
    /// step took, microseconds.
    Created {
        /// The steps in order: `network`, `clone`, `cgroup`, `root`, `exec`.
        steps_us: Vec<(String, u32)>,
    },
    /// To `Stats`.
    Stats(Stats),
    /// To `List`: as many as fit a frame.
    List(Vec<Listed>),
    /// To `Sockets`, `Listeners`, `RuntimeListener`, `Output` and `Disk` [the descriptors].
    Descriptors,
    /// To `Exec` [as to `Create`].
    Executed,
    /// To `CreateMonitor` [stdout and stderr].
    MonitorCreated {
        /// The steps in order, as those of `Created`.
        steps_us: Vec<(String, u32)>,
        /// What the machine is to be told of its network, if it has one.
        network: Option<MachineNetwork>,
    },
    /// As `Created`, of a function that is held for its extensions.
    Held {
        /// As those of `Created`.
        steps_us: Vec<(String, u32)>,
        /// The names of its extensions' files in order, at least one.
        extensions: Vec<String>,
    },
    /// To `Extensions`: their names in order.
    Extensions(Vec<String>),
}

/// One sandbox as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Which.
    pub sandbox: InstanceId,
    /// The server's words.
    pub label: Vec<u8>,
    /// How its first process ended, if it did.
    pub exit: Option<Exit>,
    /// Whether it is frozen.
    pub frozen: bool,
    /// It is a virtual machine's monitor.
    pub monitor: bool,
}

/// How a sandbox's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// wait(2)'s: the code of an exit.
    pub code: Option<i32>,
    /// wait(2)'s: the signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed a process in it for want of memory.
    pub out_of_memory: bool,
    /// The cgroup's last reading, microseconds.
    pub cpu_us: u64,
    /// The highest use of memory, bytes; 0 where the kernel does not say.
    pub memory_peak_bytes: u64,
}

/// What a sandbox uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time since its creation, microseconds.
    pub cpu_us: u64,
    /// Memory now, bytes.
    pub memory_bytes: u64,
    /// The highest use of memory, bytes; 0 where the kernel does not say.
    pub memory_peak_bytes: u64,
    /// Processes and threads now.
    pub pids: u64,
    /// How often the kernel killed a process in it for want of memory.
    pub oom_kills: u64,
}

/// Why the launcher did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {message}")]
pub struct Refusal {
    /// What was being done.
    pub step: String,
    /// The kernel's error number, 0 when the launcher itself refused.
    pub errno: i32,
    /// What happened.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_reads_back() {
        let envelope = Envelope {
            id: 3,
            request: Request::Hello {
                server: ServerId::from_parts(1, 2),
            },
        };
        let frame = crate::encode(&envelope).unwrap();
        assert_eq!(crate::decode::<Envelope>(&frame).unwrap(), envelope);
    }
}
