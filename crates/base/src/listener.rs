use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

use crate::ByteStream;

/// Where connections arrive; no runtime serves it yet.
#[derive(Debug)]
pub enum Listener {
    /// A port, in some network namespace.
    Tcp(TcpListener),
    /// A local socket, as a monitor connects to for its guest.
    Unix(UnixListener),
}

impl Listener {
    /// Served by the current runtime from now on.
    ///
    /// # Errors
    /// When the runtime cannot take it.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn into_acceptor(self) -> io::Result<Acceptor> {
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener).map(Acceptor::Tcp)
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(listener).map(Acceptor::Unix)
            }
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// A [`Listener`] on a runtime.
#[derive(Debug)]
pub enum Acceptor {
    /// A port.
    Tcp(tokio::net::TcpListener),
    /// A local socket.
    Unix(tokio::net::UnixListener),
}

impl Acceptor {
    /// The next connection, and where it comes from if that has an address.
    ///
    /// # Errors
    /// Those of accept(2).
    pub async fn accept(&self) -> io::Result<(ByteStream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((ByteStream::Tcp(stream), Some(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((ByteStream::Unix(stream), None))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn hear(listener: Listener, mut client: ByteStream) -> bool {
        let acceptor = listener.into_acceptor().unwrap();
        client.write_all(b"word").await.unwrap();
        let (mut stream, peer) = acceptor.accept().await.unwrap();
        let mut seen = [0; 2];
        assert_eq!(stream.peek(&mut seen).await.unwrap(), 2);
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!((&seen, &heard), (b"wo", b"word"));
        assert_eq!(stream.try_write(b"back").unwrap(), 4);
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"back");
        drop(client);
        assert_eq!(stream.peek(&mut seen).await.unwrap(), 0);
        peer.is_some()
    }

    #[tokio::test]
    async fn both_kinds_are_accepted_looked_at_and_read() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = tokio::net::TcpStream::connect(tcp.local_addr().unwrap()).await;
        assert!(hear(tcp.into(), ByteStream::Tcp(client.unwrap())).await);
        let name = format!("skiff-base-{}-{}", std::process::id(), crate::random::u32());
        let path = std::env::temp_dir().join(name);
        let unix = UnixListener::bind(&path).unwrap();
        let client = tokio::net::UnixStream::connect(&path).await;
        std::fs::remove_file(&path).unwrap();
        assert!(!hear(unix.into(), ByteStream::Unix(client.unwrap())).await);
    }
}
