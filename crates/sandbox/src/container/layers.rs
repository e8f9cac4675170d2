use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use skiff_types::Digest;
use skiff_wire::launcher::Request;
use tokio::sync::OnceCell;

use super::launcher_gone;
use crate::launcher::{LauncherClient, LauncherError};
use crate::{LayerFile, SandboxError};

/// Which layers one launcher has been given. Creations of the same layer at
/// the same time share one request.
#[derive(Debug, Default)]
pub struct Layers {
    known: Mutex<HashMap<Digest, Arc<OnceCell<()>>>>,
}

impl Layers {
    fn cell(&self, layer: &Digest) -> Arc<OnceCell<()>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(layer) {
            Some(cell) => cell.clone(),
            None => known.entry(layer.clone()).or_default().clone(),
        }
    }

    /// Gives the launcher those of the layers that it does not have.
    pub async fn add_all(
        &self,
        client: &LauncherClient,
        layers: &[LayerFile],
    ) -> Result<(), SandboxError> {
        for layer in layers {
            self.cell(&layer.digest)
                .get_or_try_init(|| add(client, layer))
                .await?;
        }
        Ok(())
    }

    /// Has the launcher unmount it.
    pub async fn remove(
        &self,
        client: &LauncherClient,
        layer: &Digest,
    ) -> Result<(), SandboxError> {
        let request = Request::RemoveLayer {
            layer: layer.clone(),
        };
        let removed = client.call(request, vec![]).await;
        removed.map_err(|error| refused(layer, error))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(layer);
        Ok(())
    }
}

async fn add(client: &LauncherClient, layer: &LayerFile) -> Result<(), SandboxError> {
    let path = layer.path.clone();
    let file = tokio::task::spawn_blocking(move || open(path))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|source| SandboxError::Layer {
            layer: layer.digest.clone(),
            source,
        })?;
    let request = Request::AddLayer {
        layer: layer.digest.clone(),
    };
    let added = client.call(request, vec![file]).await;
    added
        .map(drop)
        .map_err(|error| refused(&layer.digest, error))
}

fn open(path: PathBuf) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn refused(layer: &Digest, error: LauncherError) -> SandboxError {
    match error {
        LauncherError::Refused { refusal, .. } => SandboxError::LayerRefused {
            layer: layer.clone(),
            step: refusal.step,
            message: refusal.message,
        },
        other => launcher_gone(other),
    }
}
