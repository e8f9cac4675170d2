//! Talks to a server's admin API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::request::Builder;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skiff_base::Tasks;
use skiff_types::api::ApiError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::args::Global;

/// The longest answer that is read as one value, bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest line of a stream, bytes.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// What a request carries.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Where the server is and how it is asked.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
    token: Option<String>,
    host: String,
    tasks: Tasks,
}

#[derive(Debug, Clone)]
enum Place {
    Unix(PathBuf),
    Tcp(String),
    Tls {
        address: String,
        name: String,
        ca: Option<PathBuf>,
    },
}

impl Client {
    /// The client for the flags.
    ///
    /// # Errors
    /// When the host has none of the three forms.
    pub fn new(global: &Global) -> anyhow::Result<Self> {
        Ok(Self {
            place: Place::parse(&global.host, global.ca.clone())?,
            token: global.token.clone(),
            host: global.host.clone(),
            tasks: Tasks::new(),
        })
    }

    /// One value for none.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// One value for one value.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let body = match body {
            Some(value) => serde_json::to_vec(value)?.into(),
            None => Bytes::new(),
        };
        self.call_with(method, path, body).await
    }

    /// The same, with a body that is JSON already.
    pub async fn call_with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let bytes = self.call_bytes(method, path, body).await?;
        let bytes = if bytes.is_empty() {
            Bytes::from_static(b"null")
        } else {
            bytes
        };
        serde_json::from_slice(&bytes).with_context(|| {
            format!("the server's answer to {path} is not what this version expects")
        })
    }

    /// An address as the server told it, as it is reached from here: one that
    /// stands for all of the server's is that of the API, or this machine's.
    pub fn reachable(&self, address: &str) -> String {
        let Ok(told) = address.parse::<std::net::SocketAddr>() else {
            return address.to_owned();
        };
        if !told.ip().is_unspecified() {
            return address.to_owned();
        }
        let host = match &self.place {
            Place::Unix(_) => "127.0.0.1",
            Place::Tcp(api) | Place::Tls { address: api, .. } => {
                api.rsplit_once(':').map_or("127.0.0.1", |(host, _)| host)
            }
        };
        format!("{host}:{}", told.port())
    }

    async fn call_bytes(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let response = self
            .send(method, path, "application/json", full(body))
            .await?;
        let collected = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        let collected = tokio::time::timeout(ANSWER_TIMEOUT, collected)
            .await
            .map_err(|_| {
                anyhow!(
                    "the server at {} stopped in the middle of its answer",
                    self.host
                )
            })?;
        Ok(collected
            .map_err(|error| anyhow!("the server's answer to {path} broke off: {error}"))?
            .to_bytes())
    }

    /// A stream of values, one a line.
    pub async fn stream<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Body,
    ) -> anyhow::Result<Lines<T>> {
        let response = self.send(method, path, content_type, body).await?;
        Ok(Lines {
            body: response.into_body(),
            buffer: Vec::new(),
            value: std::marker::PhantomData,
        })
    }

    /// A stream of another protocol, begun with one value.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
        body: &impl Serialize,
    ) -> anyhow::Result<Upgraded> {
        let mut request = self.request(Method::POST, path, "application/json");
        if let Some(headers) = request.headers_mut() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
        }
        let response = self
            .exchange(request, full(serde_json::to_vec(body)?))
            .await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            refuse_failure(response).await?;
            bail!("the server at {} does not speak {protocol}", self.host);
        }
        let upgraded = hyper::upgrade::on(response).await;
        upgraded.with_context(|| format!("the server at {} broke off", self.host))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Body,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = self.request(method, path, content_type);
        refuse_failure(self.exchange(request, body).await?).await
    }

    fn request(&self, method: Method, path: &str, content_type: &'static str) -> Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.authority())
            .header(header::CONTENT_TYPE, content_type)
            .header(
                header::USER_AGENT,
                concat!("skiff/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request
    }

    async fn exchange(&self, request: Builder, body: Body) -> anyhow::Result<Response<Incoming>> {
        let request = request.body(body).context("the request cannot be made")?;
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, self.connect());
        let stream = connect
            .await
            .map_err(|_| anyhow!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))
            .and_then(|result| result)
            .with_context(|| format!("the server at {} does not answer; start it with `skiff server`, or name another with --host", self.host))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with its stream, or with the command.
        self.tasks.spawn("connection", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "the connection ended");
            }
        });
        let response = sender.send_request(request).await;
        response.with_context(|| format!("the server at {} broke off", self.host))
    }

    fn authority(&self) -> &str {
        match &self.place {
            Place::Unix(_) => "skiff",
            Place::Tcp(address) | Place::Tls { address, .. } => address,
        }
    }

    async fn connect(&self) -> anyhow::Result<Box<dyn Stream>> {
        Ok(match &self.place {
            Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Place::Tcp(address) => Box::new(TcpStream::connect(address.as_str()).await?),
            Place::Tls { address, name, ca } => {
                let connector =
                    tokio_rustls::TlsConnector::from(Arc::new(tls_config(ca.as_ref())?));
                let name = rustls::pki_types::ServerName::try_from(name.clone())?;
                Box::new(
                    connector
                        .connect(name, TcpStream::connect(address.as_str()).await?)
                        .await?,
                )
            }
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Place {
    fn parse(host: &str, ca: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(path) = host.strip_prefix("unix://") {
            return Ok(Self::Unix(path.into()));
        }
        if let Some(rest) = host.strip_prefix("http://") {
            return Ok(Self::Tcp(with_port(rest, 80)));
        }
        if let Some(rest) = host.strip_prefix("https://") {
            let address = with_port(rest, 443);
            let name = address.rsplit_once(':').map_or("", |(name, _)| name);
            let name = name.trim_matches(['[', ']']).to_owned();
            return Ok(Self::Tls { address, name, ca });
        }
        bail!(
            "`{host}` is not a server: unix:///PATH, http://HOST:PORT or https://HOST:PORT is expected"
        );
    }
}

fn with_port(rest: &str, port: u16) -> String {
    let rest = rest.trim_end_matches('/');
    let has_port = rest
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port {
        rest.to_owned()
    } else {
        format!("{rest}:{port}")
    }
}

fn tls_config(ca: Option<&PathBuf>) -> anyhow::Result<rustls::ClientConfig> {
    let path = ca.map_or_else(
        || PathBuf::from("/etc/ssl/certs/ca-certificates.crt"),
        Clone::clone,
    );
    let pem = std::fs::read(&path).with_context(|| {
        format!(
            "the certificate authority {} cannot be read; name one with --ca",
            path.display()
        )
    })?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pemfile::certs(&mut pem.as_slice()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

async fn refuse_failure(response: Response<Incoming>) -> anyhow::Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await;
    let bytes = bytes.map(|body| body.to_bytes()).unwrap_or_default();
    match serde_json::from_slice::<ApiError>(&bytes) {
        Ok(error) => bail!("{}", error.message),
        Err(_) if status == StatusCode::UNAUTHORIZED => {
            bail!("the server wants a token: set SKIFF_TOKEN")
        }
        Err(_) => bail!("the server answered {status}"),
    }
}

/// A body that is known whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A stream of values, one a line.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    buffer: Vec<u8>,
    value: std::marker::PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next value, or none at the stream's end.
    pub async fn next(&mut self) -> anyhow::Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(
                    serde_json::from_slice(&line)
                        .context("the server sent a line that is not JSON")?,
                ));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("the server sent a line of over {LINE_BYTES_MAX} bytes");
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(anyhow!(error).context("the server broke off")),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_all_is_the_server_s() {
        let reachable = |host: &str, address: &str| {
            let client = Client {
                place: Place::parse(host, None).unwrap(),
                token: None,
                host: host.to_owned(),
                tasks: Tasks::new(),
            };
            client.reachable(address)
        };
        assert_eq!(reachable("unix:///x", "0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(reachable("http://a.test:9", "[::]:80"), "a.test:80");
        assert_eq!(reachable("http://a.test:9", "10.0.0.1:80"), "10.0.0.1:80");
    }

    #[test]
    fn a_host_has_one_of_three_forms() {
        let shown = |host: &str| match Place::parse(host, None) {
            Ok(Place::Unix(path)) => format!("unix {}", path.display()),
            Ok(Place::Tcp(address)) => format!("tcp {address}"),
            Ok(Place::Tls { address, name, .. }) => format!("tls {address} {name}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown("unix:///run/x.sock"), "unix /run/x.sock");
        assert_eq!(shown("http://a:1/"), "tcp a:1");
        assert_eq!(shown("https://a.test"), "tls a.test:443 a.test");
        assert_eq!(shown("https://[::1]:8443"), "tls [::1]:8443 ::1");
        assert!(shown("a:1").contains("is not a server"));
    }
}
