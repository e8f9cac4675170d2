//! HTTP/1.1 (RFC 9112) as far as the API's clients speak it: heads, and bodies
//! whose length is told. No socket is known here.

use serde_json::json;

/// The longest head: its line and all its fields.
pub(super) const MAX_HEAD: usize = 8 << 10;
/// The longest body: Firecracker's limit.
pub(super) const MAX_BODY: usize = 51_200;
/// The most fields of a head.
const MAX_FIELDS: usize = 64;

/// What is asked for. Firecracker has no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Put,
    Patch,
}

impl Method {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
        }
    }
}

/// A request with its whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Begins with a slash.
    pub(super) path: String,
    pub(super) body: Vec<u8>,
    /// Another request may follow.
    pub(super) keeps: bool,
}

/// What the bytes are so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A request, and how many bytes it took.
    Whole(Request, usize),
    /// Its beginning. `waits` when the client wants to be told to go on.
    Part { waits: bool },
}

/// Why bytes are no request. What comes behind them has no meaning.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("this is no HTTP request")]
    Malformed(#[source] httparse::Error),
    #[error("the request's head has more than {MAX_HEAD} bytes")]
    Head,
    #[error("the method {0:?} is none of GET, PUT and PATCH")]
    Method(String),
    #[error("the target {0:?} is no path")]
    Target(String),
    #[error("Content-Length must be there once, as a number")]
    Length,
    #[error("a body needs Content-Length: Transfer-Encoding is not known here")]
    Encoding,
    #[error("the body has {0} bytes, and {MAX_BODY} are the most")]
    Body(u64),
}

impl HttpError {
    pub(super) const fn status(&self) -> Status {
        match self {
            Self::Encoding => Status::NotImplemented,
            Self::Body(_) => Status::TooLarge,
            _ => Status::BadRequest,
        }
    }
}

/// Looks at bytes that begin with a request.
///
/// # Errors
/// When they do not.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, HttpError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let window = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    let status = head.parse(window).map_err(|error| match error {
        httparse::Error::TooManyHeaders => HttpError::Head,
        error => HttpError::Malformed(error),
    })?;
    let httparse::Status::Complete(start) = status else {
        if bytes.len() >= MAX_HEAD {
            return Err(HttpError::Head);
        }
        return Ok(Parsed::Part { waits: false });
    };
    let framing = Framing::of(head.headers)?;
    let method = method(head.method.unwrap_or_default())?;
    let path = path(head.path.unwrap_or_default())?;
    let end = start + framing.length;
    let Some(body) = bytes.get(start..end) else {
        let waits = framing.waits;
        return Ok(Parsed::Part { waits });
    };
    let request = Request {
        method,
        path,
        body: body.to_vec(),
        keeps: head.version == Some(1) && !framing.closes,
    };
    Ok(Parsed::Whole(request, end))
}

fn method(word: &str) -> Result<Method, HttpError> {
    let known = [Method::Get, Method::Put, Method::Patch];
    let found = known.into_iter().find(|method| method.word() == word);
    found.ok_or_else(|| HttpError::Method(word.into()))
}

/// A path as it is, or that of a whole address.
fn path(target: &str) -> Result<String, HttpError> {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').and_then(|slash| rest.get(slash..)),
        None => Some(target),
    };
    let path = path.filter(|path| path.starts_with('/'));
    path.map(str::to_owned)
        .ok_or_else(|| HttpError::Target(target.into()))
}

/// What the fields say of the body and of what comes behind it.
#[derive(Debug, Default)]
struct Framing {
    length: usize,
    closes: bool,
    waits: bool,
}

