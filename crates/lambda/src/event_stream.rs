//! Messages of `application/vnd.amazon.eventstream`, as
//! InvokeWithResponseStream answers them:
//!
//! ```text
//!  u32 length of all │ u32 length of the headers │ u32 CRC of these 8 bytes
//!  headers: u8 length, name, u8 7 (a text), u16 length, value
//!  payload │ u32 CRC of all before
//! ```
//! Numbers are big-endian, CRCs are CRC-32 (IEEE).

use serde_json::{Map, Value};

/// The content type of a stream.
pub const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";
/// A payload's longest piece, bytes: larger ones are cut.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

const PRELUDE_BYTES: usize = 12;
const CRC_BYTES: usize = 4;
const TEXT: u8 = 7;

/// Bytes of the function's answer, as one or more messages.
#[must_use]
pub fn payload_chunk(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 128);
    for piece in bytes.chunks(CHUNK_BYTES_MAX) {
        message(&mut out, "PayloadChunk", "application/octet-stream", piece);
    }
    out
}

/// How an invocation ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvokeComplete {
    /// AWS's name of a failure.
    pub error_code: Option<String>,
    /// What the function said of it.
    pub error_details: Option<String>,
    /// The end of its log, base 64.
    pub log_result: Option<String>,
}

impl InvokeComplete {
    /// The stream's last message.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let fields = [
            ("ErrorCode", &self.error_code),
            ("ErrorDetails", &self.error_details),
            ("LogResult", &self.log_result),
        ];
        let known = fields.into_iter().filter_map(|(name, value)| {
            let value = value.clone()?;
            Some((name.to_owned(), Value::String(value)))
        });
        let body = Value::Object(known.collect::<Map<_, _>>()).to_string();
        let mut out = Vec::with_capacity(body.len() + 128);
        message(
            &mut out,
            "InvokeComplete",
            "application/json",
            body.as_bytes(),
        );
        out
    }
}

fn message(out: &mut Vec<u8>, event: &str, content_type: &str, payload: &[u8]) {
    let mut headers = Vec::with_capacity(96);
    header(&mut headers, ":message-type", "event");
    header(&mut headers, ":event-type", event);
    header(&mut headers, ":content-type", content_type);
    let total = PRELUDE_BYTES + headers.len() + payload.len() + CRC_BYTES;
    let start = out.len();
    out.extend(length(total).to_be_bytes());
    out.extend(length(headers.len()).to_be_bytes());
    out.extend(crc32fast::hash(&out[start..]).to_be_bytes());
    out.extend(headers);
    out.extend(payload);
    out.extend(crc32fast::hash(&out[start..]).to_be_bytes());
}

/// Callers hold payloads below [`CHUNK_BYTES_MAX`] or a body's limit.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Names and values are ours, and short.
fn header(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend(name.as_bytes());
    out.push(TEXT);
    out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The payload of the first message, and what follows it.
    fn first(bytes: &[u8]) -> (&[u8], &[u8]) {
        let total = usize::try_from(u32_at(bytes, 0)).unwrap();
        let headers = usize::try_from(u32_at(bytes, 4)).unwrap();
        assert_eq!(u32_at(bytes, 8), crc32fast::hash(&bytes[..8]));
        let (message, rest) = bytes.split_at(total);
        assert_eq!(
            u32_at(message, total - 4),
            crc32fast::hash(&message[..total - 4])
        );
        (&message[12 + headers..total - 4], rest)
    }

    #[test]
    fn a_stream_is_chunks_and_an_end() {
        let large = vec![7; CHUNK_BYTES_MAX + 1];
        let stream = payload_chunk(&large);
        let (one, rest) = first(&stream);
        let (two, rest) = first(rest);
        assert_eq!((one.len(), two.len(), rest.len()), (CHUNK_BYTES_MAX, 1, 0));
        let end = InvokeComplete {
            error_code: Some("Unhandled".to_owned()),
            ..InvokeComplete::default()
        };
        let end = end.message();
        assert_eq!(first(&end).0, br#"{"ErrorCode":"Unhandled"}"#);
        assert!(payload_chunk(b"").is_empty());
    }
}
