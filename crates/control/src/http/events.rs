use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use skiff_types::api::{ApiError, SentEvent};
use skiff_types::{ProjectName, ServiceName};
use utoipa::IntoParams;

use super::Api;
use super::extract::{OfService, Params, Raw, Refused};

/// What is told with an event.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Told {
    /// Base64 of a JSON object, at most 3,583 bytes.
    client_context: Option<String>,
}

/// Takes an event for a function, which is tried from then on.
#[utoipa::path(post, path = "/v1/projects/{project}/services/{service}/events", tag = "services",
    params(("project" = ProjectName, Path), ("service" = ServiceName, Path), Told),
    request_body = serde_json::Value,
    responses((status = 202, body = SentEvent), (status = "default", body = ApiError)))]
pub(crate) async fn send(
    State(api): State<Api>,
    of: OfService,
    Params(told): Params<Told>,
    Raw(event): Raw,
) -> Result<(StatusCode, axum::Json<SentEvent>), Refused> {
    let sent = api.control.send_event(
        &of.project.id,
        &of.service,
        event.into(),
        told.client_context,
    );
    let request_id = sent.await?;
    Ok((StatusCode::ACCEPTED, axum::Json(SentEvent { request_id })))
}
