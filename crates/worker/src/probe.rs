//! Waits until an application answers.

use std::io;
use std::time::Duration;

use skiff_sandbox::Sandbox;
use skiff_types::ProbeKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

/// The first wait between two tries: a fast application must not wait for us.
const STEP_FIRST: Duration = Duration::from_millis(1);
/// Tries at the first step.
const STEPS_FIRST: u32 = 50;
/// The longest wait between two tries.
const STEP_LONGEST: Duration = Duration::from_millis(20);
/// One try's time.
const TRY_DEADLINE: Duration = Duration::from_secs(5);
/// A status line is shorter.
const STATUS_BYTES_MAX: usize = 256;

/// Tries until one succeeds, as long as the caller waits. The last try's
/// failure is kept in `last`.
pub async fn until_ready(sandbox: &dyn Sandbox, port: u16, kind: &ProbeKind, last: &mut String) {
    let mut step = STEP_FIRST;
    for count in 0u32.. {
        let tried = timeout(TRY_DEADLINE, attempt(sandbox, port, kind)).await;
        match tried.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(()) => return,
            Err(error) => *last = error.to_string(),
        }
        if count >= STEPS_FIRST {
            step = (step * 5 / 4).min(STEP_LONGEST);
        }
        sleep(step).await;
    }
}

async fn attempt(sandbox: &dyn Sandbox, port: u16, kind: &ProbeKind) -> io::Result<()> {
    let stream = sandbox.connect(port).await?;
    match kind {
        ProbeKind::Tcp => Ok(()),
        ProbeKind::Http(path) => get(stream, path).await,
    }
}

async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> io::Result<()> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: skiff-probe\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.contains(&b'\n') && head.len() < STATUS_BYTES_MAX {
        let mut buffer = [0; STATUS_BYTES_MAX];
        match stream.read(&mut buffer).await? {
            0 => break,
            len => head.extend_from_slice(&buffer[..len]),
        }
    }
    match status(&head) {
        Some(200..=399) => Ok(()),
        Some(other) => Err(io::Error::other(format!("GET {path} answered {other}"))),
        None => Err(io::Error::other(format!(
            "GET {path} was not answered in HTTP"
        ))),
    }
}

/// The code of an HTTP/1 status line.
fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|&b| b == b'\n').next()?).ok()?;
    let mut words = line.split_ascii_whitespace();
    let version = words.next()?;
    let code = words.next()?;
    (version.starts_with("HTTP/1.") && code.len() == 3).then(|| code.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_has_a_code() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\nx: y"), Some(204));
        assert_eq!(status(b"HTTP/1.0 503\r\n"), Some(503));
        for bad in [
            "",
            "HTTP/2 200\r\n",
            "HTTP/1.1 2000 OK",
            "SSH-2.0 200 x",
            "\n",
        ] {
            assert_eq!(status(bad.as_bytes()), None, "{bad}");
        }
    }
}
