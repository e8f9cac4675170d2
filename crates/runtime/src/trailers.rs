//! What is told behind a streamed answer: by the runtime to us, and by us to
//! whoever has asked.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use skiff_types::invocation::{
    self, ERROR_BODY_BYTES_MAX, ERROR_TYPE_BYTES_MAX, FUNCTION_ERROR, LOG_BYTES_MAX, LOG_RESULT,
};

use crate::journal::error_type;
use crate::words;

pub(crate) const ERROR_TYPE: HeaderName =
    HeaderName::from_static("lambda-runtime-function-error-type");
const ERROR_BODY: HeaderName = HeaderName::from_static(invocation::ERROR_BODY);
/// The type of an error that has none, or one that cannot be told on.
const UNKNOWN: &str = "Runtime.Unknown";

/// An answer that fails in its middle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the function failed while it answered: {kind} {body}")]
pub(crate) struct StreamError {
    /// AWS's type of the error, or the runtime's own: ASCII that a header may have.
    pub kind: String,
    /// What is said of it.
    pub body: String,
}

/// How a streamed answer has ended.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    pub error: Option<StreamError>,
    /// The end of what the invocation wrote, if that was asked for.
    pub log: Option<Vec<u8>>,
}

impl StreamError {
    /// A function says what it likes: what is no type is none, and what is long
    /// loses its end.
    fn new(kind: &str, mut body: String) -> Self {
        let is_visible = kind
            .bytes()
            .all(|byte| byte.is_ascii_graphic() || byte == b' ');
        let is_kind = is_visible && (1..=ERROR_TYPE_BYTES_MAX).contains(&kind.len());
        let mut cuts = (0..=ERROR_BODY_BYTES_MAX.min(body.len())).rev();
        let cut = cuts.find(|at| body.is_char_boundary(*at));
        body.truncate(cut.unwrap_or_default());
        Self {
            kind: if is_kind { kind } else { UNKNOWN }.to_owned(),
            body,
        }
    }

    /// What a caller is told who gets no more than that.
    pub fn of_body(body: &[u8]) -> Self {
        let kind = error_type(body).unwrap_or_default();
        Self::new(&kind, String::from_utf8_lossy(body).into_owned())
    }

    /// The error that a runtime tells behind what it streamed: one of the two
    /// fields makes it one. A body that is missing or no base64 says nothing but
    /// the type.
    pub fn of_runtime(trailers: &HeaderMap) -> Option<Self> {
        let (kind, body) = (trailers.get(ERROR_TYPE), trailers.get(ERROR_BODY));
        if kind.is_none() && body.is_none() {
            return None;
        }
        let kind = kind.and_then(|kind| kind.to_str().ok());
        let body = body.and_then(|body| STANDARD.decode(body.as_bytes()).ok());
        let body = body.unwrap_or_default();
        let body = String::from_utf8_lossy(&body).into_owned();
        let mut told = Self::new(kind.unwrap_or(UNKNOWN), body);
        if told.body.is_empty() {
            let body = words::error(&told.kind, "");
            told.body = String::from_utf8_lossy(&body).into_owned();
        }
        Some(told)
    }
}

impl Ending {
    /// The fields that may stand behind an answer, for its head.
    pub fn names() -> HeaderValue {
        let names = [FUNCTION_ERROR, invocation::ERROR_BODY, LOG_RESULT].join(", ");
        // They are letters and dashes.
        HeaderValue::from_str(&names).unwrap_or(HeaderValue::from_static(FUNCTION_ERROR))
    }

