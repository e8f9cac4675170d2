use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use skiff_types::api::{ApiError, Deploy, DeployEvent, Rollback, Scale, Service, SetTraffic};
use skiff_types::{ProjectName, ServiceName};
use utoipa::IntoParams;

use super::Api;
use super::extract::{InProject, Json, OfService, OrDefault, Params, Refused};
use super::stream::{lines, received};
use crate::deploy::Wish;
use crate::events::events;
use crate::limit::PAGE_MAX;

type Answer<T> = Result<T, Refused>;

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Only names behind this one.
    after: Option<ServiceName>,
    /// At most this many; 1,000 at most and unless given.
    limit: Option<u32>,
}

/// Services by name, each with its newest revision and those that have traffic.
#[utoipa::path(get, path = "/v1/projects/{project}/services", tag = "services",
    params(("project" = ProjectName, Path), Page),
    responses((status = 200, body = Vec<Service>), (status = "default", body = ApiError)))]
pub(crate) async fn list(
    State(api): State<Api>,
    InProject(project): InProject,
    Params(page): Params<Page>,
) -> Answer<axum::Json<Vec<Service>>> {
    let limit = page.limit.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let listed = api
        .control
        .list_services(&project, page.after.as_ref(), limit);
    Ok(axum::Json(listed.await?))
}

/// Makes a revision, validates it with one instance, and moves traffic to it.
/// What can be refused at once is an error status; from then on each line is
/// an event, the last one `done` or `failed`. It runs to its end also when
/// the client goes away.
#[utoipa::path(put, path = "/v1/projects/{project}/services/{service}", tag = "services",
    params(("project" = ProjectName, Path), ("service" = ServiceName, Path)),
    request_body = Deploy,
    responses((status = 200, body = DeployEvent, content_type = "application/x-ndjson"),
        (status = "default", body = ApiError)))]
pub(crate) async fn deploy(
    State(api): State<Api>,
    of: OfService,
    Json(deploy): Json<Deploy>,
) -> Answer<Response> {
    begin(&api, of, Wish::Deploy(Box::new(deploy))).await
}

/// A new revision that differs in its scaling; goes as a deployment does.
#[utoipa::path(post, path = "/v1/projects/{project}/services/{service}/scale", tag = "services",
    params(("project" = ProjectName, Path), ("service" = ServiceName, Path)),
    request_body = Scale,
    responses((status = 200, body = DeployEvent, content_type = "application/x-ndjson"),
        (status = "default", body = ApiError)))]
pub(crate) async fn scale(
    State(api): State<Api>,
    of: OfService,
    Json(scale): Json<Scale>,
) -> Answer<Response> {
    begin(&api, of, Wish::Scale(scale)).await
}

async fn begin(api: &Api, of: OfService, wish: Wish) -> Answer<Response> {
    let (teller, listener) = events();
    let begun = api
        .control
        .begin_deploy(of.project, of.service, wish, teller);
    begun.await?;
    Ok(lines(received(listener)))
}

/// A service with all its revisions and what runs of it.
#[utoipa::path(get, path = "/v1/projects/{project}/services/{service}", tag = "services",
    params(("project" = ProjectName, Path), ("service" = ServiceName, Path)),
    responses((status = 200, body = Service), (status = "default", body = ApiError)))]
pub(crate) async fn get(State(api): State<Api>, of: OfService) -> Answer<axum::Json<Service>> {
    let service = api.control.describe(&of.project, &of.service).await?;
    Ok(axum::Json(service))
}

/// Ends a service: no request reaches it any more, its instances are drained.
#[utoipa::path(delete, path = "/v1/projects/{project}/services/{service}", tag = "services",
    params(("project" = ProjectName, Path), ("service" = ServiceName, Path)),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(crate) async fn delete(State(api): State<Api>, of: OfService) -> Answer<StatusCode> {
    api.control.delete_service(&of.project, &of.service).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets who gets which share of the requests, and all tags.
#[utoipa::path(put, path = "/v1/projects/{project}/services/{service}/traffic", tag = "services",
    params(("project" = ProjectName, Path), ("service" = ServiceName, Path)),
    request_body = SetTraffic,
    responses((status = 200, body = Service), (status = "default", body = ApiError)))]
pub(crate) async fn set_traffic(
    State(api): State<Api>,
    of: OfService,
    Json(wanted): Json<SetTraffic>,
) -> Answer<axum::Json<Service>> {
    let set = api
        .control
        .set_traffic(&of.project, &of.service, &wanted.targets);
    Ok(axum::Json(set.await?))
}

/// All requests back to an older revision.
#[utoipa::path(post, path = "/v1/projects/{project}/services/{service}/rollback", tag = "services",
    params(("project" = ProjectName, Path), ("service" = ServiceName, Path)),
    request_body = Rollback,
    responses((status = 200, body = Service), (status = "default", body = ApiError)))]
pub(crate) async fn rollback(
    State(api): State<Api>,
    of: OfService,
    OrDefault(wanted): OrDefault<Rollback>,
) -> Answer<axum::Json<Service>> {
    let back = api.control.rollback(&of.project, &of.service, &wanted);
    Ok(axum::Json(back.await?))
}
