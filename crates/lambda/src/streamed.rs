//! A body in signed chunks (AWS, "Transferring payload in multiple chunks"):
//!
//! ```text
//!  LENGTH;chunk-signature=SIGNATURE\r\n DATA \r\n   … 0;chunk-signature=…\r\n\r\n
//! ```
//! Each signature covers the one before it, the first the request's own.

use subtle::ConstantTimeEq as _;

use crate::percent::hex;
use crate::sigv4::{SignatureError, hmac, payload_sha256, unhex};

const ALGORITHM: &str = "AWS4-HMAC-SHA256-PAYLOAD";
/// The line before a chunk, bytes.
const LINE_BYTES_MAX: usize = 128;

/// What every chunk's signature is made with.
#[derive(Debug)]
pub(crate) struct Seal<'a> {
    pub key: [u8; 32],
    pub time: &'a str,
    pub scope: &'a str,
}

impl Seal<'_> {
    fn sign(&self, before: &[u8; 32], data: &[u8]) -> [u8; 32] {
        let to_sign = format!(
            "{ALGORITHM}\n{}\n{}\n{}\n{}\n{}",
            self.time,
            self.scope,
            hex(before),
            payload_sha256(b""),
            payload_sha256(data)
        );
        hmac(&self.key, to_sign.as_bytes())
    }
}

/// The data of all chunks, which are `length` bytes together.
pub(crate) fn open(
    mut body: &[u8],
    seal: &Seal<'_>,
    request: [u8; 32],
    length: usize,
) -> Result<Vec<u8>, SignatureError> {
    let broken = SignatureError::Incomplete("the body is not made of signed chunks");
    let mut before = request;
    let mut whole = Vec::with_capacity(length.min(body.len()));
    loop {
        let (size, signature, rest) = line(body).ok_or_else(|| broken.clone())?;
        let (data, rest) = rest.split_at_checked(size).ok_or_else(|| broken.clone())?;
        let expected = seal.sign(&before, data);
        if !bool::from(expected.ct_eq(&signature)) {
            return Err(SignatureError::Mismatch);
        }
        before = expected;
        whole.extend(data);
        body = match rest.strip_prefix(b"\r\n") {
            Some(rest) => rest,
            // The last one's end is left out by some.
            None if size == 0 && rest.is_empty() => rest,
            None => return Err(broken),
        };
        if size == 0 {
            break;
        }
    }
    if !body.is_empty() || whole.len() != length {
        return Err(broken);
    }
    Ok(whole)
}

/// A chunk's length, its signature, and what follows the line.
fn line(body: &[u8]) -> Option<(usize, [u8; 32], &[u8])> {
    let seen = &body[..body.len().min(LINE_BYTES_MAX)];
    let end = seen.windows(2).position(|pair| pair == b"\r\n")?;
    let text = std::str::from_utf8(&seen[..end]).ok()?;
    let (size, signature) = text.split_once(";chunk-signature=")?;
    let digits = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
    let size = digits.then(|| usize::from_str_radix(size, 16).ok())??;
    Some((size, unhex(signature)?, &body[end + 2..]))
}
