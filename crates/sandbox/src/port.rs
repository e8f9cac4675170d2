use std::fmt::Debug;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, Listener};
use skiff_types::{Digest, InstanceId, IsolationClass};
use skiff_wire::agent::ExecExit;
use skiff_wire::launcher::{Exit, ProcessSpec, Stats, Writable};

use crate::exec::{ExecRequest, Executed};

/// One class of isolation: makes sandboxes and finds those that a former
/// server left running.
pub trait Backend: Debug + Send + Sync + 'static {
    /// The class of everything it makes.
    fn class(&self) -> IsolationClass;
    /// Why it cannot make a sandbox that needs this, if it cannot.
    fn lacks(&self, needs: Needs) -> Option<&'static str> {
        let _nothing = needs;
        None
    }
    /// Makes layers ready ahead of [`Backend::create`], which does it itself
    /// for those that are not: the time this takes can then be told apart.
    fn prepare<'a>(&'a self, layers: &'a [LayerFile]) -> BoxFuture<'a, Result<(), SandboxError>> {
        let _nothing = layers;
        Box::pin(async { Ok(()) })
    }
    /// Lets go of a layer that no sandbox uses, so that its file can be removed.
    fn release<'a>(&'a self, layer: &'a Digest) -> BoxFuture<'a, Result<(), SandboxError>> {
        let _nothing = layer;
        Box::pin(async { Ok(()) })
    }
    /// Makes a sandbox and starts its process. On an error, or when the
    /// future is dropped, nothing is left.
    fn create(&self, spec: CreateSpec) -> BoxFuture<'_, Result<Created, SandboxError>>;
    /// The sandboxes that exist, with the labels they were created with:
    /// asked once, at start.
    fn adopt(&self) -> BoxFuture<'_, Result<Vec<Found>, SandboxError>>;
}

/// A sandbox that runs, or has ended and was not destroyed yet.
pub trait Sandbox: Debug + Send + Sync + 'static {
    /// The instance it isolates.
    fn id(&self) -> InstanceId;
    /// Its class.
    fn class(&self) -> IsolationClass;
    /// A byte stream to a port of the application, on the calling task's
    /// runtime. The caller sets the deadline.
    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<ByteStream>>;
    /// Sends a signal (signal(7)) to the first process.
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>>;
    /// Lets nothing in it run.
    fn pause(&self) -> BoxFuture<'_, Result<(), SandboxError>>;
    /// Lets it run again.
    fn resume(&self) -> BoxFuture<'_, Result<(), SandboxError>>;
    /// What it uses.
    fn stats(&self) -> BoxFuture<'_, Result<Stats, SandboxError>>;
    /// Waits for the end of its first process; ready at once when it has
    /// ended. An exit with neither code nor signal says that the sandbox is
    /// gone and nobody knows how.
    fn exited(&self) -> BoxFuture<'_, Exit>;
    /// Waits for the end of a first process that extensions outlive for a while:
    /// its own, before the sandbox's. Of no other it is told.
    fn first_ended(&self) -> BoxFuture<'_, ExecExit> {
        Box::pin(std::future::pending())
    }
    /// Where its calls to Skiff's own services arrive; `None` when it has no
    /// network of its own to make them from.
    fn listeners(&self) -> BoxFuture<'_, Result<Option<Listeners>, SandboxError>> {
        Box::pin(async { Ok(None) })
    }
    /// Starts a further process in it, confined as its first one is, while it
    /// runs. The process ends when what is answered is dropped.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Executed, SandboxError>> {
        drop(request);
        let class = self.class().as_str();
        Box::pin(async move {
            let what = "run a further process";
            Err(SandboxError::Unsupported { class, what })
        })
    }
    /// Where the calls of a function's runtime arrive; `None` when it has none
    /// to make.
    fn runtime_listener(&self) -> BoxFuture<'_, Result<Option<Listener>, SandboxError>> {
        Box::pin(async { Ok(None) })
    }
    /// The names of a function's external extensions, in order: if it has any,
    /// its first process is held until [`Sandbox::begin`], so that they can be
    /// started before it.
    fn extensions(&self) -> BoxFuture<'_, Result<Vec<String>, SandboxError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    /// Lets a first process go on that is held. If it cannot, it ends.
    fn begin(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(async { Ok(()) })
    }
    /// Kills what runs and removes everything. Nothing is left when it is done.
    fn destroy(&self) -> BoxFuture<'_, Result<(), SandboxError>>;
}

