//! A client of one repository in one registry (OCI distribution-spec, and
//! Docker's token authentication).

mod challenge;
mod error;
mod transport;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, RANGE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use skiff_base::{Backoff, Clock as _, Monotonic, SystemClock};
use skiff_types::Digest;
use skiff_types::api::RegistryAuth;
use tokio::sync::{Mutex, mpsc};

use crate::auth::IDENTITY_TOKEN_USER;
use crate::document::{ACCEPTED, clipped, null_is_empty};
use crate::limits::{BACKOFF, JSON_BYTES_MAX, TRIES_FOR, TRIES_MAX};
use crate::progress::Counter;
use crate::reference::Reference;

use challenge::Challenge;
use transport::{Answer, Ask, Transport};

pub use error::RegistryError;

/// An error's body is told, up to this.
const MESSAGE_BYTES_MAX: u64 = 64 * 1024;

pub(crate) struct Registry {
    transport: Transport,
    host: String,
    repository: String,
    auth: Option<RegistryAuth>,
    /// What the registry last took as proof; shared by the layers' downloads.
    proof: Mutex<Option<HeaderValue>>,
}

/// How a part of a download ended.
enum Part {
    Complete,
    /// Nobody wants the rest.
    Unwanted,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default, deserialize_with = "null_is_empty")]
    token: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    access_token: String,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Registry {
    pub fn new(
        reference: &Reference,
        auth: Option<RegistryAuth>,
        insecure_hosts: &[String],
        extra_roots: &[CertificateDer<'static>],
    ) -> Result<Self, RegistryError> {
        let bare_token = auth.as_ref().filter(|auth| auth.username.is_empty());
        let proof = bare_token.and_then(|auth| secret(&format!("Bearer {}", auth.password)));
        Ok(Self {
            transport: Transport::new(insecure_hosts, extra_roots)?,
            host: reference.host().to_owned(),
            repository: reference.repository().to_owned(),
            auth,
            proof: Mutex::new(proof),
        })
    }

    /// A manifest or index, by tag or digest; not verified.
    pub async fn manifest(&self, selector: &str) -> Result<Vec<u8>, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        self.whole("manifests", selector, &headers, JSON_BYTES_MAX)
            .await
    }

    /// A small blob; not verified.
    pub async fn blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, RegistryError> {
        self.whole("blobs", digest.as_str(), &HeaderMap::new(), size)
            .await
    }

    /// Sends a blob from `offset` on into `sender`, trying again from where it
    /// broke off as long as that gets further.
    pub async fn download(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        sender: &mpsc::Sender<Bytes>,
        counter: &Counter,
    ) -> Result<(), RegistryError> {
        let mut at = offset;
        let mut tries = Tries::new(&self.host, format!("blob {digest}"));
        while at < size {
            let before = at;
            match self.part(digest, size, &mut at, sender, counter).await {
                Ok(Part::Unwanted) => return Ok(()),
                Ok(Part::Complete) => {}
                Err(error) => tries.after(error, at > before).await?,
            }
        }
        Ok(())
    }

    async fn part(
        &self,
        digest: &Digest,
        size: u64,
        at: &mut u64,
        sender: &mpsc::Sender<Bytes>,
        counter: &Counter,
    ) -> Result<Part, RegistryError> {
        let mut headers = HeaderMap::new();
        if *at > 0 {
            let range = format!("bytes={at}-");
            headers.extend(HeaderValue::try_from(range).map(|range| (RANGE, range)));
        }
        let mut answer = self.get("blobs", digest.as_str(), &headers).await?;
        // A server that cannot do ranges begins at the start.
        let mut skip = match answer.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&answer, *at) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(RegistryError::Range { host: answer.host });
            }
            _ => *at,
        };
        while let Some(mut chunk) = answer.chunk().await? {
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            drop(chunk.split_to(skipped));
            skip -= skipped as u64;
            if chunk.is_empty() {
                continue;
            }
            *at += chunk.len() as u64;
            counter.add(chunk.len() as u64);
            // Too much is told by whoever counts: it goes one piece too far.
            if sender.send(chunk).await.is_err() || *at > size {
                return Ok(Part::Unwanted);
            }
        }
        if *at < size {
            return Err(RegistryError::Short {
                host: answer.host,
                expected: size,
                found: *at,
            });
        }
        Ok(Part::Complete)
    }

    /// A whole small body, tried several times.
    async fn whole(
        &self,
        kind: &str,
        selector: &str,
        headers: &HeaderMap,
        most: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut tries = Tries::new(
            &self.host,
            format!("{} {selector}", kind.trim_end_matches('s')),
        );
        loop {
            let body = async { self.get(kind, selector, headers).await?.body(most).await };
            match body.await {
                Ok((_, body)) => return Ok(body),
                Err(error) => tries.after(error, false).await?,
            }
        }
    }

    /// An answer that is a success, proving who asks when that is wanted.
    async fn get(
        &self,
        kind: &str,
        selector: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let path = format!("/v2/{}/{kind}/{selector}", self.repository);
        let ask = Ask {
            method: Method::GET,
            uri: self.uri(&self.host, &path)?,
            headers: headers.clone(),
            body: Bytes::new(),
        };
        let used = self.proof.lock().await.clone();
        let answer = self.transport.send(with_proof(&ask, used.as_ref())).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || answer.host != self.host {
            return self.success(answer, kind, selector).await;
        }
        let fresh = self.prove(&answer, used.as_ref()).await?;
        let answer = self.transport.send(with_proof(&ask, Some(&fresh))).await?;
        self.success(answer, kind, selector).await
    }

    /// Meets a challenge, once for all downloads that run into it.
    async fn prove(
        &self,
        answer: &Answer,
        used: Option<&HeaderValue>,
    ) -> Result<HeaderValue, RegistryError> {
        let mut proof = self.proof.lock().await;
        if let Some(newer) = proof.as_ref().filter(|newer| Some(*newer) != used) {
            return Ok(newer.clone());
        }
        let fresh = self.meet(answer).await?;
        *proof = Some(fresh.clone());
        Ok(fresh)
    }

    async fn meet(&self, answer: &Answer) -> Result<HeaderValue, RegistryError> {
        let lines = answer.response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<Challenge> = lines
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        for challenge in &challenges {
            if let Challenge::Bearer { realm, service } = challenge {
                return self.token(realm, service.as_deref()).await;
            }
        }
        let denied = |hint: String| RegistryError::Denied {
            host: self.host.clone(),
            status: 401,
            hint,
        };
        if !challenges.contains(&Challenge::Basic) {
            let offered = challenges.iter().find_map(|challenge| match challenge {
                Challenge::Unknown(name) => Some(clipped(name)),
                _ => None,
            });
            let offered = offered.unwrap_or_else(|| "nothing".to_owned());
            return Err(denied(format!(
                "it asks for {offered}, only Basic and Bearer are known"
            )));
        }
        self.basic()
            .ok_or_else(|| denied("it wants a user and a password: run docker login".to_owned()))
    }

    fn basic(&self) -> Option<HeaderValue> {
        let auth = self
            .auth
            .as_ref()
            .filter(|auth| !auth.username.is_empty())?;
        let pair = STANDARD.encode(format!("{}:{}", auth.username, auth.password));
        secret(&format!("Basic {pair}"))
    }

    /// Gets a token to pull this repository, whatever the registry proposes.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
    ) -> Result<HeaderValue, RegistryError> {
        let mut fields = vec![("scope", format!("repository:{}:pull", self.repository))];
        fields.extend(service.map(|service| ("service", service.to_owned())));
        let identity = self
            .auth
            .as_ref()
            .filter(|auth| auth.username == IDENTITY_TOKEN_USER);
        let realm: Uri = realm
            .parse()
            .map_err(|_| RegistryError::Address(clipped(realm)))?;
        let ask = match identity {
            Some(auth) => refresh(&realm, fields, &auth.password),
            None => {
                let separator = if realm.query().is_some() { '&' } else { '?' };
                let text = format!("{realm}{separator}{}", form(&fields));
                let uri = text
                    .parse()
                    .map_err(|_| RegistryError::Address(clipped(&text)))?;
                with_proof(&Ask::get(uri), self.basic().as_ref())
            }
        };
        let answer = self.transport.send(ask).await?;
        let answer = self.success(answer, "token", "for this repository").await?;
        let (answer, body) = answer.body(JSON_BYTES_MAX).await?;
        let found = serde_json::from_slice::<TokenAnswer>(&body).ok();
        let token = found.map(|found| match found.token.is_empty() {
            true => found.access_token,
            false => found.token,
        });
        token
            .filter(|token| !token.is_empty())
            .and_then(|token| secret(&format!("Bearer {token}")))
            .ok_or(RegistryError::Token { host: answer.host })
    }

    /// The answer, or what is wrong with it.
    async fn success(
        &self,
        answer: Answer,
        kind: &str,
        selector: &str,
    ) -> Result<Answer, RegistryError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let host = answer.host.clone();
        match status.as_u16() {
            404 => Err(RegistryError::NotFound {
                host,
                what: format!("{} {kind} {selector}", self.repository),
            }),
            code @ (401 | 403) => {
                let hint = match &self.auth {
                    Some(_) => {
                        "these credentials do not open this repository, or it does not exist"
                    }
                    None => "the repository does not exist, or wants credentials: run docker login",
                };
                Err(RegistryError::Denied {
                    host,
                    status: code,
                    hint: hint.to_owned(),
                })
            }
            code => Err(RegistryError::Status {
                host,
                status: code,
                message: message(answer).await,
            }),
        }
    }

    fn uri(&self, host: &str, path: &str) -> Result<Uri, RegistryError> {
        Uri::builder()
            .scheme(self.transport.scheme(host))
            .authority(host)
            .path_and_query(path)
            .build()
            .map_err(|_| RegistryError::Address(clipped(&format!("{host}{path}"))))
    }
}

