use axum::extract::State;
use http::StatusCode;
use skiff_types::ProjectName;
use skiff_types::api::{AccessKey, ApiError, CreateAccessKey};

use super::Api;
use super::extract::{InProject, Json, Named, Refused};

type Answer<T> = Result<T, Refused>;

/// The project's keys for AWS's clients, without their secrets.
#[utoipa::path(get, path = "/v1/projects/{project}/keys", tag = "keys",
    params(("project" = ProjectName, Path)),
    responses((status = 200, body = Vec<AccessKey>), (status = "default", body = ApiError)))]
pub(crate) async fn list(
    State(api): State<Api>,
    InProject(project): InProject,
) -> Answer<axum::Json<Vec<AccessKey>>> {
    Ok(axum::Json(api.control.list_access_keys(&project.id).await?))
}

/// Makes a key; this answer alone shows its secret.
#[utoipa::path(post, path = "/v1/projects/{project}/keys", tag = "keys",
    params(("project" = ProjectName, Path)), request_body = CreateAccessKey,
    responses((status = 200, body = AccessKey), (status = "default", body = ApiError)))]
pub(crate) async fn create(
    State(api): State<Api>,
    InProject(project): InProject,
    Json(wanted): Json<CreateAccessKey>,
) -> Answer<axum::Json<AccessKey>> {
    Ok(axum::Json(
        api.control
            .create_access_key(&project.name, wanted.name)
            .await?,
    ))
}

/// Revokes a key.
#[utoipa::path(delete, path = "/v1/projects/{project}/keys/{name}", tag = "keys",
    params(("project" = ProjectName, Path), ("name" = String, Path, description = "The access key id")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(crate) async fn delete(
    State(api): State<Api>,
    InProject(project): InProject,
    Named(id): Named<String>,
) -> Answer<StatusCode> {
    api.control.delete_access_key(&project.id, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
