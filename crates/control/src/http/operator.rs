use axum::extract::State;
use http::StatusCode;
use skiff_types::ProjectName;
use skiff_types::api::{
    ApiError, CreateProject, CreateToken, Project, Quota, Rekey, Rekeyed, Token,
};

use super::Api;
use super::extract::{InProject, Json, Operator, OrDefault, Refused};
use crate::projects::to_api;
use crate::tokens::Caller;

type Answer<T> = Result<T, Refused>;

/// All projects; a project's token sees its own.
#[utoipa::path(get, path = "/v1/projects", tag = "projects",
    responses((status = 200, body = Vec<Project>), (status = "default", body = ApiError)))]
pub(crate) async fn list_projects(
    State(api): State<Api>,
    caller: Caller,
) -> Answer<axum::Json<Vec<Project>>> {
    let mut projects = match &caller {
        Caller::Operator => api.control.list_projects().await?,
        Caller::Project(own) => api.control.one_project(own).await?.into_iter().collect(),
    };
    projects.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(axum::Json(projects))
}

/// Makes a project.
#[utoipa::path(post, path = "/v1/projects", tag = "projects", request_body = CreateProject,
    responses((status = 200, body = Project), (status = "default", body = ApiError)))]
pub(crate) async fn create_project(
    State(api): State<Api>,
    _operator: Operator,
    Json(wanted): Json<CreateProject>,
) -> Answer<axum::Json<Project>> {
    Ok(axum::Json(api.control.create_project(wanted).await?))
}

/// One project.
#[utoipa::path(get, path = "/v1/projects/{project}", tag = "projects",
    params(("project" = ProjectName, Path)),
    responses((status = 200, body = Project), (status = "default", body = ApiError)))]
pub(crate) async fn get_project(InProject(project): InProject) -> axum::Json<Project> {
    axum::Json(to_api(project))
}

/// Ends a project without services and secrets; its tokens end with it.
#[utoipa::path(delete, path = "/v1/projects/{project}", tag = "projects",
    params(("project" = ProjectName, Path)),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(crate) async fn delete_project(
    State(api): State<Api>,
    _operator: Operator,
    InProject(project): InProject,
) -> Answer<StatusCode> {
    api.control.delete_project(&project.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets what a project may use at once.
#[utoipa::path(put, path = "/v1/projects/{project}/quota", tag = "projects",
    params(("project" = ProjectName, Path)), request_body = Quota,
    responses((status = 200, body = Project), (status = "default", body = ApiError)))]
pub(crate) async fn set_quota(
    State(api): State<Api>,
    _operator: Operator,
    InProject(project): InProject,
    Json(quota): Json<Quota>,
) -> Answer<axum::Json<Project>> {
    Ok(axum::Json(
        api.control.set_quota(&project.name, quota).await?,
    ))
}

/// Encrypts every secret with a new key.
#[utoipa::path(post, path = "/v1/secrets/rekey", tag = "secrets", request_body = Option<Rekey>,
    responses((status = 200, body = Rekeyed), (status = "default", body = ApiError)))]
pub(crate) async fn rekey(
    State(api): State<Api>,
    _operator: Operator,
    OrDefault(wanted): OrDefault<Rekey>,
) -> Answer<axum::Json<Rekeyed>> {
    Ok(axum::Json(api.control.rekey(wanted).await?))
}

/// All tokens, without themselves.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, body = Vec<Token>), (status = "default", body = ApiError)))]
pub(crate) async fn list_tokens(
    State(api): State<Api>,
    _operator: Operator,
) -> Answer<axum::Json<Vec<Token>>> {
    Ok(axum::Json(api.control.list_tokens().await?))
}

/// Makes a token; this answer alone shows it.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = CreateToken,
    responses((status = 200, body = Token), (status = "default", body = ApiError)))]
pub(crate) async fn create_token(
    State(api): State<Api>,
    _operator: Operator,
    Json(wanted): Json<CreateToken>,
) -> Answer<axum::Json<Token>> {
    Ok(axum::Json(api.control.create_token(wanted).await?))
}

/// Ends a token.
#[utoipa::path(delete, path = "/v1/tokens/{name}", tag = "tokens",
    params(("name" = String, Path, description = "The token's id")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(crate) async fn delete_token(
    State(api): State<Api>,
    _operator: Operator,
    super::extract::Named(id): super::extract::Named<String>,
) -> Answer<StatusCode> {
    api.control.delete_token(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
