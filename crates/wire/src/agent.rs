//! What the server asks of the agent in a virtual machine, and what the agent
//! answers.
//!
//! The host connects to [`CONTROL_PORT`] and says [`Request::Hello`]; the
//! latest connection is the one that counts, and one that has ended is followed
//! by another. Requests are [`Envelope`]s; the agent sends [`Answer`]s, a reply
//! to each in any order, and events in between. Both are frames behind their
//! lengths ([`crate::framed`]).
//!
//! For each stream the host connects to [`STREAM_PORT`], sends one
//! [`Opening`] of at most [`OPENING_BYTES_MAX`], and reads one [`Opened`].
//! What follows is the stream's bytes; each side ends its half. The guest
//! connects to the host's ports for [`GATEWAY_PORT`], [`DNS_PORT`] and
//! [`RUNTIME_PORT`], whose bytes are those of the application's own
//! connections, and for each datagram to [`DNS_DATAGRAM_PORT`].
//!
//! Neither side trusts the other: every length is checked, the host chooses
//! every id, and each wait has a deadline.

use serde::{Deserialize, Serialize};
use skiff_types::{Digest, InstanceId};

use crate::launcher::{ExecSpec, Exit, Listed, MachineNetwork, Refusal, SandboxSpec, Stats};

/// The protocol that this code speaks. The lower one of both sides' counts.
pub const PROTOCOL: u16 = 1;
/// Where the agent takes requests.
pub const CONTROL_PORT: u32 = 1024;
/// Where the agent takes streams.
pub const STREAM_PORT: u32 = 1025;
/// Where the host takes the application's connections to the gateway.
pub const GATEWAY_PORT: u32 = 1026;
/// Where the host takes the application's DNS queries over TCP, each behind
/// its length (RFC 1035, 4.2.2).
pub const DNS_PORT: u32 = 1027;
/// Where the host takes those that were datagrams, each on a connection of its
/// own, framed likewise: their answers may be cut short.
pub const DNS_DATAGRAM_PORT: u32 = 1028;
/// Where the host takes the connections of a function's runtime
/// ([`Request::ServeRuntime`]).
pub const RUNTIME_PORT: u32 = 1029;

/// Bytes of an [`Opening`] or [`Opened`] as a frame.
pub const OPENING_BYTES_MAX: usize = 1024;
/// Bytes of one [`Request::Reseed`].
pub const SEED_BYTES_MAX: usize = 512;
/// Requests of one connection that wait for their replies.
pub const REQUESTS_MAX: usize = 256;

/// Services of the host are reachable from the guest.
pub const FEATURE_SERVICES: u64 = 1 << 0;
/// [`Request::Exec`] and what belongs to it.
pub const FEATURE_EXEC: u64 = 1 << 1;
/// [`Request::CreateOnDisk`].
pub const FEATURE_DISK: u64 = 1 << 2;
/// [`Request::Connect`].
pub const FEATURE_NETWORK: u64 = 1 << 3;
/// [`Request::ServeRuntime`].
pub const FEATURE_RUNTIME: u64 = 1 << 4;
/// [`Request::CreateFunction`] and what belongs to it.
pub const FEATURE_EXTENSIONS: u64 = 1 << 5;

