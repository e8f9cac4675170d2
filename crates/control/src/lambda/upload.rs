//! Zip files on their way in: out of a body or an object store into a file,
//! with only a piece of them in memory.

use std::fs::File;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use skiff_lambda::{Code, LambdaError, Upload};
use skiff_types::Digest;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::SemaphorePermit;

use super::Front;
use super::call::invalid;
use super::sign::Signed;
use crate::error::ControlError;
use crate::port::{ObjectContent, ObjectName};

/// A zip file in a body, bytes (AWS's limit).
pub(crate) const ZIP_BYTES_MAX: u64 = 50 * 1024 * 1024;
/// A zip file in an object, bytes: as much as it may unpack to.
const OBJECT_BYTES_MAX: u64 = 250 * 1024 * 1024;
/// A body with a zip file in it, bytes (AWS's limit).
const BODY_BYTES_MAX: u64 = 70_167_211;
/// For a whole body with a zip file.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two pieces of a zip file.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Written at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// A zip file that has arrived.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub file: File,
    /// Its SHA-256.
    pub digest: Digest,
}

/// A body that has arrived.
#[derive(Debug)]
pub(crate) struct Uploaded {
    /// What is left of it without its zip file.
    pub json: Vec<u8>,
    pub zip: Option<Gathered>,
    sha256: [u8; 32],
}

/// A zip file that is arriving.
struct Gathering<'a> {
    _room: SemaphorePermit<'a>,
    file: tokio::fs::File,
    hash: Sha256,
    bytes: u64,
    most: u64,
    /// What has yet to be written.
    piece: Vec<u8>,
}

impl<'a> Gathering<'a> {
    async fn begin(front: &'a Front, most: u64) -> Result<Self, LambdaError> {
        let room = front.uploads.acquire().await;
        let stopping = |_| LambdaError::new(Code::Service, "the server is stopping");
        let room = room.map_err(stopping)?;
        let spooled = front.control.inner.base.images.spool().await;
        let file = spooled.map_err(ControlError::from)?;
        Ok(Self {
            _room: room,
            file: tokio::fs::File::from_std(file),
            hash: Sha256::new(),
            bytes: 0,
            most,
            piece: Vec::with_capacity(PIECE_BYTES),
        })
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), LambdaError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.most {
            let most = self.most;
            let message = format!("the zip file must be smaller than {most} bytes");
            return Err(LambdaError::new(Code::RequestTooLarge, message));
        }
        self.hash.update(bytes);
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), LambdaError> {
        let written = self.file.write_all(&self.piece).await;
        self.piece.clear();
        written.map_err(|error| unwritten(&error))
    }

    async fn end(mut self) -> Result<Gathered, LambdaError> {
        self.write().await?;
        let flushed = self.file.flush().await;
        flushed.map_err(|error| unwritten(&error))?;
        Ok(Gathered {
            file: self.file.into_std().await,
            digest: Digest::from_sha256(self.hash.finalize().into()),
        })
    }
}

fn unwritten(error: &std::io::Error) -> LambdaError {
    tracing::error!(%error, "an uploaded zip file cannot be written");
    LambdaError::new(Code::Service, "the zip file cannot be stored")
}

fn too_large(operation: &str) -> LambdaError {
    let message = format!(
        "Request must be smaller than {BODY_BYTES_MAX} bytes for the {operation} operation"
    );
    LambdaError::new(Code::RequestTooLarge, message)
}

fn late() -> LambdaError {
    let message = "the body did not arrive in time";
    LambdaError::new(Code::InvalidRequestContent, message)
}

