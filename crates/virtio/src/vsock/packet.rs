//! A packet's header, as bytes in guest memory (virtio 1.3, 5.10.6).

/// A header's length.
pub(super) const HEADER_BYTES: usize = 44;
/// The only type of socket that was offered: streams.
const STREAM: u16 = 1;

/// Of a shutdown: the sender will receive no more.
pub(super) const NO_RECEIVE: u32 = 1;
/// Of a shutdown: the sender will send no more.
pub(super) const NO_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    const ALL: [(Self, u16); 7] = [
        (Self::Request, 1),
        (Self::Response, 2),
        (Self::Reset, 3),
        (Self::Shutdown, 4),
        (Self::Data, 5),
        (Self::CreditUpdate, 6),
        (Self::CreditRequest, 7),
    ];

    fn from_number(number: u16) -> Option<Self> {
        let known = Self::ALL.iter().find(|(_, known)| *known == number);
        known.map(|(op, _)| *op)
    }

    fn number(self) -> u16 {
        let known = Self::ALL.iter().find(|(op, _)| *op == self);
        known.map_or(0, |(_, number)| *number)
    }
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) target_cid: u64,
    pub(super) source_port: u32,
    pub(super) target_port: u32,
    pub(super) bytes: u32,
    /// `None` is one that nobody knows.
    pub(super) op: Option<Op>,
    pub(super) is_stream: bool,
    pub(super) flags: u32,
    /// How much the sender holds for the receiver's bytes.
    pub(super) buffer: u32,
    /// How many of the receiver's bytes the sender has handed on, wrapping.
    pub(super) forwarded: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let quad = |at| u64::from_le_bytes(array(bytes, at));
        let long = |at| u32::from_le_bytes(array(bytes, at));
        let short = |at| u16::from_le_bytes(array(bytes, at));
        Self {
            source_cid: quad(0),
            target_cid: quad(8),
            source_port: long(16),
            target_port: long(20),
            bytes: long(24),
            is_stream: short(28) == STREAM,
            op: Op::from_number(short(30)),
            flags: long(32),
            buffer: long(36),
            forwarded: long(40),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(value) {
                *to = *from;
            }
        };
        put(0, &self.source_cid.to_le_bytes());
        put(8, &self.target_cid.to_le_bytes());
        put(16, &self.source_port.to_le_bytes());
        put(20, &self.target_port.to_le_bytes());
        put(24, &self.bytes.to_le_bytes());
        put(28, &u16::from(self.is_stream).to_le_bytes());
        put(30, &self.op.map_or(0, Op::number).to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buffer.to_le_bytes());
        put(40, &self.forwarded.to_le_bytes());
        bytes
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    for (to, from) in array.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    array
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_headers_fields_are_where_the_protocol_has_them() {
        let header = Header {
            source_cid: 3,
            target_cid: 2,
            source_port: 0x1111,
            target_port: 0x2222,
            bytes: 5,
            op: Some(Op::Data),
            is_stream: true,
            flags: 3,
            buffer: 0x4000,
            forwarded: 7,
        };
        let bytes = header.to_bytes();
        assert_eq!((bytes[0], bytes[8], bytes[24]), (3, 2, 5));
        assert_eq!(bytes[16..18], [0x11, 0x11]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!((bytes[32], bytes[37], bytes[40]), (3, 0x40, 7));
        assert_eq!(Header::parse(&bytes), header);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header(bytes in prop::array::uniform32(any::<u8>())) {
            let mut all = [0; HEADER_BYTES];
            all[12..].copy_from_slice(&bytes);
            let header = Header::parse(&all);
            let again = Header::parse(&header.to_bytes());
            prop_assert_eq!(again, header);
        }
    }
}
