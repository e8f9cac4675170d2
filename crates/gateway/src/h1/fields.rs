//! The fields of a head: which of them end at this hop, and what they say of
//! the message (RFC 9110 §7.6.1, RFC 9112 §6).

/// A name and a value, as they came.
pub(crate) type Field<'a> = (&'a [u8], &'a [u8]);

/// What the gateway knows a field by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Goes on as it is.
    Plain,
    Connection,
    ContentLength,
    Cookie,
    Date,
    Expect,
    Forwarded,
    Host,
    /// Ends here and says nothing to the gateway.
    Hop,
    Te,
    Traceparent,
    TransferEncoding,
    Upgrade,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XRequestId,
}

/// A body's extent cannot be told, or is told in a way that is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("the Content-Length is not one number")]
    Length,
    #[error("the Transfer-Encoding is not `chunked`")]
    Coding,
}

/// What the fields of one head say together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts<'a> {
    pub(crate) host: Option<&'a [u8]>,
    pub(crate) several_hosts: bool,
    /// Content-Length.
    pub(crate) length: Option<u64>,
    /// Transfer-Encoding is `chunked`.
    pub(crate) chunked: bool,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    /// Connection names `upgrade`.
    pub(crate) upgrades: bool,
    /// Connection names fields that end here with it.
    pub(crate) nominates: bool,
    pub(crate) upgrade: Option<&'a [u8]>,
    pub(crate) takes_trailers: bool,
    pub(crate) expects: bool,
    /// A traceparent of the right length is there.
    pub(crate) traced: bool,
    pub(crate) has_id: bool,
    pub(crate) has_date: bool,
    pub(crate) cookies: u32,
}

/// `00-` 32 digits `-` 16 digits `-` 2 digits.
pub(crate) const TRACEPARENT_BYTES: usize = 55;

/// The fields of a parsed head.
pub(crate) fn of<'a>(
    headers: &'a [httparse::Header<'a>],
) -> impl Iterator<Item = Field<'a>> + Clone {
    headers
        .iter()
        .map(|header| (header.name.as_bytes(), header.value))
}

/// Appends one.
pub(crate) fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn kind(name: &[u8]) -> Kind {
    let candidates: &[(&[u8], Kind)] = match name.len() {
        2 => &[(b"te", Kind::Te)],
        4 => &[(b"host", Kind::Host), (b"date", Kind::Date)],
        6 => &[(b"cookie", Kind::Cookie), (b"expect", Kind::Expect)],
        7 => &[(b"upgrade", Kind::Upgrade)],
        9 => &[(b"forwarded", Kind::Forwarded)],
        10 => &[
            (b"connection", Kind::Connection),
            (b"keep-alive", Kind::Hop),
        ],
        11 => &[(b"traceparent", Kind::Traceparent)],
        12 => &[(b"x-request-id", Kind::XRequestId)],
        14 => &[(b"content-length", Kind::ContentLength)],
        15 => &[(b"x-forwarded-for", Kind::XForwardedFor)],
        16 => &[
            (b"x-forwarded-host", Kind::XForwardedHost),
            (b"proxy-connection", Kind::Hop),
        ],
        17 => &[
            (b"transfer-encoding", Kind::TransferEncoding),
            (b"x-forwarded-proto", Kind::XForwardedProto),
        ],
        _ => &[],
    };
    let found = candidates
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map_or(Kind::Plain, |(_, kind)| *kind)
}

/// Whether a field that Connection names ends here with it. Those that say
/// where the message belongs and how long it is are nobody's to remove.
pub(crate) fn is_nominated<'a>(mut fields: impl Iterator<Item = Field<'a>>, name: &[u8]) -> bool {
    fields.any(|(found, value)| {
        kind(found) == Kind::Connection && tokens(value).any(|t| t.eq_ignore_ascii_case(name))
    })
}

/// Reads what the fields say together.
pub(crate) fn facts<'a>(
    fields: impl Iterator<Item = Field<'a>>,
) -> Result<Facts<'a>, FramingError> {
    let mut facts = Facts::default();
    for (name, value) in fields {
        facts.learn(kind(name), value)?;
    }
    Ok(facts)
}