impl Front {
    /// Reads a body whose member at this path is a zip file. It is believed
    /// only after [`Self::verify_upload`].
    pub(crate) async fn read_upload(
        &self,
        parts: &Parts,
        body: Body,
        operation: &str,
        member: &'static [&'static str],
    ) -> Result<Uploaded, LambdaError> {
        let arriving = self.arriving(parts, body, operation, member);
        let arrived = tokio::time::timeout(UPLOAD_TIMEOUT, arriving).await;
        arrived.map_err(|_| late())?
    }

    async fn arriving(
        &self,
        parts: &Parts,
        mut body: Body,
        operation: &str,
        member: &'static [&'static str],
    ) -> Result<Uploaded, LambdaError> {
        let length = parts.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > BODY_BYTES_MAX) {
            return Err(too_large(operation));
        }
        let mut upload = Upload::new(member);
        let mut hash = Sha256::new();
        let mut gathering: Option<Gathering<'_>> = None;
        let (mut total, mut zip) = (0, Vec::new());
        while let Some(piece) = next(&mut body).await? {
            total += piece.len() as u64;
            if total > BODY_BYTES_MAX {
                return Err(too_large(operation));
            }
            hash.update(&piece);
            let taken = upload.push(&piece, &mut zip);
            taken.map_err(|error| {
                LambdaError::new(Code::InvalidRequestContent, error.to_string())
            })?;
            if zip.is_empty() {
                continue;
            }
            if gathering.is_none() {
                gathering = Some(Gathering::begin(self, ZIP_BYTES_MAX).await?);
            }
            if let Some(gathering) = &mut gathering {
                gathering.put(&zip).await?;
            }
            zip.clear();
        }
        let json = upload.finish();
        let json =
            json.map_err(|error| LambdaError::new(Code::InvalidRequestContent, error.to_string()))?;
        let zip = match gathering {
            Some(gathering) => Some(gathering.end().await?),
            None => None,
        };
        Ok(Uploaded {
            json,
            zip,
            sha256: hash.finalize().into(),
        })
    }

    /// Whether the key signed that body.
    pub(crate) fn verify_upload(
        &self,
        signed: &Signed,
        uploaded: &Uploaded,
        now_ms: u64,
    ) -> Result<(), LambdaError> {
        signed.verify_digested(uploaded.sha256, now_ms / 1000)?;
        self.take_once(signed, now_ms / 1000)
    }

    /// A zip file from the operator's object store.
    pub(crate) async fn fetch(&self, object: ObjectName) -> Result<Gathered, LambdaError> {
        let Some(objects) = &self.objects else {
            return Err(invalid(
                "S3Bucket and S3Key name an object, and no store of objects is configured: lambda.s3.endpoint in the server's configuration sets one",
            ));
        };
        let opened = tokio::time::timeout(IDLE_TIMEOUT, objects.read(object)).await;
        let mut content: ObjectContent = opened.map_err(|_| slow())?.map_err(refused)?;
        let mut gathering = Gathering::begin(self, OBJECT_BYTES_MAX).await?;
        loop {
            let piece = tokio::time::timeout(IDLE_TIMEOUT, content.next()).await;
            match piece.map_err(|_| slow())? {
                Some(piece) => gathering.put(&piece.map_err(refused)?).await?,
                None => return gathering.end().await,
            }
        }
    }
}

fn slow() -> LambdaError {
    get_object(
        "RequestTimeout",
        "the store of objects did not answer in time",
    )
}

fn refused(error: crate::port::ObjectError) -> LambdaError {
    get_object(error.code, &error.message)
}

/// As AWS tells what S3 told.
fn get_object(code: &str, message: &str) -> LambdaError {
    invalid(format!(
        "Error occurred while GetObject. S3 Error Code: {code}. S3 Error Message: {message}"
    ))
}

/// The next piece of a body that has something in it.
async fn next(body: &mut Body) -> Result<Option<Bytes>, LambdaError> {
    loop {
        let frame = tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await;
        let Some(frame) = frame.map_err(|_| late())? else {
            return Ok(None);
        };
        let ended = |_| LambdaError::new(Code::InvalidRequestContent, "the body ended early");
        match frame.map_err(ended)?.into_data() {
            Ok(piece) if !piece.is_empty() => return Ok(Some(piece)),
            _ => {}
        }
    }
}
