//! What changes between the message that came and the one that goes on:
//! hop-by-hop fields go (RFC 9110 §7.6.1), the body is framed anew, and the
//! instance is told who asked.

use std::cell::RefCell;
use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};

use crate::port::ColdPhases;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// `00-` 32 digits `-` 16 digits `-` 2 digits.
const TRACEPARENT_BYTES: usize = 55;

/// Who asked, as the instance is told.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    /// The client's address as text, and as RFC 7239 writes it.
    pub(crate) client: &'a HeaderValue,
    pub(crate) client_node: &'a str,
    /// An authority and its `Forwarded`, kept with the connection.
    pub(crate) forwarded: &'a OnceLock<(HeaderValue, HeaderValue)>,
    /// The host as it was asked for.
    pub(crate) authority: HeaderValue,
    /// Keep what a trusted proxy in front has written.
    pub(crate) trust: bool,
}

/// The framing cannot be told, or is one that is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("the request has both Content-Length and Transfer-Encoding")]
    Both,
    #[error("the request's Transfer-Encoding is not `chunked`")]
    Coding,
}

/// Refuses what two parsers could read as different messages.
pub(crate) fn check_framing(headers: &HeaderMap) -> Result<(), FramingError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return Ok(());
    };
    if headers.contains_key(CONTENT_LENGTH) {
        return Err(FramingError::Both);
    }
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(FramingError::Coding);
    }
    Ok(())
}

/// The protocol that a client asks to switch to. HTTP/2 that way is
/// deprecated (RFC 9113 §3.1), so it stays with HTTP/1.1.
pub(crate) fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 {
        return None;
    }
    let protocol = parts.headers.get(UPGRADE)?;
    if !has_token(&parts.headers, "upgrade") || protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
        return None;
    }
    Some(protocol.clone())
}

