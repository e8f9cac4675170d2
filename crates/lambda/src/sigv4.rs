//! Signature Version 4, mostly the verifying half (AWS, "Create a signed AWS API
//! request"): in the `Authorization` header, in the query (presigned), and
//! over a body that is sent in signed chunks ([`crate::streamed`]).
//!
//! ```text
//!  request ─▶ Signature::of (whose key, when, what is signed)
//!               │ the key's secret and the body are looked up
//!               ▼
//!             Signature::verify ─▶ the body that the client meant
//! ```
//! What is signed is what was sent: the path is encoded once more and without
//! dot segments, as every service's but S3's.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use skiff_base::{Date, UtcTime};
use subtle::ConstantTimeEq as _;

use crate::error::Code;
use crate::percent::{decode, encode, hex, pairs};
use crate::streamed;

/// A signature's age, either way, seconds.
pub(crate) const SKEW_S: u64 = 15 * 60;
/// The longest life of a presigned request, seconds.
const EXPIRES_S_MAX: u64 = 7 * 24 * 3600;
/// Signed headers, at most.
const SIGNED_HEADERS_MAX: usize = 64;
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const STREAMED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const END: &str = "aws4_request";

/// A request's head as it was sent.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `GET` and so on.
    pub method: &'a str,
    /// The path, still encoded.
    pub path: &'a str,
    /// The query, still encoded, without `?`.
    pub query: &'a str,
    /// Names in lower case, values as they were sent, in the order of sending.
    pub headers: &'a [(String, String)],
}

impl Request<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.trim())
    }
}

/// Where signatures count.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// `us-east-1`.
    pub region: &'a str,
    /// `lambda`.
    pub service: &'a str,
}

/// An access key's secret. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A request is not signed as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Nothing of a signature is there.
    #[error("the request is not signed: Signature Version 4 is expected")]
    Missing,
    /// A part is missing or has not its form.
    #[error("the signature is not whole: {0}")]
    Incomplete(&'static str),
    /// It counts somewhere else.
    #[error("the credential is for {given} and {expected} is expected")]
    Scope {
        /// What is signed for.
        given: String,
        /// What counts here.
        expected: String,
    },
    /// The clocks differ, or it waited too long.
    #[error(
        "the request is signed at {signed} (Unix seconds) and it is {now}: {SKEW_S} s may lie between them"
    )]
    Skewed {
        /// When it was signed.
        signed: u64,
        /// When it came.
        now: u64,
    },
    /// A presigned request's life is over.
    #[error("the presigned request has expired")]
    Expired,
    /// Another key, or something has changed on the way.
    #[error(
        "the request's signature is not the one that its key gives: look at the secret key and the signing method"
    )]
    Mismatch,
}

impl SignatureError {
    /// AWS's name for it.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Missing => Code::MissingAuthenticationToken,
            Self::Incomplete(_) => Code::IncompleteSignature,
            Self::Scope { .. } | Self::Skewed { .. } | Self::Expired | Self::Mismatch => {
                Code::InvalidSignature
            }
        }
    }
}

/// The query with which anyone may get this path for a while: as the key's
/// owner, without the key.
#[must_use]
pub fn presigned_query(
    (host, path): (&str, &str),
    (access_key, secret): (&str, &Secret),
    scope: Scope<'_>,
    now_unix_s: u64,
    expires_s: u64,
) -> String {
    let time = time(now_unix_s);
    let scope = format!("{}/{}/{}/{END}", &time[..8], scope.region, scope.service);
    let credential = encode(format!("{access_key}/{scope}").as_bytes(), false);
    let query = format!(
        "X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={credential}&X-Amz-Date={time}&X-Amz-Expires={expires_s}&X-Amz-SignedHeaders=host"
    );
    let request = Request {
        method: "GET",
        path,
        query: &query,
        headers: &[("host".to_owned(), host.to_owned())],
    };
    let unsigned = Signature {
        access_key: access_key.to_owned(),
        time,
        unix_s: now_unix_s,
        scope,
        signed_headers: vec!["host".to_owned()],
        signature: [0; 32],
        expires_s: Some(expires_s),
    };
    let key = signing_key(secret, &unsigned.scope);
    let signature = unsigned.expected(&request, &payload_sha256(b""), &key);
    format!("{query}&X-Amz-Signature={}", hex(&signature))
}

