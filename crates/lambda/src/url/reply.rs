//! What a function answers, as a reply.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The type of a streamed answer that begins with a [`Prelude`].
pub const STREAM_TYPE: &str = "application/vnd.awslambda.http-integration-response";
/// Headers and cookies of one reply.
const HEADERS_MAX: usize = 128;
/// All their names and values, bytes.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// What stands before a streamed body, bytes.
const PRELUDE_BYTES_MAX: usize = 128 * 1024;
/// What ends it: NUL bytes.
const PRELUDE_END: [u8; 8] = [0; 8];
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// Headers that are the connection's own, not a function's to say.
const LEFT_OUT: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A function has answered what is no reply.
#[derive(Debug, thiserror::Error)]
pub enum UrlReplyError {
    /// It is not JSON, or not of the shape.
    #[error("the answer is not a reply in payload format 2.0")]
    Shape(#[source] serde_json::Error),
    /// The status is none.
    #[error("the answer's statusCode is not 200 to 599")]
    Status,
    /// The body is not what it says.
    #[error("the answer's body is not base64, and isBase64Encoded says that it is")]
    Base64,
    /// The headers are too many.
    #[error("the answer's headers and cookies are over {HEADERS_MAX}, or {HEADER_BYTES_MAX} bytes")]
    Headers,
    /// A streamed answer's beginning has no end.
    #[error(
        "the streamed answer has no {} NUL bytes within its first {PRELUDE_BYTES_MAX} bytes",
        PRELUDE_END.len()
    )]
    Prelude,
}

/// A reply without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlHead {
    /// 200 to 599.
    pub status: StatusCode,
    /// With the type and the cookies; none is the connection's own.
    pub headers: HeaderMap,
}

/// A whole reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlReply {
    /// What stands before the body.
    pub head: UrlHead,
    /// Its bytes.
    pub body: Vec<u8>,
}

impl UrlReply {
    /// Reads a function's answer. Without a `statusCode` it is itself the body
    /// of a reply of 200; of a text its characters are.
    ///
    /// # Errors
    /// What of it is no reply.
    pub fn read(payload: Vec<u8>) -> Result<Self, UrlReplyError> {
        if !is_formatted(&payload)? {
            return Self::plain(payload);
        }
        let written: Written = serde_json::from_slice(&payload).map_err(UrlReplyError::Shape)?;
        let head = written.head(JSON)?;
        let body = written.body.map(|Scalar(text)| text).unwrap_or_default();
        let body = match written.is_base64_encoded {
            Some(true) => STANDARD.decode(body).map_err(|_| UrlReplyError::Base64)?,
            _ => body.into_bytes(),
        };
        Ok(Self { head, body })
    }

    fn plain(payload: Vec<u8>) -> Result<Self, UrlReplyError> {
        let body = match first_byte(&payload) {
            Some(b'"') => {
                let text = serde_json::from_slice::<String>(&payload);
                text.map_err(UrlReplyError::Shape)?.into_bytes()
            }
            _ => payload,
        };
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, JSON)]);
        let status = StatusCode::OK;
        let head = UrlHead { status, headers };
        Ok(Self { head, body })
    }
}

fn first_byte(payload: &[u8]) -> Option<u8> {
    payload.trim_ascii_start().first().copied()
}

/// Whether an answer says a status; nothing of it is kept to find out.
fn is_formatted(payload: &[u8]) -> Result<bool, UrlReplyError> {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(rename = "statusCode")]
        status: Option<IgnoredAny>,
    }
    let probed = match first_byte(payload) {
        Some(b'{') => serde_json::from_slice(payload).map(|probe: Probe| probe.status.is_some()),
        _ => serde_json::from_slice(payload).map(|_: IgnoredAny| false),
    };
    probed.map_err(UrlReplyError::Shape)
}

/// The beginning of a streamed answer: JSON, eight NUL bytes, then the body.
#[derive(Debug, Default)]
pub struct Prelude {
    seen: Vec<u8>,
}

