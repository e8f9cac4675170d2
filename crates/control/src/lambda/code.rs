//! Functions' code: from where it comes to the image that it becomes a part of.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use skiff_lambda::{Code, LambdaError, Runtime, Scope, is_handler, presigned_query};
use skiff_types::Digest;
use skiff_types::api::Deploy;
use tokio::io::AsyncReadExt as _;

use super::Front;
use super::body;
use super::call::{Call, Reply, invalid, is_https};
use super::record::{Configuration, ZipCode};
use super::state::missing;
use crate::deploy::{Overlay, Wish};
use crate::error::ControlError;
use crate::key;
use crate::library::Pin;
use crate::port::{CodeRoot, ObjectName, StoredCode};

/// A function's code with its layers, unpacked, bytes (AWS's limit).
pub(crate) const UNPACKED_BYTES_MAX: u64 = 250 * 1024 * 1024;
/// Conversions of zip files under way; each has the headers of one in memory.
pub(crate) const CONVERSIONS_MAX: usize = 2;
/// How long a URL of code leads to it, seconds (AWS's).
const LOCATION_S: u64 = 600;
/// Read at once of a zip file.
const PIECE_BYTES: usize = 128 * 1024;
/// Where a function's process begins.
const TASK_ROOT: &str = "/var/task";

/// Where code comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Image(String),
    /// The zip file that the call brought.
    Body,
    Object(ObjectName),
}

impl body::Code {
    /// The one source that is named.
    pub(crate) fn source(self) -> Result<Source, LambdaError> {
        let one = "Please provide a source for function code: one of ZipFile, S3Bucket with S3Key, and ImageUri";
        let object = match (self.s3_bucket, self.s3_key, self.s3_object_version) {
            (Some(bucket), Some(key), version) => Some(ObjectName {
                bucket,
                key,
                version,
            }),
            (None, None, None) => None,
            _ => return Err(invalid("S3Bucket and S3Key belong together")),
        };
        match (self.image_uri, self.zip_file, object) {
            (Some(image), None, None) => Ok(Source::Image(image)),
            (None, Some(rest), None) if rest.is_empty() => Ok(Source::Body),
            (None, Some(_), None) => Err(invalid("ZipFile is not written in plain base64")),
            (None, None, Some(object)) => Ok(Source::Object(object)),
            _ => Err(invalid(one)),
        }
    }
}

impl ZipCode {
    /// The program of a runtime that is the code's own.
    fn bootstrap_path(&self) -> Option<&'static str> {
        let shared = self.layers.iter().any(|layer| layer.bootstrap);
        match (self.bootstrap, shared) {
            (true, _) => Some("/var/task/bootstrap"),
            (false, true) => Some("/opt/bootstrap"),
            (false, false) => None,
        }
    }

    /// Of a function that is not described yet.
    fn of(code: StoredCode) -> Self {
        Self {
            sha256: code.digest,
            zip_bytes: code.zip_bytes,
            unpacked_bytes: code.unpacked_bytes,
            bootstrap: code.bootstrap,
            runtime: String::new(),
            handler: String::new(),
            layers: Vec::new(),
        }
    }

    /// The same function with other code.
    pub(crate) fn take(&mut self, other: &Self) {
        *self = Self {
            runtime: self.runtime.clone(),
            handler: self.handler.clone(),
            layers: self.layers.clone(),
            ..other.clone()
        };
    }

    /// Everything that is laid over the runtime's image, the lowest first.
    pub(crate) fn parts(&self) -> Vec<(Digest, CodeRoot)> {
        let layers = self.layers.iter();
        let layers = layers.map(|layer| (layer.sha256.clone(), CodeRoot::Opt));
        layers
            .chain([(self.sha256.clone(), CodeRoot::Task)])
            .collect()
    }

    /// The zip files that it is made of.
    pub(crate) fn zips(&self) -> impl Iterator<Item = &Digest> {
        let layers = self.layers.iter().map(|layer| &layer.sha256);
        layers.chain([&self.sha256])
    }
}