impl Framing {
    fn of(fields: &[httparse::Header<'_>]) -> Result<Self, HttpError> {
        let mut framing = Self::default();
        let mut length = None;
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            let says = |word: &[u8]| field.value.trim_ascii().eq_ignore_ascii_case(word);
            if is("transfer-encoding") {
                return Err(HttpError::Encoding);
            } else if is("content-length") {
                if length.replace(number(field.value)?).is_some() {
                    return Err(HttpError::Length);
                }
            } else if is("connection") {
                framing.closes |= says(b"close");
            } else if is("expect") {
                framing.waits |= says(b"100-continue");
            }
        }
        let length = length.unwrap_or(0);
        let fits = usize::try_from(length).ok();
        let fits = fits.filter(|length| *length <= MAX_BODY);
        framing.length = fits.ok_or(HttpError::Body(length))?;
        Ok(framing)
    }
}

fn number(value: &[u8]) -> Result<u64, HttpError> {
    let value = value.trim_ascii();
    // A sign would be read as part of a number.
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::Length);
    }
    // One that has too many digits is too large.
    let text = std::str::from_utf8(value).map_err(|_| HttpError::Length)?;
    Ok(text.parse().unwrap_or(u64::MAX))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    NoContent,
    BadRequest,
    TooLarge,
    NotImplemented,
    Unavailable,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::NoContent => "204 No Content",
            Self::BadRequest => "400 Bad Request",
            Self::TooLarge => "413 Payload Too Large",
            Self::NotImplemented => "501 Not Implemented",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: Status,
    /// JSON.
    pub(super) body: Option<String>,
}

impl Response {
    pub(super) const fn done() -> Self {
        Self {
            status: Status::NoContent,
            body: None,
        }
    }

    pub(super) fn json(value: &serde_json::Value) -> Self {
        Self {
            status: Status::Ok,
            body: Some(value.to_string()),
        }
    }

    pub(super) fn fault(status: Status, message: &str) -> Self {
        Self {
            status,
            body: Some(json!({ "fault_message": message }).to_string()),
        }
    }

