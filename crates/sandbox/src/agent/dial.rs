//! Connections to a guest's ports through its monitor's socket, as
//! Firecracker has them: `CONNECT PORT` and a line feed, `OK` and a number.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// `OK 4294967295` and a line feed.
const ANSWER_BYTES_MAX: usize = 14;
/// Between two tries to reach a guest that is still booting.
const CONNECT_PERIOD: Duration = Duration::from_millis(2);

/// One try.
pub async fn dial(monitor: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(monitor).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES_MAX);
    // What follows the line feed is the stream's already.
    while answer.last() != Some(&b'\n') {
        if answer.len() == ANSWER_BYTES_MAX {
            return Err(unreadable(&answer));
        }
        answer.push(stream.read_u8().await?);
    }
    if !answer.starts_with(b"OK ") {
        return Err(unreadable(&answer));
    }
    Ok(stream)
}

/// Tries until somebody listens there. The caller sets the deadline.
pub async fn dial_patiently(monitor: &Path, port: u32) -> io::Result<UnixStream> {
    loop {
        match dial(monitor, port).await {
            Err(error) if may_come(&error) => tokio::time::sleep(CONNECT_PERIOD).await,
            result => return result,
        }
    }
}

/// The monitor closes a connection that the guest does not take.
fn may_come(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::WouldBlock
    )
}

fn unreadable(answer: &[u8]) -> io::Error {
    let answer = String::from_utf8_lossy(answer);
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the monitor answers {answer:?} instead of OK"),
    )
}