impl Front {
    /// The image, or the code, that a call brings or names; kept from
    /// collection as long as the pin lives.
    pub(crate) async fn first_code(
        &self,
        call: &Call,
        source: Source,
    ) -> Result<(String, Option<ZipCode>, Option<Pin>), LambdaError> {
        if let Source::Image(image) = source {
            return Ok((image, None, None));
        }
        let (code, pin) = self.stored_code(call, source, CodeRoot::Task).await?;
        Ok((String::new(), Some(ZipCode::of(code)), Some(pin)))
    }

    /// Keeps a configuration's code from collection.
    pub(crate) async fn pins(&self, config: &Configuration) -> Vec<Pin> {
        let mut pins = Vec::new();
        for zip in config.code.iter().flat_map(ZipCode::zips) {
            pins.push(self.control.inner.library.keep(zip).await);
        }
        pins
    }

    /// Stores the code that a call brings or names, and keeps it from
    /// collection as long as the pin lives.
    pub(crate) async fn stored_code(
        &self,
        call: &Call,
        source: Source,
        root: CodeRoot,
    ) -> Result<(StoredCode, Pin), LambdaError> {
        let fetched;
        let gathered = match source {
            Source::Body => call.zip.as_ref(),
            Source::Object(object) => {
                fetched = self.fetch(object).await?;
                Some(&fetched)
            }
            Source::Image(_) => return Err(invalid("a zip file is expected, and not ImageUri")),
        };
        let gathered = gathered.ok_or_else(|| invalid("Uploaded file must be a non-empty zip"))?;
        let pin = self.control.inner.library.keep(&gathered.digest).await;
        let file = gathered.file.try_clone();
        let file = file.map_err(|error| {
            crate::error::internal(format!("an uploaded file cannot be opened: {error}"))
        })?;
        let _turn = self.conversions.acquire().await;
        let added = self.control.inner.base.images.add_code(file, root).await;
        let added = added.map_err(|error| {
            let mut error = ControlError::from(error);
            if error.kind == skiff_types::ErrorKind::Invalid {
                let told = &error.message;
                error.message = format!(
                    "Could not unzip uploaded file. Please check your file, then try to upload again. ({told})"
                );
            }
            error
        })?;
        Ok((added, pin))
    }

    /// A URL from which this path can be had for a while without a key.
    pub(crate) fn location(&self, call: &Call, path: &str) -> String {
        let scheme = match is_https(&call.headers) {
            true => "https",
            false => "http",
        };
        let host = call.header("host").unwrap_or_default();
        let scope = Scope {
            region: &self.region,
            service: "lambda",
        };
        let key = (call.signer.id.as_str(), &call.signer.key.secret);
        let now_s = call.now_ms / 1000;
        let query = presigned_query((host, path), key, scope, now_s, LOCATION_S);
        format!("{scheme}://{host}{path}?{query}")
    }

    /// The zip file of a function, or of one of its versions.
    pub(crate) async fn function_zip(
        &self,
        call: &Call,
        name: &str,
        zip: &str,
    ) -> Result<Reply, LambdaError> {
        let name = self.unqualified(call, name)?;
        let record = self.record(call, &name).await?;
        let is_of = |config: &Configuration| {
            let code = config.code.as_ref();
            code.filter(|code| code.sha256.hex() == zip)
                .map(|code| code.sha256.clone())
        };
        let mut found = is_of(&record.latest);
        for number in record.versions.keys() {
            if found.is_none() {
                let place = key::function_version(&call.project.id, name.service(), *number);
                let version = self.control.db().get::<Configuration>(&place).await?;
                found = version.and_then(|version| is_of(&version.record));
            }
        }
        let found = found.ok_or_else(|| missing(&name))?;
        self.zip_file(&found).await
    }

