//! A request as the event that its function gets.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use skiff_base::{Date, UtcTime};

use crate::percent::{decode_bytes, pairs};

const DEFAULT: &str = "$default";
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
/// Headers that are the connection's own (RFC 9110 §7.6.1), and the cookies,
/// which stand by themselves.
const LEFT_OUT: [&str; 8] = [
    "connection",
    "cookie",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Headers that say how the request came, which nobody says for himself.
const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_PORT: &str = "x-forwarded-port";
const FORWARDED_PROTO: &str = "x-forwarded-proto";
const TRACE: &str = "x-amzn-trace-id";
const OWN: [&str; 4] = [FORWARDED_FOR, FORWARDED_PORT, FORWARDED_PROTO, TRACE];

/// A request to a function's URL.
#[derive(Clone, Copy, Debug)]
pub struct UrlRequest<'a> {
    /// `GET` and so on.
    pub method: &'a str,
    /// The path below the URL as it was sent; begins with `/`.
    pub path: &'a str,
    /// The query as it was sent, without `?`.
    pub query: &'a str,
    /// `HTTP/1.1`.
    pub protocol: &'a str,
    /// Names in lower case, in the order of sending.
    pub headers: &'a [(String, String)],
    /// The whole body.
    pub body: &'a [u8],
    /// Who is at the connection's other end.
    pub source_ip: &'a str,
}

/// What is told beside the request.
#[derive(Clone, Copy, Debug)]
pub struct UrlContext<'a> {
    /// The URL's own id.
    pub url_id: &'a str,
    /// The URL's host, without a port.
    pub domain: &'a str,
    /// The invocation's.
    pub request_id: &'a str,
    /// When the request came.
    pub now_unix_ms: u64,
    /// Whether it came over TLS.
    pub is_https: bool,
    /// `Root=1-…`.
    pub trace_id: &'a str,
    /// Who has signed it; nobody has to for a URL of the type NONE.
    pub caller: Option<UrlCaller<'a>>,
}

/// Who has signed a request.
#[derive(Clone, Copy, Debug)]
pub struct UrlCaller<'a> {
    /// The key's id.
    pub access_key: &'a str,
    /// The key's project.
    pub account: &'a str,
}

/// The event does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request is an event of over {bytes_max} bytes: send a smaller body")]
pub struct UrlEventTooLarge {
    /// What an event may have.
    pub bytes_max: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    version: &'static str,
    route_key: &'static str,
    raw_path: &'a str,
    raw_query_string: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cookies: Vec<&'a str>,
    headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    query_string_parameters: BTreeMap<String, String>,
    request_context: Context<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Cow<'a, str>>,
    is_base64_encoded: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Context<'a> {
    account_id: &'a str,
    api_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorizer: Option<Authorizer<'a>>,
    domain_name: &'a str,
    domain_prefix: &'a str,
    http: Http<'a>,
    request_id: &'a str,
    route_key: &'static str,
    stage: &'static str,
    time: String,
    time_epoch: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Authorizer<'a> {
    iam: Iam<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Iam<'a> {
    access_key: &'a str,
    account_id: &'a str,
    caller_id: &'a str,
    user_arn: String,
    user_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Http<'a> {
    method: &'a str,
    path: &'a str,
    protocol: &'a str,
    source_ip: &'a str,
    user_agent: &'a str,
}

