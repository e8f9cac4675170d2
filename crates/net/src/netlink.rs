//! Synchronous netlink: messages built in one buffer, one send, the answers.
//!
//! The kernel handles route and nftables requests inside sendmsg(2), so that
//! every answer is queued when it returns: nothing here ever waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
    socket_with,
};

const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;

/// NLM_F_REQUEST.
pub(crate) const REQUEST: u16 = 1;
/// NLM_F_ACK.
pub(crate) const ACK: u16 = 4;
/// NLM_F_DUMP.
pub(crate) const DUMP: u16 = 0x300;
/// NLM_F_EXCL.
pub(crate) const EXCL: u16 = 0x200;
/// NLM_F_CREATE.
pub(crate) const CREATE: u16 = 0x400;
/// NLM_F_APPEND.
pub(crate) const APPEND: u16 = 0x800;

/// The largest answer: a dump fills at most 32 KiB at a time.
const ANSWER_MAX: usize = 64 * 1024;

/// Messages that go to the kernel in one send.
#[derive(Debug, Default)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    acks: usize,
}

impl Request {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a message: its fixed part, then the attributes that `fill` adds.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        let sequence = u32::try_from(start).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        fill(self);
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.acks += usize::from(flags & ACK != 0);
    }

    /// Adds an attribute to the last message.
    pub(crate) fn attribute(&mut self, kind: u16, payload: &[u8]) {
        self.nested_as(kind, |request| request.bytes.extend_from_slice(payload));
    }

    /// Adds an attribute that is a string ending in a zero byte.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.nested_as(kind, |request| {
            request.bytes.extend_from_slice(text.as_bytes());
            request.bytes.push(0);
        });
    }

    /// Adds bytes as they are: the fixed part of a nested message.
    pub(crate) fn raw(&mut self, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
    }

    /// Adds an attribute made of attributes.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.nested_as(kind | NLA_F_NESTED, fill);
    }

    fn nested_as(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// A netlink socket of the namespace it was made in.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// For links, addresses and routes.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(None)
    }

    /// For nftables.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// For what else the kernel answers by namespace.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        Ok(Self { fd })
    }

    /// Sends everything and reads every answer.
    ///
    /// # Errors
    /// The first that the kernel reports. Route messages after it were
    /// handled all the same; an nftables batch was not applied at all.
    pub(crate) fn execute(&self, request: &Request) -> io::Result<()> {
        self.send(request)?;
        let mut left = request.acks;
        let mut first = None;
        let mut buffer = vec![0; ANSWER_MAX];
        while left > 0 {
            let len = match recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                // An nftables batch that fails as a whole has one answer.
                Err(Errno::AGAIN) if first.is_some() => break,
                Err(error) => return Err(error.into()),
            };
            for message in Messages::new(&buffer[..len]) {
                if message.kind == NLMSG_ERROR {
                    left = left.saturating_sub(1);
                    first = first.or(message.error());
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Sends one request to dump or to look one thing up, and hands every answer to `each`: its kind and
    /// what follows the header.
    pub(crate) fn dump(
        &self,
        request: &Request,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.send(request)?;
        let mut buffer = vec![0; ANSWER_MAX];
        loop {
            let (len, _) = recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT)?;
            for message in Messages::new(&buffer[..len]) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return message.error().map_or(Ok(()), Err);
                    }
                    kind => each(kind, message.payload),
                }
            }
        }
    }

    fn send(&self, request: &Request) -> io::Result<()> {
        let sent = send(&self.fd, &request.bytes, SendFlags::empty())?;
        if sent == request.bytes.len() {
            return Ok(());
        }
        Err(io::Error::other("the netlink request was cut short"))
    }
}

struct Message<'a> {
    kind: u16,
    payload: &'a [u8],
}

impl Message<'_> {
    /// What an acknowledgement reports; `None` for success.
    fn error(&self) -> Option<io::Error> {
        let code = i32::from_ne_bytes(self.payload.first_chunk().copied()?);
        (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg()))
    }
}

struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (len, kind, payload) = take_header(self.rest)?;
        self.rest = self.rest.get(aligned(len)..).unwrap_or_default();
        Some(Message { kind, payload })
    }
}

fn take_header(bytes: &[u8]) -> Option<(usize, u16, &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    Some((len, kind, bytes.get(HEADER_LEN..len)?))
}

/// The attributes in a message after its fixed part.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let payload = bytes.get(4..len)?;
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        Some((kind & !NLA_F_NESTED, payload))
    })
}

fn aligned(len: usize) -> usize {
    len.div_ceil(4) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_aligned_and_read_back() {
        let mut request = Request::new();
        request.message(7, ACK, &[1, 2, 3, 4], |message| {
            message.text(3, "lo");
            message.nested(9, |nest| nest.attribute(1, &[5; 6]));
        });
        request.message(8, 0, &[], |_| {});
        let messages: Vec<_> = Messages::new(&request.bytes).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0].kind, 7);
        assert_eq!(messages[0].payload[..4], [1, 2, 3, 4]);
        let found: Vec<_> = attributes(&messages[0].payload[4..]).collect();
        assert_eq!(found[0], (3, &b"lo\0"[..]));
        assert_eq!(found[1].0, 9);
        assert_eq!(
            attributes(found[1].1).collect::<Vec<_>>(),
            [(1, &[5u8; 6][..])]
        );
        assert_eq!(request.acks, 1);
    }

    #[test]
    fn broken_answers_end_the_reading() {
        for bytes in [&[][..], &[1, 0], &[255; 16], &[0; 16], &[4, 0, 1, 0]] {
            assert!(Messages::new(bytes).count() <= 1);
        }
        assert_eq!(attributes(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }
}
