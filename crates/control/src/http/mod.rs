//! The admin API over HTTP: who may call what, and how bodies are read.

mod events;
mod exec;
mod extract;
mod hooks;
mod images;
mod keys;
mod observe;
mod operator;
mod schedules;
mod secrets;
mod serve;
mod services;
mod stream;

use axum::Router;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::control::Control;
use crate::error::{invalid, not_found};
use extract::Refused;

pub(crate) use serve::Peer;

/// What every handler is given.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub control: Control,
    pub transport: Transport,
}

/// How a caller came in, which decides how it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Whom the socket's permissions let in is the operator.
    Unix,
    /// A bearer token says who it is.
    Tcp,
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Skiff admin API",
    version = "1",
    description = "Services, projects, images, secrets, access keys, tokens, logs and usage of one Skiff server. \
                   Served on a Unix socket, whose permissions are the authentication, and, when \
                   configured, over TCP with bearer tokens. Every failed call answers an ApiError.",
    license(name = "Apache-2.0")
))]
struct Document;

fn documented() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(observe::health))
        .routes(routes!(observe::metrics))
        .routes(routes!(observe::openapi))
        .routes(routes!(observe::version))
        .routes(routes!(operator::list_projects, operator::create_project))
        .routes(routes!(operator::get_project, operator::delete_project))
        .routes(routes!(operator::set_quota))
        .routes(routes!(services::list))
        .routes(routes!(services::deploy, services::get, services::delete))
        .routes(routes!(services::set_traffic))
        .routes(routes!(services::rollback))
        .routes(routes!(services::scale))
        .routes(routes!(events::send))
        .routes(routes!(exec::exec))
        .routes(routes!(observe::logs))
        .routes(routes!(observe::traces))
        .routes(routes!(secrets::list))
        .routes(routes!(secrets::set, secrets::delete))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::delete))
        .routes(routes!(schedules::list, schedules::create))
        .routes(routes!(schedules::get, schedules::delete))
        .routes(routes!(hooks::list, hooks::create))
        .routes(routes!(hooks::delete))
        .routes(routes!(operator::rekey))
        .routes(routes!(operator::list_tokens, operator::create_token))
        .routes(routes!(operator::delete_token))
        .routes(routes!(images::list, images::remove))
        .routes(routes!(images::pull))
        .routes(routes!(images::import))
        .routes(routes!(images::prune))
        .routes(routes!(observe::usage))
        .routes(routes!(observe::usage_check))
}

/// The OpenAPI document of the API, as JSON.
#[must_use]
pub fn openapi_json() -> String {
    let (_, document) = documented().split_for_parts();
    // The document is made of strings and maps: it can always be written.
    document.to_pretty_json().unwrap_or_default()
}

/// All routes, for one way of coming in.
pub(crate) fn router(control: Control, transport: Transport) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(async || Refused(not_found("there is no such path in this API")))
        .method_not_allowed_fallback(async || {
            Refused(invalid("this path does not take this method"))
        })
        .with_state(Api { control, transport })
}
