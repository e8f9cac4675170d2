//! What an invocation of a function says in HTTP beside its event and its
//! answer. Names are AWS's.
//!
//! A buffered answer says in its head that the function has failed, and how its
//! log ends. A streamed one learns of both behind its head: whoever asks with
//! `TE: trailers` is told at its end.

/// Asks for the end of the log, as `Tail`.
pub const LOG_TYPE: &str = "x-amz-log-type";
/// The end of the log, base 64; in a head or in trailers.
pub const LOG_RESULT: &str = "x-amz-log-result";
/// The function has failed: in a head the body is its error, in trailers this is
/// the error's type.
pub const FUNCTION_ERROR: &str = "x-amz-function-error";
/// In trailers only: what is said of the error, base 64. Runtimes say it by this
/// name, too.
pub const ERROR_BODY: &str = "lambda-runtime-function-error-body";
/// The version that has answered.
pub const EXECUTED_VERSION: &str = "x-amz-executed-version";

/// Asks for the event back if its runtime ends before it has got it: the answer
/// says so by this name, too, and its body is the event.
pub const RETURN_EVENT: &str = "x-skiff-return-event";

/// A log's end, bytes (AWS's).
pub const LOG_BYTES_MAX: usize = 4096;
/// An error's type, bytes.
pub const ERROR_TYPE_BYTES_MAX: usize = 256;
/// What is said of an error in trailers, bytes: with a log's end, in base 64,
/// they stay below the 16 KiB that hyper and the gateway read.
pub const ERROR_BODY_BYTES_MAX: usize = 6 * 1024;
