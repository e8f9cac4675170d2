//! Requests with deadlines and bounded redirects. Plain HTTP is spoken with
//! configured hosts only, and credentials never follow to another host.

use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use crate::document::clipped;
use crate::limits::{CONNECT_TIMEOUT, HEAD_TIMEOUT, REDIRECTS_MAX, STALL_TIMEOUT};

use super::error::RegistryError;

const AGENT: &str = concat!("skiff/", env!("CARGO_PKG_VERSION"));

#[derive(Debug)]
pub(super) struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    insecure_hosts: Vec<String>,
    knows_authorities: bool,
}

/// A request that can be sent again.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer and who gave it.
#[derive(Debug)]
pub(super) struct Answer {
    pub host: String,
    pub response: Response<Incoming>,
}

impl Transport {
    /// Reads the system's certificate authorities: not for an async thread.
    pub fn new(
        insecure_hosts: &[String],
        extra_roots: &[CertificateDer<'static>],
    ) -> Result<Self, RegistryError> {
        let roots = roots(extra_roots)?;
        let knows_authorities = !roots.is_empty();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(RegistryError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(https);
        Ok(Self {
            client,
            insecure_hosts: insecure_hosts.to_vec(),
            knows_authorities,
        })
    }

    /// `http` for hosts that are configured so, by name or by name and port.
    pub fn scheme(&self, host: &str) -> Scheme {
        if self.is_insecure(host) {
            Scheme::HTTP
        } else {
            Scheme::HTTPS
        }
    }

    fn is_insecure(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => name,
            _ => host,
        };
        let is = |configured: &String| {
            configured.eq_ignore_ascii_case(host) || configured.eq_ignore_ascii_case(name)
        };
        self.insecure_hosts.iter().any(is)
    }

    /// Sends it, and follows where it is sent to.
    pub async fn send(&self, mut ask: Ask) -> Result<Answer, RegistryError> {
        let first = host_of(&ask.uri);
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.send_once(&ask).await?;
            match redirect(&answer.response) {
                None => return Ok(answer),
                Some(location) => {
                    let next = resolve(&ask.uri, location)?;
                    if ask.uri.scheme() != next.scheme() || host_of(&ask.uri) != host_of(&next) {
                        ask.headers.remove(AUTHORIZATION);
                    }
                    // Only a read may be sent on; a token request carries a secret.
                    if ask.method != Method::GET {
                        return Err(RegistryError::Address(clipped(location)));
                    }
                    ask.uri = next;
                }
            }
        }
        Err(RegistryError::Redirects {
            host: first,
            most: REDIRECTS_MAX,
        })
    }

    async fn send_once(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        let host = host_of(&ask.uri);
        if ask.uri.scheme() != Some(&Scheme::HTTPS) && !self.is_insecure(&host) {
            return Err(RegistryError::Insecure {
                url: clipped(&ask.uri.to_string()),
                host,
            });
        }
        if ask.uri.scheme() == Some(&Scheme::HTTPS) && !self.knows_authorities {
            return Err(RegistryError::NoRoots);
        }
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = ask.uri.clone();
        *request.headers_mut() = ask.headers.clone();
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(AGENT));
        match tokio::time::timeout(HEAD_TIMEOUT, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(Answer { host, response }),
            Ok(Err(source)) => Err(RegistryError::Connection { host, source }),
            Err(_) => Err(RegistryError::Timeout {
                host,
                limit: HEAD_TIMEOUT,
            }),
        }
    }
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The next piece of the body, waiting for it a bounded time.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let frame = tokio::time::timeout(STALL_TIMEOUT, self.response.body_mut().frame());
            let frame = match frame.await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(source))) => {
                    return Err(RegistryError::Body {
                        host: self.host.clone(),
                        source,
                    });
                }
                Err(_) => {
                    return Err(RegistryError::Stalled {
                        host: self.host.clone(),
                        limit: STALL_TIMEOUT,
                    });
                }
            };
            match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                // Nothing, or trailers.
                _ => {}
            }
        }
    }

    /// The whole body, up to so many bytes.
    pub async fn body(mut self, most: u64) -> Result<(Self, Vec<u8>), RegistryError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (body.len() + chunk.len()) as u64 > most {
                return Err(RegistryError::TooLarge {
                    host: self.host,
                    most,
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok((self, body))
    }
}

/// Those of the system, and those that are given.
fn roots(extra: &[CertificateDer<'static>]) -> Result<RootCertStore, RegistryError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a certificate authority cannot be read");
    }
    let (_, _) = roots.add_parsable_certificates(system.certs);
    for root in extra {
        roots.add(root.clone()).map_err(RegistryError::Tls)?;
    }
    Ok(roots)
}

fn redirect(response: &Response<Incoming>) -> Option<&str> {
    use http::StatusCode as S;
    let redirects = [
        S::MOVED_PERMANENTLY,
        S::FOUND,
        S::SEE_OTHER,
        S::TEMPORARY_REDIRECT,
        S::PERMANENT_REDIRECT,
    ];
    if !redirects.contains(&response.status()) {
        return None;
    }
    response.headers().get(LOCATION)?.to_str().ok()
}

/// Where a `Location` leads: a whole address, or a path on the same host.
pub(super) fn resolve(base: &Uri, location: &str) -> Result<Uri, RegistryError> {
    let wrong = || RegistryError::Address(clipped(location));
    let target: Uri = location.parse().map_err(|_| wrong())?;
    let mut parts = base.clone().into_parts();
    parts.path_and_query = target.path_and_query().cloned();
    match (target.scheme(), target.authority()) {
        (Some(scheme), Some(authority)) => {
            parts.scheme = Some(scheme.clone());
            parts.authority = Some(without_user(authority).ok_or_else(wrong)?);
        }
        (None, None) if location.starts_with('/') => {}
        _ => return Err(wrong()),
    }
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    Uri::from_parts(parts).map_err(|_| wrong())
}

/// Only an address without a user: what the registry names is not sent on.
fn without_user(authority: &Authority) -> Option<Authority> {
    (!authority.as_str().contains('@')).then(|| authority.clone())
}

pub(super) fn host_of(uri: &Uri) -> String {
    uri.authority()
        .map_or_else(String::new, ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_against_the_request() {
        let base: Uri = "https://a.io:5000/v2/x?y=1".parse().unwrap();
        let table = [
            ("/z?q=2", Some("https://a.io:5000/z?q=2")),
            ("https://b.io/c", Some("https://b.io/c")),
            ("http://b.io", Some("http://b.io/")),
            ("relative", None),
            ("https://u:p@b.io/c", None),
            ("", None),
        ];
        for (location, expected) in table {
            let found = resolve(&base, location).ok().map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn plain_http_is_for_configured_hosts() {
        let hosts = ["localhost:5000".to_owned(), "plain.io".to_owned()];
        let transport = Transport::new(&hosts, &[]).unwrap();
        let table = [
            ("localhost:5000", Scheme::HTTP),
            ("localhost:5001", Scheme::HTTPS),
            ("localhost", Scheme::HTTPS),
            ("plain.io", Scheme::HTTP),
            ("PLAIN.io:80", Scheme::HTTP),
            ("docker.io", Scheme::HTTPS),
            ("[::1]", Scheme::HTTPS),
        ];
        for (host, scheme) in table {
            assert_eq!(transport.scheme(host), scheme, "{host}");
        }
    }
}
