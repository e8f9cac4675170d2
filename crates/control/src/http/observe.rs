use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::header;
use serde::Deserialize;
use skiff_types::api::{ApiError, ColdStart, LogLine, Usage, UsageCheck, Version};
use skiff_types::{InstanceId, ProjectName, ServiceName};
use utoipa::IntoParams;

use super::Api;
use super::extract::{InProject, OfService, Operator, Params, Refused, project_of};
use super::stream::lines;
use crate::control::asked;
use crate::error::{forbidden, invalid};
use crate::limit::{LOG_TAIL_DEFAULT, LOG_TAIL_MAX, PAGE_MAX};
use crate::port::{LogQuery, UsageQuery};
use crate::services::number_in;
use crate::tokens::Caller;

type Answer<T> = Result<T, Refused>;

/// A day and thirty of it: what a bill covers unless told.
const USAGE_DEFAULT_MS: u64 = 30 * 24 * 3600 * 1000;

/// Whether the server answers.
#[utoipa::path(get, path = "/healthz", tag = "server",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn health() -> &'static str {
    "ok\n"
}

/// All metrics, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "server",
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = "default", body = ApiError)))]
pub(crate) async fn metrics(State(api): State<Api>, _operator: Operator) -> Response {
    let text = api.control.metrics();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "server",
    responses((status = 200, body = serde_json::Value), (status = "default", body = ApiError)))]
pub(crate) async fn openapi(_caller: Caller) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        super::openapi_json(),
    )
        .into_response()
}

/// What serves here.
#[utoipa::path(get, path = "/v1/version", tag = "server",
    responses((status = 200, body = Version), (status = "default", body = ApiError)))]
pub(crate) async fn version(State(api): State<Api>, _caller: Caller) -> axum::Json<Version> {
    let config = &api.control.inner.base.config;
    axum::Json(Version {
        version: config.version.clone(),
        server_id: config.server_id.to_string(),
        gateway: config.gateway.clone(),
        lambda: config.lambda.clone(),
        domain: config.domain.clone(),
    })
}

/// Which lines of a log.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Lines {
    /// Goes on with what is written from now on.
    follow: bool,
    /// At most this many of the past; 100 unless given.
    tail: Option<u32>,
    /// Only lines from then on, milliseconds since 1970.
    since_unix_ms: Option<u64>,
    /// Only this revision's.
    revision: Option<String>,
    /// Only this instance's.
    #[param(value_type = Option<String>)]
    instance: Option<String>,
}

/// What a service's instances wrote, oldest first.
#[utoipa::path(get, path = "/v1/projects/{project}/services/{service}/logs", tag = "services",
    params(("project" = ProjectName, Path), ("service" = ServiceName, Path), Lines),
    responses((status = 200, body = LogLine, content_type = "application/x-ndjson"),
        (status = "default", body = ApiError)))]
pub(crate) async fn logs(
    State(api): State<Api>,
    of: OfService,
    Params(wanted): Params<Lines>,
) -> Answer<Response> {
    api.control.service(&of.project.id, &of.service).await?;
    let instance = wanted.instance.as_deref().map(str::parse::<InstanceId>);
    let query = LogQuery {
        revision: number_in(&of.project.id, &of.service, wanted.revision.as_deref())?,
        instance: instance.transpose().map_err(|e| invalid(e.to_string()))?,
        since_unix_ms: wanted.since_unix_ms,
        tail: wanted.tail.unwrap_or(LOG_TAIL_DEFAULT).min(LOG_TAIL_MAX),
        follow: wanted.follow,
        project: of.project.id,
        service: of.service,
    };
    let read = asked("the logs", api.control.inner.ports.logs.read(query)).await?;
    let read = read.map_err(crate::error::ControlError::from)?;
    Ok(lines(read.take_until(Box::pin(api.control.stopped()))))
}

/// Which cold starts.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only this service's.
    service: Option<ServiceName>,
    /// At most this many; 20 unless given, 1,000 at most.
    limit: Option<u32>,
}

