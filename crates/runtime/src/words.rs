//! What callers and runtimes are told, in AWS's words.

use bytes::Bytes;
use http::HeaderValue;
use serde::Serialize;
use skiff_base::random;
use skiff_types::limits::EVENT_BYTES_MAX;
use skiff_wire::launcher::Exit;

/// What a runtime may answer: AWS leaves it a little more than an event.
pub(crate) const ANSWER_BYTES_MAX: usize = EVENT_BYTES_MAX + 100;

#[derive(Debug, Serialize)]
struct FunctionError<'a> {
    #[serde(rename = "errorType")]
    kind: &'a str,
    #[serde(rename = "errorMessage")]
    message: &'a str,
}

/// A function's error that the runtime did not tell itself.
pub(crate) fn error(kind: &str, message: &str) -> Bytes {
    let body = serde_json::to_vec(&FunctionError { kind, message });
    // Two strings always become JSON.
    body.unwrap_or_default().into()
}

pub(crate) fn timed_out(id: &str, seconds: u32) -> Bytes {
    let message = format!("RequestId: {id} Error: Task timed out after {seconds}.00 seconds");
    error("Sandbox.Timedout", &message)
}

pub(crate) fn exited(id: &str, exit: &Exit) -> Bytes {
    let message = format!("RequestId: {id} Error: {}", how(exit));
    error("Runtime.ExitError", &message)
}

pub(crate) fn truncated(id: &str) -> Bytes {
    let message = format!("RequestId: {id} Error: the runtime's answer broke off");
    error("Runtime.TruncatedResponse", &message)
}

pub(crate) fn too_large(bytes: u64) -> Bytes {
    let message = format!(
        "Response payload size ({bytes} bytes) exceeded maximum allowed payload size ({EVENT_BYTES_MAX} bytes)."
    );
    error("Function.ResponseSizeTooLarge", &message)
}

/// How a runtime ended.
pub(crate) fn how(exit: &Exit) -> String {
    if exit.code == Some(0) {
        return "Runtime exited without providing a reason".to_owned();
    }
    let how = ended(exit.code, exit.signal);
    let how = how.unwrap_or_else(|| "it was lost with its sandbox".to_owned());
    format!("Runtime exited with error: {how}")
}

/// How a process ended; nothing of one that was lost.
pub(crate) fn ended(code: Option<i32>, signal: Option<i32>) -> Option<String> {
    match (code, signal) {
        (Some(code), _) => Some(format!("exit status {code}")),
        (None, Some(signal)) => Some(format!("signal: {}", name(signal))),
        (None, None) => None,
    }
}

/// signal(7), as Go names them, whose words AWS's are.
fn name(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        11 => "segmentation fault",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// A random UUID (RFC 9562, version 4).
pub(crate) fn uuid() -> String {
    let high = (random::u64() & 0xffff_ffff_ffff_0fff) | 0x4000;
    let low = (random::u64() & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// AWS's name of a trace that begins now and that nobody samples.
pub(crate) fn trace(unix_s: u64) -> HeaderValue {
    let (root, parent) = (random::trace_root(unix_s), random::u64());
    let text = format!("{root};Parent={parent:016x};Sampled=0");
    // It is digits and letters.
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Sampled=0"))
}

/// Whether it has a UUID's form.
pub(crate) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: Option<i32>, signal: Option<i32>) -> Exit {
        Exit {
            code,
            signal,
            out_of_memory: false,
            cpu_us: 0,
            memory_peak_bytes: 0,
        }
    }

    #[test]
    fn errors_are_aws_s() {
        assert_eq!(
            timed_out("7", 3),
            r#"{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: 7 Error: Task timed out after 3.00 seconds"}"#
        );
        assert_eq!(
            exited("7", &exit(Some(1), None)),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: 7 Error: Runtime exited with error: exit status 1"}"#
        );
        assert!(how(&exit(Some(0), None)).ends_with("without providing a reason"));
        assert!(how(&exit(None, Some(9))).ends_with("signal: killed"));
        assert!(how(&exit(None, Some(64))).ends_with("signal 64"));
    }

    #[test]
    fn ids_are_uuids() {
        let id = uuid();
        assert!(is_uuid(&id), "{id}");
        assert_eq!(&id[14..15], "4");
        assert_ne!(id, uuid());
        assert!(!is_uuid("x") && !is_uuid(&id.replace('-', "+")));
    }
}