/// One request with the number its reply will carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Chosen by the host, unique among the requests of a connection that
    /// wait.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To the envelope of this id.
    Reply {
        /// The envelope's.
        id: u64,
        /// How it went.
        result: Result<Reply, Refusal>,
    },
    /// A sandbox's first process has ended and everything in it is dead. What
    /// it wrote has gone out by the streams that were open for it, unless they
    /// stood still for long. Sent once, and again after each
    /// [`Request::Hello`] until the sandbox is destroyed.
    Exited {
        /// Which.
        sandbox: InstanceId,
        /// How it ended.
        exit: Exit,
    },
    /// A process of [`Request::Exec`] has ended, told as [`Answer::Exited`] is
    /// until it is forgotten; or a function's first one
    /// ([`FIRST_PROCESS`](crate::launcher::FIRST_PROCESS)), told once.
    ExecExited {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which.
        exec: u64,
        /// How it ended.
        exit: ExecExit,
    },
}

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first request of a connection.
    Hello {
        /// The host's [`PROTOCOL`].
        protocol: u16,
        /// What the host can do beyond it; none yet.
        features: u64,
    },
    /// Makes a layer mountable, the EROFS file that lies on a part of a disk.
    /// Idempotent.
    AddLayer {
        /// Names it in [`SandboxSpec::layers`].
        layer: Digest,
        /// Where it lies.
        window: Window,
    },
    /// Unmounts a layer that no sandbox uses, and lets go of its part of the
    /// disk.
    RemoveLayer {
        /// Which.
        layer: Digest,
    },
    /// Makes and starts a sandbox. `Stdio::Given` is refused: what would be
    /// given cannot be sent. `egress` has no meaning here: the machine's own
    /// network is the sandbox's ([`Request::Connect`]). One with a writable
    /// layer on disk is made by [`Request::CreateOnDisk`].
    Create(Box<SandboxSpec>),
    /// Sends a signal to the first process.
    Signal {
        /// Which sandbox.
        sandbox: InstanceId,
        /// Its number, signal(7).
        signal: i32,
    },
    /// Sets the size of a sandbox's terminal.
    Resize {
        /// Which sandbox.
        sandbox: InstanceId,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Stops every process of a sandbox from running.
    Freeze {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// Lets them run again.
    Thaw {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// Kills what still runs and removes the sandbox. One that is not there
    /// is no error.
    Destroy {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// What a sandbox uses.
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
    /// Sets the machine's clock.
    SetClock {
        /// Nanoseconds since 1970.
        unix_ns: u64,
    },
    /// Mixes bytes into the kernel's randomness, credits them, and draws a new
    /// key at once.
    Reseed {
        /// Random; 1 to [`SEED_BYTES_MAX`].
        seed: Vec<u8>,
    },
    /// Destroys every sandbox and switches the machine off. The reply comes
    /// before the end does.
    Shutdown,
    /// Starts a further process in a sandbox that runs, its id unique among
    /// those of the sandbox that are not forgotten. `Stdio::Given` is refused.
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
    /// Sets the size of such a process's terminal.
    ResizeExec {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which.
        exec: u64,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Lets go of what is kept of such a process that has ended: its exit, and
    /// what of its output nobody took. Its sandbox's end does so, too. One
    /// that is not there is no error.
    ForgetExec {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which.
        exec: u64,
    },
    /// As [`Request::Create`], with the writable layer on the ext4 file system
    /// that lies on a part of a disk. The sandbox's destruction lets go of it.
    CreateOnDisk {
        /// Its `writable` is `Writable::Disk`, of any size.
        spec: Box<SandboxSpec>,
        /// Where the file system lies.
        window: Window,
    },
    /// Gives the machine's one network interface its addresses and leads
    /// everything out by it. Before the first sandbox, once; refused where
    /// there is no interface.
    Connect(MachineNetwork),
    /// Has the calls of a function's runtime, to
    /// [`RUNTIME_API`](crate::launcher::RUNTIME_API) inside, go on to
    /// [`RUNTIME_PORT`] of the host. Before the function's sandbox. Idempotent.
    ServeRuntime,
    /// As [`Request::Create`] or [`Request::CreateOnDisk`], of a function. One
    /// that has files in [`EXTENSIONS`](crate::launcher::EXTENSIONS) is held
    /// just before its `execve`, and the reply is [`Reply::Held`].
    CreateFunction {
        /// What it is made of.
        spec: Box<SandboxSpec>,
        /// Where its writable layer's file system lies, if that is on disk.
        window: Option<Window>,
    },
    /// Lets a function's first process that is held go on, as the launcher's.
    Begin {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// What a function had there when it was made.
    Extensions {
        /// Which sandbox.
        sandbox: InstanceId,
    },
}

/// How a further process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExit {
    /// wait(2)'s: the code of an exit.
    pub code: Option<i32>,
    /// wait(2)'s: the signal that ended it.
    pub signal: Option<i32>,
}

/// A part of a disk, in sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// 0 is the first of the machine's virtio disks, `/dev/vda`.
    pub disk: u8,
    /// Where it begins.
    pub first_sector: u64,
    /// How long it is.
    pub sectors: u64,
}

/// What the agent answers to a request that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing more to say.
    Done,
    /// To `Hello`.
    Hello {
        /// The agent's [`PROTOCOL`].
        protocol: u16,
        /// What it can do beyond that: `FEATURE_*`.
        features: u64,
        /// The version of its program.
        version: String,
        /// The release of the kernel.
        kernel: String,
    },
    /// To `Create` and `CreateOnDisk`: how long each step took, microseconds.
    Created {
        /// As the launcher's.
        steps_us: Vec<(String, u32)>,
    },
    /// To `Stats`.
    Stats(Stats),
    /// To `List`: as many as fit a frame.
    List(Vec<Listed>),
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

/// The first words of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opening {
    /// To a sandbox's standard input (`Stdio::PipedInput`). The stream's end is
    /// the input's.
    Stdin {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// From a sandbox's standard output. Of several, the latest counts; what
    /// an earlier one has taken is gone, the rest comes.
    Stdout {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// From a sandbox's standard error, likewise.
    Stderr {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// To and from a sandbox's terminal, likewise.
    Terminal {
        /// Which sandbox.
        sandbox: InstanceId,
    },
    /// To and from a TCP port of the guest's loopback address.
    Forward {
        /// Which.
        port: u16,
    },
    /// To the standard input of a process of [`Request::Exec`].
    ExecStdin {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which.
        exec: u64,
    },
    /// From its standard output.
    ExecStdout {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which.
        exec: u64,
    },
    /// From its standard error.
    ExecStderr {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which.
        exec: u64,
    },
    /// To and from its terminal.
    ExecTerminal {
        /// In which sandbox.
        sandbox: InstanceId,
        /// Which.
        exec: u64,
    },
}

/// The agent's answer to an [`Opening`].
pub type Opened = Result<(), Refusal>;
