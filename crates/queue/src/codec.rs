//! Bytes of a segment: a header, then frames.
//!
//! ```text
//! header  magic 8 | version u16 | 0 u16 | next event's number u64 | crc32 of all that u32
//! frame   length of body u32 | crc32 of length and body u32 | body
//! body    length of entry u32 | entry (postcard) | payload | response
//! ```
//! Numbers are little-endian. A frame that is not whole, or not what its
//! checksum says, ends its segment: nothing behind it was acknowledged.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::{Event, EventId, Outcome, State};

/// An event's payload, bytes (AWS's limit).
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// What is kept of a function's answer for its destinations, bytes.
pub const RESPONSE_BYTES_MAX: usize = 256 * 1024;
/// Everything else in a frame, bytes.
const ENTRY_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + RESPONSE_BYTES_MAX + ENTRY_BYTES_MAX;

pub(crate) const HEADER_BYTES: usize = 24;
pub(crate) const FRAME_BYTES: usize = 8;
const MAGIC: &[u8; 8] = b"SKIFEVNT";
const VERSION: u16 = 1;

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// An event, as it was accepted or moved here; the payload follows, and
    /// the response when its tries are over.
    Event {
        id: EventId,
        state: State,
        event: Event,
        outcome: Option<Outcome>,
        payload_bytes: u32,
        has_response: bool,
    },
    /// How far an event is.
    State { id: EventId, state: State },
    /// The tries of an event are over; the response follows.
    Over {
        id: EventId,
        state: State,
        outcome: Outcome,
        has_response: bool,
    },
    /// Nothing is left to do with it.
    Done { id: EventId },
}

/// A frame, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub entry: Entry,
    /// Payload and response.
    pub tail: Vec<u8>,
    /// All its bytes.
    pub bytes: u64,
}

pub(crate) fn header(next: EventId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..20].copy_from_slice(&next.0.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..20]);
    bytes[20..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a header; `None` when it is none.
pub(crate) fn read_header(bytes: &[u8; HEADER_BYTES]) -> Option<EventId> {
    let crc = u32::from_le_bytes(bytes[20..].try_into().ok()?);
    let version = u16::from_le_bytes(bytes[8..10].try_into().ok()?);
    let good = crc == crc32fast::hash(&bytes[..20]) && &bytes[..8] == MAGIC && version == VERSION;
    let next = u64::from_le_bytes(bytes[12..20].try_into().ok()?);
    good.then_some(EventId(next))
}

/// Appends a frame; how many bytes it has.
pub(crate) fn push(buffer: &mut Vec<u8>, entry: &Entry, payload: &[u8], response: &[u8]) -> u64 {
    // An entry is made of texts and numbers: writing it into memory cannot fail.
    let entry = postcard::to_stdvec(entry).unwrap_or_default();
    let length = 4 + entry.len() + payload.len() + response.len();
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let entry_length = u32::try_from(entry.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut crc = crc32fast::Hasher::new();
    for part in [&length[..], &entry_length, &entry, payload, response] {
        crc.update(part);
    }
    let begin = buffer.len();
    buffer.extend(length);
    buffer.extend(crc.finalize().to_le_bytes());
    buffer.extend(entry_length);
    buffer.extend(entry);
    buffer.extend(payload);
    buffer.extend(response);
    (buffer.len() - begin) as u64
}

/// Reads the next frame; `None` at the end of what is whole.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn read_frame(file: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0; FRAME_BYTES];
    if !fill(file, &mut head)? {
        return Ok(None);
    }
    let (length, crc) = head.split_at(4);
    let (Ok(length_bytes), Ok(crc)) = (<[u8; 4]>::try_from(length), crc.try_into()) else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(length_bytes) as usize;
    if !(4..=BODY_BYTES_MAX).contains(&length) {
        return Ok(None);
    }
    let mut body = vec![0; length];
    if !fill(file, &mut body)? {
        return Ok(None);
    }
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length_bytes);
    sum.update(&body);
    if sum.finalize() != u32::from_le_bytes(crc) {
        return Ok(None);
    }
    Ok(open(body).map(|(entry, tail)| Frame {
        entry,
        tail,
        bytes: (FRAME_BYTES + length) as u64,
    }))
}

fn open(mut body: Vec<u8>) -> Option<(Entry, Vec<u8>)> {
    let length = u32::from_le_bytes(body.get(..4)?.try_into().ok()?) as usize;
    let end = length.checked_add(4)?;
    let entry: Entry = postcard::from_bytes(body.get(4..end)?).ok()?;
    let tail = body.split_off(end);
    let payload = match &entry {
        Entry::Event { payload_bytes, .. } => *payload_bytes as usize,
        _ => 0,
    };
    (payload <= tail.len()).then_some((entry, tail))
}

/// Whether there were as many bytes.
fn fill(file: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FunctionKey, Phase};
    use proptest::prelude::*;

    fn event(id: u64, payload: &[u8]) -> Entry {
        Entry::Event {
            id: EventId(id),
            state: State::begin(Phase::Invoke, 7),
            event: Event {
                function: FunctionKey {
                    project: "000000000001".parse().unwrap(),
                    name: "a".parse().unwrap(),
                },
                qualifier: Some("live".to_owned()),
                arn: "arn".to_owned(),
                request_id: "id".to_owned(),
                accepted_unix_ms: 1,
                client_context: None,
                trace_id: None,
                key: None,
                hops: 0,
            },
            outcome: None,
            payload_bytes: u32::try_from(payload.len()).unwrap(),
            has_response: false,
        }
    }

    #[test]
    fn a_header_is_read_unless_a_bit_of_it_is_another() {
        let bytes = header(EventId(77));
        assert_eq!(read_header(&bytes), Some(EventId(77)));
        for bit in 0..HEADER_BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_header(&changed), None, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn frames_come_back_up_to_the_first_that_is_not_whole(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 1..8),
            cut in any::<prop::sample::Index>(),
            flip in any::<Option<prop::sample::Index>>(),
        ) {
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for (id, payload) in (0..).zip(&payloads) {
                push(&mut bytes, &event(id, payload), payload, b"");
                ends.push(bytes.len());
            }
            let mut kept = cut.index(bytes.len() + 1);
            bytes.truncate(kept);
            if let Some(flip) = flip && !bytes.is_empty() {
                let at = flip.index(bytes.len());
                bytes[at] ^= 0x10;
                kept = at;
            }
            let whole = ends.iter().filter(|end| **end <= kept).count();
            let mut file = bytes.as_slice();
            for (id, payload) in (0..).zip(&payloads[..whole]) {
                let frame = read_frame(&mut file).unwrap().unwrap();
                prop_assert_eq!(frame.entry, event(id, payload));
                prop_assert_eq!(&frame.tail, payload);
            }
            prop_assert_eq!(read_frame(&mut file).unwrap(), None);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut framed = Vec::new();
            framed.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
            let mut crc = crc32fast::Hasher::new();
            crc.update(&framed);
            crc.update(&bytes);
            framed.extend(crc.finalize().to_le_bytes());
            framed.extend(&bytes);
            let _frame = read_frame(&mut framed.as_slice()).unwrap();
            let _frame = read_frame(&mut bytes.as_slice()).unwrap();
        }
    }
}