impl Ask {
    fn get(uri: Uri) -> Self {
        Self {
            method: Method::GET,
            uri,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

/// Counts tries that got no further, and waits between them.
struct Tries {
    host: String,
    what: String,
    fruitless: u32,
    /// When the first of them failed.
    since: Monotonic,
    backoff: Backoff,
}

impl Tries {
    fn new(host: &str, what: String) -> Self {
        Self {
            host: host.to_owned(),
            what,
            fruitless: 0,
            since: Monotonic::default(),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
        }
    }

    /// Waits before the next try, or gives the error back.
    async fn after(&mut self, error: RegistryError, progressed: bool) -> Result<(), RegistryError> {
        let wait = self.next(SystemClock.now(), error, progressed)?;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// How long to wait before the next try, if there is one.
    fn next(
        &mut self,
        now: Monotonic,
        error: RegistryError,
        progressed: bool,
    ) -> Result<Duration, RegistryError> {
        if progressed {
            self.fruitless = 0;
            self.backoff.reset();
        }
        if self.fruitless == 0 {
            self.since = now;
        }
        self.fruitless += 1;
        if !error.is_transient() {
            return Err(error);
        }
        let wait = self.backoff.next(skiff_base::random::u32());
        let is_last = self.fruitless >= TRIES_MAX || now.plus(wait).since(self.since) > TRIES_FOR;
        if is_last {
            return Err(RegistryError::GivenUp {
                host: self.host.clone(),
                what: std::mem::take(&mut self.what),
                tries: self.fruitless,
                last: Box::new(error),
            });
        }
        tracing::debug!(error = %skiff_base::chain(&error), "the registry is tried again");
        Ok(wait)
    }
}

/// An identity token is exchanged by OAuth2 (Docker's token authentication § OAuth2).
fn refresh(realm: &Uri, mut fields: Vec<(&str, String)>, token: &str) -> Ask {
    fields.push(("grant_type", "refresh_token".to_owned()));
    fields.push(("client_id", "skiff".to_owned()));
    fields.push(("refresh_token", token.to_owned()));
    let mut ask = Ask::get(realm.clone());
    ask.method = Method::POST;
    ask.headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-www-form-urlencoded"),
    );
    ask.body = Bytes::from(form(&fields));
    ask
}

fn with_proof(ask: &Ask, proof: Option<&HeaderValue>) -> Ask {
    let mut ask = ask.clone();
    if let Some(proof) = proof {
        ask.headers.insert(AUTHORIZATION, proof.clone());
    }
    ask
}

/// A header that is never printed.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `application/x-www-form-urlencoded`.
fn form(fields: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte));
                }
                other => text.push_str(&format!("%{other:02X}")),
            }
        }
    }
    text
}