    /// As it goes over a connection, which may be kept for the next request.
    pub(super) fn bytes(&self, keeps: bool) -> Vec<u8> {
        let connection = if keeps { "keep-alive" } else { "close" };
        let mut text = format!(
            "HTTP/1.1 {}\r\nServer: skiff-vmm\r\nConnection: {connection}\r\n",
            self.status.line()
        );
        if let Some(body) = &self.body {
            let length = body.len();
            text.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            ));
        } else {
            text.push_str("\r\n");
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> Request {
        match parse(text.as_bytes()) {
            Ok(Parsed::Whole(request, used)) if used == text.len() => request,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn requests_are_read() {
        let get = whole("GET /machine-config HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!((get.method, get.keeps), (Method::Get, true));
        assert_eq!((get.path.as_str(), get.body.len()), ("/machine-config", 0));
        let put = whole("PUT /vsock HTTP/1.1\r\ncontent-LENGTH: 2\r\nAccept: */*\r\n\r\n{}");
        assert_eq!((put.method, put.body.as_slice()), (Method::Put, &b"{}"[..]));
        let patch = whole("PATCH http://localhost/vm HTTP/1.0\r\nContent-Length:1\r\n\r\nx");
        assert_eq!((patch.path.as_str(), patch.keeps), ("/vm", false));
        assert!(!whole("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").keeps);
    }

    #[test]
    fn what_is_not_whole_is_waited_for() {
        let text = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc";
        let head = text.len() - 3;
        for end in 0..text.len() {
            let waits = end >= head;
            let parsed = parse(&text.as_bytes()[..end]).unwrap();
            assert_eq!(parsed, Parsed::Part { waits }, "{end}");
        }
        // What comes behind is the next one's.
        let both = format!("{text}GET / HTTP/1.1\r\n\r\n");
        let parsed = parse(both.as_bytes()).unwrap();
        assert!(matches!(parsed, Parsed::Whole(_, used) if used == text.len()));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let long = "x".repeat(MAX_HEAD);
        let many = "A: b\r\n".repeat(MAX_FIELDS + 1);
        for (text, status, said) in [
            (
                "nonsense\r\n\r\n".into(),
                Status::BadRequest,
                "no HTTP request",
            ),
            (
                "GET / HTTP/2.0\r\n\r\n".into(),
                Status::BadRequest,
                "no HTTP request",
            ),
            (
                "DELETE / HTTP/1.1\r\n\r\n".into(),
                Status::BadRequest,
                "\"DELETE\"",
            ),
            (
                "get / HTTP/1.1\r\n\r\n".into(),
                Status::BadRequest,
                "\"get\"",
            ),
            (
                "GET vm HTTP/1.1\r\n\r\n".into(),
                Status::BadRequest,
                "no path",
            ),
            (
                "GET http://x HTTP/1.1\r\n\r\n".into(),
                Status::BadRequest,
                "no path",
            ),
            (format!("GET /{long}"), Status::BadRequest, "8192 bytes"),
            (
                format!("GET / HTTP/1.1\r\nA: {long}"),
                Status::BadRequest,
                "8192 bytes",
            ),
            (
                format!("GET / HTTP/1.1\r\n{many}\r\n"),
                Status::BadRequest,
                "8192 bytes",
            ),
            (
                field("Content-Length: -1"),
                Status::BadRequest,
                "as a number",
            ),
            (
                field("Content-Length: +1"),
                Status::BadRequest,
                "as a number",
            ),
            (field("Content-Length:"), Status::BadRequest, "as a number"),
            (
                field("Content-Length: 1, 1"),
                Status::BadRequest,
                "as a number",
            ),
            (
                field("Content-Length: 1\r\nContent-Length: 1"),
                Status::BadRequest,
                "once",
            ),
            (
                field("Content-Length: 51201"),
                Status::TooLarge,
                "51201 bytes",
            ),
            (
                field("Content-Length: 99999999999999999999"),
                Status::TooLarge,
                "the most",
            ),
            (
                field("Transfer-Encoding: chunked"),
                Status::NotImplemented,
                "Content-Length",
            ),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.status(), status, "{text}");
            assert!(error.to_string().contains(said), "{text}: {error}");
        }
    }

    fn field(line: &str) -> String {
        format!("PUT / HTTP/1.1\r\n{line}\r\n\r\n")
    }

    #[test]
    fn answers_are_written() {
        let text = |response: Response, keeps| String::from_utf8(response.bytes(keeps)).unwrap();
        assert_eq!(
            text(Response::done(), true),
            "HTTP/1.1 204 No Content\r\nServer: skiff-vmm\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            text(Response::fault(Status::BadRequest, "a \"b\"\n"), false),
            "HTTP/1.1 400 Bad Request\r\nServer: skiff-vmm\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 29\r\n\r\n\
             {\"fault_message\":\"a \\\"b\\\"\\n\"}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic_or_more_than_they_are(
            bytes in prop::collection::vec(any::<u8>(), 0..2048),
        ) {
            if let Ok(Parsed::Whole(request, used)) = parse(&bytes) {
                prop_assert!(used <= bytes.len() && request.body.len() < used);
            }
        }

        /// A request of which some bytes are others is refused, waited for, or
        /// another request; and it is the same however it comes in pieces.
        #[test]
        fn a_request_with_wrong_bytes_is_no_harm(
            changes in prop::collection::vec((0..90_usize, any::<u8>()), 1..6),
        ) {
            let mut bytes = b"PUT /drives/root HTTP/1.1\r\nHost: localhost\r\n\
                Content-Length: 12\r\n\r\n{\"a\": \"bcd\"}".to_vec();
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            let all = parse(&bytes);
            for end in 0..bytes.len() {
                match parse(&bytes[..end]) {
                    Ok(Parsed::Part { .. }) => {}
                    Ok(Parsed::Whole(_, used)) => prop_assert!(used <= end),
                    // What is refused early is refused in the end.
                    Err(_) => prop_assert!(all.is_err()),
                }
            }
        }
    }
}
