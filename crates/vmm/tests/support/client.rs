//! A client of a control socket that waits.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use skiff_base::{Clock, SystemClock};
use skiff_flat::testing::deadline;
use skiff_wire::monitor::{Answer, Envelope, FRAME_BYTES_MAX, Refusal, Reply, Request, VERSION};

/// One connection.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    last_id: u64,
}

impl Client {
    /// Takes a connected socket, and says hello.
    pub fn new(socket: OwnedFd) -> Self {
        let mut client = Self { socket, last_id: 0 };
        let hello = Request::Hello { version: VERSION };
        let reply = client.ask(hello, &[]).unwrap();
        assert!(matches!(
            reply,
            Reply::Hello {
                version: VERSION,
                ..
            }
        ));
        client
    }

    /// Connects to a path, once it is listened on.
    pub fn connect(path: &Path) -> Self {
        let started = SystemClock.now();
        loop {
            match connected(path) {
                Ok(socket) => return Self::new(socket),
                Err(Errno::NOENT | Errno::CONNREFUSED) => {
                    let waited = SystemClock.now().since(started);
                    assert!(waited < deadline(), "nobody listens");
                    std::thread::yield_now();
                }
                Err(errno) => panic!("{errno}"),
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, Refusal> {
        self.last_id += 1;
        let id = self.last_id;
        let frame = skiff_wire::encode(&Envelope { id, request }).unwrap();
        send(&self.socket, &frame, fds);
        let answer = receive(&self.socket).expect("the monitor has closed");
        assert_eq!(answer.id, id);
        answer.result
    }
}

/// A connection to a path.
pub fn connected(path: &Path) -> rustix::io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends one frame.
pub fn send(socket: impl AsFd, frame: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    let slices = &[IoSlice::new(frame)];
    rustix::net::sendmsg(&socket, slices, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// The next answer, or nothing when the monitor has closed.
pub fn receive(socket: impl AsFd) -> Option<Answer> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut ancillary = RecvAncillaryBuffer::default();
    let slices = &mut [IoSliceMut::new(&mut buffer)];
    let received = rustix::net::recvmsg(&socket, slices, &mut ancillary, RecvFlags::empty());
    // A monitor that closes with frames of ours unheard resets the connection.
    let bytes = match received {
        Ok(message) => message.bytes,
        Err(Errno::CONNRESET) => 0,
        Err(errno) => panic!("{errno}"),
    };
    (bytes > 0).then(|| skiff_wire::decode(&buffer[..bytes]).unwrap())
}
