//! Bytes of a segment: a header, then records.
//!
//! ```text
//! header  magic 8 | version u16 | 0 u16 | server id 16 | writer u64
//!         | first sequence number u64 | made unix_ms u64 | crc32 of all that u32
//! record  length of body u32 | crc32 of length and body u32 | body
//! body    sequence number, entry (postcard)
//! ```
//! Numbers are little-endian.

use std::io::Read;

use serde::{Deserialize, Serialize};
use skiff_types::ServerId;

use crate::{Entry, InstanceEnd};

/// A segment's header, bytes.
pub const HEADER_BYTES: usize = 56;
/// A record's body at most, bytes.
pub const RECORD_BYTES_MAX: usize = 2048;
/// A reason is cut to this, so that every entry fits a record.
const REASON_BYTES_MAX: usize = 1024;
/// Damaged places that are told of one segment.
const DAMAGE_TOLD_MAX: usize = 100;

const MAGIC: &[u8; 8] = b"SKIFLDGR";
const VERSION: u16 = 1;
const FRAME_BYTES: usize = 8;

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The data folder's id.
    pub server: ServerId,
    /// Drawn once by each writer.
    pub writer: u64,
    /// The number of its first record among the writer's.
    pub first_seq: u64,
    /// When it was made, milliseconds since 1970.
    pub made_unix_ms: u64,
}

/// An entry and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Counts the writer's entries from 0.
    pub seq: u64,
    /// Its checksum.
    pub crc: u32,
    /// What it says.
    pub entry: Entry,
}

/// Bytes in a segment that are no record, with records after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where they begin.
    pub offset: u64,
    /// Where the next record begins.
    pub resumed_at: u64,
}

/// How the reading of a segment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Just behind its last whole record.
    pub end: u64,
    /// Whether bytes follow that are no record.
    pub torn: bool,
    /// Places in the midst of it that are no records.
    pub damage: Vec<Damage>,
}

/// The segment cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// It does not begin as a segment does.
    #[error("it is no ledger segment or its header is damaged")]
    Header,
    /// A newer version wrote it.
    #[error("its format is version {found} and this program reads up to {VERSION}")]
    Version {
        /// The version.
        found: u16,
    },
    /// The file cannot be read.
    #[error("it cannot be read")]
    Io(#[from] std::io::Error),
}

#[derive(Serialize, Deserialize)]
struct Body<E> {
    seq: u64,
    entry: E,
}

impl SegmentHeader {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u16.to_le_bytes());
        out.extend_from_slice(self.server.to_string().as_bytes());
        for number in [self.writer, self.first_seq, self.made_unix_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        let mut fixed = [0; HEADER_BYTES];
        fixed.copy_from_slice(&out);
        fixed
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, SegmentError> {
        let number = |at: usize| {
            let mut out = [0; 8];
            out.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(out)
        };
        let crc = u32::from_le_bytes([bytes[52], bytes[53], bytes[54], bytes[55]]);
        if &bytes[..8] != MAGIC || crc32fast::hash(&bytes[..52]) != crc {
            return Err(SegmentError::Header);
        }
        let found = u16::from_le_bytes([bytes[8], bytes[9]]);
        if found != VERSION {
            return Err(SegmentError::Version { found });
        }
        let server = std::str::from_utf8(&bytes[12..28]).map_err(|_| SegmentError::Header)?;
        Ok(Self {
            server: server.parse().map_err(|_| SegmentError::Header)?,
            writer: number(28),
            first_seq: number(36),
            made_unix_ms: number(44),
        })
    }
}

/// Writes a record at the end of `out` and returns its checksum.
pub fn encode_record(out: &mut Vec<u8>, seq: u64, entry: &Entry) -> u32 {
    let start = out.len();
    let shortened = shorten(entry);
    let body = Body {
        seq,
        entry: shortened.as_ref().unwrap_or(entry),
    };
    out.extend_from_slice(&[0; FRAME_BYTES]);
    // Writing to memory cannot fail; names and reasons are bounded.
    let mut taken = std::mem::take(out);
    taken = postcard::to_extend(&body, taken).unwrap_or_default();
    *out = taken;
    let length = u32::try_from(out.len() - start - FRAME_BYTES).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    let crc = record_crc(length, &out[start + FRAME_BYTES..]);
    out[start + 4..start + FRAME_BYTES].copy_from_slice(&crc.to_le_bytes());
    crc
}

