//! Frames with descriptors over a `SOCK_SEQPACKET` socket: what a launcher
//! and its clients without a runtime share.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use skiff_wire::FRAME_BYTES_MAX;

/// Descriptors of one frame between launcher and init: the kernel's own limit
/// is 253 (`SCM_MAX_FD`).
const FDS_MAX: usize = 253;

/// A pair of connected sockets that carries the longest frame.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    fit_frames(&ours)?;
    fit_frames(&theirs)?;
    Ok((ours, theirs))
}

/// Makes the send buffer take the longest frame.
///
/// # Errors
/// Those of setsockopt(2).
pub fn fit_frames(socket: impl AsFd) -> Result<()> {
    let wanted = 2 * FRAME_BYTES_MAX;
    if rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, wanted).is_ok() {
        return Ok(());
    }
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, wanted)
}

/// Sends one frame.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send(
    socket: impl AsFd,
    frame: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    loop {
        let sent = rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(frame)],
            &mut ancillary,
            flags | SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives one frame into `buffer`: its length and its descriptors, or
/// nothing when the other side has closed.
///
/// A frame that is longer than the buffer is an error, so is one whose
/// descriptors did not all arrive.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let received = rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut ancillary,
            flags | RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(Errno::MSGSIZE);
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((message.bytes, fds)))
}
