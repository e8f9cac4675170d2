//! A call that is signed, and the reply to it.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use skiff_lambda::{Code, LambdaError};

use super::KnownKey;
use super::room::Room;
use super::upload::Gathered;
use crate::record::ProjectRecord;

/// A call whose caller is known.
#[derive(Debug)]
pub(crate) struct Call {
    /// Of the key that signed it.
    pub project: ProjectRecord,
    pub signer: Signer,
    /// Milliseconds since 1970.
    pub now_ms: u64,
    pub request_id: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Memory that the body takes.
    pub room: Option<Room>,
    /// The zip file that was in the body.
    pub zip: Option<Gathered>,
}

/// The key that signed a call.
#[derive(Clone, Debug)]
pub(crate) struct Signer {
    pub id: String,
    pub key: Arc<KnownKey>,
}

impl Call {
    /// The first parameter of that name that is not empty.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        let mut named = self.query.iter().filter(|(known, _)| known == name);
        let value = named.find(|(_, value)| !value.is_empty())?;
        Some(&value.1)
    }

    pub(crate) fn params<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of = self.query.iter().filter(move |(known, _)| known == name);
        of.map(|(_, value)| value.as_str())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `MaxItems`, at most `most`.
    pub(crate) fn page(&self, most: usize) -> Result<usize, LambdaError> {
        let Some(text) = self.param("MaxItems") else {
            return Ok(most);
        };
        let wanted = text
            .parse()
            .ok()
            .filter(|wanted| (1..=10_000).contains(wanted));
        let wanted = wanted.ok_or_else(|| invalid("MaxItems is 1 to 10000"))?;
        Ok(most.min(wanted))
    }

    pub(crate) fn new_id(&self) -> String {
        uuid()
    }
}

/// Whether the proxy in front was asked over TLS: it says so, and whoever asks
/// without one deceives himself only.
pub(crate) fn is_https(headers: &HeaderMap) -> bool {
    let scheme = headers.get("x-forwarded-proto");
    scheme.is_some_and(|scheme| scheme == "https")
}

/// A random UUID (RFC 9562 §5.4).
pub(crate) fn uuid() -> String {
    let mut bytes = [0; 16];
    skiff_base::random::fill(&mut bytes);
    let value = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{value:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

/// A body of a known shape; none is an empty object.
pub(crate) fn body<T: DeserializeOwned>(call: &Call) -> Result<T, LambdaError> {
    let bytes: &[u8] = match call.body.as_slice() {
        [] => b"{}",
        bytes => bytes,
    };
    serde_json::from_slice(bytes).map_err(|error| unread(&error))
}

/// A body is not of its shape.
pub(crate) fn unread(error: &serde_json::Error) -> LambdaError {
    let message = format!("the body is not what this operation takes here: {error}");
    match error.is_data() {
        true => invalid(message),
        false => LambdaError::new(Code::InvalidRequestContent, message),
    }
}

pub(crate) fn invalid(message: impl ToString) -> LambdaError {
    LambdaError::new(Code::InvalidParameterValue, message.to_string())
}

/// What is answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: axum::body::Body,
}

impl Reply {
    pub(crate) fn json(status: StatusCode, value: Value) -> Self {
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/json");
        headers.insert(http::header::CONTENT_TYPE, json);
        Self {
            status,
            headers,
            body: value.to_string().into(),
        }
    }

    pub(crate) fn empty() -> Self {
        Self {
            status: StatusCode::NO_CONTENT,
            headers: HeaderMap::new(),
            body: axum::body::Body::empty(),
        }
    }

    /// One page of a list.
    pub(crate) fn page(name: &str, items: Vec<Value>, next: Option<String>) -> Self {
        let mut reply = Map::new();
        reply.insert(name.to_owned(), Value::Array(items));
        if let Some(next) = next {
            reply.insert("NextMarker".to_owned(), json!(next));
        }
        Self::json(StatusCode::OK, Value::Object(reply))
    }

    /// A page of what is in the order of its names: at most so many of those
    /// behind the caller's marker, each as `show` has it.
    pub(crate) fn listed<'a, T>(
        call: &Call,
        limit: usize,
        field: &str,
        items: impl Iterator<Item = (&'a str, T)>,
        mut show: impl FnMut(&'a str, T) -> Result<Value, LambdaError>,
    ) -> Result<Self, LambdaError> {
        let marker = call.param("Marker").unwrap_or_default();
        let mut behind = items.filter(|(name, _)| *name > marker);
        let (mut shown, mut last) = (Vec::new(), "");
        for (name, item) in behind.by_ref().take(limit) {
            shown.push(show(name, item)?);
            last = name;
        }
        let more = behind.next().is_some().then(|| last.to_owned());
        Ok(Self::page(field, shown, more))
    }

    pub(crate) fn error(error: &LambdaError) -> Self {
        let status = StatusCode::from_u16(error.code.status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = Self::json(status, error.body());
        let name = HeaderValue::from_static(error.code.name());
        reply.headers.insert("x-amzn-errortype", name);
        reply
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        (self.status, self.headers, self.body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_random_uuid() {
        let id = uuid();
        let at = |index: usize| id.as_bytes()[index];
        assert!(
            id.len() == 36 && at(14) == b'4' && b"89ab".contains(&at(19)),
            "{id}"
        );
        assert_ne!(id, uuid());
    }
}