fn shorten(entry: &Entry) -> Option<Entry> {
    let reason = match entry {
        Entry::InstanceEnd(end) => &end.reason,
        Entry::FellBack { why, .. } => why,
        _ => return None,
    };
    if reason.len() <= REASON_BYTES_MAX {
        return None;
    }
    let whole = |at: &usize| reason.is_char_boundary(*at);
    let cut = (0..=REASON_BYTES_MAX).rev().find(whole).unwrap_or(0);
    let mut shortened = entry.clone();
    match &mut shortened {
        Entry::InstanceEnd(InstanceEnd { reason, .. }) | Entry::FellBack { why: reason, .. } => {
            reason.truncate(cut);
        }
        _ => {}
    }
    Some(shortened)
}

fn record_crc(length: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// The record at the start of the bytes, and its length.
fn decode_record(bytes: &[u8]) -> Option<(Record, usize)> {
    let (frame, rest) = bytes.split_at_checked(FRAME_BYTES)?;
    let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]);
    let crc = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]);
    let body_bytes = usize::try_from(length).ok()?;
    if body_bytes == 0 || body_bytes > RECORD_BYTES_MAX {
        return None;
    }
    let body = rest.get(..body_bytes)?;
    if record_crc(length, body) != crc {
        return None;
    }
    let (Body { seq, entry }, left) = postcard::take_from_bytes::<Body<Entry>>(body).ok()?;
    let record = Record { seq, crc, entry };
    left.is_empty()
        .then_some((record, FRAME_BYTES + body_bytes))
}

/// Reads the header only.
///
/// # Errors
/// When it is none, is of a newer version, or cannot be read.
pub(crate) fn read_header(source: &mut impl Read) -> Result<SegmentHeader, SegmentError> {
    let mut bytes = [0; HEADER_BYTES];
    source.read_exact(&mut bytes).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            SegmentError::Header
        } else {
            SegmentError::Io(error)
        }
    })?;
    SegmentHeader::decode(&bytes)
}

