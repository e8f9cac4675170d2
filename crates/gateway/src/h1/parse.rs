//! Heads as they come, by httparse, which refuses what is not in the grammar:
//! folded lines, blanks before colons, control bytes (RFC 9112 §2 to §5).

use std::mem::MaybeUninit;

/// Fields of one head.
pub(crate) const FIELDS_MAX: usize = 100;

/// A head that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the head is malformed")]
    Malformed(#[source] httparse::Error),
    #[error("the head has more than {FIELDS_MAX} fields")]
    Fields,
}

/// A request's head.
#[derive(Debug)]
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    /// HTTP/1.0 or HTTP/1.1.
    pub(crate) minor: u8,
    pub(crate) headers: &'a [httparse::Header<'a>],
}

/// An answer's head.
#[derive(Debug)]
pub(crate) struct ResponseHead<'a> {
    pub(crate) status: u16,
    pub(crate) reason: &'a str,
    pub(crate) minor: u8,
    pub(crate) headers: &'a [httparse::Header<'a>],
}

/// Hands a whole head on, with its length; `None` while it is not whole.
pub(crate) fn request<T>(
    bytes: &[u8],
    then: impl FnOnce(&RequestHead<'_>) -> T,
) -> Result<Option<(usize, T)>, HeadError> {
    let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let status = head.parse_with_uninit_headers(bytes, &mut headers);
    let httparse::Status::Complete(length) = status.map_err(head_error)? else {
        return Ok(None);
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Ok(None);
    };
    let head = RequestHead {
        method,
        target,
        minor,
        headers: head.headers,
    };
    Ok(Some((length, then(&head))))
}

/// Hands a whole head on, with its length; `None` while it is not whole.
pub(crate) fn response<T>(
    bytes: &[u8],
    then: impl FnOnce(&ResponseHead<'_>) -> T,
) -> Result<Option<(usize, T)>, HeadError> {
    let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut head, bytes, &mut headers);
    let httparse::Status::Complete(length) = status.map_err(head_error)? else {
        return Ok(None);
    };
    let (Some(status), Some(minor)) = (head.code, head.version) else {
        return Ok(None);
    };
    let head = ResponseHead {
        status,
        reason: head.reason.unwrap_or_default(),
        minor,
        headers: head.headers,
    };
    Ok(Some((length, then(&head))))
}

fn head_error(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::Fields,
        other => HeadError::Malformed(other),
    }
}

/// Whether a head may end at or after `from`: looking costs less than parsing
/// a head anew for each of its bytes.
pub(crate) fn may_end(bytes: &[u8], from: usize) -> bool {
    let tail = &bytes[from.saturating_sub(3).min(bytes.len())..];
    from == 0
        || tail.windows(2).any(|two| two == b"\n\n")
        || tail.windows(3).any(|three| three == b"\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_handed_on_when_it_is_whole() {
        let wire = b"GET /a?b HTTP/1.1\r\nhost: x\r\nX-A:  b \r\n\r\nrest";
        for end in 0..wire.len() - 4 {
            let found = request(&wire[..end], |_| ()).unwrap();
            assert_eq!(found.is_some(), end == wire.len() - 4, "{end}");
        }
        let (length, ()) = request(wire, |head| {
            assert_eq!((head.method, head.target, head.minor), ("GET", "/a?b", 1));
            assert_eq!(head.headers[1].name, "X-A");
            assert_eq!(head.headers[1].value, b"b");
        })
        .unwrap()
        .unwrap();
        assert_eq!(length, wire.len() - 4);
    }

    #[test]
    fn too_many_fields_are_told_apart_from_bad_ones() {
        let many = "x: 1\r\n".repeat(FIELDS_MAX + 1);
        let wire = format!("GET / HTTP/1.1\r\n{many}\r\n");
        let error = request(wire.as_bytes(), |_| ()).unwrap_err();
        assert_eq!(error, HeadError::Fields);
        let wire = format!("HTTP/1.1 200 OK\r\n{many}\r\n");
        let error = response(wire.as_bytes(), |_| ()).unwrap_err();
        assert_eq!(error, HeadError::Fields);
        let error = response(b"HTTP/1.1 two\r\n\r\n", |_| ()).unwrap_err();
        assert!(matches!(error, HeadError::Malformed(_)));
    }

    #[test]
    fn the_end_is_seen_wherever_the_bytes_are_parted() {
        for wire in [
            &b"GET / HTTP/1.1\r\na: b\r\n\r\n"[..],
            b"GET / HTTP/1.1\na: b\n\n",
        ] {
            let ends: Vec<_> = (2..=wire.len())
                .filter(|&end| may_end(&wire[..end], end - 1))
                .collect();
            assert!(ends.contains(&wire.len()), "{ends:?}");
            assert!(ends.iter().all(|&end| end == wire.len()), "{ends:?}");
        }
        assert!(may_end(b"", 0));
    }
}
