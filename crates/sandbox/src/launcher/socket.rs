//! Frames and descriptors over a `SOCK_SEQPACKET` socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use skiff_wire::{FRAME_BYTES_MAX, FRAME_FDS_MAX};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Between two tries to reach a launcher that is just starting.
const CONNECT_PERIOD: Duration = Duration::from_millis(5);

/// A connected socket. Sending and receiving are cancel-safe: a frame is
/// taken whole in the poll that completes.
#[derive(Debug)]
pub struct FrameSocket {
    /// Only its registration and `try_io` are used: what it reads and writes
    /// by itself would lose the bounds of frames.
    registered: UnixStream,
}

/// One frame as received.
#[derive(Debug)]
pub struct Received {
    pub len: usize,
    pub fds: Vec<OwnedFd>,
}

impl FrameSocket {
    /// Takes a connected socket over.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // The longest frame is over Linux's default send buffer.
        rustix::net::sockopt::set_socket_send_buffer_size(&fd, 2 * FRAME_BYTES_MAX)?;
        Ok(Self {
            registered: UnixStream::from_std(fd.into())?,
        })
    }

    /// Connects, trying again while nobody listens yet. The caller sets the deadline.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        loop {
            let fd = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?;
            match rustix::net::connect(&fd, &address) {
                Ok(()) => return Self::new(fd),
                Err(
                    rustix::io::Errno::NOENT
                    | rustix::io::Errno::CONNREFUSED
                    | rustix::io::Errno::AGAIN,
                ) => tokio::time::sleep(CONNECT_PERIOD).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends one frame whole.
    pub async fn send(&self, frame: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        let socket = &self.registered;
        loop {
            socket.writable().await?;
            let sent = socket.try_io(Interest::WRITABLE, || send_now(socket.as_fd(), frame, fds));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    /// Receives one frame into the buffer; no bytes mean the other side has
    /// closed.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let socket = &self.registered;
        loop {
            socket.readable().await?;
            let received =
                socket.try_io(Interest::READABLE, || receive_now(socket.as_fd(), buffer));
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }
}

fn send_now(socket: BorrowedFd<'_>, frame: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("too many descriptors for one frame"));
    }
    let iov = [IoSlice::new(frame)];
    rustix::net::sendmsg(socket, &iov, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_now(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(buffer)];
    let message = rustix::net::recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // Collected before anything is refused, so that a refusal closes them.
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame or its descriptors are over the limit",
        ));
    }
    Ok(Received {
        len: message.bytes,
        fds,
    })
}