impl Prelude {
    /// Takes the next piece. Once the prelude is whole: what it says, and the
    /// body's first bytes.
    ///
    /// # Errors
    /// When it says no reply, or does not end.
    pub fn push(&mut self, piece: &[u8]) -> Result<Option<(UrlHead, Vec<u8>)>, UrlReplyError> {
        let from = self.seen.len().saturating_sub(PRELUDE_END.len() - 1);
        self.seen.extend_from_slice(piece);
        let mut windows = self.seen[from..].windows(PRELUDE_END.len());
        let end = windows.position(|window| window == PRELUDE_END);
        let end = end.map(|at| from + at);
        if end.unwrap_or(self.seen.len()) > PRELUDE_BYTES_MAX {
            return Err(UrlReplyError::Prelude);
        }
        let Some(end) = end else { return Ok(None) };
        let body = self.seen.split_off(end + PRELUDE_END.len());
        let written: Written =
            serde_json::from_slice(&self.seen[..end]).map_err(UrlReplyError::Shape)?;
        Ok(Some((written.head(BYTES)?, body)))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    status_code: Option<Scalar>,
    headers: Option<Headers>,
    cookies: Option<Cookies>,
    body: Option<Scalar>,
    is_base64_encoded: Option<bool>,
}

impl Written {
    fn head(&self, content_type: HeaderValue) -> Result<UrlHead, UrlReplyError> {
        let status = match &self.status_code {
            Some(Scalar(text)) => text.parse().ok().and_then(|code| {
                let is_final = (200..=599).contains(&code);
                StatusCode::from_u16(code).ok().filter(|_| is_final)
            }),
            None => Some(StatusCode::OK),
        };
        let status = status.ok_or(UrlReplyError::Status)?;
        let mut headers = HeaderMap::new();
        let told = self.headers.iter().flat_map(|Headers(told)| told);
        let own = |(name, _): &&(HeaderName, HeaderValue)| !LEFT_OUT.contains(&name.as_str());
        for (name, value) in told.filter(own) {
            headers.append(name, value.clone());
        }
        for cookie in self.cookies.iter().flat_map(|Cookies(cookies)| cookies) {
            headers.append(SET_COOKIE, cookie.clone());
        }
        let bytes = headers.iter().map(|(n, v)| n.as_str().len() + v.len());
        if headers.len() > HEADERS_MAX || bytes.sum::<usize>() > HEADER_BYTES_MAX {
            return Err(UrlReplyError::Headers);
        }
        headers.entry(CONTENT_TYPE).or_insert(content_type);
        Ok(UrlHead { status, headers })
    }
}

/// A text, or what reads as one: a number, or true and false.
#[derive(Debug)]
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl Visitor<'_> for Texts {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number or a boolean")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Scalar, E> {
                Ok(Scalar(value))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

/// Headers, no more of them than are taken.
#[derive(Debug)]
struct Headers(Vec<(HeaderName, HeaderValue)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("headers' names and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some((name, Scalar(value))) = map.next_entry::<String, Scalar>()? {
                    if headers.len() >= HEADERS_MAX {
                        return Err(A::Error::custom(UrlReplyError::Headers));
                    }
                    let name = HeaderName::from_bytes(name.as_bytes()).map_err(A::Error::custom)?;
                    headers.push((name, header_value(&value)?));
                }
                Ok(Headers(headers))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Cookies, no more of them than are taken.
#[derive(Debug)]
struct Cookies(Vec<HeaderValue>);

impl<'de> Deserialize<'de> for Cookies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Cookies;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of cookies")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Cookies, A::Error> {
                let mut cookies = Vec::new();
                while let Some(Scalar(cookie)) = list.next_element()? {
                    if cookies.len() >= HEADERS_MAX {
                        return Err(A::Error::custom(UrlReplyError::Headers));
                    }
                    cookies.push(header_value(&cookie)?);
                }
                Ok(Cookies(cookies))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

fn header_value<E: serde::de::Error>(text: &str) -> Result<HeaderValue, E> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(E::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(value: &serde_json::Value) -> Result<UrlReply, UrlReplyError> {
        UrlReply::read(value.to_string().into_bytes())
    }

    #[test]
    fn an_answer_with_a_status_is_a_reply() {
        let reply = read(&json!({
            "statusCode": 201,
            "headers": {"Content-Type": "text/html", "X-Number": 7, "Connection": "close"},
            "cookies": ["a=1; Secure", "b=2"],
            "body": "aGk=",
            "isBase64Encoded": true,
            "multiValueHeaders": {"left": ["out"]},
        }));
        let reply = reply.unwrap();
        let headers = &reply.head.headers;
        assert_eq!(
            (reply.head.status.as_u16(), &*reply.body),
            (201, &b"hi"[..])
        );
        assert_eq!(headers["content-type"], "text/html");
        assert_eq!(headers["x-number"], "7");
        let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; Secure", "b=2"]);
        assert!(!headers.contains_key("connection"));
        let bare = read(&json!({"statusCode": "404"})).unwrap();
        assert_eq!((bare.head.status.as_u16(), bare.body.len()), (404, 0));
        assert_eq!(bare.head.headers["content-type"], "application/json");
    }

    #[test]
    fn any_other_json_is_the_body() {
        for (payload, body) in [
            (r#"{"a": 1}"#, r#"{"a": 1}"#),
            (r#"{"statusCode": null}"#, r#"{"statusCode": null}"#),
            (" [200, {}]", " [200, {}]"),
            ("null", "null"),
            (r#""h\u00e4""#, "hä"),
        ] {
            let reply = UrlReply::read(payload.as_bytes().to_vec()).unwrap();
            assert_eq!(reply.body, body.as_bytes(), "{payload}");
            assert_eq!(reply.head.status, StatusCode::OK);
            assert_eq!(reply.head.headers["content-type"], "application/json");
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        let many: serde_json::Map<_, _> = (0..200).map(|n| (format!("x-{n}"), json!(n))).collect();
        for bad in [
            json!({"statusCode": 99}),
            json!({"statusCode": 101}),
            json!({"statusCode": 600}),
            json!({"statusCode": "ok"}),
            json!({"statusCode": 200.5}),
            json!({"statusCode": [200]}),
            json!({"statusCode": 200, "body": {"a": 1}}),
            json!({"statusCode": 200, "body": "%", "isBase64Encoded": true}),
            json!({"statusCode": 200, "headers": {"a b": "c"}}),
            json!({"statusCode": 200, "headers": {"a": "b\r\nc: d"}}),
            json!({"statusCode": 200, "headers": {"a": ["b"]}}),
            json!({"statusCode": 200, "headers": many}),
            json!({"statusCode": 200, "headers": {"a": "x".repeat(70_000)}}),
            json!({"statusCode": 200, "cookies": "a=b"}),
            json!({"statusCode": 200, "cookies": vec!["a"; 200]}),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
        for bad in ["", "{", "hello", "{} {}", r#"{"statusCode":200"#] {
            assert!(UrlReply::read(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prelude_ends_at_eight_nul_bytes_wherever_it_is_cut() {
        let mut whole = br#"{"statusCode":418,"headers":{"a":"b"},"cookies":["c=d"]}"#.to_vec();
        whole.extend([0; 8]);
        whole.extend(b"\0body");
        for cut in 0..whole.len() {
            let mut prelude = Prelude::default();
            let mut parts = [&whole[..cut], &whole[cut..]].into_iter();
            let (head, mut body) = loop {
                let part = parts.next().unwrap();
                if let Some(found) = prelude.push(part).unwrap() {
                    break found;
                }
            };
            parts.for_each(|part| body.extend(part));
            assert_eq!(
                (head.status.as_u16(), &*body),
                (418, &b"\0body"[..]),
                "{cut}"
            );
            assert_eq!(head.headers["a"], "b");
            assert_eq!(head.headers["set-cookie"], "c=d");
            assert_eq!(head.headers["content-type"], "application/octet-stream");
        }
        let endless = Prelude::default().push(&vec![b' '; PRELUDE_BYTES_MAX + 1]);
        assert!(matches!(endless, Err(UrlReplyError::Prelude)));
        let bad = Prelude::default().push(b"hello\0\0\0\0\0\0\0\0");
        assert!(matches!(bad, Err(UrlReplyError::Shape(_))));
    }

    proptest! {
        #[test]
        fn no_answer_is_too_odd(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let is_json = serde_json::from_slice::<serde_json::Value>(&payload).is_ok();
            prop_assert!(is_json || UrlReply::read(payload).is_err());
        }

        #[test]
        fn what_is_answered_is_what_is_replied(
            status in 200_u16..600, body in proptest::collection::vec(any::<u8>(), 0..200),
            text in ".{0,60}", is_base64: bool,
            headers in proptest::collection::btree_map("x-[a-z]{1,9}", "[ -~]{0,30}", 0..8),
        ) {
            let (written, body) = match is_base64 {
                true => (STANDARD.encode(&body), body),
                false => (text.clone(), text.into_bytes()),
            };
            let reply = read(&json!({
                "statusCode": status, "headers": headers,
                "body": written, "isBase64Encoded": is_base64,
            })).unwrap();
            prop_assert_eq!(reply.head.status.as_u16(), status);
            prop_assert_eq!(reply.body, body);
            for (name, value) in headers {
                prop_assert_eq!(reply.head.headers[&name].as_bytes(), value.as_bytes());
            }
        }
    }
}
