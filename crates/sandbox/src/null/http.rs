//! An HTTP/1.1 server's side of a connection without I/O: bytes in, bytes
//! out. Every request is answered alike once its body has arrived whole.

/// A request's head, or one line of a chunked body.
const HEAD_BYTES_MAX: usize = 64 * 1024;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nok\n";
const OK_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\n";
const OK_CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const BAD: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Where in a request the connection stands.
#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Body {
        left: u64,
    },
    ChunkSize,
    ChunkData {
        left: u64,
    },
    Trailer,
    Closed,
}

/// What a head says about what follows it.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    is_head: bool,
    close: bool,
    expects: bool,
    body: Body,
}

#[derive(Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
}

/// One connection.
#[derive(Debug, Default)]
pub struct Responder {
    input: Vec<u8>,
    state: State,
    is_head: bool,
    close: bool,
}

impl Responder {
    /// Takes what has arrived and appends what is to be sent.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.input.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(step) = self.step(used, out) {
            used += step;
        }
        self.input.drain(..used);
        if self.input.len() > HEAD_BYTES_MAX {
            self.refuse(out);
        }
    }

    /// Whether the connection is to be closed once everything is sent.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// One piece of a request; `None` when more bytes are needed.
    fn step(&mut self, from: usize, out: &mut Vec<u8>) -> Option<usize> {
        let input = &self.input[from..];
        match self.state {
            State::Closed => None,
            State::Head => {
                let len = find(input, b"\r\n\r\n")? + 4;
                match parse_head(&input[..len]) {
                    Some(head) => self.begin(&head, out),
                    None => self.refuse(out),
                }
                Some(len)
            }
            State::Body { left } => {
                let taken = take(input, left)?;
                match left - taken {
                    0 => self.respond(out),
                    left => self.state = State::Body { left },
                }
                usize::try_from(taken).ok()
            }
            State::ChunkSize => {
                let len = find(input, b"\r\n")? + 2;
                match chunk_size(&input[..len - 2]) {
                    Some(0) => self.state = State::Trailer,
                    // The line end behind the data goes with it.
                    Some(size) => self.state = State::ChunkData { left: size + 2 },
                    None => self.refuse(out),
                }
                Some(len)
            }
            State::ChunkData { left } => {
                let taken = take(input, left)?;
                self.state = match left - taken {
                    0 => State::ChunkSize,
                    left => State::ChunkData { left },
                };
                usize::try_from(taken).ok()
            }
            State::Trailer => {
                let len = find(input, b"\r\n")? + 2;
                if len == 2 {
                    self.respond(out);
                }
                Some(len)
            }
        }
    }

    fn begin(&mut self, head: &Head, out: &mut Vec<u8>) {
        self.is_head = head.is_head;
        self.close = head.close;
        if head.expects {
            out.extend_from_slice(CONTINUE);
        }
        match head.body {
            Body::Length(0) => self.respond(out),
            Body::Length(left) => self.state = State::Body { left },
            Body::Chunked => self.state = State::ChunkSize,
        }
    }

    fn respond(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(match (self.is_head, self.close) {
            (true, _) => OK_HEAD,
            (false, false) => OK,
            (false, true) => OK_CLOSE,
        });
        self.state = if self.close {
            State::Closed
        } else {
            State::Head
        };
    }

    fn refuse(&mut self, out: &mut Vec<u8>) {
        if !self.is_closed() {
            out.extend_from_slice(BAD);
            self.state = State::Closed;
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// How much of what is left is here; `None` for nothing.
fn take(input: &[u8], left: u64) -> Option<u64> {
    let here = u64::try_from(input.len()).unwrap_or(u64::MAX).min(left);
    (here > 0).then_some(here)
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(line).ok()?.split(';').next()?.trim();
    u64::from_str_radix(digits, 16)
        .ok()
        .filter(|s| *s < u64::MAX - 2)
}

/// `None` for what is no request, or has more than one framing (RFC 9112, 6.1).
fn parse_head(bytes: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let mut request = lines.next()?.split(' ');
    let (method, _target, version) = (request.next()?, request.next()?, request.next()?);
    if request.next().is_some() || !version.starts_with("HTTP/1.") {
        return None;
    }
    let (mut length, mut chunked) = (None, false);
    let (mut close, mut expects) = (version == "HTTP/1.0", false);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let value = value.parse::<u64>().ok()?;
            if length.replace(value).is_some_and(|before| before != value) {
                return None;
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
            if !chunked {
                return None;
            }
        } else if name.eq_ignore_ascii_case("connection") {
            close |= value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("expect") {
            expects = value.eq_ignore_ascii_case("100-continue");
        }
    }
    let body = match (length, chunked) {
        (Some(_), true) => return None,
        (_, true) => Body::Chunked,
        (length, false) => Body::Length(length.unwrap_or(0)),
    };
    Some(Head {
        is_head: method == "HEAD",
        close,
        expects,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole answer, whether the request comes at once or byte by byte.
    fn answer(request: &[u8]) -> (String, bool) {
        let mut whole = Responder::default();
        let mut out = vec![];
        whole.feed(request, &mut out);
        let mut slow = Responder::default();
        let mut slow_out = vec![];
        for byte in request {
            slow.feed(&[*byte], &mut slow_out);
        }
        assert_eq!(out, slow_out);
        assert_eq!(whole.is_closed(), slow.is_closed());
        (String::from_utf8(out).unwrap(), whole.is_closed())
    }

    #[test]
    fn requests_are_answered_one_after_the_other() {
        let ok = String::from_utf8(OK.to_vec()).unwrap();
        for request in [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n",
        ] {
            let twice = format!("{request}{request}");
            assert_eq!(answer(twice.as_bytes()), (format!("{ok}{ok}"), false));
        }
    }

    #[test]
    fn a_connection_closes_when_the_client_says_so() {
        let (text, closed) = answer(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n");
        assert!(closed && text.contains("connection: close") && text.ends_with("ok\n"));
        assert!(answer(b"GET / HTTP/1.0\r\n\r\n").1);
        let (text, _) = answer(b"HEAD / HTTP/1.1\r\n\r\n");
        assert!(text.ends_with("\r\n\r\n"));
        let (text, _) =
            answer(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx");
        assert!(text.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"));
    }

    #[test]
    fn what_is_no_request_is_refused_and_ends_the_connection() {
        for bad in [
            "hello\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        ] {
            let (text, closed) = answer(bad.as_bytes());
            assert!(closed && text.starts_with("HTTP/1.1 400"), "{bad}");
        }
        let endless = vec![b'a'; HEAD_BYTES_MAX + 1];
        let mut responder = Responder::default();
        let mut out = vec![];
        responder.feed(&endless, &mut out);
        assert!(responder.is_closed());
    }
}
