//! From a prepared socket to a connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use tokio::net::TcpStream;

/// What became of a try to connect.
#[derive(Debug)]
pub enum Tried {
    /// It is connected.
    Connected(OwnedFd),
    /// Nobody listens; Linux lets the socket be used for the next try.
    Refused(OwnedFd),
    /// The answer is not there yet.
    Pending(OwnedFd),
}

/// Connects to the loopback address of the socket's network namespace.
///
/// There the handshake takes place while connect(2) runs, so that the answer
/// is known before an event loop would turn once.
pub fn try_now(socket: OwnedFd, port: u16) -> io::Result<Tried> {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    // Without it a small answer would wait for the acknowledgement of the
    // one before.
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    let mut tried = rustix::net::connect(&socket, &address);
    if tried == Err(Errno::INPROGRESS) {
        tried = rustix::net::connect(&socket, &address);
    }
    match tried {
        Ok(()) | Err(Errno::ISCONN) => Ok(Tried::Connected(socket)),
        Err(Errno::CONNREFUSED) => Ok(Tried::Refused(socket)),
        Err(Errno::ALREADY | Errno::INPROGRESS) => Ok(Tried::Pending(socket)),
        Err(error) => Err(error.into()),
    }
}

/// The socket as a stream of the calling task's runtime.
pub fn into_stream(socket: OwnedFd) -> io::Result<TcpStream> {
    rustix::io::ioctl_fionbio(socket.as_fd(), true)?;
    TcpStream::from_std(std::net::TcpStream::from(socket))
}

/// Waits for the answer to a try that is pending.
pub async fn finish(socket: OwnedFd) -> io::Result<TcpStream> {
    let stream = into_stream(socket)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    fn socket() -> OwnedFd {
        rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap()
    }

    /// A socket that holds its port without listening yet.
    fn bound() -> (OwnedFd, u16) {
        let socket = socket();
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        rustix::net::bind(&socket, &any).unwrap();
        let address = rustix::net::getsockname(&socket).unwrap();
        let port = SocketAddrV4::try_from(address).unwrap().port();
        (socket, port)
    }

    #[tokio::test]
    async fn a_refused_socket_connects_once_somebody_listens() {
        let (bound, port) = bound();
        let Tried::Refused(socket) = try_now(socket(), port).unwrap() else {
            panic!("nobody listens");
        };
        rustix::net::listen(&bound, 1).unwrap();
        let stream = match try_now(socket, port).unwrap() {
            Tried::Connected(socket) => into_stream(socket).unwrap(),
            Tried::Pending(socket) => finish(socket).await.unwrap(),
            Tried::Refused(_) => panic!("somebody listens"),
        };
        assert_eq!(stream.peer_addr().unwrap().port(), port);
        assert!(stream.nodelay().unwrap());
    }
}