/// Gives each record of a segment to `visit`, from `offset` on (which is
/// behind the header, and where an earlier reading ended).
///
/// Never more than a few records are in memory. Bytes that are no record are
/// passed over when a record is found behind them.
///
/// # Errors
/// When the source cannot be read.
pub fn read_segment(
    mut source: impl Read,
    offset: u64,
    mut visit: impl FnMut(Record),
) -> std::io::Result<SegmentReport> {
    const CHUNK: usize = 64 * 1024;
    const LONGEST: usize = FRAME_BYTES + RECORD_BYTES_MAX;
    let mut report = SegmentReport {
        end: offset,
        torn: false,
        damage: Vec::new(),
    };
    let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK + LONGEST);
    // Where in the buffer, and where in the file, the next record is looked for.
    let (mut at, mut position) = (0, offset);
    let mut damaged_from = None;
    let mut at_end = false;
    loop {
        if !at_end && buffer.len() - at < LONGEST {
            buffer.drain(..at);
            at = 0;
            let filled = (&mut source).take(CHUNK as u64).read_to_end(&mut buffer)?;
            at_end = filled == 0;
            continue;
        }
        if at == buffer.len() {
            break;
        }
        if let Some((record, length)) = decode_record(&buffer[at..]) {
            if let Some(offset) = damaged_from.take()
                && report.damage.len() < DAMAGE_TOLD_MAX
            {
                report.damage.push(Damage {
                    offset,
                    resumed_at: position,
                });
            }
            visit(record);
            at += length;
            position += length as u64;
            report.end = position;
        } else {
            damaged_from.get_or_insert(position);
            at += 1;
            position += 1;
        }
    }
    report.torn = damaged_from.is_some();
    Ok(report)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{InstanceEnd, InstanceStart, RequestEntry};
    use proptest::prelude::*;
    use skiff_types::{InstanceId, IsolationClass, ProjectId};

    fn an_entry() -> impl Strategy<Value = Entry> {
        let class = prop_oneof![
            Just(IsolationClass::Container),
            Just(IsolationClass::Microvm),
            Just(IsolationClass::Null)
        ];
        let n = any::<u64>;
        prop_oneof![
            (
                any::<Option<u32>>(),
                class.clone(),
                n(),
                n(),
                n(),
                any::<u16>(),
                any::<bool>()
            )
                .prop_map(|(i, class, a, b, c, status, cold)| {
                    Entry::Request(RequestEntry {
                        instance: i.map(|i| InstanceId::from_parts(a, i)),
                        project: ProjectId::default_project(),
                        service: "hello".parse().unwrap(),
                        revision: 1,
                        class,
                        start_unix_ms: a,
                        duration_us: b,
                        bytes_in: c,
                        bytes_out: a,
                        status,
                        cold,
                    })
                }),
            (n(), n(), any::<u32>(), class, "(|.{1,200})").prop_map(
                |(a, b, memory_mib, class, why)| {
                    let start = InstanceStart {
                        instance: InstanceId::from_parts(a, memory_mib),
                        project: ProjectId::default_project(),
                        service: "hello".parse().unwrap(),
                        revision: 7,
                        class,
                        memory_mib,
                        unix_ms: b,
                    };
                    match why.is_empty() {
                        true => Entry::InstanceStart(start),
                        false => Entry::FellBack { start, why },
                    }
                }
            ),
            (n(), n(), n(), ".{0,200}").prop_map(|(a, b, c, reason)| {
                Entry::InstanceEnd(InstanceEnd {
                    instance: InstanceId::from_parts(a, 1),
                    unix_ms: a,
                    lifetime_us: b,
                    cpu_us: c,
                    reason,
                })
            }),
            (n(), n()).prop_map(|(unix_ms, boot)| Entry::ServerStart { unix_ms, boot }),
            (n(), n()).prop_map(|(from_unix_ms, to_unix_ms)| Entry::Gap {
                from_unix_ms,
                to_unix_ms
            }),
        ]
    }

    pub(crate) fn read_all(bytes: &[u8]) -> (Vec<Record>, SegmentReport) {
        let mut records = vec![];
        let report = read_segment(bytes, 0, |record| records.push(record)).unwrap();
        (records, report)
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = vec![];
        for (seq, entry) in entries.iter().enumerate() {
            encode_record(&mut bytes, seq as u64, entry);
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in prop::collection::vec(an_entry(), 0..40)) {
            let bytes = written(&entries);
            let (records, report) = read_all(&bytes);
            prop_assert_eq!(report.end, bytes.len() as u64);
            prop_assert!(!report.torn && report.damage.is_empty());
            let read: Vec<_> = records.into_iter().map(|r| r.entry).collect();
            prop_assert_eq!(read, entries);
        }

        #[test]
        fn a_changed_byte_never_goes_unnoticed(
            entries in prop::collection::vec(an_entry(), 1..20), at: prop::sample::Index, to: u8
        ) {
            let mut bytes = written(&entries);
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let (records, report) = read_all(&bytes);
            prop_assert!(records.len() < entries.len());
            prop_assert!(report.torn || !report.damage.is_empty());
        }

        #[test]
        fn a_torn_tail_costs_the_torn_record_only(
            entries in prop::collection::vec(an_entry(), 1..20), cut in 1usize..40
        ) {
            let bytes = written(&entries);
            let last = bytes.len() - written(&entries[..entries.len() - 1]).len();
            let cut = cut.min(last - 1);
            let (records, report) = read_all(&bytes[..bytes.len() - cut]);
            prop_assert_eq!(records.len(), entries.len() - 1);
            prop_assert!(report.torn);
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            read_all(&bytes);
            let mut bytes = bytes.as_slice();
            assert!(read_header(&mut bytes).is_err());
        }
    }

    #[test]
    fn a_header_reads_back_and_any_change_is_noticed() {
        let header = SegmentHeader {
            server: ServerId::from_parts(5, 6),
            writer: 7,
            first_seq: 8,
            made_unix_ms: 9,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes).unwrap(), header);
        for at in 0..HEADER_BYTES {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert!(SegmentHeader::decode(&changed).is_err(), "{at}");
        }
    }

    #[test]
    fn a_reason_without_measure_is_cut() {
        let reason = "ä".repeat(100_000);
        let end = Entry::InstanceEnd(InstanceEnd {
            instance: InstanceId::from_parts(1, 1),
            unix_ms: 1,
            lifetime_us: 1,
            cpu_us: 1,
            reason: reason.clone(),
        });
        let fell_back = Entry::FellBack {
            start: a_start(),
            why: reason,
        };
        let (records, report) = read_all(&written(&[end, fell_back]));
        assert_eq!((records.len(), report.torn), (2, false));
    }

    fn a_start() -> InstanceStart {
        InstanceStart {
            instance: InstanceId::from_parts(1_700_000_000_000, 2),
            project: ProjectId::default_project(),
            service: "hello".parse().unwrap(),
            revision: 7,
            class: IsolationClass::Container,
            memory_mib: 256,
            unix_ms: 1_700_000_000_001,
        }
    }

    /// As servers wrote it that knew no fall-backs.
    #[test]
    fn a_start_of_before_reads_back() {
        let wire = "3000000009bb0838000110303635777a73623830303030303030320c3030303030303030\
                    303030310568656c6c6f0701800281d095ffbc31";
        let bytes: Vec<u8> = (0..wire.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&wire[at..at + 2], 16).unwrap())
            .collect();
        let (records, report) = read_all(&bytes);
        assert_eq!(report.end, bytes.len() as u64);
        assert_eq!(records[0].entry, Entry::InstanceStart(a_start()));
    }
}
