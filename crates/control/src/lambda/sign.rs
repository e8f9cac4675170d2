//! Who calls: the key, its secret, and whether the signature is of now.

use std::sync::{Arc, PoisonError};

use axum::body::Body;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use skiff_lambda::{Code, LambdaError, Request, Scope, Signature, SignatureError};
use skiff_types::ProjectId;

use super::call::Signer;
use super::operation::Api;
use super::room::{Owner, Room};
use super::{Front, KnownKey};
use crate::limit::BODY_TIMEOUT;

/// An event, bytes (AWS's limit).
pub(crate) const EVENT_BYTES_MAX: usize = 6 * 1024 * 1024;
/// Every other body, bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// What signatures of chunks add to a body.
const CHUNKS_BYTES_MAX: usize = 64 * 1024;

/// A request that says who signed it.
#[derive(Debug)]
pub(crate) struct Signed {
    pub key: Arc<KnownKey>,
    signature: Signature,
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
}

impl Signed {
    fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
        }
    }

    pub(crate) fn signer(&self) -> Signer {
        Signer {
            id: self.signature.access_key().to_owned(),
            key: Arc::clone(&self.key),
        }
    }

    /// Whether the key signed a body of this digest.
    pub(crate) fn verify_digested(
        &self,
        body_sha256: [u8; 32],
        now_s: u64,
    ) -> Result<(), LambdaError> {
        let request = self.request();
        let secret = &self.key.secret;
        let verified = self
            .signature
            .verify_digested(&request, body_sha256, secret, now_s);
        verified.map_err(refused)
    }
}

fn refused(error: SignatureError) -> LambdaError {
    LambdaError::new(error.code(), error.to_string())
}

impl Front {
    /// Whose key it is, before anything of the body is read.
    pub(crate) async fn signed(&self, parts: &Parts, api: Api) -> Result<Signed, LambdaError> {
        let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        };
        let headers: Vec<_> = parts.headers.iter().map(text).collect();
        let request = Request {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or_default(),
            headers: &headers,
        };
        let scope = Scope {
            region: &self.region,
            service: api.service(),
        };
        let signature = Signature::of(&request, scope).map_err(refused)?;
        let known = self.control.access_secret(signature.access_key()).await?;
        let key = known.ok_or_else(|| {
            let message = "The security token included in the request is invalid: its access key is not known";
            LambdaError::new(Code::UnrecognizedClient, message)
        })?;
        Ok(Signed {
            key,
            signature,
            method: request.method.to_owned(),
            path: request.path.to_owned(),
            query: request.query.to_owned(),
            headers,
        })
    }

    /// The body, in memory that all calls share.
    pub(crate) async fn read(
        &self,
        project: ProjectId,
        parts: &Parts,
        body: Body,
        is_event: bool,
    ) -> Result<(Vec<u8>, Room), LambdaError> {
        let limit = match is_event {
            true => EVENT_BYTES_MAX,
            false => BODY_BYTES_MAX,
        };
        let owner = Owner { project, url: None };
        read_into(self.bodies.room(owner), parts, body, limit).await
    }

    /// The body as it was meant. Where something may change, a signature is
    /// taken once.
    pub(crate) fn verify(
        &self,
        signed: &Signed,
        body: Vec<u8>,
        only_reads: bool,
        now_ms: u64,
    ) -> Result<Vec<u8>, LambdaError> {
        let (signature, now_s) = (&signed.signature, now_ms / 1000);
        let body = signature.verify(&signed.request(), body, &signed.key.secret, now_s);
        let body = body.map_err(refused)?;
        if only_reads {
            return Ok(body);
        }
        self.take_once(signed, now_s)?;
        Ok(body)
    }

    /// Takes a signature that was not there before.
    pub(crate) fn take_once(&self, signed: &Signed, now_s: u64) -> Result<(), LambdaError> {
        let mut replays = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = replays.take(&signed.signature, now_s);
        taken.map_err(|error| LambdaError::new(Code::InvalidSignature, error.to_string()))
    }
}

/// A body of at most `limit` bytes and its chunks' signatures, which takes its
/// room as it comes.
pub(crate) async fn read_into(
    mut room: Room,
    parts: &Parts,
    body: Body,
    limit: usize,
) -> Result<(Vec<u8>, Room), LambdaError> {
    let most = limit + CHUNKS_BYTES_MAX;
    let too_large = || {
        let message = format!("Request must be smaller than {limit} bytes");
        LambdaError::new(Code::RequestTooLarge, message)
    };
    let length = parts.headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let slow = |_| {
        let message = "the body did not arrive in time";
        LambdaError::new(Code::InvalidRequestContent, message)
    };
    let reading = async {
        let mut body = Limited::new(body, most);
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => too_large(),
                false => LambdaError::new(Code::InvalidRequestContent, "the body ended early"),
            })?;
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            room.fit(read.len() + piece.len()).await?;
            if read.is_empty() {
                read.reserve_exact(length.unwrap_or_default());
            }
            read.extend_from_slice(&piece);
        }
        Ok((read, room))
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, reading);
    read.await.map_err(slow)?
}