/// Cold starts of a project by phase, newest first.
#[utoipa::path(get, path = "/v1/projects/{project}/traces", tag = "services",
    params(("project" = ProjectName, Path), Which),
    responses((status = 200, body = Vec<ColdStart>), (status = "default", body = ApiError)))]
pub(crate) async fn traces(
    State(api): State<Api>,
    InProject(project): InProject,
    Params(which): Params<Which>,
) -> Answer<axum::Json<Vec<ColdStart>>> {
    if let Some(service) = &which.service {
        api.control.service(&project.id, service).await?;
    }
    let limit = which.limit.unwrap_or(20).min(PAGE_MAX);
    let traces = &api.control.inner.ports.traces;
    let found = traces.cold_starts(&project.id, which.service.as_ref(), limit);
    let found = asked("the traces", found).await?;
    Ok(axum::Json(found.map_err(crate::error::ControlError::from)?))
}

/// Which bill.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Bill {
    /// Only this project's; the operator may leave it out.
    project: Option<ProjectName>,
    /// Only this service's; needs a project.
    service: Option<ServiceName>,
    /// From, milliseconds since 1970; 30 days before its end unless given.
    from_unix_ms: Option<u64>,
    /// Up to, milliseconds since 1970; now unless given.
    to_unix_ms: Option<u64>,
}

/// What was used, and what it costs.
#[utoipa::path(get, path = "/v1/usage", tag = "usage", params(Bill),
    responses((status = 200, body = Usage), (status = "default", body = ApiError)))]
pub(crate) async fn usage(
    State(api): State<Api>,
    caller: Caller,
    Params(bill): Params<Bill>,
) -> Answer<axum::Json<Usage>> {
    let project = match (&bill.project, &caller) {
        (Some(name), _) => Some(project_of(&api, &caller, name).await?.id),
        (None, Caller::Operator) => None,
        (None, Caller::Project(_)) => {
            return Err(forbidden("only the operator sees all projects: name yours").into());
        }
    };
    if bill.service.is_some() && project.is_none() {
        return Err(invalid("a service is given without its project").into());
    }
    let (from_unix_ms, to_unix_ms) = period(&api, bill.from_unix_ms, bill.to_unix_ms)?;
    let query = UsageQuery {
        project,
        service: bill.service,
        from_unix_ms,
        to_unix_ms,
    };
    let usage = asked("the ledger", api.control.inner.ports.usage.usage(query)).await?;
    Ok(axum::Json(usage.map_err(crate::error::ControlError::from)?))
}

/// Which period.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Period {
    /// From, milliseconds since 1970; 30 days before its end unless given.
    from_unix_ms: Option<u64>,
    /// Up to, milliseconds since 1970; now unless given.
    to_unix_ms: Option<u64>,
}

/// Compares the ledger with independent sources.
#[utoipa::path(post, path = "/v1/usage/check", tag = "usage", params(Period),
    responses((status = 200, body = UsageCheck), (status = "default", body = ApiError)))]
pub(crate) async fn usage_check(
    State(api): State<Api>,
    _operator: Operator,
    Params(wanted): Params<Period>,
) -> Answer<axum::Json<UsageCheck>> {
    let (from, to) = period(&api, wanted.from_unix_ms, wanted.to_unix_ms)?;
    let check = asked("the ledger", api.control.inner.ports.usage.check(from, to)).await?;
    Ok(axum::Json(check.map_err(crate::error::ControlError::from)?))
}

fn period(api: &Api, from: Option<u64>, to: Option<u64>) -> Answer<(u64, u64)> {
    let to = to.unwrap_or_else(|| api.control.inner.base.now());
    let from = from.unwrap_or_else(|| to.saturating_sub(USAGE_DEFAULT_MS));
    if from > to {
        return Err(invalid("the period ends before it begins").into());
    }
    Ok((from, to))
}