/// A sandbox just made or adopted.
#[derive(Debug)]
pub struct Created {
    /// It.
    pub sandbox: Arc<dyn Sandbox>,
    /// Its output, to be read until end of file.
    pub output: Option<Output>,
    /// The steps of its making and how long each took, microseconds.
    pub steps_us: Vec<(String, u32)>,
    /// Whether nothing in it runs, as a former server left it.
    pub paused: bool,
}

/// A sandbox that a former server left.
#[derive(Debug)]
pub struct Found {
    /// It.
    pub created: Created,
    /// What it was created with.
    pub label: Vec<u8>,
}

/// The read ends of a sandbox's output.
#[derive(Debug)]
pub struct Output {
    /// They are Unix streams, which end with their last byte. Otherwise they
    /// are pipes that may be held open beyond it: once the application has
    /// ended, what can be read is all.
    pub ends: bool,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// Sockets that one sandbox's calls arrive at: whoever serves them serves that
/// instance and nobody else. All are non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// The gateway's.
    pub gateway: Listener,
    /// The DNS forwarder's, for queries over TCP.
    pub dns: Listener,
    /// The DNS forwarder's, for queries that are datagrams.
    pub dns_datagrams: Datagrams,
}

/// How datagrams arrive.
#[derive(Debug)]
pub enum Datagrams {
    /// At a socket in the sandbox's network.
    Socket(UdpSocket),
    /// Each on a connection of its own, behind its length (RFC 1035, 4.2.2).
    Carried(Listener),
}

/// What a sandbox is made of; the same for every class.
#[derive(Clone, Debug)]
pub struct CreateSpec {
    /// Names it.
    pub instance: InstanceId,
    /// Lowest first.
    pub layers: Vec<LayerFile>,
    /// What runs.
    pub process: ProcessSpec,
    /// The host name inside.
    pub hostname: String,
    /// Of the application, tmpfs included.
    pub memory_bytes: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Where writes go.
    pub writable: Writable,
    /// Whether the root can be written.
    pub readonly_root: bool,
    /// Whether it reaches the public internet.
    pub egress: bool,
    /// It has a runtime, whose calls wait from before its start, and which is
    /// held if it has extensions ([`Sandbox::extensions`]).
    pub function: bool,
    /// Given back at adoption; at most 16 KiB.
    pub label: Vec<u8>,
}

/// What not every class has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// To reach the public internet.
    pub egress: bool,
    /// To write to a disk.
    pub disk: bool,
}

impl CreateSpec {
    /// What its class must have.
    #[must_use]
    pub const fn needs(&self) -> Needs {
        Needs {
            egress: self.egress,
            disk: matches!(self.writable, Writable::Disk { .. }),
        }
    }
}

/// One layer's EROFS file.
#[derive(Clone, Debug)]
pub struct LayerFile {
    /// Its diff id.
    pub digest: Digest,
    /// Where it is.
    pub path: PathBuf,
}

/// A sandbox could not be made, or does not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Making or steering it was refused: by the kernel or by the launcher.
    #[error("the sandbox {instance} was refused at `{step}`: {message}")]
    Refused {
        /// Which.
        instance: InstanceId,
        /// What was being done.
        step: String,
        /// Why not.
        message: String,
    },
    /// The launcher is not there.
    #[error("the launcher does not answer")]
    Launcher(#[source] io::Error),
    /// It did not answer in time.
    #[error("the sandbox {instance} did not finish `{step}` in time")]
    Timeout {
        /// Which.
        instance: InstanceId,
        /// What was being done.
        step: &'static str,
    },
    /// A layer's file cannot be opened.
    #[error("the layer {layer} cannot be opened")]
    Layer {
        /// Which.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer cannot be mounted.
    #[error("the layer {layer} was refused at `{step}`: {message}")]
    LayerRefused {
        /// Which.
        layer: Digest,
        /// What was being done.
        step: String,
        /// Why not.
        message: String,
    },
    /// It has as many further processes as it may have.
    #[error("{most} further processes run in {instance} already: end one of them first")]
    ExecsFull {
        /// Which.
        instance: InstanceId,
        /// How many it may have.
        most: usize,
    },
    /// The class cannot do this.
    #[error("the class {class} cannot {what}")]
    Unsupported {
        /// Which class.
        class: &'static str,
        /// What was asked.
        what: &'static str,
    },
}
