//! Every bound of the control plane that is not the user's to choose.

use std::time::Duration;

/// Deployments, pulls, imports and the like at once, in the whole server.
pub(crate) const OPERATIONS_MAX: usize = 256;
/// Changes of one service that wait for another to end.
pub(crate) const SERVICE_WAITERS_MAX: usize = 8;
/// Targets of one service's traffic.
pub(crate) const TARGETS_MAX: usize = 32;
/// Services, tokens or traces in one answer.
pub(crate) const PAGE_MAX: u32 = 1000;
/// Keys in one read of the store.
pub(crate) const RANGE_KEYS: usize = 500;
/// Secrets encrypted anew in one transaction.
pub(crate) const REKEY_BATCH: usize = 32;
/// Tokens in the whole server.
pub(crate) const TOKENS_MAX: usize = 1000;
/// Secrets of one project.
pub(crate) const SECRETS_MAX: usize = 1000;
/// Access keys of one project.
pub(crate) const ACCESS_KEYS_MAX: usize = 100;
/// Hooks of one project.
pub(crate) const HOOKS_MAX: usize = 100;
/// A token's or an access key's name, bytes.
pub(crate) const TOKEN_NAME_BYTES_MAX: usize = 100;
/// An image reference, bytes.
pub(crate) const REFERENCE_BYTES_MAX: usize = 512;
/// Revisions whose resolved image is kept in memory.
pub(crate) const PREPARED_MAX: usize = 2048;
/// Lines of progress on their way to a client; further progress is left out,
/// what matters is never more than `EVENTS_KEPT` lines.
pub(crate) const EVENTS_MAX: usize = 64;
/// Room that progress may not take.
pub(crate) const EVENTS_KEPT: usize = 16;
/// Bytes between two lines of progress.
pub(crate) const PROGRESS_STEP_BYTES: u64 = 256 * 1024;
/// Lines of a log that an answer starts with unless told, and at most.
pub(crate) const LOG_TAIL_DEFAULT: u32 = 100;
/// See [`LOG_TAIL_DEFAULT`].
pub(crate) const LOG_TAIL_MAX: u32 = 100_000;
/// Connections to the API.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// From accepting a connection to the end of a request's head.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// For a TLS handshake.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For a JSON body.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two pieces of an imported tar.
pub(crate) const IMPORT_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// For the rest of a tar whose import has failed.
pub(crate) const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);
/// For one pull or import.
pub(crate) const PULL_TIMEOUT: Duration = Duration::from_secs(3600);
/// Above the probe's start timeout, for making the sandbox.
pub(crate) const START_MARGIN: Duration = Duration::from_secs(60);
/// For an answer of the fleet, the logs, the traces or the ledger.
pub(crate) const PORT_TIMEOUT: Duration = Duration::from_secs(30);
/// Processes that clients have in instances, in the whole server.
pub(crate) const EXECS_MAX: usize = 64;
/// From the answer to such a call to the stream that follows it.
pub(crate) const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two signs of life to a client that a process has nothing for.
pub(crate) const EXEC_ALIVE_PERIOD: Duration = Duration::from_secs(20);
/// Frames that wait for a client that reads slowly.
pub(crate) const EXEC_FRAMES_MAX: usize = 8;
/// Without a byte for so long, a process that has ended has no more to say,
/// whoever else holds its output.
pub(crate) const EXEC_SILENCE: Duration = Duration::from_secs(2);
/// For a client to take what a process that has ended has written.
pub(crate) const EXEC_LAST_WORDS: Duration = Duration::from_secs(30);
