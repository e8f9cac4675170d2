//! The image store as the control plane asks for it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use skiff_base::chain;
use skiff_control::port::{
    CodeRoot, Composition, ImageConfig, ImageUser, Images, PortError, Progress, PullRequest,
    StoredCode, StoredImage,
};
use skiff_image::{
    Collect, ImageError, ImageRecord, ImageStore, ImportOptions, ImportSource, Platform,
    PullOptions, Reference,
};
use skiff_types::api::Pruned;
use skiff_types::{Digest, ErrorKind};
use tokio_util::io::StreamReader;

/// The store, and which registries are spoken to without TLS.
#[derive(Debug)]
pub struct StoreImages {
    pub store: ImageStore,
    pub plain_http: Vec<String>,
}

impl Images for StoreImages {
    fn pull(
        &self,
        request: PullRequest,
        progress: Progress,
    ) -> BoxFuture<'_, Result<Digest, PortError>> {
        async move {
            let reference = reference(&request.reference)?;
            let platform = match &request.platform {
                Some(text) => text.parse().map_err(|error| invalid(&error))?,
                None => Platform::host(),
            };
            let options = PullOptions {
                platform,
                auth: request.auth,
                insecure_hosts: self.plain_http.clone(),
                ..PullOptions::default()
            };
            let report = Arc::new(Report(progress));
            let record = self
                .store
                .pull(&reference, options, report)
                .await
                .map_err(|error| refused(&error))?;
            Ok(record.digest)
        }
        .boxed()
    }

    fn import(
        &self,
        name: Option<String>,
        tar: BoxStream<'static, io::Result<Bytes>>,
        progress: Progress,
    ) -> BoxFuture<'_, Result<Digest, PortError>> {
        async move {
            let name = name.as_deref().map(reference).transpose()?;
            let source =
                ImportSource::Stream(Box::pin(StreamReader::new(tar.map_err(io::Error::from))));
            let options = ImportOptions {
                name,
                ..ImportOptions::default()
            };
            let report = Arc::new(Report(progress));
            let record = self
                .store
                .import(source, options, report)
                .await
                .map_err(|error| refused(&error))?;
            Ok(record.digest)
        }
        .boxed()
    }

    fn find(&self, name: &str) -> BoxFuture<'_, Result<Option<StoredImage>, PortError>> {
        let name = name.to_owned();
        async move {
            let found = match name.parse::<Digest>() {
                Ok(digest) => self.store.get(&digest).await,
                Err(_) => {
                    self.store
                        .resolve(&reference(&name)?, &Platform::host())
                        .await
                }
            };
            Ok(found
                .map_err(|error| refused(&error))?
                .map(|record| self.stored(record)))
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<StoredImage>, PortError>> {
        async move {
            let records = self.store.list().await.map_err(|error| refused(&error))?;
            Ok(records
                .into_iter()
                .map(|record| self.stored(record))
                .collect())
        }
        .boxed()
    }

    fn remove(
        &self,
        name: &str,
        in_use: &HashSet<Digest>,
    ) -> BoxFuture<'_, Result<Pruned, PortError>> {
        let (name, in_use) = (name.to_owned(), in_use.clone());
        async move {
            self.store
                .remove(&name)
                .await
                .map_err(|error| refused(&error))?;
            self.collect(&in_use, Collect::Unnamed).await
        }
        .boxed()
    }

    fn prune(&self, in_use: &HashSet<Digest>) -> BoxFuture<'_, Result<Pruned, PortError>> {
        let in_use = in_use.clone();
        async move { self.collect(&in_use, Collect::Unused).await }.boxed()
    }

    fn resolve_user(
        &self,
        digest: &Digest,
        user: &str,
    ) -> BoxFuture<'_, Result<ImageUser, PortError>> {
        let (digest, user) = (digest.clone(), user.to_owned());
        async move {
            let record = self
                .store
                .get(&digest)
                .await
                .map_err(|error| refused(&error))?;
            let gone = || {
                PortError::new(
                    ErrorKind::NotFound,
                    format!("the image {digest} is not in the store"),
                )
            };
            let record = record.ok_or_else(gone)?;
            let found = self
                .store
                .resolve_user(&record, &user)
                .map_err(|error| refused(&error))?;
            Ok(ImageUser {
                uid: found.uid,
                gid: found.gid,
                additional_gids: found.additional_gids,
                home: String::new(),
            })
        }
        .boxed()
    }

    fn spool(&self) -> BoxFuture<'_, Result<File, PortError>> {
        async move { self.store.spool().await.map_err(|error| refused(&error)) }.boxed()
    }

    fn add_code(&self, zip: File, place: CodeRoot) -> BoxFuture<'_, Result<StoredCode, PortError>> {
        async move {
            let added = self.store.add_code(zip, root(place)).await;
            let added = added.map_err(|error| refused(&error))?;
            Ok(StoredCode {
                digest: added.digest,
                zip_bytes: added.zip_bytes,
                unpacked_bytes: added.unpacked_bytes,
                bootstrap: added.bootstrap,
            })
        }
        .boxed()
    }

    fn open_code(&self, digest: &Digest) -> BoxFuture<'_, Result<Option<File>, PortError>> {
        let digest = digest.clone();
        async move {
            let opened = self.store.open_code(&digest).await;
            opened.map_err(|error| refused(&error))
        }
        .boxed()
    }

    fn compose(&self, parts: Composition) -> BoxFuture<'_, Result<StoredImage, PortError>> {
        async move {
            let code = parts.code.into_iter();
            let parts = skiff_image::Composition {
                base: parts.base,
                code: code.map(|(digest, place)| (digest, root(place))).collect(),
                env: parts.env,
                working_dir: parts.working_dir,
            };
            let record = self.store.compose(parts).await;
            let record = record.map_err(|error| refused(&error))?;
            Ok(self.stored(record))
        }
        .boxed()
    }
}

