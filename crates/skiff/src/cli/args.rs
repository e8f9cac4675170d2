//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use skiff_types::{HookName, ProjectName, SecretName, ServiceName, Tag};

/// Any OCI image as a service that scales from zero, on your own machine.
#[derive(Debug, Parser)]
#[command(
    name = "skiff",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The server: unix:///PATH, http://HOST:PORT or https://HOST:PORT
    #[arg(
        long,
        global = true,
        env = "SKIFF_HOST",
        default_value = "unix:///run/skiff/skiff.sock"
    )]
    pub host: String,
    /// The bearer token for a server that is not on a Unix socket
    #[arg(long, global = true, env = "SKIFF_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file with the certificate authority of an https server, PEM
    #[arg(long, global = true, env = "SKIFF_CA")]
    pub ca: Option<PathBuf>,
    /// The project that names belong to
    #[arg(
        long,
        short,
        global = true,
        env = "SKIFF_PROJECT",
        default_value = "default"
    )]
    pub project: ProjectName,
    /// How answers look
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an image's process here, to its end, without a server
    Run(Run),
    /// Make a revision of a service and move its traffic there
    Deploy(Box<Deploy>),
    /// Hand a function an event and print what it answers
    Invoke(Invoke),
    /// Deploy every service that a file describes
    Apply(Apply),
    /// List services
    Ls,
    /// Show a service with its revisions and instances
    Describe(Named),
    /// Show or set how a service's requests are shared among revisions
    Traffic(Traffic),
    /// Send the traffic to an earlier revision
    Rollback(Rollback),
    /// Change how many instances there are
    Scale(Scale),
    /// Remove a service
    Rm(Named),
    /// Show what a service's instances wrote
    Logs(Logs),
    /// Run a command in an instance that runs
    Exec(Exec),
    /// Explain cold starts by phase
    Trace(Trace),
    /// Show what was used and what it costs
    Usage(Usage),
    /// Images in the store
    #[command(subcommand)]
    Image(ImageCommand),
    /// Kernels that microVMs boot, in this machine's data folder
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Projects and their quotas
    #[command(subcommand)]
    Project(ProjectCommand),
    /// Secrets of a project
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Keys of a project for AWS's clients
    #[command(subcommand)]
    Key(KeyCommand),
    /// Events of functions at their times
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Where servers of S3's kind tell functions of their objects
    #[command(subcommand)]
    Hook(HookCommand),
    /// Bearer tokens for the API
    #[command(subcommand)]
    Token(TokenCommand),
    /// Find out what this machine can serve
    Doctor(Doctor),
    /// Run the server
    Server(Server),
    /// The privileged half of a server; started by it
    #[command(hide = true)]
    Launcher(Launcher),
}

