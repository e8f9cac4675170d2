//! Image references, read by the rules of the Docker tools.
//!
//! `hello` is `docker.io/library/hello:latest`; the first component is a
//! registry when it has a dot or a colon, or is `localhost`
//! (distribution/reference, normalize.go). Other than there, a capital does
//! not make a registry: hosts are written in small letters here, and would
//! then read as repositories.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use skiff_types::Digest;

use crate::limits::REFERENCE_CHARS_MAX;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const TAG_CHARS_MAX: usize = 128;
const REPOSITORY_CHARS_MAX: usize = 255;

/// The name of an image in a registry, complete: nothing is left to defaults.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/hello`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `latest`; none when only a digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest that this is pinned to.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Where the registry is reached: Docker's own has another host than name.
    #[must_use]
    pub fn host(&self) -> &str {
        match self.registry.as_str() {
            DEFAULT_REGISTRY => "registry-1.docker.io",
            other => other,
        }
    }

    /// What a manifest is asked for by: the digest, else the tag.
    #[must_use]
    pub fn selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        parse(text).map_err(|reason| ParseReferenceError {
            text: text.chars().take(100).collect(),
            reason,
        })
    }
}

impl TryFrom<String> for Reference {
    type Error = ParseReferenceError;
    fn try_from(text: String) -> Result<Self, ParseReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > REFERENCE_CHARS_MAX {
        return Err("it is over 512 characters");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            let digest = digest.parse().map_err(
                |_| "behind @ a digest is expected, `sha256:` and 64 hexadecimal digits",
            )?;
            (name, Some(digest))
        }
        None => (text, None),
    };
    let (registry, path) = split_registry(name);
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(checked_tag(tag)?)),
        None => (path, None),
    };
    check_registry(&registry)?;
    check_repository(repository)?;
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// The registry, by name, and the rest.
fn split_registry(name: &str) -> (String, &str) {
    let is_registry = |first: &str| first == "localhost" || first.contains(['.', ':']);
    match name.split_once('/') {
        Some(("index.docker.io" | "registry-1.docker.io", rest)) => {
            (DEFAULT_REGISTRY.to_owned(), rest)
        }
        Some((first, rest)) if is_registry(first) => (first.to_ascii_lowercase(), rest),
        _ => (DEFAULT_REGISTRY.to_owned(), name),
    }
}

fn checked_tag(tag: &str) -> Result<&str, &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.len() <= TAG_CHARS_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if valid {
        Ok(tag)
    } else {
        Err("a tag has 1 to 128 letters, digits and `_.-`, the first none of `.-`")
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const WRONG: &str = "the registry is not HOST or HOST:PORT";
    let (host, port) = match registry.strip_prefix('[') {
        // RFC 3986 § 3.2.2: an IPv6 address stands in brackets.
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(WRONG)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| WRONG)?;
            ("v6", port)
        }
        None => match registry.find(':') {
            Some(colon) => registry.split_at(colon),
            None => (registry, ""),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let port_ok = match port.strip_prefix(':') {
        Some(digits) => {
            digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok_and(|p| p > 0)
        }
        None => port.is_empty(),
    };
    if host.split('.').all(label) && port_ok {
        Ok(())
    } else {
        Err(WRONG)
    }
}

/// Components of `[a-z0-9]+` joined by `.`, `_`, `__` or dashes (distribution-spec § pulling manifests).
fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.is_empty() {
        return Err("the repository is missing");
    }
    if repository.len() > REPOSITORY_CHARS_MAX {
        return Err("the repository is over 255 characters");
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository has no capitals");
    }
    if repository.split('/').all(component) {
        Ok(())
    } else {
        Err("a repository is made of `a-z`, `0-9` and single `.`, `_`, `__` or dashes between them")
    }
}

fn component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(|b| word(*b));
    let separators = bytes
        .split(|b| word(*b))
        .all(|s| matches!(s, b"" | b"." | b"_" | b"__") || s.iter().all(|b| *b == b'-'));
    ends(bytes.first()) && ends(bytes.last()) && separators
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex() -> String {
        format!("sha256:{}", "0a".repeat(32))
    }

    #[test]
    fn what_is_left_out_is_filled_in_as_docker_does() {
        let pinned = format!("docker.io/library/hello@{}", hex());
        let both = format!("localhost:5000/a/b:1@{}", hex());
        let table = [
            ("hello", "docker.io/library/hello:latest"),
            ("hello:1.2-x_y", "docker.io/library/hello:1.2-x_y"),
            ("me/hello", "docker.io/me/hello:latest"),
            ("docker.io/hello", "docker.io/library/hello:latest"),
            ("index.docker.io/me/hello:1", "docker.io/me/hello:1"),
            ("localhost/hello", "localhost/hello:latest"),
            ("localhost:5000/hello", "localhost:5000/hello:latest"),
            ("127.0.0.1:5000/a/b/c:2", "127.0.0.1:5000/a/b/c:2"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("ghcr.io/a_b/c--d/e__f.g", "ghcr.io/a_b/c--d/e__f.g:latest"),
            ("GHCR.io/a", "ghcr.io/a:latest"),
            ("hello:5000/x", ""),
            (&format!("hello@{}", hex()), &pinned),
            (&both, &both),
        ];
        for (text, whole) in table {
            match text.parse::<Reference>() {
                Ok(reference) if text == "hello:5000/x" => {
                    assert_eq!(reference.registry(), "hello:5000");
                }
                Ok(reference) => {
                    assert_eq!(reference.to_string(), whole, "{text}");
                    assert_eq!(whole.parse::<Reference>().as_ref(), Ok(&reference));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(300);
        let wrong = [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "a@sha256:00",
            "A",
            "a/B",
            "a//b",
            "/a",
            "a/",
            ".a",
            "a.",
            "a..b",
            "a___b",
            "a:-x",
            "a:x y",
            "a b",
            "localhost:0/a",
            "localhost:99999/a",
            "localhost:+80/a",
            "-x.y/a",
            "x..y/a",
            "[::1/a",
            "[zz]:1/a",
            "a.b:c:d/e",
            "é",
            "a\n",
            "../a",
            "a/../b",
            "host.tld/..",
            "a:b:c",
            "GHCR/a",
            &long,
        ];
        for text in wrong {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn docker_io_is_reached_at_its_own_host() {
        let reference: Reference = "hello".parse().unwrap();
        assert_eq!(reference.host(), "registry-1.docker.io");
        assert_eq!(reference.selector(), "latest");
        let pinned: Reference = format!("quay.io/a:1@{}", hex()).parse().unwrap();
        assert_eq!((pinned.host(), pinned.selector()), ("quay.io", &*hex()));
    }
}