const fn root(root: CodeRoot) -> skiff_image::CodeRoot {
    match root {
        CodeRoot::Task => skiff_image::CodeRoot::Task,
        CodeRoot::Opt => skiff_image::CodeRoot::Opt,
    }
}

impl StoreImages {
    async fn collect(
        &self,
        in_use: &HashSet<Digest>,
        collect: Collect,
    ) -> Result<Pruned, PortError> {
        let in_use: Vec<Digest> = in_use.iter().cloned().collect();
        let pruned = self
            .store
            .prune(&in_use, collect)
            .await
            .map_err(|error| refused(&error))?;
        Ok(Pruned {
            images: pruned.images.len(),
            layers: pruned.layers,
            bytes: pruned.bytes,
        })
    }

    fn stored(&self, record: ImageRecord) -> StoredImage {
        let layers = record.layers.into_iter().map(|layer| {
            let path = self.store.layer_path(&layer);
            (layer, path)
        });
        StoredImage {
            layers: layers.collect(),
            digest: record.digest,
            references: record.references,
            runs_here: record.platform.architecture == Platform::host().architecture,
            platform: record.platform.to_string(),
            size_bytes: record.size_bytes,
            created_unix_ms: record.created_unix_ms,
            config: ImageConfig {
                entrypoint: record.config.entrypoint,
                cmd: record.config.cmd,
                env: record.config.env,
                working_dir: record.config.working_dir,
                user: record.config.user,
                stop_signal: record.config.stop_signal,
            },
        }
    }
}

/// The control plane's progress, as the store reports it.
struct Report(Progress);

impl skiff_image::Progress for Report {
    fn report(&self, bytes: u64, total: Option<u64>) {
        (self.0)(bytes, total);
    }
}

fn reference(text: &str) -> Result<Reference, PortError> {
    text.parse().map_err(|error| invalid(&error))
}

fn invalid(error: &(dyn std::error::Error + 'static)) -> PortError {
    PortError::new(ErrorKind::Invalid, chain(error).to_string())
}

fn refused(error: &ImageError) -> PortError {
    PortError::new(error.kind(), chain(error).to_string())
}
