//! Requests to functions' URLs.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_TYPE, FORWARDED, HOST as HOST_HEADER, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use serde_json::json;
use skiff_lambda::{
    Code, FunctionRef, LambdaError, Prelude, STREAM_TYPE, UrlCaller, UrlContext, UrlHead, UrlReply,
    UrlReplyError, UrlRequest,
};
use skiff_types::ProjectId;
use skiff_types::invocation::FUNCTION_ERROR;

use super::{ID_ALPHABET, ID_CHARS, URL_HOST, URL_PATH, cors, qualifier};
use crate::http::Peer;
use crate::key;
use crate::lambda::Front;
use crate::lambda::cache::View;
use crate::lambda::call::is_https;
use crate::lambda::invoke::{Invocation, Place, TRACE_ID, Way};
use crate::lambda::operation::Api;
use crate::lambda::policies::allows_url;
use crate::lambda::record::{InvokeMode, UrlAuth, UrlConfig, UrlRecord};
use crate::lambda::room::Owner;
use crate::lambda::sign::{EVENT_BYTES_MAX, Signed, read_into};
use crate::lambda::streamed::{Begun, Pieces};

/// A trace's header, bytes.
const TRACE_BYTES_MAX: usize = 1024;

/// The URL that a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UrlPlace {
    id: String,
    /// The request's path below the URL.
    path: String,
}

impl UrlPlace {
    /// Reads the host (`ID.lambda-url.…`), else the path (`/skiff/url/ID/…`).
    pub(crate) fn of<B>(request: &http::Request<B>) -> Option<Self> {
        let (uri, headers) = (request.uri(), request.headers());
        let host = headers.get(HOST_HEADER).and_then(|host| host.to_str().ok());
        let host = uri.host().or(host).unwrap_or_default();
        Self::in_host(host, uri.path()).or_else(|| Self::in_path(uri.path()))
    }

    fn in_host(host: &str, path: &str) -> Option<Self> {
        let (id, rest) = host.split_once('.')?;
        let (label, _) = rest.split_once('.')?;
        let id = id.to_ascii_lowercase();
        (label.eq_ignore_ascii_case(URL_HOST) && is_id(&id)).then(|| Self {
            id,
            path: rooted(path),
        })
    }

    fn in_path(path: &str) -> Option<Self> {
        let rest = path.strip_prefix(URL_PATH)?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (id, path) = rest.split_at(end);
        is_id(id).then(|| Self {
            id: id.to_owned(),
            path: rooted(path),
        })
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID_CHARS && text.bytes().all(|b| ID_ALPHABET.contains(&b))
}

/// `OPTIONS *` has no path.
fn rooted(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => "/".to_owned(),
    }
}

/// What the gateway adds to a request on its way, beside what every URL's
/// function is told.
const ADDED: [HeaderName; 2] = [FORWARDED, HeaderName::from_static("x-forwarded-host")];

/// Takes off a request what the gateway has put on it: who is at the other end
/// of its client's connection comes last.
pub(crate) fn from_gateway(request: &mut axum::extract::Request) {
    let headers = request.headers_mut();
    for name in ADDED {
        headers.remove(name);
    }
    let through = headers.get_all("x-forwarded-for").iter().next_back();
    let last = through.and_then(|value| value.to_str().ok()?.rsplit(',').next());
    let peer = last.and_then(|address| address.trim().parse().ok());
    request.extensions_mut().insert(Peer(peer));
}

/// Why a request has no answer of its function.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// There is no such URL.
    Unknown,
    /// Its policy or its signature does not let it in.
    Forbidden,
    /// Its body did not come as it should.
    Broken,
    TooLarge,
    Throttled,
    /// The function has failed, or has answered what is no reply.
    Failed,
}

impl From<LambdaError> for Denied {
    fn from(error: LambdaError) -> Self {
        match error.code {
            Code::TooManyRequests => Self::Throttled,
            Code::RequestTooLarge => Self::TooLarge,
            Code::InvalidRequestContent => Self::Broken,
            _ => {
                tracing::debug!(%error, "a request to a function's URL failed");
                Self::Failed
            }
        }
    }
}

impl From<UrlReplyError> for Denied {
    fn from(error: UrlReplyError) -> Self {
        let error = skiff_base::chain(&error);
        tracing::debug!(%error, "a function's answer is no reply of its URL");
        Self::Failed
    }
}

