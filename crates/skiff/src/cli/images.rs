//! Images in a server's store.

use std::path::Path;

use anyhow::{Context as _, bail};
use http::Method;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use skiff_types::api::{Image, ImageEvent, Pruned, PullImage, RegistryAuth};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::args::{ImageCommand, Output};
use super::client::{Body, full};
use super::output::{self, Bar};
use super::{Scope, segment};

const UPLOAD_BLOCK: usize = 256 * 1024;

/// `skiff image …`.
pub async fn execute(scope: &Scope, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Ls => list(scope).await,
        ImageCommand::Pull { image, platform } => {
            let registry_auth = credentials(&image)?;
            let body = full(serde_json::to_vec(&PullImage {
                image,
                platform,
                registry_auth,
            })?);
            follow(
                scope,
                "/v1/images/pull",
                "application/json",
                body,
                "pulling",
            )
            .await
        }
        ImageCommand::Import { path, name } => import(scope, &path, name).await,
        ImageCommand::Rm { image } => {
            let pruned: Pruned = scope
                .client
                .call(
                    Method::DELETE,
                    &format!("/v1/images?image={}", segment(&image)),
                    None::<&()>,
                )
                .await?;
            show_pruned(scope, &pruned)
        }
        ImageCommand::Prune => {
            let pruned: Pruned = scope
                .client
                .call(Method::POST, "/v1/images/prune", None::<&()>)
                .await?;
            show_pruned(scope, &pruned)
        }
    }
}

/// What the user's Docker configuration has for the image's registry.
///
/// # Errors
/// When the configuration is there and cannot be used.
pub fn credentials(image: &str) -> anyhow::Result<Option<RegistryAuth>> {
    let reference: skiff_image::Reference = image
        .parse()
        .with_context(|| format!("`{image}` is not an image reference"))?;
    skiff_image::docker_credentials(reference.registry())
        .context("the Docker configuration cannot be used")
}

async fn list(scope: &Scope) -> anyhow::Result<()> {
    let images: Vec<Image> = scope.client.get("/v1/images").await?;
    output::show(scope.output, &images, |images| {
        let rows: Vec<Vec<String>> = images.iter().map(row).collect();
        output::table(
            &["IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "USED BY"],
            &rows,
        );
    })
}

fn row(image: &Image) -> Vec<String> {
    vec![
        image.references.join(","),
        image.digest.hex().chars().take(12).collect(),
        image.platform.clone(),
        image.layers.to_string(),
        output::bytes(image.size_bytes),
        image.used_by.join(","),
    ]
}

async fn import(scope: &Scope, path: &Path, name: Option<String>) -> anyhow::Result<()> {
    let query = name
        .map(|name| format!("?reference={}", segment(&name)))
        .unwrap_or_default();
    let body = if path == Path::new("-") {
        upload(tokio::io::stdin())
    } else if path.is_dir() {
        upload(tar_of(path)?)
    } else {
        let file = tokio::fs::File::open(path).await;
        upload(file.with_context(|| format!("{} cannot be read", path.display()))?)
    };
    follow(
        scope,
        &format!("/v1/images/import{query}"),
        "application/x-tar",
        body,
        "importing",
    )
    .await
}

/// An OCI layout folder as the tar that the server takes, made by a thread
/// that ends when nobody reads any more.
fn tar_of(folder: &Path) -> anyhow::Result<impl AsyncRead + Send + Sync + Unpin + 'static> {
    if !folder.join("oci-layout").exists() {
        bail!(
            "{} is not an OCI layout: it has no file oci-layout",
            folder.display()
        );
    }
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    let folder = folder.to_owned();
    std::thread::Builder::new()
        .name("tar".to_owned())
        .spawn(move || {
            let mut tar = tar::Builder::new(far);
            // A failure shows at the other end as a tar that breaks off.
            let _broken = tar.append_dir_all(".", &folder).and_then(|()| tar.finish());
        })?;
    near.set_nonblocking(true)?;
    Ok(tokio::net::UnixStream::from_std(near)?)
}

fn upload(reader: impl AsyncRead + Send + Sync + Unpin + 'static) -> Body {
    let blocks = futures_util::stream::unfold(reader, |mut reader| async move {
        let mut block = bytes::BytesMut::with_capacity(UPLOAD_BLOCK);
        match reader.read_buf(&mut block).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Frame::data(block.freeze())), reader)),
            Err(error) => Some((Err(error), reader)),
        }
    });
    StreamBody::new(blocks).boxed()
}

async fn follow(
    scope: &Scope,
    path: &str,
    content_type: &'static str,
    body: Body,
    word: &str,
) -> anyhow::Result<()> {
    let mut events = scope
        .client
        .stream::<ImageEvent>(Method::POST, path, content_type, body)
        .await?;
    let bar = Bar::new(word);
    while let Some(event) = events.next().await? {
        if scope.output == Output::Json {
            output::line(serde_json::to_string(&event)?);
        }
        match event {
            ImageEvent::Progress { bytes, total } => bar.set(bytes, total),
            ImageEvent::Done { image } => {
                bar.clear();
                if scope.output == Output::Text {
                    output::line(format!("{}  {}", image.digest, image.references.join(" ")));
                }
                return Ok(());
            }
            ImageEvent::Failed { error } => {
                bar.clear();
                bail!("{}", error.message);
            }
        }
    }
    bail!("the server ended without a result; see `skiff image ls`")
}

fn show_pruned(scope: &Scope, pruned: &Pruned) -> anyhow::Result<()> {
    output::show(scope.output, pruned, |pruned| {
        output::line(format!(
            "removed {} images and {} layers, {}",
            pruned.images,
            pruned.layers,
            output::bytes(pruned.bytes)
        ));
    })
}
