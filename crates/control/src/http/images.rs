use std::io;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, header};
use serde::Deserialize;
use skiff_types::api::{ApiError, Image, ImageEvent, Pruned, PullImage};
use utoipa::IntoParams;

use super::Api;
use super::extract::{Json, Operator, Params, Refused};
use super::stream::{lines, received};
use crate::error::too_large;
use crate::events::events;
use crate::limit::IMPORT_IDLE_TIMEOUT;
use crate::port::PullRequest;

type Answer<T> = Result<T, Refused>;

/// All images in the store.
#[utoipa::path(get, path = "/v1/images", tag = "images",
    responses((status = 200, body = Vec<Image>), (status = "default", body = ApiError)))]
pub(crate) async fn list(
    State(api): State<Api>,
    _operator: Operator,
) -> Answer<axum::Json<Vec<Image>>> {
    Ok(axum::Json(api.control.inner.library.list().await?))
}

/// Which image.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// A reference or a digest.
    image: String,
}

/// Removes a reference, and the image when it was its last; refused while a
/// revision uses it.
#[utoipa::path(delete, path = "/v1/images", tag = "images", params(Which),
    responses((status = 200, body = Pruned), (status = "default", body = ApiError)))]
pub(crate) async fn remove(
    State(api): State<Api>,
    _operator: Operator,
    Params(which): Params<Which>,
) -> Answer<axum::Json<Pruned>> {
    Ok(axum::Json(
        api.control.inner.library.remove(&which.image).await?,
    ))
}

/// Fetches an image, also when a reference is there already and has moved.
/// Runs to its end also when the client goes away.
#[utoipa::path(post, path = "/v1/images/pull", tag = "images", request_body = PullImage,
    responses((status = 200, body = ImageEvent, content_type = "application/x-ndjson"),
        (status = "default", body = ApiError)))]
pub(crate) async fn pull(
    State(api): State<Api>,
    _operator: Operator,
    Json(wanted): Json<PullImage>,
) -> Answer<Response> {
    let (teller, listener) = events();
    let request = PullRequest {
        reference: wanted.image,
        platform: wanted.platform,
        auth: wanted.registry_auth,
    };
    api.control.begin_pull(request, teller)?;
    Ok(lines(received(listener)))
}

/// What an imported image is called.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Import {
    /// Its name; absent means the one in the tar.
    reference: Option<String>,
}

/// Takes a tar of an OCI layout, or what `docker save` writes.
#[utoipa::path(post, path = "/v1/images/import", tag = "images", params(Import),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, body = ImageEvent, content_type = "application/x-ndjson"),
        (status = "default", body = ApiError)))]
pub(crate) async fn import(
    State(api): State<Api>,
    _operator: Operator,
    Params(import): Params<Import>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let most = api.control.inner.base.config.import_bytes_max;
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most) {
        return Err(too_large(format!("the tar is over {most} bytes")).into());
    }
    let (teller, listener) = events();
    api.control
        .begin_import(import.reference, bounded(body, most), teller)?;
    Ok(lines(received(listener)))
}

/// The body's bytes, as long as they come and are not too many.
fn bounded(body: Body, most: u64) -> BoxStream<'static, io::Result<Bytes>> {
    let start = Some((body.into_data_stream(), most));
    stream::unfold(start, move |state| next_piece(state, most)).boxed()
}

/// The stream's rest and how many bytes it may still have; nothing after an error.
type Rest = Option<(axum::body::BodyDataStream, u64)>;

async fn next_piece(rest: Rest, most: u64) -> Option<(io::Result<Bytes>, Rest)> {
    let (mut body, left) = rest?;
    let Ok(piece) = tokio::time::timeout(IMPORT_IDLE_TIMEOUT, body.next()).await else {
        return Some((Err(io::ErrorKind::TimedOut.into()), None));
    };
    let piece = match piece? {
        Ok(piece) => piece,
        Err(error) => return Some((Err(io::Error::other(error)), None)),
    };
    let bytes = u64::try_from(piece.len()).unwrap_or(u64::MAX);
    let Some(left) = left.checked_sub(bytes) else {
        let message = format!("the tar is over {most} bytes");
        return Some((
            Err(io::Error::new(io::ErrorKind::FileTooLarge, message)),
            None,
        ));
    };
    Some((Ok(piece), Some((body, left))))
}

/// Removes every image that no revision uses.
#[utoipa::path(post, path = "/v1/images/prune", tag = "images",
    responses((status = 200, body = Pruned), (status = "default", body = ApiError)))]
pub(crate) async fn prune(
    State(api): State<Api>,
    _operator: Operator,
) -> Answer<axum::Json<Pruned>> {
    Ok(axum::Json(api.control.inner.library.prune().await?))
}