    /// A stored zip file as a reply.
    pub(crate) async fn zip_file(&self, digest: &Digest) -> Result<Reply, LambdaError> {
        let opened = self.control.inner.base.images.open_code(digest).await;
        let gone = || LambdaError::new(Code::ResourceNotFound, "the zip file is not stored");
        let file = opened.map_err(ControlError::from)?.ok_or_else(gone)?;
        let file = tokio::fs::File::from_std(file);
        let length = file.metadata().await.map(|metadata| metadata.len());
        let length = length.map_err(|error| {
            crate::error::internal(format!("a zip file cannot be read: {error}"))
        })?;
        let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
            let mut piece = vec![0; PIECE_BYTES];
            let read = file.read(&mut piece).await?;
            piece.truncate(read);
            Ok::<_, std::io::Error>((read > 0).then(|| (Bytes::from(piece), file)))
        });
        let mut headers = HeaderMap::new();
        let zip = HeaderValue::from_static("application/zip");
        headers.insert(http::header::CONTENT_TYPE, zip);
        headers.insert(http::header::CONTENT_LENGTH, length.into());
        Ok(Reply {
            status: StatusCode::OK,
            headers,
            body: Body::from_stream(pieces),
        })
    }

    /// Checks a configuration's code as a whole and sets the image below it.
    pub(crate) fn settle_code(&self, config: &mut Configuration) -> Result<(), LambdaError> {
        let Some(code) = &config.code else {
            return Ok(());
        };
        if code.runtime.is_empty() || code.handler.is_empty() {
            return Err(invalid(
                "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
            ));
        }
        if !is_handler(&code.handler) {
            return Err(invalid(
                "Handler is 1 to 128 characters without a blank among them",
            ));
        }
        let runtime = Runtime::named(&code.runtime, &self.runtimes).map_err(invalid)?;
        if runtime.bootstrap && code.bootstrap_path().is_none() {
            let name = &code.runtime;
            return Err(invalid(format!(
                "the runtime {name} is a file bootstrap at the top of the zip file or of a layer, and there is none"
            )));
        }
        let layers = code.layers.iter().map(|layer| layer.unpacked_bytes);
        if layers.fold(code.unpacked_bytes, u64::saturating_add) > UNPACKED_BYTES_MAX {
            return Err(invalid(format!(
                "Function code combined with layers exceeds the maximum allowed size of {UNPACKED_BYTES_MAX} bytes"
            )));
        }
        config.image_uri = runtime.image.unwrap_or_else(|| code.runtime.clone());
        Ok(())
    }

    /// What is deployed: an image, or a runtime's image with code over it.
    pub(crate) fn wish(
        &self,
        config: &Configuration,
        mut deploy: Deploy,
    ) -> Result<Wish, LambdaError> {
        let Some(code) = &config.code else {
            return Ok(Wish::Function {
                deploy: Box::new(deploy),
                overlay: None,
                role: config.role.clone(),
            });
        };
        let runtime = Runtime::named(&code.runtime, &self.runtimes).map_err(invalid)?;
        let program = match runtime.bootstrap {
            true => code.bootstrap_path(),
            false => None,
        };
        for container in &mut deploy.containers {
            match program {
                Some(program) => container.command = vec![program.to_owned()],
                None => container.args = vec![code.handler.clone()],
            }
        }
        if let Some(function) = &mut deploy.function {
            function.handler = Some(code.handler.clone());
        }
        // AWS does not set it for runtimes that are the code's own.
        let named = format!("AWS_EXECUTION_ENV=AWS_Lambda_{}", code.runtime);
        let overlay = Overlay {
            on_image: runtime.image.is_some(),
            code: code.parts(),
            env: if runtime.bootstrap {
                vec![]
            } else {
                vec![named]
            },
            working_dir: TASK_ROOT.to_owned(),
        };
        Ok(Wish::Function {
            deploy: Box::new(deploy),
            overlay: Some(overlay),
            role: config.role.clone(),
        })
    }
}
