//! What a handler is given: who calls, in which project, and a body or a
//! query that has been checked. Each refuses with an [`ApiError`].

use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use skiff_types::api::ApiError;
use skiff_types::{ErrorKind, ProjectName, ServiceName, limits};

use super::{Api, Transport};
use crate::control::is_fault;
use crate::error::{
    ControlError, forbidden, invalid, not_found, timeout, too_large, unauthenticated,
};
use crate::key;
use crate::limit::BODY_TIMEOUT;
use crate::record::ProjectRecord;
use crate::tokens::Caller;

/// An error on its way to a client.
#[derive(Debug)]
pub(crate) struct Refused(pub ControlError);

impl From<ControlError> for Refused {
    fn from(error: ControlError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        if is_fault(&self.0) {
            tracing::error!(error = %self.0, "a call of the admin API failed");
        }
        let error: ApiError = self.0.to_api();
        let status = StatusCode::from_u16(error.kind.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let asks_for_token = error.kind == ErrorKind::Unauthenticated;
        let mut response = (status, axum::Json(error)).into_response();
        if asks_for_token {
            let bearer = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl FromRequestParts<Api> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        if api.transport == Transport::Unix {
            return Ok(Self::Operator);
        }
        let token = bearer(parts).ok_or_else(|| {
            unauthenticated("no token is given: `Authorization: Bearer TOKEN` is expected")
        })?;
        let caller = api.control.caller(token).await?;
        Ok(caller.ok_or_else(|| unauthenticated("the token is not known"))?)
    }
}

/// RFC 6750, section 2.1; the scheme's case does not matter.
fn bearer(parts: &Parts) -> Option<&str> {
    let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Proof that the operator calls.
#[derive(Debug)]
pub(crate) struct Operator;

impl FromRequestParts<Api> for Operator {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        match Caller::from_request_parts(parts, api).await? {
            Caller::Operator => Ok(Self),
            Caller::Project(_) => Err(forbidden("only the operator may do this").into()),
        }
    }
}

/// The project that the path names, which the caller may act in.
#[derive(Debug)]
pub(crate) struct InProject(pub ProjectRecord);

impl FromRequestParts<Api> for InProject {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        let caller = Caller::from_request_parts(parts, api).await?;
        let name: ProjectName = path_part(parts, api, "project").await?;
        Ok(Self(project_of(api, &caller, &name).await?))
    }
}

/// The project of this name, if the caller may act in it. A project's token
/// cannot find out which others there are.
pub(crate) async fn project_of(
    api: &Api,
    caller: &Caller,
    name: &ProjectName,
) -> Result<ProjectRecord, ControlError> {
    let Caller::Project(own) = caller else {
        return Ok(api.control.project(name).await?.record);
    };
    let found = api
        .control
        .db()
        .get::<ProjectRecord>(&key::project(own))
        .await?;
    match found {
        Some(found) if found.record.name == *name => Ok(found.record),
        _ => Err(forbidden("the token is bound to another project")),
    }
}

/// A service of a project that the caller may act in; whether it exists is
/// not known yet.
#[derive(Debug)]
pub(crate) struct OfService {
    pub project: ProjectRecord,
    pub service: ServiceName,
}

impl FromRequestParts<Api> for OfService {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        let InProject(project) = InProject::from_request_parts(parts, api).await?;
        let service = path_part(parts, api, "service").await?;
        Ok(Self { project, service })
    }
}

/// One named part of the path.
pub(crate) async fn path_part<T>(
    parts: &mut Parts,
    api: &Api,
    name: &str,
) -> Result<T, ControlError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let params = RawPathParams::from_request_parts(parts, api).await;
    let params = params.map_err(|e| invalid(e.to_string()))?;
    let value = params.iter().find(|(key, _)| *key == name);
    let (_, value) = value.ok_or_else(|| not_found("there is no such path in this API"))?;
    value.parse().map_err(|e: T::Err| invalid(e.to_string()))
}

/// The `name` at the end of a path.
#[derive(Debug)]
pub(crate) struct Named<T>(pub T);

impl<T> FromRequestParts<Api> for Named<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        Ok(Self(path_part(parts, api, "name").await?))
    }
}

/// A query whose every parameter is known.
#[derive(Debug)]
pub(crate) struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Params<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        let query = Query::<T>::from_request_parts(parts, api).await;
        let query = query.map_err(|e| invalid(format!("the query is wrong: {}", e.body_text())))?;
        Ok(Self(query.0))
    }
}

/// A JSON body whose every field is known.
#[derive(Debug)]
pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _api: &Api) -> Result<Self, Refused> {
        let bytes = read_body(request).await?;
        Ok(Self(parse(&bytes)?))
    }
}

/// A body as it is.
#[derive(Debug)]
pub(crate) struct Raw(pub bytes::Bytes);

impl FromRequest<Api> for Raw {
    type Rejection = Refused;

    async fn from_request(request: Request, _api: &Api) -> Result<Self, Refused> {
        Ok(Self(read_body(request).await?))
    }
}

/// As [`Json`], where no body means that nothing is chosen.
#[derive(Debug)]
pub(crate) struct OrDefault<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<Api> for OrDefault<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _api: &Api) -> Result<Self, Refused> {
        let bytes = read_body(request).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        Ok(Self(parse(&bytes)?))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(bytes).map_err(|e| invalid(format!("the body is wrong: {e}")))
}

async fn read_body(request: Request) -> Result<bytes::Bytes, ControlError> {
    let most = limits::API_BODY_BYTES_MAX;
    let refuse = || too_large(format!("the body is over {most} bytes"));
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > most) {
        return Err(refuse());
    }
    let read = axum::body::to_bytes(request.into_body(), most);
    let read = tokio::time::timeout(BODY_TIMEOUT, read).await;
    let read = read.map_err(|_| timeout("the body did not arrive in time"))?;
    read.map_err(|error| {
        let source = std::error::Error::source(&error);
        if source.is_some_and(|e| e.is::<http_body_util::LengthLimitError>()) {
            return refuse();
        }
        invalid("the body ended early")
    })
}
