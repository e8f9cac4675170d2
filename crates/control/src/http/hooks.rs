use axum::extract::State;
use http::StatusCode;
use skiff_types::api::{ApiError, CreateHook, Hook};
use skiff_types::{HookName, ProjectName};

use super::Api;
use super::extract::{InProject, Json, Named, Refused};

type Answer<T> = Result<T, Refused>;

/// The project's hooks by name, without their tokens.
#[utoipa::path(get, path = "/v1/projects/{project}/hooks", tag = "hooks",
    params(("project" = ProjectName, Path)),
    responses((status = 200, body = Vec<Hook>), (status = "default", body = ApiError)))]
pub(crate) async fn list(
    State(api): State<Api>,
    InProject(project): InProject,
) -> Answer<axum::Json<Vec<Hook>>> {
    Ok(axum::Json(api.control.list_hooks(&project.id).await?))
}

/// Makes a hook; this answer alone shows its token.
#[utoipa::path(post, path = "/v1/projects/{project}/hooks", tag = "hooks",
    params(("project" = ProjectName, Path)), request_body = CreateHook,
    responses((status = 200, body = Hook), (status = "default", body = ApiError)))]
pub(crate) async fn create(
    State(api): State<Api>,
    InProject(project): InProject,
    Json(wanted): Json<CreateHook>,
) -> Answer<axum::Json<Hook>> {
    let made = api.control.create_hook(&project.name, wanted).await?;
    Ok(axum::Json(made))
}

/// Ends a hook; events that it has taken go on.
#[utoipa::path(delete, path = "/v1/projects/{project}/hooks/{name}", tag = "hooks",
    params(("project" = ProjectName, Path), ("name" = HookName, Path)),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(crate) async fn delete(
    State(api): State<Api>,
    InProject(project): InProject,
    Named(name): Named<HookName>,
) -> Answer<StatusCode> {
    api.control.delete_hook(&project.id, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
