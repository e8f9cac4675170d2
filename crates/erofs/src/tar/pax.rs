//! PAX extended headers: lists of `LENGTH KEY=VALUE\n`.

use std::collections::BTreeSet;

use crate::error::Malformed;

use super::Timestamp;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// What a PAX header overrides in the entry behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    /// Parses one entry's header. Repeated keys are refused, whatever they
    /// are: POSIX lets the last one win, readers differ, nobody writes them.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut pax = Self::default();
        let mut seen = BTreeSet::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (key, value, behind) = record(rest)?;
            if !seen.insert(key) {
                return Err(Malformed::RepeatedPaxRecord);
            }
            pax.set(key, value)?;
            rest = behind;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        match key {
            b"size" => self.size = Some(unsigned(value).ok_or(Malformed::PaxValue("size"))?),
            b"path" => self.path = non_empty(value),
            b"linkpath" => self.link = non_empty(value),
            b"uid" => self.uid = identity(value, "uid")?,
            b"gid" => self.gid = identity(value, "gid")?,
            b"mtime" if !value.is_empty() => {
                self.mtime = Some(timestamp(value).ok_or(Malformed::PaxValue("mtime"))?);
            }
            key if key.starts_with(SPARSE_PREFIX) => return Err(Malformed::Sparse),
            key => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Checks a global header. Other engines ignore its values, so these are
/// ignored too, except those which would make readers see another archive.
pub(super) fn check_global(bytes: &[u8]) -> Result<(), Malformed> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (key, _, behind) = record(rest)?;
        match key {
            b"size" => return Err(Malformed::GlobalPax("size")),
            b"path" => return Err(Malformed::GlobalPax("path")),
            b"linkpath" => return Err(Malformed::GlobalPax("linkpath")),
            key if key.starts_with(SPARSE_PREFIX) => return Err(Malformed::Sparse),
            _ => {}
        }
        rest = behind;
    }
    Ok(())
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record's key and value, and what stands behind it.
fn record(bytes: &[u8]) -> Result<Record<'_>, Malformed> {
    let parsed = || {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length = usize::try_from(unsigned(&bytes[..space])?).ok()?;
        let (record, behind) = bytes.split_at_checked(length)?;
        let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = body.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&body[..equals], &body[equals + 1..]);
        let valid = !key.is_empty() && !key.contains(&0);
        valid.then_some((key, value, behind))
    };
    parsed().ok_or(Malformed::PaxRecord)
}

/// Decimal digits and nothing else: no sign, no space.
fn unsigned(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// An empty value takes back what the header says; the header's value is used.
fn non_empty(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn identity(value: &[u8], key: &'static str) -> Result<Option<u32>, Malformed> {
    if value.is_empty() {
        return Ok(None);
    }
    let id = unsigned(value).and_then(|id| u32::try_from(id).ok());
    id.map(Some).ok_or(Malformed::PaxValue(key))
}

/// Seconds with an optional sign and fraction. Digits past nanoseconds are
/// cut off; a negative time's fraction counts backwards.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(unsigned(whole)?).ok()?;
    let nanoseconds = (0..9).fold(0, |sum, place| {
        sum * 10
            + fraction
                .get(place)
                .map_or(0, |digit| u32::from(digit - b'0'))
    });
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(list: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in list {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            bytes.extend(format!("{length} {key}={value}\n").into_bytes());
        }
        bytes
    }

    #[test]
    fn known_keys_override() {
        let pax = Pax::parse(&records(&[
            ("path", "a/b"),
            ("size", "123"),
            ("uid", "4294967295"),
            ("gid", ""),
            ("mtime", "1.5"),
            ("SCHILY.xattr.user.a", "x=y"),
            ("comment", "ignored"),
        ]))
        .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.size, Some(123));
        assert_eq!((pax.uid, pax.gid), (Some(u32::MAX), None));
        assert_eq!(
            pax.mtime,
            Some(Timestamp {
                seconds: 1,
                nanoseconds: 500_000_000
            })
        );
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x=y".to_vec())]);
    }

    #[test]
    fn times_have_signs_and_fractions() {
        let check = |text: &str, expect: Option<(i64, u32)>| {
            let expect = expect.map(|(seconds, nanoseconds)| Timestamp {
                seconds,
                nanoseconds,
            });
            assert_eq!(timestamp(text.as_bytes()), expect, "{text}");
        };
        check("0", Some((0, 0)));
        check("12.000000001", Some((12, 1)));
        check("12.0000000019", Some((12, 1)));
        check("12.", Some((12, 0)));
        check("-1.25", Some((-2, 750_000_000)));
        check("-1", Some((-1, 0)));
        check(".5", None);
        check("1.x", None);
        check("1e3", None);
        check("99999999999999999999", None);
    }

    #[test]
    fn malformed_records_are_refused() {
        let check = |bytes: &[u8], expect| assert_eq!(Pax::parse(bytes), Err(expect));
        for bytes in [
            &b"11 path=a/b"[..],
            b"11 path=a/bX",
            b"99 path=a/b\n",
            b" 11 path=a/b\n",
            b"+11 path=a/b\n",
            b"0 path=a\n",
            b"3 \n",
            b"5 =a\n",
            b"5 ab\n",
            b"path=a\n",
            b"99999999999999999999999 a=b\n",
        ] {
            check(bytes, Malformed::PaxRecord);
        }
        let twice = records(&[("size", "1"), ("size", "1")]);
        check(&twice, Malformed::RepeatedPaxRecord);
        check(&records(&[("size", "")]), Malformed::PaxValue("size"));
        check(&records(&[("size", "-1")]), Malformed::PaxValue("size"));
        check(&records(&[("size", "0x10")]), Malformed::PaxValue("size"));
        check(
            &records(&[("uid", "4294967296")]),
            Malformed::PaxValue("uid"),
        );
        check(&records(&[("GNU.sparse.major", "1")]), Malformed::Sparse);
    }

    #[test]
    fn global_headers_may_not_change_the_archive() {
        assert_eq!(
            check_global(&records(&[("comment", "a"), ("mtime", "1")])),
            Ok(())
        );
        let size = records(&[("size", "1")]);
        assert_eq!(check_global(&size), Err(Malformed::GlobalPax("size")));
    }
}
