//! An S3-compatible store of objects, from which functions' code comes.

use std::sync::Arc;
use std::time::Duration;

use super::roles::secret;
use anyhow::Context as _;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, ObjectStore as _, RetryConfig};
use skiff_base::chain;
use skiff_config::S3;
use skiff_control::port::{ObjectContent, ObjectError, ObjectName, Objects};

/// To connect, and between two pieces.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Tries after the first one.
const RETRIES: usize = 2;
/// Longer names than S3's are not looked for.
const BUCKET_BYTES_MAX: usize = 255;

/// The store that is configured, if one is.
pub fn of(config: &S3) -> anyhow::Result<Option<Arc<dyn Objects>>> {
    let Some(endpoint) = &config.endpoint else {
        return Ok(None);
    };
    let secret = match &config.secret_access_key_file {
        Some(path) => Some(secret(path).context("lambda.s3.secret_access_key_file")?),
        None => None,
    };
    Ok(Some(Arc::new(S3Objects {
        endpoint: endpoint.trim_end_matches('/').to_owned(),
        region: config.region.clone(),
        key: config.access_key_id.clone().zip(secret),
    })))
}

struct S3Objects {
    endpoint: String,
    region: String,
    /// The access key's id and secret.
    key: Option<(String, String)>,
}

impl std::fmt::Debug for S3Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Objects")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl S3Objects {
    fn bucket(&self, name: &str) -> Result<AmazonS3, object_store::Error> {
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: TIMEOUT,
            ..RetryConfig::default()
        };
        let client = ClientOptions::new()
            .with_allow_http(true)
            .with_connect_timeout(TIMEOUT)
            .with_read_timeout(TIMEOUT);
        let builder = AmazonS3Builder::new()
            .with_client_options(client)
            .with_retry(retry)
            .with_endpoint(&self.endpoint)
            .with_region(&self.region)
            .with_bucket_name(name)
            .with_virtual_hosted_style_request(false);
        let builder = match &self.key {
            Some((id, secret)) => builder
                .with_access_key_id(id)
                .with_secret_access_key(secret),
            None => builder.with_skip_signature(true),
        };
        builder.build()
    }
}

impl Objects for S3Objects {
    fn read(&self, object: ObjectName) -> BoxFuture<'_, Result<ObjectContent, ObjectError>> {
        async move {
            if !is_bucket(&object.bucket) {
                return Err(ObjectError {
                    code: "InvalidBucketName",
                    message: "The specified bucket is not valid.".to_owned(),
                });
            }
            let bucket = self.bucket(&object.bucket).map_err(|error| told(&error))?;
            let key = Path::parse(&object.key).map_err(|error| ObjectError {
                code: "InvalidURI",
                message: chain(&error).to_string(),
            })?;
            let options = GetOptions {
                version: object.version,
                ..GetOptions::default()
            };
            let got = bucket.get_opts(&key, options).await;
            let content = got.map_err(|error| told(&error))?.into_stream();
            let content = content.map(|piece| piece.map_err(|error| told(&error)));
            Ok(content.boxed())
        }
        .boxed()
    }
}

/// It becomes a part of a path.
fn is_bucket(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=BUCKET_BYTES_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && name.bytes().any(|byte| byte != b'.')
}

fn told(error: &object_store::Error) -> ObjectError {
    use object_store::Error;
    let (code, message) = match error {
        Error::NotFound { .. } => ("NoSuchKey", "The specified key does not exist.".to_owned()),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ("AccessDenied", "Access Denied".to_owned())
        }
        other => ("InternalError", chain(other).to_string()),
    };
    ObjectError { code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_one_part_of_a_path() {
        assert!(is_bucket("my-bucket.1") && is_bucket("Old_Bucket"));
        for name in ["", "..", ".", "a/b", "a?b", "a%2f", &"x".repeat(256)] {
            assert!(!is_bucket(name), "{name}");
        }
    }
}
