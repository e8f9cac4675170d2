//! Which host a request is for (RFC 9112 §3.2, RFC 9110 §7.2).

use std::borrow::Cow;

use http::header::HOST;
use http::{HeaderValue, Request, Version};

/// A request whose host cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    #[error("the request has no Host header")]
    Missing,
    #[error("the request has more than one Host header")]
    Several,
    #[error("the request's Host is not a host name")]
    Malformed,
}

/// The host with its port, as it goes on to the instance. In absolute form
/// and in HTTP/2 the target's authority counts, not the header.
pub(crate) fn authority<B>(request: &Request<B>) -> Result<HeaderValue, HostError> {
    if let Some(authority) = request.uri().authority() {
        if authority.as_str().contains('@') {
            return Err(HostError::Malformed);
        }
        return HeaderValue::from_str(authority.as_str()).map_err(|_| HostError::Malformed);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next().ok_or(HostError::Missing)?;
    if hosts.next().is_some() && request.version() < Version::HTTP_2 {
        return Err(HostError::Several);
    }
    Ok(host.clone())
}

/// The name to look up: lower case, without port and final dot.
pub(crate) fn name(authority: &HeaderValue) -> Result<Cow<'_, str>, HostError> {
    let text = authority.to_str().map_err(|_| HostError::Malformed)?;
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let good =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if host.is_empty() || !host.bytes().all(good) || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostError::Malformed);
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(Cow::Owned(host.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_their_port_case_and_final_dot() {
        for (sent, expected) in [
            ("hello.skiff.localhost:8080", Ok("hello.skiff.localhost")),
            ("Hello.SKIFF.localhost", Ok("hello.skiff.localhost")),
            ("a.b.", Ok("a.b")),
            ("[::1]:80", Ok("[::1]")),
            ("[::1]", Ok("[::1]")),
            ("tag---a.b", Ok("tag---a.b")),
            ("", Err(HostError::Malformed)),
            (":80", Err(HostError::Malformed)),
            ("a b", Err(HostError::Malformed)),
            ("a/b", Err(HostError::Malformed)),
            ("a:8o", Err(HostError::Malformed)),
            ("a,b", Err(HostError::Malformed)),
        ] {
            let value = HeaderValue::from_str(sent).unwrap();
            let found = name(&value);
            assert_eq!(found.as_deref(), expected.as_ref().copied(), "{sent}");
        }
    }

    #[test]
    fn the_targets_authority_comes_before_the_header() {
        let request = Request::get("http://one.example/x")
            .header("host", "two.example")
            .body(())
            .unwrap();
        assert_eq!(authority(&request).unwrap(), "one.example");
        let request = Request::get("/x").body(()).unwrap();
        assert_eq!(authority(&request), Err(HostError::Missing));
        let request = Request::get("/x")
            .header("host", "a")
            .header("host", "b")
            .body(())
            .unwrap();
        assert_eq!(authority(&request), Err(HostError::Several));
        let request = Request::get("http://user@one.example/").body(()).unwrap();
        assert_eq!(authority(&request), Err(HostError::Malformed));
    }
}
