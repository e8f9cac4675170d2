//! Frames and descriptors over a `SOCK_SEQPACKET` socket, none of which waits.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags,
};

/// Descriptors that are taken beside one frame: more than any needs, so that
/// one too many is seen. The kernel closes what is over it.
const FDS_MAX: usize = 16;

/// A frame with its descriptors.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Receives one frame, if one is there; one without bytes is the other side's
/// end.
///
/// # Errors
/// When there is none, or it is longer than the buffer.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let slices = &mut [IoSliceMut::new(buffer)];
    let message = rustix::net::recvmsg(&socket, slices, &mut ancillary, flags)?;
    // Collected before anything is refused, so that a refusal closes them.
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok(Received {
        bytes: message.bytes,
        fds,
    })
}

/// Sends one frame.
///
/// # Errors
/// When there is no room for it now, or the other side is gone.
pub(super) fn send(socket: impl AsFd, frame: &[u8]) -> Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let slices = &[IoSlice::new(frame)];
    rustix::net::sendmsg(&socket, slices, &mut SendAncillaryBuffer::default(), flags)?;
    Ok(())
}