impl IntoResponse for Denied {
    /// In AWS's words.
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Self::Unknown => (StatusCode::FORBIDDEN, json!(null)),
            Self::Forbidden => (StatusCode::FORBIDDEN, json!("Forbidden")),
            Self::Broken => (StatusCode::BAD_REQUEST, json!("Bad Request")),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                json!("Request Entity Too Large"),
            ),
            Self::Throttled => (StatusCode::TOO_MANY_REQUESTS, json!("Rate Exceeded.")),
            Self::Failed => (StatusCode::BAD_GATEWAY, json!("Internal Server Error")),
        };
        (status, axum::Json(json!({"Message": message}))).into_response()
    }
}

/// A URL as it is now.
struct Target {
    owner: Arc<UrlRecord>,
    view: Arc<View>,
    config: UrlConfig,
}

impl Target {
    fn function(&self) -> FunctionRef {
        FunctionRef {
            region: None,
            account: Some(self.owner.project.clone()),
            name: self.view.record.name_of(&self.owner.function),
            qualifier: qualifier(&self.owner.alias),
        }
    }

    /// Whose its bodies are.
    fn counted(&self) -> Owner {
        Owner {
            project: self.owner.project.clone(),
            url: Some(self.config.id.clone()),
        }
    }

    fn lets_in(&self, caller: Option<&ProjectId>) -> bool {
        let (record, alias) = (&self.view.record, &self.owner.alias);
        caller == Some(&self.owner.project) || allows_url(record, alias, self.config.auth, caller)
    }
}

impl Front {
    /// What a function, or AWS in its place, answers to a request.
    pub(crate) async fn answer_url(
        &self,
        place: UrlPlace,
        request: axum::extract::Request,
        request_id: &str,
    ) -> Response {
        let target = match self.url_at(&place.id).await {
            Ok(target) => target,
            Err(denied) => return denied.into_response(),
        };
        let (parts, body) = request.into_parts();
        let origin = parts.headers.get(ORIGIN).cloned();
        let is_preflight = target.config.cors.is_some() && cors::is_preflight(&parts);
        let mut response = match is_preflight {
            true => StatusCode::OK.into_response(),
            false => {
                let served = self.serve_url(&target, &place, parts, body, request_id);
                served.await.unwrap_or_else(Denied::into_response)
            }
        };
        if let Some(cors) = &target.config.cors {
            cors.apply(origin.as_ref(), is_preflight, response.headers_mut());
        }
        if let Ok(id) = HeaderValue::from_str(request_id) {
            response.headers_mut().insert("x-amzn-requestid", id);
        }
        response
    }

    async fn url_at(&self, id: &str) -> Result<Target, Denied> {
        let owner = match self.urls.get(&id.to_owned()) {
            Ok(owner) => owner,
            Err(changes) => {
                let found = self.control.db().get(&key::function_url(id)).await;
                let found = found.map_err(LambdaError::from)?;
                let owner = Arc::new(found.ok_or(Denied::Unknown)?.record);
                self.urls.keep(id.to_owned(), &owner, changes);
                owner
            }
        };
        let view = self.control.service_view(&owner.project, &owner.function);
        let view = view.await?.ok_or(Denied::Unknown)?;
        // An id is never given again, so only the URL itself may be gone.
        let config = view.record.urls.get(&owner.alias).cloned();
        let config = config.filter(|config| config.id == id);
        Ok(Target {
            config: config.ok_or(Denied::Unknown)?,
            owner,
            view,
        })
    }

    async fn serve_url(
        &self,
        target: &Target,
        place: &UrlPlace,
        parts: Parts,
        body: Body,
        request_id: &str,
    ) -> Result<Response, Denied> {
        let signed = self.url_caller(target, &parts).await?;
        let now_ms = self.control.inner.base.now();
        let room = self.url_bodies.room(target.counted());
        let (body, mut room) = read_into(room, &parts, body, EVENT_BYTES_MAX).await?;
        let body = match &signed {
            Some(signed) => {
                let is_safe = matches!(parts.method, Method::GET | Method::HEAD);
                let body = self.verify(signed, body, is_safe, now_ms);
                body.map_err(|_| Denied::Forbidden)?
            }
            None => body,
        };
        let told = Told {
            trace_id: trace_id(&parts.headers, now_ms),
            parts: &parts,
            request_id,
            now_ms,
        };
        let payload = told.event(place, &self.url_host(&place.id), signed.as_ref(), &body)?;
        drop(body);
        room.fit(payload.len()).await?;
        let payload = room.hold(payload);
        let way = self.way_to(
            target.owner.project.clone(),
            target.function(),
            &target.view,
        )?;
        let running = Place::take(&self.running, &way)?;
        let invocation = told.invocation(payload);
        match target.config.mode {
            InvokeMode::Buffered => self.buffered(&way, invocation).await,
            InvokeMode::ResponseStream => self.streaming(&way, invocation, running).await,
        }
    }

