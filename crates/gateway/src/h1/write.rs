//! Heads as they go on: hop-by-hop fields end here (RFC 9110 §7.6.1), the
//! body is framed anew, and the instance is told who asked.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::answer::Own;
use crate::h1::fields::{self, Facts, Field, Kind, TRACEPARENT_BYTES};
use crate::h1::parse::ResponseHead;
use crate::port::OWN_ANSWER;

/// How a message's body is framed where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none, and nothing is said of it.
    None,
    Length(u64),
    Chunked,
    /// It ends with the connection: for clients of HTTP/1.0.
    UntilClose,
}

/// A request as it goes to an instance.
#[derive(Debug)]
pub(crate) struct Onward<'a> {
    pub(crate) method: &'a str,
    /// In origin form.
    pub(crate) target: &'a str,
    /// The host as it was asked for.
    pub(crate) authority: &'a [u8],
    pub(crate) facts: &'a Facts<'a>,
    pub(crate) framing: Framing,
    /// The protocol to switch to.
    pub(crate) upgrade: Option<&'a [u8]>,
}

/// Who asks, as instances are told.
#[derive(Debug)]
pub(crate) struct Origin {
    address: String,
    /// As RFC 7239 writes it.
    node: String,
    /// Keep what a trusted proxy in front has written.
    trust: bool,
    /// For the host of its first request, which is mostly that of all.
    told: OnceLock<Told>,
}

#[derive(Debug)]
struct Told {
    authority: Box<[u8]>,
    lines: Box<[u8]>,
}

/// What an answer's head says of its connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reply<'a> {
    /// The connection ends after this answer.
    pub(crate) close: bool,
    /// A client of HTTP/1.0 is told that it does not.
    pub(crate) keep_alive: bool,
    /// The protocol that is switched to.
    pub(crate) upgrade: Option<&'a [u8]>,
    /// Says that no instance has answered.
    pub(crate) is_own: bool,
    /// A `Server-Timing`.
    pub(crate) timing: Option<&'a str>,
    /// Seconds since 1970.
    pub(crate) unix_s: u64,
}

impl Origin {
    pub(crate) fn new(address: IpAddr, trust: bool) -> Self {
        let address = address.to_canonical();
        let text = address.to_string();
        let node = match address {
            IpAddr::V4(_) => text.clone(),
            IpAddr::V6(_) => format!("\"[{text}]\""),
        };
        Self {
            address: text,
            node,
            trust,
            told: OnceLock::new(),
        }
    }

    /// Its address as text.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn put<'a>(
        &self,
        out: &mut Vec<u8>,
        authority: &[u8],
        fields: impl Iterator<Item = Field<'a>> + Clone,
    ) {
        if self.trust {
            return self.put_appended(out, authority, fields);
        }
        let told = self.told.get_or_init(|| {
            let mut lines = Vec::new();
            self.put_new(&mut lines, authority);
            Told {
                authority: authority.into(),
                lines: lines.into(),
            }
        });
        if *told.authority == *authority {
            out.extend_from_slice(&told.lines);
        } else {
            self.put_new(out, authority);
        }
    }

    fn put_new(&self, out: &mut Vec<u8>, authority: &[u8]) {
        fields::put(out, b"x-forwarded-for", self.address.as_bytes());
        fields::put(out, b"x-forwarded-proto", b"http");
        fields::put(out, b"x-forwarded-host", authority);
        fields::put(out, b"forwarded", &self.forwarded(authority));
    }

    /// RFC 7239; the host is quoted, for it may hold a colon.
    fn forwarded(&self, authority: &[u8]) -> Vec<u8> {
        let parts = [
            b"for=",
            self.node.as_bytes(),
            b";host=\"",
            authority,
            b"\";proto=http",
        ];
        parts.concat()
    }

    fn put_appended<'a>(
        &self,
        out: &mut Vec<u8>,
        authority: &[u8],
        fields: impl Iterator<Item = Field<'a>> + Clone,
    ) {
        let of = |wanted: Kind| {
            let named = fields.clone();
            named.filter(move |(name, _)| fields::kind(name) == wanted)
        };
        let list = |kind: Kind, own: &[u8]| {
            let mut list = Vec::new();
            for (_, value) in of(kind) {
                list.extend_from_slice(value);
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(own);
            list
        };
        let first = |kind: Kind, own| of(kind).next().map_or(own, |(_, value)| value);
        let address = list(Kind::XForwardedFor, self.address.as_bytes());
        fields::put(out, b"x-forwarded-for", &address);
        let proto = first(Kind::XForwardedProto, &b"http"[..]);
        fields::put(out, b"x-forwarded-proto", proto);
        let host = first(Kind::XForwardedHost, authority);
        fields::put(out, b"x-forwarded-host", host);
        let forwarded = list(Kind::Forwarded, &self.forwarded(authority));
        fields::put(out, b"forwarded", &forwarded);
    }
}