/// What a request says of its signature; believed only after
/// [`Signature::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    access_key: String,
    /// `20130524T000000Z`.
    time: String,
    unix_s: u64,
    /// The credential's scope, from its date on.
    scope: String,
    signed_headers: Vec<String>,
    signature: [u8; 32],
    /// Seconds that a presigned request lives.
    expires_s: Option<u64>,
}

impl Signature {
    /// Reads the signature that a request carries.
    ///
    /// # Errors
    /// When there is none, it is not whole, or it counts elsewhere.
    pub fn of(request: &Request<'_>, scope: Scope<'_>) -> Result<Self, SignatureError> {
        let signature = match request.header("authorization") {
            Some(header) => Self::in_header(request, header)?,
            None => Self::in_query(request)?,
        };
        signature.check(request, scope)?;
        Ok(signature)
    }

    /// Whose key it is.
    #[must_use]
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// Whether it stands in the query, with an end of its own.
    pub(crate) const fn is_presigned(&self) -> bool {
        self.expires_s.is_some()
    }

    /// When it is believed for the last time, seconds since 1970.
    pub(crate) fn ends_unix_s(&self) -> u64 {
        let lives = self.expires_s.unwrap_or(SKEW_S);
        self.unix_s.saturating_add(lives)
    }

    /// The signature itself.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.signature
    }

    fn in_header(request: &Request<'_>, header: &str) -> Result<Self, SignatureError> {
        let fields = header
            .strip_prefix(ALGORITHM)
            .ok_or(SignatureError::Missing)?;
        let field = |name: &str| {
            let mut fields = fields.split(',').map(str::trim);
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let missing = SignatureError::Incomplete;
        let time = request
            .header("x-amz-date")
            .ok_or(missing("X-Amz-Date is missing"))?;
        Self::assemble(
            field("Credential").ok_or(missing("Credential is missing"))?,
            time,
            field("SignedHeaders").ok_or(missing("SignedHeaders is missing"))?,
            field("Signature").ok_or(missing("Signature is missing"))?,
            None,
        )
    }

    fn in_query(request: &Request<'_>) -> Result<Self, SignatureError> {
        let field = |name: &str| {
            let mut pairs = pairs(request.query);
            pairs.find_map(|(known, value)| if known == name { decode(value) } else { None })
        };
        let missing = SignatureError::Incomplete;
        match field("X-Amz-Algorithm").as_deref() {
            Some(ALGORITHM) => {}
            Some(_) => return Err(missing("X-Amz-Algorithm is another one")),
            None => return Err(SignatureError::Missing),
        }
        let expires = field("X-Amz-Expires").ok_or(missing("X-Amz-Expires is missing"))?;
        let expires = expires
            .parse()
            .ok()
            .filter(|s| (1..=EXPIRES_S_MAX).contains(s));
        Self::assemble(
            &field("X-Amz-Credential").ok_or(missing("X-Amz-Credential is missing"))?,
            &field("X-Amz-Date").ok_or(missing("X-Amz-Date is missing"))?,
            &field("X-Amz-SignedHeaders").ok_or(missing("X-Amz-SignedHeaders is missing"))?,
            &field("X-Amz-Signature").ok_or(missing("X-Amz-Signature is missing"))?,
            Some(expires.ok_or(missing("X-Amz-Expires is not 1 to 604800"))?),
        )
    }

    fn assemble(
        credential: &str,
        time: &str,
        signed_headers: &str,
        signature: &str,
        expires_s: Option<u64>,
    ) -> Result<Self, SignatureError> {
        let broken = SignatureError::Incomplete;
        let (access_key, scope) = credential
            .split_once('/')
            .ok_or(broken("Credential has no scope"))?;
        let signed_headers: Vec<String> = signed_headers.split(';').map(str::to_owned).collect();
        if signed_headers.len() > SIGNED_HEADERS_MAX {
            return Err(broken("SignedHeaders has over 64 names"));
        }
        Ok(Self {
            access_key: access_key.to_owned(),
            unix_s: unix_s(time).ok_or(broken("X-Amz-Date is not YYYYMMDDTHHMMSSZ"))?,
            time: time.to_owned(),
            scope: scope.to_owned(),
            signed_headers,
            signature: unhex(signature).ok_or(broken("Signature is not 64 hexadecimal digits"))?,
            expires_s,
        })
    }

    /// What has to be signed is, for the right place.
    fn check(&self, request: &Request<'_>, scope: Scope<'_>) -> Result<(), SignatureError> {
        let date = &self.time[..8];
        let expected = format!("{date}/{}/{}/{END}", scope.region, scope.service);
        if self.scope != expected {
            return Err(SignatureError::Scope {
                given: self.scope.chars().take(100).collect(),
                expected,
            });
        }
        let signed = |name: &str| self.signed_headers.iter().any(|known| known == name);
        if !signed("host") {
            return Err(SignatureError::Incomplete("the header host is not signed"));
        }
        let open = |(name, _): &&(String, String)| name.starts_with("x-amz-") && !signed(name);
        if request.headers.iter().any(|header| open(&header)) {
            return Err(SignatureError::Incomplete(
                "a header that begins with x-amz- is not signed",
            ));
        }
        Ok(())
    }

    /// Whether this request with this body was signed by that key, now enough.
    /// Answers the body that was meant: without the signatures of its chunks,
    /// if it has some.
    ///
    /// # Errors
    /// Why the request is not to be believed.
    pub fn verify(
        &self,
        request: &Request<'_>,
        body: Vec<u8>,
        secret: &Secret,
        now_unix_s: u64,
    ) -> Result<Vec<u8>, SignatureError> {
        let declared = request.header("x-amz-content-sha256");
        let streamed = declared == Some(STREAMED);
        let payload = match streamed {
            true => STREAMED.to_owned(),
            false => payload_sha256(&body),
        };
        let key = self.believed(request, &payload, secret, now_unix_s)?;
        if !streamed {
            return Ok(body);
        }
        let length = request.header("x-amz-decoded-content-length");
        let length = length.and_then(|length| length.parse::<usize>().ok());
        let length = length.ok_or(SignatureError::Incomplete(
            "X-Amz-Decoded-Content-Length is missing",
        ))?;
        let seal = streamed::Seal {
            key,
            time: &self.time,
            scope: &self.scope,
        };
        streamed::open(&body, &seal, self.signature, length)
    }

    /// The same for a body that was digested as it passed. One in signed
    /// chunks is refused: [`Self::verify`] takes it apart.
    ///
    /// # Errors
    /// Why the request is not to be believed.
    pub fn verify_digested(
        &self,
        request: &Request<'_>,
        body_sha256: [u8; 32],
        secret: &Secret,
        now_unix_s: u64,
    ) -> Result<(), SignatureError> {
        if request.header("x-amz-content-sha256") == Some(STREAMED) {
            return Err(SignatureError::Incomplete(
                "the body is in signed chunks, and this operation takes it whole",
            ));
        }
        let payload = hex(&body_sha256);
        self.believed(request, &payload, secret, now_unix_s)
            .map(|_| ())
    }

    /// What the key gives for this request.
    fn expected(&self, request: &Request<'_>, payload: &str, key: &[u8; 32]) -> [u8; 32] {
        let canonical = self.canonical(request, payload);
        let to_sign = format!(
            "{ALGORITHM}\n{}\n{}\n{}",
            self.time,
            self.scope,
            payload_sha256(canonical.as_bytes())
        );
        hmac(key, to_sign.as_bytes())
    }

    /// The key that signed this request, with a body of this digest.
    fn believed(
        &self,
        request: &Request<'_>,
        payload: &str,
        secret: &Secret,
        now_unix_s: u64,
    ) -> Result<[u8; 32], SignatureError> {
        self.check_time(now_unix_s)?;
        match request.header("x-amz-content-sha256") {
            Some(UNSIGNED) => {
                return Err(SignatureError::Incomplete(
                    "the body is not signed (UNSIGNED-PAYLOAD)",
                ));
            }
            Some(declared) if declared != payload => return Err(SignatureError::Mismatch),
            _ => {}
        }
        let key = signing_key(secret, &self.scope);
        let expected = self.expected(request, payload, &key);
        if !bool::from(expected.ct_eq(&self.signature)) {
            return Err(SignatureError::Mismatch);
        }
        Ok(key)
    }

    fn check_time(&self, now: u64) -> Result<(), SignatureError> {
        let skewed = SignatureError::Skewed {
            signed: self.unix_s,
            now,
        };
        match self.expires_s {
            Some(_) if self.unix_s > now.saturating_add(SKEW_S) => Err(skewed),
            Some(lives) if now > self.unix_s.saturating_add(lives) => Err(SignatureError::Expired),
            None if self.unix_s.abs_diff(now) > SKEW_S => Err(skewed),
            _ => Ok(()),
        }
    }

    fn canonical(&self, request: &Request<'_>, payload: &str) -> String {
        let headers: String = self
            .signed_headers
            .iter()
            .map(|name| format!("{name}:{}\n", canonical_value(request, name)))
            .collect();
        format!(
            "{}\n{}\n{}\n{headers}\n{}\n{payload}",
            request.method,
            canonical_path(request.path),
            canonical_query(request.query),
            self.signed_headers.join(";"),
        )
    }
}