    /// Who has signed, where somebody has to.
    async fn url_caller(&self, target: &Target, parts: &Parts) -> Result<Option<Signed>, Denied> {
        let (signed, caller) = match target.config.auth {
            UrlAuth::None => (None, None),
            UrlAuth::Iam => {
                let signed = self.signed(parts, Api::Lambda).await;
                let signed = signed.map_err(|_| Denied::Forbidden)?;
                let caller = signed.key.project.id.clone();
                (Some(signed), Some(caller))
            }
        };
        match target.lets_in(caller.as_ref()) {
            true => Ok(signed),
            false => Err(Denied::Forbidden),
        }
    }

    async fn buffered(&self, way: &Way, invocation: Invocation) -> Result<Response, Denied> {
        let answered = self.answered(way, invocation).await;
        let answered = answered.map_err(LambdaError::from)?;
        if answered.headers.contains_key(FUNCTION_ERROR) {
            return Err(Denied::Failed);
        }
        let payload = answered.body.collect().await;
        let payload = payload.map_err(|_| Denied::Failed)?.to_bytes();
        let reply = UrlReply::read(Vec::from(payload))?;
        Ok(response(reply.head, Body::from(reply.body)))
    }

    async fn streaming(
        &self,
        way: &Way,
        invocation: Invocation,
        running: Option<Place>,
    ) -> Result<Response, Denied> {
        // Without trailers: an answer that fails in its middle comes broken off,
        // and so it goes on, which is all that can be told a client of HTTP.
        let begun = self.begin_stream(way, invocation, running).await?;
        let Begun::Answer(head, pieces) = begun else {
            return Err(Denied::Failed);
        };
        if head.contains_key(FUNCTION_ERROR) {
            return Err(Denied::Failed);
        }
        let mut streamed = Streamed {
            pieces,
            first: None,
        };
        let kind = head.get(CONTENT_TYPE);
        let head = match kind {
            Some(kind) if kind == STREAM_TYPE => streamed.head().await?,
            kind => plain_head(kind),
        };
        let pieces = stream::unfold(
            Some(streamed),
            |streamed| async move { streamed?.next().await },
        );
        Ok(response(head, Body::from_stream(pieces.boxed())))
    }
}

/// A streamed answer that says nothing of itself.
fn plain_head(kind: Option<&HeaderValue>) -> UrlHead {
    let bytes = HeaderValue::from_static("application/octet-stream");
    let kind = kind.cloned().unwrap_or(bytes);
    UrlHead {
        status: StatusCode::OK,
        headers: HeaderMap::from_iter([(CONTENT_TYPE, kind)]),
    }
}

fn response(head: UrlHead, body: Body) -> Response {
    (head.status, head.headers, body).into_response()
}

/// What a function is told of a request.
struct Told<'a> {
    parts: &'a Parts,
    trace_id: String,
    request_id: &'a str,
    now_ms: u64,
}

impl Told<'_> {
    fn event(
        &self,
        place: &UrlPlace,
        domain: &str,
        signed: Option<&Signed>,
        body: &[u8],
    ) -> Result<Vec<u8>, Denied> {
        let parts = self.parts;
        let text = |(name, value): (&http::HeaderName, &HeaderValue)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        };
        let headers: Vec<_> = parts.headers.iter().map(text).collect();
        let peer = parts.extensions.get::<Peer>().and_then(|peer| peer.0);
        let signer = signed.map(Signed::signer);
        let context = UrlContext {
            url_id: &place.id,
            domain,
            request_id: self.request_id,
            now_unix_ms: self.now_ms,
            is_https: is_https(&parts.headers),
            trace_id: &self.trace_id,
            caller: signer.as_ref().map(|signer| UrlCaller {
                access_key: &signer.id,
                account: signer.key.project.id.as_str(),
            }),
        };
        let request = UrlRequest {
            method: parts.method.as_str(),
            path: &place.path,
            query: parts.uri.query().unwrap_or_default(),
            protocol: match parts.version {
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            headers: &headers,
            body,
            source_ip: &peer.map(|peer| peer.to_string()).unwrap_or_default(),
        };
        let event = request.event(&context, EVENT_BYTES_MAX);
        event.map_err(|_| Denied::TooLarge)
    }

    fn invocation(&self, payload: Bytes) -> Invocation {
        Invocation {
            request_id: self.request_id.to_owned(),
            payload,
            told: vec![(TRACE_ID, self.trace_id.clone())],
        }
    }
}