impl UrlRequest<'_> {
    /// The event in payload format 2.0, of at most `bytes_max` bytes. A body is
    /// text if its type says so and it is; anything else is in base64.
    ///
    /// # Errors
    /// When it would be larger.
    pub fn event(
        &self,
        context: &UrlContext<'_>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, UrlEventTooLarge> {
        let too_large = UrlEventTooLarge { bytes_max };
        let text = self.text();
        let is_base64_encoded = text.is_none() && !self.body.is_empty();
        // Base64 has four bytes for three.
        if is_base64_encoded && self.body.len() / 3 >= bytes_max / 4 {
            return Err(too_large);
        }
        let body = match text {
            _ if self.body.is_empty() => None,
            Some(text) => Some(Cow::Borrowed(text)),
            None => Some(Cow::Owned(STANDARD.encode(self.body))),
        };
        let event = Event {
            version: "2.0",
            route_key: DEFAULT,
            raw_path: self.path,
            raw_query_string: self.query,
            cookies: self.cookies(),
            headers: self.headers(context),
            query_string_parameters: parameters(self.query),
            request_context: self.context(context),
            body,
            is_base64_encoded,
        };
        let mut bounded = Bounded {
            bytes: Vec::new(),
            most: bytes_max,
        };
        let written = serde_json::to_writer(&mut bounded, &event);
        written.map_err(|_| too_large)?;
        Ok(bounded.bytes)
    }

    fn context<'a>(&'a self, context: &UrlContext<'a>) -> Context<'a> {
        let caller = context.caller;
        let authorizer = caller.map(|caller| Authorizer {
            iam: Iam {
                access_key: caller.access_key,
                account_id: caller.account,
                caller_id: caller.account,
                user_arn: format!("arn:aws:iam::{}:root", caller.account),
                user_id: caller.account,
            },
        });
        Context {
            account_id: caller.map_or("anonymous", |caller| caller.account),
            api_id: context.url_id,
            authorizer,
            domain_name: context.domain,
            domain_prefix: context.url_id,
            http: Http {
                method: self.method,
                path: self.path,
                protocol: self.protocol,
                source_ip: self.source_ip,
                user_agent: self.header("user-agent").unwrap_or_default(),
            },
            request_id: context.request_id,
            route_key: DEFAULT,
            stage: DEFAULT,
            time: common_log_time(context.now_unix_ms),
            time_epoch: context.now_unix_ms,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn cookies(&self) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(name, _)| name == "cookie");
        let cookies = lines.flat_map(|(_, line)| line.split(';'));
        let cookies = cookies.map(str::trim);
        cookies.filter(|cookie| !cookie.is_empty()).collect()
    }

    /// Those of one name joined by commas, and those that AWS adds; a signature
    /// is nothing to the function.
    fn headers(&self, context: &UrlContext<'_>) -> BTreeMap<&str, String> {
        let is_signed = context.caller.is_some();
        let mut joined: BTreeMap<&str, String> = BTreeMap::new();
        for (name, value) in self.headers {
            let is_signature = is_signed && name == "authorization";
            let is_own = OWN.contains(&name.as_str());
            if is_signature || is_own || LEFT_OUT.contains(&name.as_str()) {
                continue;
            }
            join(joined.entry(name), value);
        }
        let (scheme, usual) = match context.is_https {
            true => ("https", 443),
            false => ("http", 80),
        };
        let port = self.header("host").and_then(|host| host.rsplit_once(':'));
        let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
        joined.insert(FORWARDED_FOR, self.source_ip.to_owned());
        joined.insert(FORWARDED_PORT, port.unwrap_or(usual).to_string());
        joined.insert(FORWARDED_PROTO, scheme.to_owned());
        joined.insert(TRACE, context.trace_id.to_owned());
        joined
    }

    /// The body, where it is to be text. One with control characters is not:
    /// they would grow to six times their size.
    fn text(&self) -> Option<&str> {
        let is_textual = is_textual(self.header("content-type")?);
        let plain = |b: &u8| *b >= b' ' || matches!(b, b'\t' | b'\n' | b'\r');
        let is_plain = is_textual && self.body.iter().all(plain);
        std::str::from_utf8(self.body).ok().filter(|_| is_plain)
    }
}

fn is_textual(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    let known = [
        "application/json",
        "application/javascript",
        "application/xml",
    ];
    kind.starts_with("text/")
        || known.contains(&kind.as_str())
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
}

/// Names and values, decoded as forms are; those of one name joined by commas.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let mut joined = BTreeMap::new();
    for (name, value) in pairs(query) {
        join(joined.entry(form_decoded(name)), &form_decoded(value));
    }
    joined
}

fn join<K: Ord>(entry: std::collections::btree_map::Entry<'_, K, String>, value: &str) {
    entry
        .and_modify(|joined| {
            joined.push(',');
            joined.push_str(value);
        })
        .or_insert_with(|| value.to_owned());
}