/// The headers `x-amz-date` and `authorization` that sign a request with this
/// body; every header that it has is signed, and `host` is to be among them.
#[must_use]
pub fn sign(
    request: &Request<'_>,
    body: &[u8],
    scope: Scope<'_>,
    access_key: &str,
    secret: &Secret,
    now_unix_s: u64,
) -> [(String, String); 2] {
    let time = time(now_unix_s);
    let date = ("x-amz-date".to_owned(), time.clone());
    let mut headers = request.headers.to_vec();
    headers.push(date.clone());
    let mut signed_headers: Vec<String> = headers.iter().map(|(name, _)| name.clone()).collect();
    signed_headers.sort();
    signed_headers.dedup();
    let signature = Signature {
        access_key: access_key.to_owned(),
        scope: format!("{}/{}/{}/{END}", &time[..8], scope.region, scope.service),
        time,
        unix_s: now_unix_s,
        signed_headers,
        signature: [0; 32],
        expires_s: None,
    };
    let request = Request {
        headers: &headers,
        ..*request
    };
    let key = signing_key(secret, &signature.scope);
    let bytes = signature.expected(&request, &payload_sha256(body), &key);
    let authorization = format!(
        "{ALGORITHM} Credential={access_key}/{}, SignedHeaders={}, Signature={}",
        signature.scope,
        signature.signed_headers.join(";"),
        hex(&bytes),
    );
    [date, ("authorization".to_owned(), authorization)]
}