/// Whether a partial answer is the part that was asked for (RFC 9110 § 14.4).
fn starts_at(answer: &Answer, offset: u64) -> bool {
    let header = answer.response.headers().get(CONTENT_RANGE);
    let start = header
        .and_then(|range| range.to_str().ok())
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split_once('-'))
        .and_then(|(start, _)| start.parse::<u64>().ok());
    start == Some(offset)
}

/// The registry's own words, cut short.
async fn message(answer: Answer) -> String {
    let Ok((_, body)) = answer.body(MESSAGE_BYTES_MAX).await else {
        return "its body cannot be read".to_owned();
    };
    match serde_json::from_slice::<ErrorAnswer>(&body) {
        Ok(ErrorAnswer { errors }) if !errors.is_empty() => {
            clipped(&format!("{} {}", errors[0].code, errors[0].message))
        }
        _ => clipped(String::from_utf8_lossy(&body).trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_encoded_for_a_form() {
        let fields = [
            ("scope", "repository:a/b:pull".to_owned()),
            ("x", "é &".to_owned()),
        ];
        assert_eq!(
            form(&fields),
            "scope=repository%3Aa%2Fb%3Apull&x=%C3%A9%20%26"
        );
    }

    #[test]
    fn tries_are_bounded_in_number_and_in_time() {
        // seconds that each try takes, tries until it is given up
        for (takes, expected) in [(0, 5), (1, 5), (3, 4), (5, 3), (20, 2)] {
            let mut tries = Tries::new("a.io", "blob sha256:00".to_owned());
            let mut now = Monotonic::from_nanos(1_000_000_000_000);
            let error = loop {
                now = now.plus(Duration::from_secs(takes));
                match tries.next(now, stalled(), false) {
                    Ok(wait) => now = now.plus(wait),
                    Err(error) => break error,
                }
            };
            let told = format!("a.io did not give the blob sha256:00 in {expected} tries");
            assert_eq!(error.to_string(), told, "{takes} s");
            assert_eq!(error.kind(), skiff_types::ErrorKind::Timeout);
        }
        let mut tries = Tries::new("a.io", "blob sha256:00".to_owned());
        let mut now = Monotonic::from_nanos(1_000_000_000_000);
        for _ in 0..20 {
            now = now.plus(Duration::from_secs(20));
            tries.next(now, stalled(), true).unwrap();
        }
    }

    fn stalled() -> RegistryError {
        RegistryError::Stalled {
            host: "a.io".to_owned(),
            limit: Duration::from_secs(20),
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let header = secret("Basic c2VjcmV0").unwrap();
        assert!(!format!("{header:?}").contains("c2V"));
    }
}
