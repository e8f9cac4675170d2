//! Closing a socket with unread bytes in it resets the connection, and the
//! reset overtakes what was said last: so what a client still sends is read,
//! and thrown away, until it closes or its time is over.

use std::io;
use std::time::Duration;

use skiff_base::ByteStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long a client may take to hear the end,
const TIME: Duration = Duration::from_secs(1);
/// and how much is read of what it sends meanwhile.
const BYTES: usize = 1024 * 1024;

/// Says what is to be said last, and ends the connection.
pub(crate) async fn close(mut stream: ByteStream, last: &[u8]) {
    match tokio::time::timeout(TIME, say(&mut stream, last)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client was gone before the end"),
        Err(_) => tracing::debug!("a client still sends after the end, and is cut off"),
    }
}

async fn say(stream: &mut ByteStream, last: &[u8]) -> io::Result<()> {
    stream.write_all(last).await?;
    stream.shutdown().await?;
    let mut thrown_away = [0; 4096];
    let mut left = BYTES;
    while left > 0 {
        match stream.read(&mut thrown_away).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}
