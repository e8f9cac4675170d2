use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use skiff_types::api::{ApiError, Secret, SetSecret};
use skiff_types::{ProjectName, SecretName, limits};

use super::Api;
use super::extract::{InProject, Json, Named, Refused};
use crate::error::{invalid, too_large};

type Answer<T> = Result<T, Refused>;

/// The project's secrets, without their values.
#[utoipa::path(get, path = "/v1/projects/{project}/secrets", tag = "secrets",
    params(("project" = ProjectName, Path)),
    responses((status = 200, body = Vec<Secret>), (status = "default", body = ApiError)))]
pub(crate) async fn list(
    State(api): State<Api>,
    InProject(project): InProject,
) -> Answer<axum::Json<Vec<Secret>>> {
    Ok(axum::Json(api.control.list_secrets(&project.id).await?))
}

/// Sets a secret; instances that start from now on get it.
#[utoipa::path(put, path = "/v1/projects/{project}/secrets/{name}", tag = "secrets",
    params(("project" = ProjectName, Path), ("name" = SecretName, Path)),
    request_body = SetSecret,
    responses((status = 200, body = Secret), (status = "default", body = ApiError)))]
pub(crate) async fn set(
    State(api): State<Api>,
    InProject(project): InProject,
    Named(name): Named<SecretName>,
    Json(wanted): Json<SetSecret>,
) -> Answer<axum::Json<Secret>> {
    // The error would show a byte of the value: it is not told.
    let value = STANDARD.decode(wanted.value_base64);
    let value =
        value.map_err(|_| invalid("value_base64 is no base 64 (RFC 4648, with padding)"))?;
    if value.len() > limits::SECRET_BYTES_MAX {
        let most = limits::SECRET_BYTES_MAX;
        return Err(too_large(format!("the secret {name} is over {most} bytes")).into());
    }
    if value.contains(&0) || std::str::from_utf8(&value).is_err() {
        let why = "it has NUL or is no UTF-8 and could not be set in an environment";
        return Err(invalid(format!("the secret {name} is refused: {why}")).into());
    }
    Ok(axum::Json(
        api.control.set_secret(&project, &name, &value).await?,
    ))
}

/// Removes a secret; instances that start from now on and need it do not.
#[utoipa::path(delete, path = "/v1/projects/{project}/secrets/{name}", tag = "secrets",
    params(("project" = ProjectName, Path), ("name" = SecretName, Path)),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(crate) async fn delete(
    State(api): State<Api>,
    InProject(project): InProject,
    Named(name): Named<SecretName>,
) -> Answer<StatusCode> {
    api.control.delete_secret(&project.id, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
