//! Every default and every bound that a user can meet, in one place.
//! `docs/configuration.md` is checked against this file by a test.

/// Requests at once in one instance.
pub const DEFAULT_CONCURRENCY: u32 = 100;
/// A request's whole time, seconds.
pub const DEFAULT_TIMEOUT_S: u32 = 300;
/// How long an idle instance is kept, seconds.
pub const DEFAULT_KEEP_ALIVE_S: u32 = 60;
/// Instances that are always there.
pub const DEFAULT_MIN_INSTANCES: u32 = 0;
/// Instances at most.
pub const DEFAULT_MAX_INSTANCES: u32 = 100;
/// An instance's memory, MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// An instance's processor time, thousandths of a CPU.
pub const DEFAULT_CPU_MILLIS: u32 = 1000;
/// The port an application listens on, told to it as `PORT`.
pub const DEFAULT_PORT: u16 = 8080;
/// Requests that wait for an instance of one revision.
pub const DEFAULT_QUEUE_REQUESTS: u32 = 1000;
/// How long a request waits for an instance, seconds.
pub const DEFAULT_QUEUE_S: u32 = 30;
/// How long a starting instance may take to answer its probe, seconds.
pub const DEFAULT_START_TIMEOUT_S: u32 = 60;
/// From SIGTERM to SIGKILL, seconds.
pub const DEFAULT_STOP_GRACE_S: u32 = 10;
/// Processes and threads in one instance.
pub const DEFAULT_PIDS: u32 = 1024;
/// How long a function may take to ask for its first event, seconds.
pub const DEFAULT_INIT_TIMEOUT_S: u32 = 10;
/// The region in the ARN of a function that names none.
pub const FUNCTION_REGION: &str = "us-east-1";

/// Bounds of what a revision may ask for: `(least, most)`.
pub const CONCURRENCY_RANGE: (u32, u32) = (1, 1000);
/// See [`CONCURRENCY_RANGE`].
pub const TIMEOUT_S_RANGE: (u32, u32) = (1, 86_400);
/// Where a function writes when nothing is said, MiB on disk (AWS's).
pub const FUNCTION_DISK_MIB: u32 = 512;
/// A function's timeout, as AWS has it. See [`CONCURRENCY_RANGE`].
pub const FUNCTION_TIMEOUT_S_RANGE: (u32, u32) = (1, 900);
/// See [`CONCURRENCY_RANGE`].
pub const KEEP_ALIVE_S_RANGE: (u32, u32) = (0, 86_400);
/// See [`CONCURRENCY_RANGE`].
pub const INSTANCES_RANGE: (u32, u32) = (0, 10_000);
/// See [`CONCURRENCY_RANGE`].
pub const MEMORY_MIB_RANGE: (u32, u32) = (16, 1_048_576);
/// See [`CONCURRENCY_RANGE`].
pub const CPU_MILLIS_RANGE: (u32, u32) = (10, 256_000);

/// Containers in one revision.
pub const CONTAINERS_MAX: usize = 10;
/// Environment variables of one container.
pub const ENV_VARS_MAX: usize = 512;
/// All names and values of one container's environment, bytes.
pub const ENV_BYTES_MAX: usize = 64 * 1024;
/// Command and arguments together, bytes.
pub const ARGS_BYTES_MAX: usize = 64 * 1024;
/// Revisions kept of one service, besides those that have traffic or a tag.
pub const REVISIONS_KEPT: usize = 20;
/// Layers of one image (overlayfs takes 500; OCI builders stop at 127).
pub const LAYERS_MAX: usize = 127;
/// A body of the admin API, bytes.
pub const API_BODY_BYTES_MAX: usize = 1024 * 1024;
/// A secret's value, bytes.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;
/// An event of a function, and its answer unless that is streamed, bytes (AWS's 6 MB).
pub const EVENT_BYTES_MAX: usize = 6 * 1024 * 1024;
/// All header lines of one HTTP/1 request, bytes.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