/// What is not encoded as it should be stays as it was sent.
fn form_decoded(text: &str) -> String {
    let spaced = text.replace('+', " ");
    match decode_bytes(&spaced) {
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        None => text.to_owned(),
    }
}

/// `12/Mar/2020:19:03:58 +0000`.
fn common_log_time(unix_ms: u64) -> String {
    let UtcTime {
        date: Date { year, month, day },
        hour,
        minute,
        second,
        ..
    } = UtcTime::of_unix_ms(unix_ms);
    let month = usize::try_from(month).unwrap_or_default();
    let month = MONTHS[month.saturating_sub(1) % MONTHS.len()];
    format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
}

struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if piece.len() > self.most - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const MOST: usize = 1 << 20;

    fn context() -> UrlContext<'static> {
        UrlContext {
            url_id: "abc",
            domain: "abc.lambda-url.us-east-1.skiff.localhost",
            request_id: "r-1",
            now_unix_ms: 1_583_348_638_390,
            is_https: false,
            trace_id: "Root=1-2-3",
            caller: None,
        }
    }

    fn headers(of: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        of.iter().map(own).collect()
    }

    fn request<'a>(headers: &'a [(String, String)], body: &'a [u8]) -> UrlRequest<'a> {
        UrlRequest {
            method: "POST",
            path: "/my/path%20x",
            query: "a=1&a=2&b=x+y%2B&c",
            protocol: "HTTP/1.1",
            headers,
            body,
            source_ip: "127.0.0.1",
        }
    }

    fn event(request: &UrlRequest<'_>, context: &UrlContext<'_>) -> Value {
        serde_json::from_slice(&request.event(context, MOST).unwrap()).unwrap()
    }

    #[test]
    fn a_request_becomes_an_event() {
        let headers = headers(&[
            ("host", "h:9090"),
            ("accept", "a"),
            ("accept", "b"),
            ("cookie", "c1=1; c2=2"),
            ("cookie", "c3=3"),
            ("user-agent", "curl"),
            ("connection", "close"),
            ("authorization", "Bearer x"),
            ("content-type", "text/plain; charset=utf-8"),
        ]);
        let expected = json!({
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": "/my/path%20x",
            "rawQueryString": "a=1&a=2&b=x+y%2B&c",
            "cookies": ["c1=1", "c2=2", "c3=3"],
            "headers": {
                "host": "h:9090",
                "accept": "a,b",
                "user-agent": "curl",
                "authorization": "Bearer x",
                "content-type": "text/plain; charset=utf-8",
                "x-amzn-trace-id": "Root=1-2-3",
                "x-forwarded-for": "127.0.0.1",
                "x-forwarded-port": "9090",
                "x-forwarded-proto": "http",
            },
            "queryStringParameters": {"a": "1,2", "b": "x y+", "c": ""},
            "requestContext": {
                "accountId": "anonymous",
                "apiId": "abc",
                "domainName": "abc.lambda-url.us-east-1.skiff.localhost",
                "domainPrefix": "abc",
                "http": {
                    "method": "POST",
                    "path": "/my/path%20x",
                    "protocol": "HTTP/1.1",
                    "sourceIp": "127.0.0.1",
                    "userAgent": "curl",
                },
                "requestId": "r-1",
                "routeKey": "$default",
                "stage": "$default",
                "time": "04/Mar/2020:19:03:58 +0000",
                "timeEpoch": 1_583_348_638_390_u64,
            },
            "body": "ä\n",
            "isBase64Encoded": false,
        });
        assert_eq!(
            event(&request(&headers, "ä\n".as_bytes()), &context()),
            expected
        );
    }

    #[test]
    fn who_has_signed_is_told_and_the_signature_is_not() {
        let headers = headers(&[("authorization", "AWS4-HMAC-SHA256 …")]);
        let caller = UrlCaller {
            access_key: "SKIF1",
            account: "000000000001",
        };
        let context = UrlContext {
            caller: Some(caller),
            ..context()
        };
        let event = event(&request(&headers, b""), &context);
        assert!(event["headers"].get("authorization").is_none());
        assert_eq!(event["requestContext"]["accountId"], "000000000001");
        let iam = &event["requestContext"]["authorizer"]["iam"];
        assert_eq!(iam["userArn"], "arn:aws:iam::000000000001:root");
        assert_eq!(iam["accessKey"], "SKIF1");
        assert!(event.get("body").is_none() && event.get("cookies").is_none());
    }

    #[test]
    fn nobody_says_for_himself_how_a_request_came() {
        let forged = OWN.map(|name| (name, "forged"));
        let told = |host: &str, is_https| {
            let headers = headers(&[&[("host", host)], &forged[..]].concat());
            let context = UrlContext {
                is_https,
                ..context()
            };
            let event = event(&request(&headers, b""), &context);
            let of = |name: &str| event["headers"][name].as_str().unwrap().to_owned();
            assert_eq!(
                (of(FORWARDED_FOR), of(TRACE)),
                ("127.0.0.1".into(), "Root=1-2-3".into())
            );
            (of(FORWARDED_PROTO), of(FORWARDED_PORT))
        };
        let said = |scheme: &str, port: &str| (scheme.to_owned(), port.to_owned());
        assert_eq!(told("a.test", false), said("http", "80"));
        assert_eq!(told("a.test", true), said("https", "443"));
        assert_eq!(told("[::1]", false), said("http", "80"));
        assert_eq!(told("[::1]:8443", true), said("https", "8443"));
    }

    #[test]
    fn a_body_is_text_only_where_its_type_says_so_and_it_is() {
        for (kind, body, is_text) in [
            ("text/html", &b"x"[..], true),
            ("Application/JSON;charset=utf-8", b"{}", true),
            ("application/problem+json", b"{}", true),
            ("image/svg+xml", b"<a/>", true),
            ("application/x-www-form-urlencoded", b"a=b", false),
            ("application/octet-stream", b"x", false),
            ("text/plain", b"\xff", false),
            ("text/plain", b"\x01", false),
        ] {
            let headers = headers(&[("content-type", kind)]);
            let event = event(&request(&headers, body), &context());
            assert_eq!(event["isBase64Encoded"], !is_text, "{kind} {body:?}");
        }
    }

    #[test]
    fn an_event_has_its_bound_and_not_a_byte_more() {
        let kinds = [headers(&[("content-type", "text/plain")]), Vec::new()];
        for headers in &kinds {
            let body = vec![b'"'; 3000];
            let request = request(headers, &body);
            let length = request.event(&context(), MOST).unwrap().len();
            assert_eq!(request.event(&context(), length).unwrap().len(), length);
            let bytes_max = length - 1;
            let refused = request.event(&context(), bytes_max);
            assert_eq!(refused, Err(UrlEventTooLarge { bytes_max }));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_comes_to_an_event(
            path in "/.{0,40}", query in ".{0,60}", kind in "(text/plain|application/json|.{0,20})",
            extra in proptest::collection::vec(("[a-z-]{1,12}", ".{0,30}"), 0..8),
            body in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,60}", is_text: bool,
        ) {
            let body = if is_text { text.into_bytes() } else { body };
            let mut headers = vec![("content-type".to_owned(), kind)];
            headers.extend(extra);
            let request = UrlRequest { path: &path, query: &query, ..request(&headers, &body) };
            let event = event(&request, &context());
            prop_assert_eq!(&event["rawPath"], &path);
            prop_assert_eq!(&event["rawQueryString"], &query);
            let told = event["body"].as_str().unwrap_or_default();
            let told = match event["isBase64Encoded"].as_bool().unwrap() {
                true => STANDARD.decode(told).unwrap(),
                false => told.as_bytes().to_vec(),
            };
            prop_assert_eq!(told, body);
            for (name, value) in &headers {
                if !LEFT_OUT.contains(&name.as_str()) {
                    prop_assert!(event["headers"][name].as_str().unwrap().contains(value));
                }
            }
        }
    }
}