#[derive(Debug, Args)]
pub struct Run {
    /// Give the process a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Memory, MiB
    #[arg(long, default_value_t = skiff_types::limits::DEFAULT_MEMORY_MIB)]
    pub memory: u32,
    /// CPUs
    #[arg(long, default_value_t = 1.0)]
    pub cpu: f64,
    /// Let the process reach the public internet
    #[arg(long)]
    pub egress: bool,
    /// Run as USER[:GROUP] instead of the image's user
    #[arg(long, short)]
    pub user: Option<String>,
    /// Start in this folder instead of the image's
    #[arg(long, short)]
    pub workdir: Option<String>,
    /// Where images are kept
    #[arg(long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub data_dir: PathBuf,
    /// Where sockets and locks are made
    #[arg(long, env = "SKIFF_RUN_DIR", default_value = "/run/skiff")]
    pub run_dir: PathBuf,
    /// Speak to this registry without TLS
    #[arg(long, value_name = "HOST[:PORT]")]
    pub plain_http: Vec<String>,
    /// A reference, an OCI layout folder, or a tar
    pub image: String,
    /// What to run instead of the image's command
    #[arg(last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Pass standard input on
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Start in this folder instead of the instance's
    #[arg(long, short)]
    pub workdir: Option<String>,
    /// An instance's id, or a service: its newest instance then
    pub target: String,
    /// What to run
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Deploy {
    /// The service
    pub name: ServiceName,
    /// The image's reference
    #[arg(long)]
    pub image: String,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Set an environment variable from a secret
    #[arg(long, value_name = "NAME=SECRET")]
    pub secret: Vec<String>,
    /// The port the application listens on
    #[arg(long, default_value_t = skiff_types::limits::DEFAULT_PORT)]
    pub port: u16,
    /// What the application speaks there
    #[arg(long, value_enum, default_value_t = ProtocolArg::Http1)]
    pub protocol: ProtocolArg,
    /// Memory of one instance, MiB
    #[arg(long, default_value_t = skiff_types::limits::DEFAULT_MEMORY_MIB)]
    pub memory: u32,
    /// CPUs of one instance
    #[arg(long, default_value_t = 1.0)]
    pub cpu: f64,
    /// Pause instances between requests
    #[arg(long, value_enum, default_value_t = CpuArg::Always)]
    pub cpu_mode: CpuArg,
    /// Make it a function: its requests are events for a runtime that speaks AWS's Runtime API
    #[arg(long, conflicts_with_all = ["port", "protocol", "probe", "concurrency", "cpu_mode", "liveness", "start_timeout"])]
    pub function: bool,
    /// The function's handler, for runtimes that look for one
    #[arg(long, requires = "function")]
    pub handler: Option<String>,
    /// How long the runtime may take to ask for its first event, seconds
    #[arg(long, requires = "function", default_value_t = skiff_types::limits::DEFAULT_INIT_TIMEOUT_S)]
    pub init_timeout: u32,
    /// Requests at once in one instance
    #[arg(long, default_value_t = skiff_types::limits::DEFAULT_CONCURRENCY)]
    pub concurrency: u32,
    /// A request's whole time, seconds [default: 300, of a function 3]
    #[arg(long)]
    pub timeout: Option<u32>,
    /// Instances that are always there
    #[arg(long, default_value_t = skiff_types::limits::DEFAULT_MIN_INSTANCES)]
    pub min: u32,
    /// Instances at most
    #[arg(long, default_value_t = skiff_types::limits::DEFAULT_MAX_INSTANCES)]
    pub max: u32,
    /// How long an idle instance is kept, seconds
    #[arg(long, default_value_t = skiff_types::limits::DEFAULT_KEEP_ALIVE_S)]
    pub keep_alive: u32,
    /// Let instances reach the public internet
    #[arg(long)]
    pub egress: bool,
    /// Probe with GET of this path instead of a connection
    #[arg(long, value_name = "PATH")]
    pub probe: Option<String>,
    /// Seconds between liveness probes; 0 is never
    #[arg(long, default_value_t = 0)]
    pub liveness: u32,
    /// How long an instance may take to answer its first probe, seconds
    #[arg(long, default_value_t = skiff_types::limits::DEFAULT_START_TIMEOUT_S)]
    pub start_timeout: u32,
    /// What isolates an instance
    #[arg(long, value_enum, default_value_t = IsolationArg::Auto)]
    pub isolation: IsolationArg,
    /// Put writes on disk, in a file of this many MiB, instead of memory, which
    /// is 0; a function's are on disk, 512 MiB unless given
    #[arg(long, value_name = "MIB")]
    pub disk: Option<u32>,
    /// Give the new revision a host of its own
    #[arg(long)]
    pub tag: Option<Tag>,
    /// Leave the traffic where it is
    #[arg(long)]
    pub no_traffic: bool,
    /// Make a new revision although nothing has changed
    #[arg(long)]
    pub force: bool,
    /// What to run instead of the image's entrypoint
    #[arg(long, num_args = 1, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Arguments instead of the image's
    #[arg(last = true)]
    pub args: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ProtocolArg {
    /// HTTP/1.1
    Http1,
    /// HTTP/2 without TLS and with prior knowledge, as gRPC servers do
    H2c,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CpuArg {
    /// Instances run on between requests
    Always,
    /// Instances are paused between requests
    Request,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum IsolationArg {
    /// A microVM where they serve, otherwise a container that says why
    Auto,
    /// A namespaced container
    Container,
    /// A microVM and nothing else
    Microvm,
    /// Nothing runs; for measuring
    Null,
}

#[derive(Debug, Args)]
pub struct Invoke {
    /// The function
    pub name: ServiceName,
    /// The event: itself, @FILE, or - for standard input
    #[arg(long, short, allow_hyphen_values = true)]
    pub data: Option<String>,
    /// Print the end of what it wrote, at most 4 KiB, to standard error
    #[arg(long, conflicts_with = "event")]
    pub log: bool,
    /// Hand the event in and go on: once it is on the server's disk, its
    /// request id is printed. For functions that were made over AWS Lambda's API
    #[arg(long)]
    pub event: bool,
    /// A JSON object that the function is told of its caller
    #[arg(long, value_name = "JSON")]
    pub client_context: Option<String>,
}

#[derive(Debug, Args)]
pub struct Apply {
    /// The file, TOML; - is standard input
    #[arg(long, short)]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct Named {
    /// The service
    pub name: ServiceName,
}

#[derive(Debug, Args)]
pub struct Traffic {
    /// The service
    pub name: ServiceName,
    /// Shares that sum to 100; REVISION may be `latest`
    #[arg(value_name = "REVISION=PERCENT[,TAG]")]
    pub targets: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Rollback {
    /// The service
    pub name: ServiceName,
    /// The revision; without it, the one before
    #[arg(long)]
    pub to: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct ScaleBounds {
    /// Instances that are always there
    #[arg(long)]
    pub min: Option<u32>,
    /// Instances at most
    #[arg(long)]
    pub max: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Scale {
    /// The service
    pub name: ServiceName,
    #[command(flatten)]
    pub bounds: ScaleBounds,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The service
    pub name: ServiceName,
    /// Go on with what comes
    #[arg(long, short)]
    pub follow: bool,
    /// Begin with this many of the last lines
    #[arg(long, short = 'n', default_value_t = 100)]
    pub tail: usize,
    /// Only this revision
    #[arg(long)]
    pub revision: Option<String>,
    /// Only this instance
    #[arg(long)]
    pub instance: Option<String>,
}

#[derive(Debug, Args)]
pub struct Trace {
    /// The service; without it, all of the project
    pub name: Option<ServiceName>,
    /// How many of the last cold starts
    #[arg(long, short = 'n', default_value_t = 10)]
    pub last: usize,
}

#[derive(Debug, Args)]
pub struct Usage {
    /// Only this service
    pub name: Option<ServiceName>,
    /// Every project's
    #[arg(long)]
    pub all_projects: bool,
    /// From: 30m, 12h, 7d ago, or a UTC date as 2026-01-31
    #[arg(long, default_value = "30d")]
    pub since: String,
    /// Up to: as --since
    #[arg(long, default_value = "0m")]
    pub until: String,
    /// Compare the ledger with independent sources instead
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    Ls,
    /// Pull an image from its registry
    Pull {
        /// The reference
        image: String,
        /// OS/ARCH[/VARIANT] instead of this machine's
        #[arg(long)]
        platform: Option<String>,
    },
    /// Import an OCI layout folder, an OCI tar or a docker-save tar
    Import {
        /// The path; - is standard input
        path: PathBuf,
        /// The reference to give it
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove a reference, or a digest with all its references
    Rm {
        /// The reference or digest
        image: String,
    },
    /// Remove every image that no revision uses
    Prune,
}

#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Install a kernel from Debian packages, a folder, a file or this host
    Install(KernelInstall),
    /// List kernels
    Ls {
        #[command(flatten)]
        place: KernelPlace,
    },
    /// Make a kernel the one that microVMs boot
    Use {
        #[command(flatten)]
        place: KernelPlace,
        /// Its version, or the beginning of its hash
        kernel: String,
    },
    /// Remove a kernel
    Rm {
        #[command(flatten)]
        place: KernelPlace,
        /// Its version, or the beginning of its hash
        kernel: String,
    },
}

#[derive(Debug, Args)]
pub struct KernelPlace {
    /// Where kernels are kept; without it, where the server's configuration says
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// The server's configuration; /etc/skiff/skiff.toml when it is there
    #[arg(long, short, env = "SKIFF_CONFIG")]
    pub config: Option<PathBuf>,
    /// A microVM's first process; skiff-agent beside this program when it is there
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct KernelInstall {
    #[command(flatten)]
    pub place: KernelPlace,
    /// Which kernel, when there are several
    #[arg(long, value_name = "VERSION")]
    pub release: Option<String>,
    /// The folder with the modules of a kernel that is a file, as /lib/modules/VERSION
    #[arg(long, value_name = "FOLDER")]
    pub modules: Option<PathBuf>,
    /// The configuration that a kernel which is a file was built with
    #[arg(long, value_name = "FILE")]
    pub kernel_config: Option<PathBuf>,
    /// Leave the default as it is
    #[arg(long)]
    pub keep_default: bool,
    /// Packages (.deb), a folder with boot/vmlinuz-VERSION and lib/modules/VERSION,
    /// a bzImage or vmlinux, or `host` for the kernel that runs
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct QuotaArgs {
    /// Memory of all its instances, MiB
    #[arg(long)]
    pub memory: Option<u64>,
    /// Instances
    #[arg(long)]
    pub instances: Option<u32>,
    /// Requests in flight
    #[arg(long)]
    pub requests: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum ProjectCommand {
    /// List projects
    Ls,
    /// Make a project
    Create {
        /// Its name
        name: ProjectName,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Set what a project may use at once; what is not given has no bound
    Quota {
        /// Its name
        name: ProjectName,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Remove an empty project
    Rm {
        /// Its name
        name: ProjectName,
    },
}

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// List secrets, never their values
    Ls,
    /// Set a secret's value from standard input or a file
    Set {
        /// Its name
        name: SecretName,
        /// The file with the value; without it, standard input
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Remove a secret
    Rm {
        /// Its name
        name: SecretName,
    },
    /// Encrypt every secret with another key
    Rekey {
        /// The new key's file on the server's machine; made when it is not there.
        /// Without it a new key takes the old one's place
        #[arg(long)]
        key_file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List keys, never their secrets
    Ls,
    /// Make a key; its secret is shown once
    Create {
        /// What it is for
        name: String,
    },
    /// Revoke a key
    Rm {
        /// Its access key id
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// List schedules
    Ls,
    /// Make a schedule
    Create {
        /// Its name
        name: String,
        /// `rate(5 minutes)`, `cron(0 12 * * ? *)` or `at(2026-11-26T19:00:00)`
        expression: String,
        /// Whose events
        #[arg(long)]
        function: ServiceName,
        /// A version or an alias of the function
        #[arg(long)]
        qualifier: Option<String>,
        /// Where a cron expression and a time hold, as Europe/Berlin; UTC
        /// unless given
        #[arg(long)]
        timezone: Option<String>,
        /// The event, JSON; one that says what fired unless given
        #[arg(short, long)]
        data: Option<String>,
        /// What it is for
        #[arg(long)]
        description: Option<String>,
        /// The oldest a missed time may be that still fires, seconds
        #[arg(long)]
        age: Option<u32>,
        /// Delete it once it will not fire again
        #[arg(long)]
        delete_after: bool,
    },
    /// Show a schedule
    Describe {
        /// Its name
        name: String,
    },
    /// End a schedule
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// List hooks, never their tokens
    Ls,
    /// Make a hook; its token is shown once
    Create {
        /// Its name
        name: HookName,
        /// Who is told
        #[arg(long)]
        function: ServiceName,
        /// A version or an alias of the function
        #[arg(long)]
        qualifier: Option<String>,
    },
    /// End a hook; events that it has taken go on
    Rm {
        /// Its name
        name: HookName,
    },
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// List tokens, never themselves
    Ls,
    /// Make a token; it is shown once
    Create {
        /// What it is for
        name: String,
        /// For the operator, not bound to the project
        #[arg(long)]
        operator: bool,
    },
    /// Revoke a token
    Rm {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// The server's configuration
    #[arg(long, short)]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Server {
    /// The configuration; /etc/skiff/skiff.toml when it is there
    #[arg(long, short, env = "SKIFF_CONFIG")]
    pub config: Option<PathBuf>,
    /// Set one key of the configuration
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Take over from the server that runs on this data folder
    #[arg(long)]
    pub replace: bool,
    /// At the end stop every instance and the launcher, too
    #[arg(long)]
    pub stop_all: bool,
}

#[derive(Debug, Args)]
pub struct Launcher {
    /// The data folder's id
    #[arg(long)]
    pub server: Option<skiff_types::ServerId>,
    /// Where the socket and lock are made
    #[arg(long)]
    pub run_dir: Option<PathBuf>,
    /// Who may connect
    #[arg(long)]
    pub uid: Option<u32>,
    /// Addresses of instances with egress
    #[arg(long)]
    pub pool: Option<String>,
    /// Their IPv6 addresses; without it they have none
    #[arg(long)]
    pub ipv6_pool: Option<String>,
    /// A private network that instances with egress may reach all the same
    #[arg(long)]
    pub allow: Vec<String>,
    /// End when this process, which started it, ends
    #[arg(long)]
    pub ends_with: Option<i32>,
    /// Where writable layers on disk are made
    #[arg(long)]
    pub disk_dir: Option<PathBuf>,
    /// The program that runs virtual machines
    #[arg(long)]
    pub monitor: Option<PathBuf>,
    /// Go on from the state in this descriptor
    #[arg(long)]
    pub resume: Option<i32>,
}
