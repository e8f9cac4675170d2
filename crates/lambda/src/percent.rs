//! Percent-encoding (RFC 3986 §2.1) as signatures need it.

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// The bytes that a percent-encoded text stands for; `None` when a `%` is not
/// followed by two hexadecimal digits or the bytes are no UTF-8.
#[must_use]
pub fn decode(text: &str) -> Option<String> {
    String::from_utf8(decode_bytes(text)?).ok()
}

/// A query's names and values, decoded, in the order they stand in. `+` is a
/// plus: AWS's clients write a space as `%20`.
#[must_use]
pub fn decode_query(query: &str) -> Option<Vec<(String, String)>> {
    pairs(query)
        .map(|(name, value)| Some((decode(name)?, decode(value)?)))
        .collect()
}

/// A query's names and values as they were sent.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

pub(crate) fn decode_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(digit(digits[0])? << 4 | digit(digits[1])?);
        rest = after;
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Encodes everything but unreserved characters, and `/` if that `keeps` it.
pub(crate) fn encode(bytes: &[u8], keeps_slash: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            b'/' if keeps_slash => text.push('/'),
            _ => {
                text.push('%');
                text.push(char::from(HEX[usize::from(byte >> 4)]));
                text.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    text
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .map(|digit| char::from(HEX[usize::from(digit)]).to_ascii_lowercase())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_reads_back_and_what_is_broken_is_refused() {
        assert_eq!(encode("a b/ä~".as_bytes(), false), "a%20b%2F%C3%A4~");
        assert_eq!(encode(b"/a%2F", true), "/a%252F");
        for (text, expected) in [
            ("arn%3Aaws", Some("arn:aws")),
            ("a+b", Some("a+b")),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%ff", None),
        ] {
            assert_eq!(decode(text).as_deref(), expected, "{text}");
        }
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            decode_query("a=b%3D&&c").unwrap(),
            [pair("a", "b="), pair("c", "")]
        );
        assert_eq!(hex(&[0, 0xaf]), "00af");
    }
}