/// The caller's trace, or a new one.
fn trace_id(headers: &HeaderMap, now_ms: u64) -> String {
    let trace = headers.get(TRACE_ID).and_then(|trace| trace.to_str().ok());
    if let Some(trace) = trace.filter(|trace| trace.len() <= TRACE_BYTES_MAX) {
        return trace.to_owned();
    }
    skiff_base::random::trace_root(now_ms / 1000)
}

/// A streamed answer.
struct Streamed {
    pieces: Pieces,
    /// What has come already.
    first: Option<Bytes>,
}

type Step = Option<(Result<Bytes, hyper::Error>, Option<Streamed>)>;

impl Streamed {
    /// Reads what stands before the body.
    async fn head(&mut self) -> Result<UrlHead, Denied> {
        let mut prelude = Prelude::default();
        while let Some(piece) = self.piece().await {
            let piece = piece.map_err(|_| Denied::Failed)?;
            if let Some((head, first)) = prelude.push(&piece)? {
                self.first = Some(first.into());
                return Ok(head);
            }
        }
        Err(Denied::Failed)
    }

    /// No trailers were asked for, and none would be a client's to see.
    async fn piece(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.pieces.recv().await?.map(Frame::into_data) {
                Ok(Ok(piece)) => return Some(Ok(piece)),
                Ok(Err(_trailers)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// An answer that breaks off breaks the reply off.
    async fn next(mut self) -> Step {
        if let Some(first) = self.first.take() {
            return Some((Ok(first), Some(self)));
        }
        match self.piece().await? {
            Ok(piece) => Some((Ok(piece), Some(self))),
            Err(error) => Some((Err(error), None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "abcdefghijklmnopqrstuvwxyz234567";

    fn place(host: &str, path: &str) -> Option<(String, String)> {
        let request = http::Request::builder().uri(path).header("host", host);
        let place = UrlPlace::of(&request.body(()).unwrap())?;
        Some((place.id, place.path))
    }

    #[test]
    fn a_request_without_a_trace_begins_one() {
        let mut headers = HeaderMap::new();
        let begun = trace_id(&headers, 0x5759_e988_u64 * 1000);
        let unique = begun.strip_prefix("Root=1-5759e988-").unwrap();
        assert!(unique.len() == 24 && unique.bytes().all(|b| b.is_ascii_hexdigit()));
        headers.insert(TRACE_ID, HeaderValue::from_static("Root=1-2-3"));
        assert_eq!(trace_id(&headers, 0), "Root=1-2-3");
        let long = "x".repeat(TRACE_BYTES_MAX + 1);
        headers.insert(TRACE_ID, HeaderValue::from_str(&long).unwrap());
        assert!(trace_id(&headers, 0).starts_with("Root=1-00000000-"));
    }

    #[test]
    fn a_url_is_known_by_its_host_or_its_path() {
        let url = |path: &str| Some((ID.to_owned(), path.to_owned()));
        let host = format!("{ID}.lambda-url.us-east-1.skiff.localhost:9090");
        assert_eq!(place(&host, "/a/b?c"), url("/a/b"));
        assert_eq!(place(&host.to_uppercase(), "*"), url("/"));
        assert_eq!(place("x:1", &format!("http://{host}/d")), url("/d"));
        assert_eq!(place("x:1", &format!("/skiff/url/{ID}")), url("/"));
        assert_eq!(place("x:1", &format!("/skiff/url/{ID}/")), url("/"));
        assert_eq!(
            place("x:1", &format!("/skiff/url/{ID}//a%2F?b")),
            url("//a%2F")
        );
        // Within a URL there is no other.
        let inner = format!("/skiff/url/{ID}/a");
        assert_eq!(place(&host, &inner), url(&inner));
        for (host, path) in [
            ("localhost:9090", "/2015-03-31/functions"),
            (ID, "/"),
            (&host[..ID.len() + 11], "/"),
            ("abc.lambda-url.us-east-1.localhost", "/"),
            ("x", "/skiff/url/abc/"),
            ("x", "/skiff/url/"),
        ] {
            assert_eq!(place(host, path), None, "{host} {path}");
        }
    }
}