/// Makes the request one to an origin server, HTTP/1.1.
pub(crate) fn to_instance(parts: &mut Parts, origin: Origin<'_>, upgrade: Option<HeaderValue>) {
    let headers = &mut parts.headers;
    let trailers = headers.get(TE).is_some_and(takes_trailers);
    remove_hop_by_hop(headers);
    // One look at each field is cheaper than a search for two.
    if headers.keys().any(is_framed_anew) {
        headers.remove(CONTENT_LENGTH);
        // The gateway itself says 100 when the instance takes the body.
        headers.remove(EXPECT);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if parts.uri.authority().is_some() {
        parts.uri = origin_form(&parts.uri);
        headers.insert(HOST, origin.authority.clone());
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    parts.version = Version::HTTP_11;
    tell_origin(headers, origin);
    tell_ids(headers);
}

/// An empty body of a method that usually has one (RFC 9110 §8.6).
pub(crate) fn say_no_body(parts: &mut Parts) {
    if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
        parts
            .headers
            .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

/// Makes an instance's answer one of the gateway.
pub(crate) fn to_client(parts: &mut http::response::Parts, upgrade: bool) {
    let protocol = upgrade.then(|| parts.headers.remove(UPGRADE)).flatten();
    if parts.headers.contains_key(TRANSFER_ENCODING) {
        parts.headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(&mut parts.headers);
    if let Some(protocol) = protocol {
        parts.headers.insert(UPGRADE, protocol);
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    parts.version = Version::HTTP_11;
}

fn is_framed_anew(name: &HeaderName) -> bool {
    matches!(name.as_str(), "content-length" | "expect")
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none, and a removal of what is not there is a search.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        remove_nominated(headers);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TE);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(UPGRADE);
}

/// Removes Connection and each field that it names; the fields that say where
/// the message belongs are nobody's to remove.
fn remove_nominated(headers: &mut HeaderMap) {
    // The usual values name no field.
    let is_usual = |token: &[u8]| {
        token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close")
    };
    let mut values = headers.get_all(CONNECTION).iter();
    if values.all(|value| is_usual(value.as_bytes())) {
        headers.remove(CONNECTION);
        return;
    }
    let values: Vec<_> = headers.get_all(CONNECTION).iter().cloned().collect();
    headers.remove(CONNECTION);
    for value in &values {
        let tokens = value.as_bytes().split(|&b| b == b',');
        for token in tokens.map(<[u8]>::trim_ascii) {
            if is_usual(token) {
                continue;
            }
            if let Ok(name) = HeaderName::from_bytes(token)
                && name != HOST
                && name != CONTENT_LENGTH
            {
                headers.remove(name);
            }
        }
    }
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    let mut tokens = values.flat_map(|value| value.as_bytes().split(|&b| b == b','));
    tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn takes_trailers(te: &HeaderValue) -> bool {
    let mut codings = te.as_bytes().split(|&b| b == b',');
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn origin_form(uri: &Uri) -> Uri {
    let root = || PathAndQuery::from_static("/");
    Uri::from(uri.path_and_query().cloned().unwrap_or_else(root))
}

/// HTTP/2 may part one cookie field into several (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(http::header::COOKIE).iter().collect();
    if cookies.len() < 2 {
        return;
    }
    let parts: Vec<&[u8]> = cookies.iter().map(|cookie| cookie.as_bytes()).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(http::header::COOKIE, joined);
    }
}

fn tell_origin(headers: &mut HeaderMap, origin: Origin<'_>) {
    let forwarded = forwarded(&origin);
    if origin.trust {
        append(headers, X_FORWARDED_FOR, origin.client);
        if let Some(forwarded) = forwarded {
            append(headers, FORWARDED, &forwarded);
        }
        let http = || HeaderValue::from_static("http");
        headers.entry(X_FORWARDED_PROTO).or_insert_with(http);
        headers.entry(X_FORWARDED_HOST).or_insert(origin.authority);
        return;
    }
    headers.insert(X_FORWARDED_FOR, origin.client.clone());
    if let Some(forwarded) = forwarded {
        headers.insert(FORWARDED, forwarded);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(X_FORWARDED_HOST, origin.authority);
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let mut list = BytesMut::new();
    for old in headers.get_all(&name) {
        list.put_slice(old.as_bytes());
        list.put_slice(b", ");
    }
    list.put_slice(value.as_bytes());
    if let Ok(list) = HeaderValue::from_maybe_shared(list.freeze()) {
        headers.insert(name, list);
    }
}

fn forwarded(origin: &Origin<'_>) -> Option<HeaderValue> {
    if let Some((authority, forwarded)) = origin.forwarded.get() {
        if *authority == origin.authority {
            return Some(forwarded.clone());
        }
        return new_forwarded(origin);
    }
    let forwarded = new_forwarded(origin)?;
    // A copy, for the original holds the whole head's buffer.
    let authority = HeaderValue::from_bytes(origin.authority.as_bytes()).ok()?;
    origin
        .forwarded
        .get_or_init(|| (authority, forwarded.clone()));
    Some(forwarded)
}

/// RFC 7239; the host is quoted, for it may hold a colon.
fn new_forwarded(origin: &Origin<'_>) -> Option<HeaderValue> {
    let authority = origin.authority.as_bytes();
    let mut value = BytesMut::with_capacity(32 + origin.client_node.len() + authority.len());
    value.put_slice(b"for=");
    value.put_slice(origin.client_node.as_bytes());
    value.put_slice(b";host=\"");
    value.put_slice(authority);
    value.put_slice(b"\";proto=http");
    HeaderValue::from_maybe_shared(value.freeze()).ok()
}

/// Ids that let logs of several parties be joined: the client's are kept.
fn tell_ids(headers: &mut HeaderMap) {
    let has_trace = headers
        .get(TRACEPARENT)
        .is_some_and(|trace| trace.len() == TRACEPARENT_BYTES);
    let has_id = headers.contains_key(X_REQUEST_ID);
    if has_trace && has_id {
        return;
    }
    let ids = new_ids();
    if !has_trace && let Ok(value) = HeaderValue::from_maybe_shared(ids.clone()) {
        headers.insert(TRACEPARENT, value);
    }
    if !has_id && let Ok(value) = HeaderValue::from_maybe_shared(ids.slice(3..35)) {
        headers.insert(X_REQUEST_ID, value);
    }
}

/// A `traceparent`; its trace id serves as the request's id, too.
fn new_ids() -> Bytes {
    let mut text = [b'0'; TRACEPARENT_BYTES];
    let fields = [(3, 16), (19, 16), (36, 16)];
    for (start, digits) in fields {
        let mut bits = crate::random::u64() | 1;
        for digit in &mut text[start..start + digits] {
            *digit = b"0123456789abcdef"[usize::try_from(bits & 15).unwrap_or(0)];
            bits >>= 4;
        }
    }
    text[2] = b'-';
    text[35] = b'-';
    text[52] = b'-';
    text[54] = b'1';
    IDS.with_borrow_mut(|block| {
        if block.capacity() < text.len() {
            *block = BytesMut::with_capacity(IDS_BYTES);
        }
        block.put_slice(&text);
        block.split().freeze()
    })
}

/// Ids share allocations of this size.
const IDS_BYTES: usize = 4096;

thread_local! {
    static IDS: RefCell<BytesMut> = RefCell::default();
}

/// The `Server-Timing` of a cold start.
pub(crate) fn server_timing(phases: &ColdPhases) -> Option<HeaderValue> {
    let named = [
        ("queue", phases.queue_us),
        ("placement", phases.placement_us),
        ("image", phases.image_us),
        ("sandbox", phases.sandbox_us),
        ("app", phases.app_us),
        ("first_byte", phases.first_byte_us),
    ];
    let one = |(name, us): (&str, u64)| format!("{name};dur={}.{:03}", us / 1000, us % 1000);
    HeaderValue::from_str(&named.map(one).join(", ")).ok()
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