    /// As a caller reads it.
    pub fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        let mut put = |name: &'static str, value: &str| {
            // It is visible ASCII.
            if let Ok(value) = HeaderValue::from_str(value) {
                trailers.insert(HeaderName::from_static(name), value);
            }
        };
        if let Some(error) = &self.error {
            put(FUNCTION_ERROR, &error.kind);
            put(invocation::ERROR_BODY, &STANDARD.encode(&error.body));
        }
        if let Some(log) = &self.log {
            let from = log.len().saturating_sub(LOG_BYTES_MAX);
            put(LOG_RESULT, &STANDARD.encode(&log[from..]));
        }
        trailers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: Option<&[u8]>, body: Option<&str>) -> Option<(String, String)> {
        let mut trailers = HeaderMap::new();
        if let Some(kind) = kind {
            trailers.insert(ERROR_TYPE, HeaderValue::from_bytes(kind).unwrap());
        }
        if let Some(body) = body {
            trailers.insert(ERROR_BODY, HeaderValue::from_str(body).unwrap());
        }
        StreamError::of_runtime(&trailers).map(|told| (told.kind, told.body))
    }

    #[test]
    fn a_runtime_s_error_is_told_in_its_own_words_as_far_as_it_has_any() {
        let nothing = |kind: &str| format!(r#"{{"errorType":"{kind}","errorMessage":""}}"#);
        let unknown = nothing(UNKNOWN);
        let long = "k".repeat(ERROR_TYPE_BYTES_MAX + 1);
        assert_eq!(told(None, None), None);
        for (kind, body, expected) in [
            (
                Some(&b"Its.Own"[..]),
                Some("d29yZHM="),
                ("Its.Own", "words"),
            ),
            (None, Some("d29yZHM="), (UNKNOWN, "words")),
            (Some(b""), Some("d29yZHM="), (UNKNOWN, "words")),
            (Some(b"a\tb"), Some("d29yZHM="), (UNKNOWN, "words")),
            (Some(b"\xff"), Some("d29yZHM="), (UNKNOWN, "words")),
            (Some(long.as_bytes()), Some("d29yZHM="), (UNKNOWN, "words")),
            (Some(b"A"), None, ("A", &*nothing("A"))),
            (Some(b"A"), Some(""), ("A", &*nothing("A"))),
            (Some(b"A"), Some("d29yZHM"), ("A", &*nothing("A"))),
            (Some(b"A"), Some("no base64"), ("A", &*nothing("A"))),
            (None, Some("!"), (UNKNOWN, &*unknown)),
            (Some(b"A"), Some("/w=="), ("A", "\u{fffd}")),
        ] {
            let told = told(kind, body).unwrap();
            assert_eq!((&*told.0, &*told.1), expected, "{kind:?} {body:?}");
        }
    }

    #[test]
    fn an_error_of_ours_has_its_type() {
        let told = StreamError::of_body(&words::timed_out("7", 3));
        assert_eq!(told.kind, "Sandbox.Timedout");
        assert!(told.body.contains("after 3.00 seconds"), "{told}");
        assert_eq!(StreamError::of_body(b"words").kind, UNKNOWN);
    }

    #[test]
    fn trailers_fit_what_is_read_of_them() {
        let ending = Ending {
            error: Some(StreamError::new(
                &"k".repeat(ERROR_TYPE_BYTES_MAX),
                "ä".repeat(ERROR_BODY_BYTES_MAX),
            )),
            log: Some(vec![b'l'; 2 * LOG_BYTES_MAX]),
        };
        let trailers = ending.trailers();
        let lines = trailers.iter();
        let bytes: usize = lines
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        assert!(bytes < 15 * 1024, "{bytes}");
        let body = STANDARD.decode(&trailers[ERROR_BODY]).unwrap();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            "ä".repeat(ERROR_BODY_BYTES_MAX / 2)
        );
        let log = STANDARD.decode(&trailers[LOG_RESULT]).unwrap();
        assert_eq!(log.len(), LOG_BYTES_MAX);
        let names = Ending::names();
        let names: Vec<_> = names.to_str().unwrap().split(", ").collect();
        assert!(trailers.keys().all(|name| names.contains(&name.as_str())));
        assert!(Ending::default().trailers().is_empty());
    }
}
