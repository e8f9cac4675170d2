//! Carries records to HTTP endpoints and to queues of SQS's kind, and asks
//! queues and streams for theirs.
//!
//! A server's own network is not its users': URLs are let through by a list
//! of the operator's, queues are the project's own at the operator's endpoint,
//! and nobody is followed who answers that something is elsewhere.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::{Map, Value, json};
use skiff_lambda::Scope;

use super::ServiceSettings;

/// A delivery, to the end of its answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What of an answer is read, so that its connection can be used again.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const AGENT: &str = concat!("skiff/", env!("CARGO_PKG_VERSION"));
const SEND: &str = "SendMessage";
const JSON: &str = "application/x-amz-json-1.0";

/// A record was not delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CourierError {
    #[error("no destination may begin so: lambda.events.destinations lists what may")]
    Forbidden,
    #[error("no queues are served: lambda.events.sqs_endpoint is not set")]
    NoQueues,
    #[error("no streams are served: lambda.events.dynamodb_endpoint is not set")]
    NoStreams,
    #[error("it is no address, or something of the record cannot be sent")]
    Form(#[source] http::Error),
    #[error("the system's certificate authorities cannot be used")]
    Tls(#[source] rustls::Error),
    #[error("it cannot be reached")]
    Connection(#[source] hyper_util::client::legacy::Error),
    #[error("it did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("it answered {status}: {text}")]
    Refused { status: StatusCode, text: String },
    #[error("its answer broke off, or has over {0} bytes")]
    Answer(usize),
}

/// What is sent to a queue.
#[derive(Debug)]
pub(crate) struct Message {
    pub account: String,
    pub queue: String,
    pub body: Vec<u8>,
    /// Names, types and values.
    pub attributes: Vec<(&'static str, &'static str, String)>,
}

#[derive(Debug)]
pub(crate) struct Courier {
    client: Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, rustls::Error>,
    allowed: Vec<String>,
    sqs: Option<ServiceSettings>,
    streams: Option<ServiceSettings>,
    region: String,
}

impl Courier {
    /// Reads the system's certificate authorities: not for an async thread.
    pub(crate) fn new(
        allowed: Vec<String>,
        sqs: Option<ServiceSettings>,
        streams: Option<ServiceSettings>,
        region: &str,
    ) -> Self {
        Self {
            client: client(),
            allowed,
            sqs,
            streams,
            region: region.to_owned(),
        }
    }

    /// Whether the operator lets records go there.
    pub(crate) fn allows(&self, url: &str) -> bool {
        let begins = |allowed: &String| {
            let rest = url.strip_prefix(allowed.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
        };
        self.allowed.iter().any(begins)
    }

    pub(crate) fn has_queues(&self) -> bool {
        self.sqs.is_some()
    }

    pub(crate) fn has_streams(&self) -> bool {
        self.streams.is_some()
    }

    /// Sends a body by POST; 2xx is an acknowledgement.
    pub(crate) async fn post(
        &self,
        url: &str,
        headers: &[(&'static str, String)],
        body: Vec<u8>,
    ) -> Result<(), CourierError> {
        if !self.allows(url) {
            return Err(CourierError::Forbidden);
        }
        let mut request = Request::post(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(body)));
        self.send(request.map_err(CourierError::Form)?).await
    }

    /// `SendMessage` of SQS's JSON protocol.
    pub(crate) async fn enqueue(
        &self,
        message: Message,
        now_unix_s: u64,
    ) -> Result<(), CourierError> {
        let attribute = |(name, kind, value): &(&str, &str, String)| {
            let value = json!({"DataType": kind, "StringValue": value});
            ((*name).to_owned(), value)
        };
        let attributes: Map<_, _> = message.attributes.iter().map(attribute).collect();
        let mut asked = Map::new();
        let body = String::from_utf8_lossy(&message.body);
        asked.insert("MessageBody".to_owned(), json!(body));
        asked.insert("MessageAttributes".to_owned(), json!(attributes));
        // Messages of a FIFO queue have a group, and once is enough.
        if message.queue.ends_with(".fifo") {
            asked.insert("MessageGroupId".to_owned(), json!("skiff"));
            let id = skiff_lambda::payload_sha256(&message.body);
            asked.insert("MessageDeduplicationId".to_owned(), json!(id));
        }
        let queue = (message.account.as_str(), message.queue.as_str());
        let request = self.of_queue(SEND, queue, asked, now_unix_s)?;
        self.send(request).await
    }

    /// The answer of a queue, of so many bytes at most, to an operation of
    /// SQS's JSON protocol.
    pub(crate) async fn ask(
        &self,
        operation: &str,
        queue: (&str, &str),
        asked: Map<String, Value>,
        bytes_max: usize,
        now_unix_s: u64,
    ) -> Result<Bytes, CourierError> {
        let request = self.of_queue(operation, queue, asked, now_unix_s)?;
        let answer = self.exchange(request, bytes_max).await?;
        answer.ok_or(CourierError::Answer(bytes_max))
    }

    /// The answer of streams, of so many bytes at most, to an operation of
    /// DynamoDB Streams' JSON protocol.
    pub(crate) async fn ask_streams(
        &self,
        operation: &str,
        asked: Map<String, Value>,
        bytes_max: usize,
        now_unix_s: u64,
    ) -> Result<Bytes, CourierError> {
        let streams = self.streams.as_ref().ok_or(CourierError::NoStreams)?;
        let target = format!("DynamoDBStreams_20120810.{operation}");
        let request = self.signed((streams, "dynamodb"), target, asked, now_unix_s)?;
        let answer = self.exchange(request, bytes_max).await?;
        answer.ok_or(CourierError::Answer(bytes_max))
    }

    /// A signed request to a queue of an account.
    fn of_queue(
        &self,
        operation: &str,
        (account, queue): (&str, &str),
        mut asked: Map<String, Value>,
        now_unix_s: u64,
    ) -> Result<Request<Full<Bytes>>, CourierError> {
        let sqs = self.sqs.as_ref().ok_or(CourierError::NoQueues)?;
        let endpoint = sqs.endpoint.trim_end_matches('/');
        let url = format!("{endpoint}/{account}/{queue}");
        asked.insert("QueueUrl".to_owned(), json!(url));
        let target = format!("AmazonSQS.{operation}");
        self.signed((sqs, "sqs"), target, asked, now_unix_s)
    }

    /// A request of AWS's JSON protocol, signed for a service.
    fn signed(
        &self,
        (settings, service): (&ServiceSettings, &str),
        target: String,
        asked: Map<String, Value>,
        now_unix_s: u64,
    ) -> Result<Request<Full<Bytes>>, CourierError> {
        let endpoint = settings.endpoint.trim_end_matches('/');
        let uri: Uri = format!("{endpoint}/")
            .parse()
            .map_err(|error| CourierError::Form(http::Error::from(error)))?;
        let body = Value::Object(asked).to_string().into_bytes();
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut headers = vec![
            (HOST.as_str().to_owned(), authority),
            (CONTENT_TYPE.as_str().to_owned(), JSON.to_owned()),
            ("x-amz-target".to_owned(), target),
        ];
        let head = skiff_lambda::Request {
            method: "POST",
            path: uri.path(),
            query: "",
            headers: &headers,
        };
        let scope = Scope {
            region: &self.region,
            service,
        };
        let (key, secret) = (&settings.access_key, &settings.secret);
        let signed = skiff_lambda::sign(&head, &body, scope, key, secret, now_unix_s);
        headers.extend(signed);
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body)));
        request.map_err(CourierError::Form)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(), CourierError> {
        self.exchange(request, ANSWER_BYTES_MAX).await.map(drop)
    }

    /// What was answered, unless it broke off or is too large.
    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        bytes_max: usize,
    ) -> Result<Option<Bytes>, CourierError> {
        let client = self.client.as_ref();
        let client = client.map_err(|error| CourierError::Tls(error.clone()))?;
        let agent = HeaderValue::from_static(AGENT);
        request.headers_mut().insert(USER_AGENT, agent);
        let exchange = async {
            let response = client.request(request).await;
            let response = response.map_err(CourierError::Connection)?;
            let status = response.status();
            let read = Limited::new(response.into_body(), bytes_max).collect();
            let text = read.await.map(|read| read.to_bytes()).ok();
            if status.is_success() {
                return Ok(text);
            }
            let text = text.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            Err(CourierError::Refused {
                status,
                text: text.trim().chars().take(200).collect(),
            })
        };
        let sent = tokio::time::timeout(TIMEOUT, exchange).await;
        sent.unwrap_or(Err(CourierError::Timeout))
    }
}

fn client() -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a certificate authority cannot be read");
    }
    let (_, _) = roots.add_parsable_certificates(system.certs);
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(https);
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_go_only_where_the_operator_lets_them() {
        let allowed = vec!["http://a:1/".to_owned(), "https://b/hooks".to_owned()];
        let courier = Courier::new(allowed, None, None, "us-east-1");
        for (url, expected) in [
            ("http://a:1", true),
            ("http://a:1/x?y", true),
            ("http://a:12/", false),
            ("http://a:1@evil/", false),
            ("https://b/hooks/1", true),
            ("https://b/hooks?a", true),
            ("https://b/hooksmore", false),
            ("https://b/", false),
            ("http://b/hooks", false),
        ] {
            assert_eq!(courier.allows(url), expected, "{url}");
        }
        let none = Courier::new(Vec::new(), None, None, "us-east-1");
        assert!(!none.allows("http://a:1/"));
    }
}