/// Writes a request's head for an instance.
pub(crate) fn request<'a>(
    out: &mut Vec<u8>,
    onward: &Onward<'_>,
    fields: impl Iterator<Item = Field<'a>> + Clone,
    origin: &Origin,
) {
    let facts = onward.facts;
    out.extend_from_slice(onward.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(onward.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    fields::put(out, b"host", onward.authority);
    for (name, value) in fields.clone() {
        let goes = match fields::kind(name) {
            Kind::Plain | Kind::Date | Kind::XRequestId => true,
            Kind::Traceparent => facts.traced,
            Kind::Cookie => facts.cookies == 1,
            _ => false,
        };
        if goes && !(facts.nominates && fields::is_nominated(fields.clone(), name)) {
            fields::put(out, name, value);
        }
    }
    if facts.cookies > 1 {
        put_cookies(out, fields.clone());
    }
    put_framing(out, onward.framing);
    if let Some(protocol) = onward.upgrade {
        fields::put(out, b"upgrade", protocol);
        out.extend_from_slice(b"connection: upgrade\r\n");
    } else if facts.takes_trailers {
        out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    origin.put(out, onward.authority, fields);
    put_ids(out, facts);
    out.extend_from_slice(b"\r\n");
}

/// Writes an instance's answer for a client of HTTP/1.
pub(crate) fn response(
    out: &mut Vec<u8>,
    head: &ResponseHead<'_>,
    facts: &Facts<'_>,
    framing: Framing,
    reply: Reply<'_>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    put_number(out, head.status.into());
    out.push(b' ');
    out.extend_from_slice(head.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in end_to_end(head, facts) {
        fields::put(out, name, value);
    }
    put_framing(out, framing);
    put_reply(out, facts.has_date, reply);
}

/// An instance's answer for a client of HTTP/2, without its framing.
pub(crate) fn headers(head: &ResponseHead<'_>, facts: &Facts<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(head.headers.len() + 2);
    for (name, value) in end_to_end(head, facts) {
        // httparse lets nothing through that these would refuse.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    headers
}

/// Writes the gateway's own answer for a client of HTTP/1.
pub(crate) fn own(out: &mut Vec<u8>, own: &Own, with_body: bool, reply: Reply<'_>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    put_number(out, own.status.as_u16().into());
    out.push(b' ');
    let reason = own.status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\ncontent-type: text/plain; charset=utf-8\r\n");
    if let Some(seconds) = own.retry_after_s {
        out.extend_from_slice(b"retry-after: ");
        put_number(out, seconds.into());
        out.extend_from_slice(b"\r\n");
    }
    let length = u64::try_from(own.line.len() + 1).unwrap_or(u64::MAX);
    put_framing(out, Framing::Length(length));
    put_reply(out, false, reply);
    if with_body {
        out.extend_from_slice(own.line.as_bytes());
        out.push(b'\n');
    }
}

fn end_to_end<'a>(
    head: &'a ResponseHead<'a>,
    facts: &'a Facts<'a>,
) -> impl Iterator<Item = Field<'a>> {
    let all = fields::of(head.headers);
    all.clone().filter(move |(name, _)| {
        let goes = !matches!(
            fields::kind(name),
            Kind::Connection
                | Kind::ContentLength
                | Kind::Hop
                | Kind::Te
                | Kind::TransferEncoding
                | Kind::Upgrade
        );
        goes && !(facts.nominates && fields::is_nominated(all.clone(), name))
    })
}

fn put_reply(out: &mut Vec<u8>, has_date: bool, reply: Reply<'_>) {
    if reply.is_own {
        fields::put(out, OWN_ANSWER.as_bytes(), b"true");
    }
    if let Some(timing) = reply.timing {
        fields::put(out, b"server-timing", timing.as_bytes());
    }
    if !has_date {
        put_date(out, reply.unix_s);
    }
    if let Some(protocol) = reply.upgrade {
        fields::put(out, b"upgrade", protocol);
        out.extend_from_slice(b"connection: upgrade\r\n");
    } else if reply.close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if reply.keep_alive {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn put_framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            put_number(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
}

/// HTTP/2 may part one cookie field into several (RFC 9113 §8.2.3).
fn put_cookies<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = Field<'a>>) {
    let cookies = fields.filter(|(name, _)| fields::kind(name) == Kind::Cookie);
    let all: Vec<&[u8]> = cookies.map(|(_, value)| value).collect();
    fields::put(out, b"cookie", &all.join(&b"; "[..]));
}

/// Ids that let logs of several parties be joined: the client's are kept. The
/// trace id serves as the request's id, too.
fn put_ids(out: &mut Vec<u8>, facts: &Facts<'_>) {
    if facts.traced && facts.has_id {
        return;
    }
    let ids = new_ids();
    if !facts.traced {
        fields::put(out, b"traceparent", &ids);
    }
    if !facts.has_id {
        fields::put(out, b"x-request-id", &ids[3..35]);
    }
}

fn new_ids() -> [u8; TRACEPARENT_BYTES] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    for start in [3, 19, 36] {
        // An id of zeros is none (W3C Trace Context §2.2.2).
        let mut bits = crate::random::u64() | 1;
        for digit in &mut text[start..start + 16] {
            *digit = b"0123456789abcdef"[usize::try_from(bits & 15).unwrap_or(0)];
            bits >>= 4;
        }
    }
    text
}

/// Appends a number in decimal.
pub(crate) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

thread_local! {
    /// The last second and its text.
    static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

fn put_date(out: &mut Vec<u8>, unix_s: u64) {
    DATE.with_borrow_mut(|(second, text)| {
        if *second != unix_s {
            *second = unix_s;
            *text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_s));
        }
        fields::put(out, b"date", text.as_bytes());
    });
}

/// Whether answers of this status never have a body (RFC 9110 §6.4.1).
pub(crate) fn has_no_body(status: u16) -> bool {
    StatusCode::from_u16(status)
        .is_ok_and(|status| status.is_informational() || matches!(status.as_u16(), 204 | 304))
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
