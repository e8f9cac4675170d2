//! Extended attributes: which ones an image may set, and EROFS's form.

use crate::error::Refusal;
use crate::tree::Kind;

/// Marks a directory that hides what lower layers have in it.
pub(crate) fn opaque() -> Xattr {
    let (name, value) = (b"overlay.opaque"[..].into(), b"y"[..].into());
    Xattr {
        namespace: Namespace::Trusted,
        name,
        value,
    }
}

/// Marks a directory with whiteouts in it. Where no other layer has the
/// directory, overlayfs would list them, but for a directory that it takes for
/// copied up from somewhere, which is what an empty origin says.
pub(crate) fn has_whiteouts() -> Xattr {
    let (name, value) = (b"overlay.origin"[..].into(), b""[..].into());
    Xattr {
        namespace: Namespace::Trusted,
        name,
        value,
    }
}

/// Room that our own marks may take.
pub(crate) const MARK_BYTES: usize = HEADER_BYTES + 20 + 20;

/// `erofs_xattr_ibody_header`.
pub(crate) const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 4;

/// EROFS stores well-known prefixes as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    User = 1,
    AclAccess = 2,
    AclDefault = 3,
    Trusted = 4,
    Security = 6,
}

/// One attribute, its name without the namespace's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) namespace: Namespace,
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

/// The attribute `name` if an image may set it on a file of `kind`.
///
/// Overlayfs's own names would let a layer redirect lookups, whichever of its
/// two namespaces a mount uses; other `security.*` and `trusted.*` names are
/// claims about this host.
pub(crate) fn accept(name: &[u8], value: &[u8], kind: &Kind) -> Result<Option<Xattr>, Refusal> {
    let file = matches!(kind, Kind::File { .. });
    let directory = matches!(kind, Kind::Directory(_));
    let (namespace, rest) = match name {
        b"system.posix_acl_access" if !matches!(kind, Kind::Symlink(_)) => {
            (Namespace::AclAccess, &b""[..])
        }
        b"system.posix_acl_default" if directory => (Namespace::AclDefault, &b""[..]),
        b"security.capability" if file => (Namespace::Security, &b"capability"[..]),
        _ => match name.strip_prefix(b"user.") {
            Some(rest)
                if (file || directory) && !rest.is_empty() && !rest.starts_with(b"overlay.") =>
            {
                (Namespace::User, rest)
            }
            _ => return Ok(None),
        },
    };
    // Linux's own bound is on the whole name.
    let fits = name.len() <= usize::from(u8::MAX) && value.len() <= usize::from(u16::MAX);
    if !fits || rest.contains(&0) {
        return Err(Refusal::XattrTooLong);
    }
    Ok(Some(Xattr {
        namespace,
        name: rest.into(),
        value: value.into(),
    }))
}

/// Bytes that `xattrs` take behind their inode.
pub(crate) fn stored_bytes(xattrs: &[Xattr]) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    HEADER_BYTES + xattrs.iter().map(entry_bytes).sum::<usize>()
}

fn entry_bytes(xattr: &Xattr) -> usize {
    (ENTRY_BYTES + xattr.name.len() + xattr.value.len()).next_multiple_of(4)
}

/// The most that one inode's count field can tell.
pub(crate) const MAX_STORED_BYTES: usize = HEADER_BYTES + 4 * (u16::MAX as usize - 1);

/// The inode's `i_xattr_icount` for `bytes` of attributes.
pub(crate) fn count_field(bytes: usize) -> u16 {
    match bytes.checked_sub(HEADER_BYTES) {
        None => 0,
        Some(entries) => u16::try_from(entries / 4 + 1).unwrap_or(u16::MAX),
    }
}

/// Appends `erofs_xattr_ibody_header`, with no shared attributes, and one
/// `erofs_xattr_entry` each.
pub(crate) fn encode(xattrs: &[Xattr], out: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    out.extend_from_slice(&[0; HEADER_BYTES]);
    for xattr in xattrs {
        let end = out.len() + entry_bytes(xattr);
        out.push(u8::try_from(xattr.name.len()).unwrap_or(u8::MAX));
        out.push(xattr.namespace as u8);
        let length = u16::try_from(xattr.value.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&xattr.name);
        out.extend_from_slice(&xattr.value);
        out.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Kind = Kind::File { size: 0, block: 0 };

    fn accepted(name: &str, kind: &Kind) -> Option<(Namespace, String)> {
        let xattr = accept(name.as_bytes(), b"v", kind).unwrap()?;
        Some((
            xattr.namespace,
            String::from_utf8(xattr.name.into()).unwrap(),
        ))
    }

    #[test]
    fn only_an_images_own_attributes_pass() {
        let directory = Kind::Directory(Box::default());
        let symlink = Kind::Symlink(b"x"[..].into());
        assert_eq!(
            accepted("user.a", &FILE),
            Some((Namespace::User, "a".into()))
        );
        assert_eq!(
            accepted("user.a", &directory),
            Some((Namespace::User, "a".into()))
        );
        assert_eq!(accepted("user.a", &symlink), None);
        assert_eq!(accepted("user.", &FILE), None);
        assert_eq!(accepted("user.overlay.redirect", &directory), None);
        assert_eq!(accepted("trusted.overlay.opaque", &directory), None);
        assert_eq!(accepted("security.selinux", &FILE), None);
        assert_eq!(
            accepted("security.capability", &FILE),
            Some((Namespace::Security, "capability".into()))
        );
        assert_eq!(
            accepted("system.posix_acl_access", &FILE),
            Some((Namespace::AclAccess, String::new()))
        );
        assert_eq!(accepted("system.posix_acl_default", &FILE), None);
        assert_eq!(
            accepted("system.posix_acl_default", &directory),
            Some((Namespace::AclDefault, String::new()))
        );
    }

    #[test]
    fn what_erofs_cannot_hold_is_refused() {
        let long = [b"user.".as_slice(), &[b'n'; 251]].concat();
        assert_eq!(accept(&long, b"", &FILE), Err(Refusal::XattrTooLong));
        let value = vec![0; 65_536];
        assert_eq!(accept(b"user.a", &value, &FILE), Err(Refusal::XattrTooLong));
        assert!(accept(&long[..255], &value[1..], &FILE).unwrap().is_some());
    }

    #[test]
    fn encoded_length_is_the_stored_length() {
        for lengths in [vec![], vec![0], vec![1, 2, 3], vec![65_535]] {
            let xattrs: Vec<Xattr> = lengths
                .iter()
                .map(|length| Xattr {
                    namespace: Namespace::User,
                    name: b"n"[..].into(),
                    value: vec![1; *length].into(),
                })
                .collect();
            let mut out = Vec::new();
            encode(&xattrs, &mut out);
            assert_eq!(out.len(), stored_bytes(&xattrs));
            assert_eq!(out.len() % 4, 0);
        }
    }
}
