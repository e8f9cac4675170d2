use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connection to whatever serves at its other end: nobody who holds one
/// knows an address.
#[derive(Debug)]
pub enum ByteStream {
    /// A socket in some network namespace.
    Tcp(TcpStream),
    /// A local socket, as a monitor's vsock has.
    Unix(UnixStream),
    /// Within this process, to another task.
    Memory(DuplexStream),
    /// Within this process, to what answers while it is written to and read.
    Inline(Pin<Box<dyn Inline>>),
}

/// A connection whose other end is no task and no socket.
pub trait Inline: AsyncRead + AsyncWrite + Debug + Send + 'static {}

impl ByteStream {
    /// Waits for bytes and looks at them without taking them: how many came,
    /// nothing at the end.
    ///
    /// # Errors
    /// Those of recv(2); `Unsupported` of what is no socket.
    pub async fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.peek(buffer).await,
            Self::Unix(stream) => {
                let peek = || Ok(rustix::net::recv(&*stream, &mut *buffer, RecvFlags::PEEK)?.0);
                stream.async_io(Interest::READABLE, peek).await
            }
            Self::Memory(_) | Self::Inline(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Has small writes go out at once, where they would wait for more.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) | Self::Memory(_) | Self::Inline(_) => Ok(()),
        }
    }

    /// Writes what a socket takes at once.
    ///
    /// # Errors
    /// Those of send(2), `WouldBlock` among them; `Unsupported` of what is no
    /// socket.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Memory(_) | Self::Inline(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            ByteStream::Tcp($stream) => $call,
            ByteStream::Unix($stream) => $call,
            ByteStream::Memory($stream) => $call,
            ByteStream::Inline($stream) => $call,
        }
    };
}

impl AsyncRead for ByteStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Memory(stream) => stream.is_write_vectored(),
            Self::Inline(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