impl<'a> Facts<'a> {
    fn learn(&mut self, kind: Kind, value: &'a [u8]) -> Result<(), FramingError> {
        match kind {
            Kind::Host => {
                self.several_hosts |= self.host.is_some();
                self.host = self.host.or(Some(value));
            }
            Kind::ContentLength => {
                let length = number(value).ok_or(FramingError::Length)?;
                if self.length.is_some_and(|other| other != length) {
                    return Err(FramingError::Length);
                }
                self.length = Some(length);
            }
            Kind::TransferEncoding => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(FramingError::Coding);
                }
                self.chunked = true;
            }
            Kind::Connection => tokens(value).for_each(|token| self.learn_option(token)),
            Kind::Upgrade => self.upgrade = Some(value),
            Kind::Te => {
                self.takes_trailers |= tokens(value).any(|t| t.eq_ignore_ascii_case(b"trailers"));
            }
            Kind::Expect => self.expects |= value.eq_ignore_ascii_case(b"100-continue"),
            Kind::Traceparent => self.traced |= value.len() == TRACEPARENT_BYTES,
            Kind::XRequestId => self.has_id = true,
            Kind::Date => self.has_date = true,
            Kind::Cookie => self.cookies += 1,
            Kind::Plain
            | Kind::Hop
            | Kind::Forwarded
            | Kind::XForwardedFor
            | Kind::XForwardedHost
            | Kind::XForwardedProto => {}
        }
        Ok(())
    }

    fn learn_option(&mut self, token: &[u8]) {
        if token.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        } else if token.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if token.eq_ignore_ascii_case(b"upgrade") {
            self.upgrades = true;
        } else if !token.is_empty() {
            self.nominates = true;
        }
    }

    /// The protocol that is asked for, or agreed to. HTTP/2 that way is
    /// deprecated (RFC 9113 §3.1), so it stays with HTTP/1.1.
    pub(crate) fn switch(&self) -> Option<&'a [u8]> {
        let protocol = self.upgrade.filter(|_| self.upgrades)?;
        (!protocol.eq_ignore_ascii_case(b"h2c")).then_some(protocol)
    }
}

/// The members of a list, without the blanks around them.
fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&b| b == b',').map(<[u8]>::trim_ascii)
}

/// Digits and nothing else (RFC 9110 §8.6).
fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(fields: &'a [(&'a str, &'a str)]) -> Result<Facts<'a>, FramingError> {
        let bytes = fields
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        facts(bytes)
    }

    #[test]
    fn only_one_plain_framing_passes() {
        let length = |value| read(&[("Content-Length", value)]).map(|facts| facts.length);
        assert_eq!(length("5"), Ok(Some(5)));
        assert_eq!(length("18446744073709551615"), Ok(Some(u64::MAX)));
        for bad in ["", "+5", "-5", "0x5", "5, 5", "5 5", "18446744073709551616"] {
            assert_eq!(length(bad), Err(FramingError::Length), "{bad}");
        }
        let twice = |one, two| {
            read(&[("content-length", one), ("content-length", two)]).map(|facts| facts.length)
        };
        assert_eq!(twice("5", "05"), Ok(Some(5)));
        assert_eq!(twice("5", "6"), Err(FramingError::Length));
        let coding = |value| read(&[("transfer-encoding", value)]).map(|facts| facts.chunked);
        assert_eq!(coding("Chunked"), Ok(true));
        for bad in [
            "gzip, chunked",
            "chunked, chunked",
            "identity",
            "chunked;x",
            "",
        ] {
            assert_eq!(coding(bad), Err(FramingError::Coding), "{bad}");
        }
        let chunked = ("transfer-encoding", "chunked");
        let two = read(&[chunked, chunked]).map(|facts| facts.chunked);
        assert_eq!(two, Err(FramingError::Coding));
    }

    #[test]
    fn connection_options_are_told_apart() {
        let facts = read(&[
            ("connection", "Keep-Alive, , X-Mine"),
            ("Connection", "upgrade"),
            ("upgrade", "websocket"),
            ("te", "gzip, trailers"),
        ])
        .unwrap();
        assert!(facts.keep_alive && facts.upgrades && facts.nominates && facts.takes_trailers);
        assert!(!facts.close);
        assert_eq!(facts.switch(), Some(&b"websocket"[..]));
        let fields = [(&b"CONNECTION"[..], &b"close, x-mine"[..])];
        assert!(is_nominated(fields.into_iter(), b"X-Mine"));
        assert!(!is_nominated(fields.into_iter(), b"x-other"));
        let h2c = read(&[("connection", "upgrade"), ("upgrade", "h2c")]).unwrap();
        assert_eq!(h2c.switch(), None);
    }

    #[test]
    fn names_are_known_in_any_case() {
        for (name, expected) in [
            ("HOST", Kind::Host),
            ("hosts", Kind::Plain),
            ("Keep-Alive", Kind::Hop),
            ("Proxy-Connection", Kind::Hop),
            ("X-FORWARDED-PROTO", Kind::XForwardedProto),
            ("x-forwarded-port", Kind::Plain),
            ("", Kind::Plain),
        ] {
            assert_eq!(kind(name.as_bytes()), expected, "{name}");
        }
    }
}
