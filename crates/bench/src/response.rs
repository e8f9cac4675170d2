//! The little of HTTP/1.1 that a measuring client reads.

use std::io::Read;

use anyhow::ensure;

/// A response that has arrived whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    pub status: u16,
    pub body: &'a [u8],
    /// The server will close.
    pub close: bool,
    /// Bytes it takes.
    pub length: usize,
}

/// The first response of these bytes, when it is whole. A chunked body is
/// given as it came, sizes and all.
pub fn parse(bytes: &[u8]) -> Option<Response<'_>> {
    let head_end = find(bytes, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..head_end]).ok()?;
    let status = head.get(9..12)?.parse().ok()?;
    let field = |name| field(head, name);
    let close = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let rest = &bytes[head_end..];
    let body_length = if field("transfer-encoding").is_some() {
        if rest.starts_with(b"0\r\n\r\n") {
            5
        } else {
            find(rest, b"\r\n0\r\n\r\n")? + 7
        }
    } else {
        field("content-length").map_or(Some(0), |text| text.parse().ok())?
    };
    let body = rest.get(..body_length)?;
    Some(Response {
        status,
        body,
        close,
        length: head_end + body_length,
    })
}

/// Reads until a response is whole.
///
/// # Errors
/// When the connection ends or breaks before, or 64 KiB hold no head.
pub fn receive(stream: &mut impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while parse(&bytes).is_none() {
        let mut more = [0; 16 * 1024];
        let count = stream.read(&mut more)?;
        ensure!(count > 0, "closed without an answer");
        bytes.extend_from_slice(&more[..count]);
        let has_head = find(&bytes, b"\r\n\r\n").is_some();
        ensure!(has_head || bytes.len() < 1 << 16, "no answer");
    }
    Ok(bytes)
}

/// A header field of a head.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_given_when_it_is_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\nHTTP";
        assert!(parse(&whole[..30]).is_none());
        assert!(parse(&whole[..40]).is_none());
        let response = parse(whole).unwrap();
        assert_eq!(
            (response.status, response.body, response.close),
            (200, &b"ok\n"[..], false)
        );
        assert_eq!(response.length, whole.len() - 4);
        let chunked = b"HTTP/1.1 503 No\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
        assert!(parse(&chunked[..chunked.len() - 1]).is_none());
        let response = parse(chunked).unwrap();
        assert_eq!(
            (response.status, response.close, response.length),
            (503, true, chunked.len())
        );
    }
}
