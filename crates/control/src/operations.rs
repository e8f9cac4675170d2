//! Pulls, imports and secrets: the calls that are one step.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use skiff_types::api::{Image, ImageEvent, Rekey, Rekeyed, Secret};
use skiff_types::{ProjectId, SecretName};

use crate::control::Control;
use crate::error::{ControlError, invalid, not_found, timeout};
use crate::events::Events;
use crate::key;
use crate::lent::lend;
use crate::limit::{DISCARD_TIMEOUT, PULL_TIMEOUT, REFERENCE_BYTES_MAX};
use crate::port::PullRequest;
use crate::record::ProjectRecord;

impl Control {
    /// Starts a pull; its last event says how it ended.
    pub(crate) fn begin_pull(
        &self,
        request: PullRequest,
        events: Events<ImageEvent>,
    ) -> Result<(), ControlError> {
        check_reference(&request.reference)?;
        let operation = self.operation()?;
        let control = self.clone();
        self.inner.tasks.spawn("pull", async move {
            let _operation = operation;
            let progress = events.progress(|bytes, total| ImageEvent::Progress { bytes, total });
            let library = &control.inner.library;
            let image = async {
                let digest = library.pull(request, progress).await?;
                library.describe(digest.as_str()).await
            };
            events.tell(last(image.await));
        });
        Ok(())
    }

    /// Starts an import; its last event says how it ended.
    pub(crate) fn begin_import(
        &self,
        reference: Option<String>,
        tar: BoxStream<'static, io::Result<Bytes>>,
        events: Events<ImageEvent>,
    ) -> Result<(), ControlError> {
        reference.as_deref().map(check_reference).transpose()?;
        let operation = self.operation()?;
        let control = self.clone();
        let (tar, rest) = lend(tar);
        self.inner.tasks.spawn("import", async move {
            let progress = events.progress(|bytes, total| ImageEvent::Progress { bytes, total });
            let images = &control.inner.base.images;
            let image = async {
                let import = images.import(reference, tar.boxed(), progress);
                let imported = tokio::time::timeout(PULL_TIMEOUT, import).await;
                let digest = imported.map_err(|_| timeout("the tar did not arrive in time"))??;
                control.inner.library.describe(digest.as_str()).await
            };
            events.tell(last(image.await));
            drop(operation);
            // The answer ends when the events do.
            rest.discard(DISCARD_TIMEOUT).await;
            drop(events);
        });
        Ok(())
    }

    pub(crate) async fn list_secrets(
        &self,
        project: &ProjectId,
    ) -> Result<Vec<Secret>, ControlError> {
        self.inner.base.vault.list(project).await
    }

    pub(crate) async fn set_secret(
        &self,
        project: &ProjectRecord,
        name: &SecretName,
        value: &[u8],
    ) -> Result<Secret, ControlError> {
        let _projects = self.inner.projects.read().await;
        if !self.db().exists(&key::project(&project.id)).await? {
            return Err(not_found(format!("there is no project {}", project.name)));
        }
        let base = &self.inner.base;
        base.vault.set(&project.id, name, value, base.now()).await
    }

    pub(crate) async fn delete_secret(
        &self,
        project: &ProjectId,
        name: &SecretName,
    ) -> Result<(), ControlError> {
        self.inner.base.vault.delete(project, name).await
    }

    /// Runs to its end also when its client goes away.
    pub(crate) async fn rekey(&self, wanted: Rekey) -> Result<Rekeyed, ControlError> {
        let operation = self.operation()?;
        let key_file = wanted.key_file.map(PathBuf::from);
        let (done, answer) = tokio::sync::oneshot::channel();
        let control = self.clone();
        self.inner.tasks.spawn("rekey", async move {
            let _operation = operation;
            let rekeyed = control.inner.base.vault.rekey(key_file).await;
            if done.send(rekeyed).is_err() {
                tracing::info!("nobody waits for the end of encrypting the secrets anew");
            }
        });
        let ended = answer.await;
        ended.map_err(|_| {
            crate::error::unavailable("the server is stopping; the next start goes on")
        })?
    }
}

fn last(image: Result<Image, ControlError>) -> ImageEvent {
    match image {
        Ok(image) => ImageEvent::Done { image },
        Err(error) => ImageEvent::Failed {
            error: error.to_api(),
        },
    }
}

pub(crate) fn check_reference(reference: &str) -> Result<(), ControlError> {
    let bytes = reference.len();
    if bytes == 0 || bytes > REFERENCE_BYTES_MAX {
        return Err(invalid(format!(
            "the image reference has {bytes} bytes: 1 to {REFERENCE_BYTES_MAX} are expected"
        )));
    }
    if reference
        .chars()
        .any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(invalid("the image reference contains blanks"));
    }
    Ok(())
}
