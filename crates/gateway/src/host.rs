//! Which host a request is for (RFC 9112 §3.2, RFC 9110 §7.2).

use std::borrow::Cow;

use http::Uri;

use crate::h1::fields::Facts;

/// A request whose host or target cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    #[error("the request has no Host header")]
    Missing,
    #[error("the request has more than one Host header")]
    Several,
    #[error("the request's Host is not a host name")]
    Malformed,
    #[error("the request's target is neither a path nor an address")]
    Target,
}

/// Where a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    /// In origin form, or `*`; without a fragment.
    pub(crate) target: Cow<'a, str>,
    /// The host with its port, as it goes on to the instance. In absolute
    /// form the target's authority counts, not the header.
    pub(crate) authority: Cow<'a, [u8]>,
}

/// The place that a target and the fields beside it tell.
pub(crate) fn place<'a>(target: &'a str, facts: &Facts<'a>) -> Result<Place<'a>, HostError> {
    if target.starts_with('/') || target == "*" {
        let path = match target.split_once('#') {
            Some((path, _)) => path,
            None => target,
        };
        if facts.several_hosts {
            return Err(HostError::Several);
        }
        let host = facts.host.ok_or(HostError::Missing)?;
        return Ok(Place {
            target: Cow::Borrowed(path),
            authority: Cow::Borrowed(host),
        });
    }
    let uri: Uri = target.parse().map_err(|_| HostError::Target)?;
    if facts.several_hosts {
        return Err(HostError::Several);
    }
    of_uri(&uri)
}

/// The place of an absolute address.
pub(crate) fn of_uri(uri: &Uri) -> Result<Place<'static>, HostError> {
    let authority = uri.authority().ok_or(HostError::Target)?.as_str();
    if uri.scheme().is_none() {
        return Err(HostError::Target);
    }
    if authority.contains('@') {
        return Err(HostError::Malformed);
    }
    let target = uri.path_and_query().map_or("/", |path| path.as_str());
    // The path of `http://host?query` is empty in some parsers.
    let target = match target.starts_with(['/', '*']) {
        true => target.to_owned(),
        false => format!("/{target}"),
    };
    Ok(Place {
        target: Cow::Owned(target),
        authority: Cow::Owned(authority.as_bytes().to_vec()),
    })
}

/// The name to look up: lower case, without port and final dot.
pub(crate) fn name(authority: &[u8]) -> Result<Cow<'_, str>, HostError> {
    let text = std::str::from_utf8(authority).map_err(|_| HostError::Malformed)?;
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
            let found = name(sent.as_bytes());
            assert_eq!(found.as_deref(), expected.as_ref().copied(), "{sent}");
        }
    }

    #[test]
    fn the_targets_authority_comes_before_the_header() {
        let with = |host: &'static str| Facts {
            host: Some(host.as_bytes()),
            ..Facts::default()
        };
        for (target, expected) in [
            ("/x?y", Ok(("/x?y", "two.example"))),
            ("/x#y", Ok(("/x", "two.example"))),
            ("*", Ok(("*", "two.example"))),
            ("http://one.example/x?y", Ok(("/x?y", "one.example"))),
            ("http://one.example:1", Ok(("/", "one.example:1"))),
            ("http://one.example?y", Ok(("/?y", "one.example"))),
            ("http://user@one.example/", Err(HostError::Malformed)),
            ("one.example:80", Err(HostError::Target)),
            ("x/y", Err(HostError::Target)),
            ("", Err(HostError::Target)),
        ] {
            let facts = with("two.example");
            let found = place(target, &facts);
            let found = found.map(|place| {
                let authority = String::from_utf8(place.authority.into_owned()).unwrap();
                (place.target.into_owned(), authority)
            });
            let expected = expected.map(|(t, a)| (t.to_owned(), a.to_owned()));
            assert_eq!(found, expected, "{target}");
        }
        assert_eq!(place("/x", &Facts::default()), Err(HostError::Missing));
        let two = Facts {
            several_hosts: true,
            ..with("a")
        };
        assert_eq!(place("/x", &two), Err(HostError::Several));
        assert_eq!(place("http://b/x", &two), Err(HostError::Several));
    }
}
