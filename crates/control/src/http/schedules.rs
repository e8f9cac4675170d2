use axum::extract::State;
use http::StatusCode;
use skiff_lambda::{FunctionName, Qualifier};
use skiff_types::ProjectName;
use skiff_types::api::{ApiError, CreateSchedule, Schedule};

use super::Api;
use super::extract::{InProject, Json, Named, Refused};
use crate::control::Control;
use crate::error::{ControlError, invalid};
use crate::key;
use crate::limit::PAGE_MAX;
use crate::schedules::{AGE_S_MAX, ScheduleRecord, ScheduleSpec};

type Answer<T> = Result<T, Refused>;

/// What AWS's clients are told unless they say otherwise.
const RETRIES: u32 = 185;

/// The project's schedules, by name.
#[utoipa::path(get, path = "/v1/projects/{project}/schedules", tag = "schedules",
    params(("project" = ProjectName, Path)),
    responses((status = 200, body = Vec<Schedule>), (status = "default", body = ApiError)))]
pub(crate) async fn list(
    State(api): State<Api>,
    InProject(project): InProject,
) -> Answer<axum::Json<Vec<Schedule>>> {
    let limit = PAGE_MAX as usize;
    let page = api.control.schedules(&project.id, None, limit).await?;
    let found = page.items.into_iter();
    let shown = found.map(|found| to_api(&api.control, key::last_part(&found.key), found.record));
    Ok(axum::Json(shown.collect()))
}

/// Makes a schedule of a function's events.
#[utoipa::path(post, path = "/v1/projects/{project}/schedules", tag = "schedules",
    params(("project" = ProjectName, Path)), request_body = CreateSchedule,
    responses((status = 200, body = Schedule), (status = "default", body = ApiError)))]
pub(crate) async fn create(
    State(api): State<Api>,
    InProject(project): InProject,
    Json(wanted): Json<CreateSchedule>,
) -> Answer<axum::Json<Schedule>> {
    let name = wanted.name.clone();
    let function = &wanted.function;
    let known = api.control.function_name(&project.id, function).await?;
    let function = known.unwrap_or_else(|| function.clone().into());
    let spec = spec(wanted, function)?;
    let record = api
        .control
        .create_schedule(&project, &name, spec, None)
        .await?;
    Ok(axum::Json(to_api(&api.control, &name, record)))
}

/// One schedule.
#[utoipa::path(get, path = "/v1/projects/{project}/schedules/{name}", tag = "schedules",
    params(("project" = ProjectName, Path), ("name" = String, Path)),
    responses((status = 200, body = Schedule), (status = "default", body = ApiError)))]
pub(crate) async fn get(
    State(api): State<Api>,
    InProject(project): InProject,
    Named(name): Named<String>,
) -> Answer<axum::Json<Schedule>> {
    let record = api.control.schedule(&project.id, &name).await?;
    Ok(axum::Json(to_api(&api.control, &name, record)))
}

/// Ends a schedule; events that it has sent go on.
#[utoipa::path(delete, path = "/v1/projects/{project}/schedules/{name}", tag = "schedules",
    params(("project" = ProjectName, Path), ("name" = String, Path)),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(crate) async fn delete(
    State(api): State<Api>,
    InProject(project): InProject,
    Named(name): Named<String>,
) -> Answer<StatusCode> {
    api.control.delete_schedule(&project.id, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn spec(wanted: CreateSchedule, function: FunctionName) -> Result<ScheduleSpec, ControlError> {
    let qualifier = wanted.qualifier.as_deref();
    let qualifier = qualifier.map(str::parse::<Qualifier>);
    let qualifier = qualifier.transpose();
    let qualifier = qualifier.map_err(|error| invalid(error.to_string()))?;
    Ok(ScheduleSpec {
        expression: wanted.expression,
        timezone: wanted.timezone.unwrap_or_default(),
        start_unix_ms: None,
        end_unix_ms: None,
        description: wanted.description.unwrap_or_default(),
        is_enabled: true,
        function,
        qualifier: qualifier.map(|qualifier| qualifier.to_string()),
        role: String::new(),
        input: wanted.input,
        age_s: wanted.age_s.unwrap_or(AGE_S_MAX),
        retries: RETRIES,
        delete_after: wanted.delete_after,
    })
}

fn to_api(control: &Control, name: &str, record: ScheduleRecord) -> Schedule {
    let next_unix_ms = record.next(control.inner.base.now());
    let spec = record.spec;
    Schedule {
        name: name.to_owned(),
        expression: spec.expression,
        timezone: match spec.timezone.as_str() {
            "" => "UTC".to_owned(),
            _ => spec.timezone,
        },
        function: spec.function.service().clone(),
        qualifier: spec.qualifier,
        description: spec.description,
        enabled: spec.is_enabled,
        input: spec.input,
        age_s: spec.age_s,
        delete_after: spec.delete_after,
        created_unix_ms: record.created_unix_ms,
        fired_unix_ms: record.fired_unix_ms,
        next_unix_ms,
    }
}