/// Lower-case hexadecimal SHA-256.
#[must_use]
pub fn payload_sha256(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(crate) fn hmac(key: &[u8], bytes: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length: this cannot fail.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return [0; 32];
    };
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

pub(crate) fn signing_key(secret: &Secret, scope: &str) -> [u8; 32] {
    let first = format!("AWS4{}", secret.0).into_bytes();
    let mut parts = scope.split('/');
    let date = hmac(&first, parts.next().unwrap_or_default().as_bytes());
    parts.fold(date, |key, part| hmac(&key, part.as_bytes()))
}

pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Reads `20130524T000000Z`.
fn unix_s(time: &str) -> Option<u64> {
    let digits = time.strip_suffix('Z')?.replacen('T', "", 1);
    let right = time.as_bytes().get(8) == Some(&b'T')
        && digits.len() == 14
        && digits.bytes().all(|b| b.is_ascii_digit());
    if !right {
        return None;
    }
    let number = |from: usize, to: usize| digits[from..to].parse::<u64>().ok();
    let date = Date {
        year: number(0, 4)?,
        month: number(4, 6)?,
        day: number(6, 8)?,
    };
    let (hour, minute, second) = (number(8, 10)?, number(10, 12)?, number(12, 14)?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(((date.days()? * 24 + hour) * 60 + minute) * 60 + second)
}

/// `20130524T000000Z`.
fn time(unix_s: u64) -> String {
    let UtcTime {
        date: Date { year, month, day },
        hour,
        minute,
        second,
        ..
    } = UtcTime::of_unix_ms(unix_s.saturating_mul(1000));
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Values of one name in the order of sending, trimmed, blanks in a row as one.
fn canonical_value(request: &Request<'_>, name: &str) -> String {
    let values = request.headers.iter().filter(|(known, _)| known == name);
    let clean = |(_, value): &(String, String)| {
        let words = value.split(' ').filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join(" ")
    };
    values.map(clean).collect::<Vec<_>>().join(",")
}

/// RFC 3986 §5.2.4 and one slash in a row, then encoded once more.
fn canonical_path(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').peekable();
    let mut open = false;
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" | "." => open = last,
            ".." => {
                kept.pop();
                open = last;
            }
            other => kept.push(other),
        }
    }
    let end = if open && !kept.is_empty() { "/" } else { "" };
    encode(format!("/{}{end}", kept.join("/")).as_bytes(), true)
}

/// Sorted by encoded name, then value; the signature itself is not in it.
fn canonical_query(query: &str) -> String {
    let again = |text: &str| match crate::percent::decode_bytes(text) {
        Some(bytes) => encode(&bytes, false),
        None => text.to_owned(),
    };
    let mut kept: Vec<(String, String)> = pairs(query)
        .filter(|(name, _)| *name != "X-Amz-Signature")
        .map(|(name, value)| (again(name), again(value)))
        .collect();
    kept.sort();
    let one = |(name, value): &(String, String)| format!("{name}={value}");
    kept.iter().map(one).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_presigned_is_believed_for_its_time() {
        let secret = Secret("secret".to_owned());
        let scope = Scope {
            region: "us-east-1",
            service: "lambda",
        };
        let now = 1_369_353_600;
        let at = ("localhost:9090", "/skiff/code/a/b");
        let query = presigned_query(at, ("SKIFA", &secret), scope, now, 600);
        let headers = [("host".to_owned(), at.0.to_owned())];
        let believed = |path: &str, now| {
            let request = Request {
                method: "GET",
                path,
                query: &query,
                headers: &headers,
            };
            let signature = Signature::of(&request, scope).unwrap();
            assert_eq!(signature.access_key(), "SKIFA");
            signature.verify(&request, Vec::new(), &secret, now)
        };
        assert_eq!(believed(at.1, now + 600), Ok(Vec::new()));
        assert_eq!(believed(at.1, now + 601), Err(SignatureError::Expired));
        assert_eq!(
            believed("/skiff/code/a/c", now),
            Err(SignatureError::Mismatch)
        );
    }

    #[test]
    fn times_are_read() {
        for (text, expected) in [
            ("20130524T000000Z", Some(1_369_353_600)),
            ("19700101T000001Z", Some(1)),
            ("20130524000000Z", None),
            ("20130524T000000", None),
            ("20131324T000000Z", None),
            ("20130524T250000Z", None),
            ("2013052äT00000Z", None),
            ("", None),
        ] {
            assert_eq!(unix_s(text), expected, "{text}");
        }
    }

    #[test]
    fn paths_and_queries_are_made_canonical() {
        for (path, expected) in [
            ("/", "/"),
            ("", "/"),
            ("//a//b/", "/a/b/"),
            ("/a/./b/../c", "/a/c"),
            ("/..", "/"),
            ("/arn%3Aaws", "/arn%253Aaws"),
        ] {
            assert_eq!(canonical_path(path), expected, "{path}");
        }
        for (query, expected) in [
            ("", ""),
            ("b=2&a=1&a=0", "a=0&a=1&b=2"),
            ("a", "a="),
            ("a=%7e+", "a=~%2B"),
            ("X-Amz-Signature=x&a=b", "a=b"),
        ] {
            assert_eq!(canonical_query(query), expected, "{query}");
        }
    }
}
