use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skiff_types::api::{ApiError, Exec};
use skiff_types::{ProjectId, ProjectName, limits};
use skiff_wire::exec::PROTOCOL;
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use super::extract::{InProject, Json, Refused};
use crate::control::{Control, asked};
use crate::error::{ControlError, exhausted, invalid, unavailable};
use crate::exec::serve;
use crate::limit::{EXECS_MAX, UPGRADE_TIMEOUT};
use crate::port::{ExecPlace, ExecWish};

/// The client takes another protocol on this connection.
#[derive(Debug)]
pub(crate) struct Upgrade(OnUpgrade);

impl FromRequestParts<Api> for Upgrade {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _api: &Api) -> Result<Self, Refused> {
        let word = parts.headers.get(header::UPGRADE);
        let wanted =
            word.is_some_and(|word| word.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()));
        let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| wanted);
        let missing = || {
            invalid(format!(
                "`Connection: Upgrade` and `Upgrade: {PROTOCOL}` are expected, over HTTP/1.1"
            ))
        };
        Ok(Self(upgrade.ok_or_else(missing)?))
    }
}

/// Starts a process in an instance that runs, and joins the connection to it.
/// It takes `Connection: Upgrade` and `Upgrade: skiff-exec`; what follows the
/// answer 101 is frames: a byte for the kind, a big-endian `u32` for the
/// payload's length, the payload of at most 65,536 bytes. From the client: 0
/// bytes of input, 1 the input's end, 2 the terminal's size (`u16` columns,
/// `u16` rows). From the server: 16 output, 17 standard error, 18 how many
/// bytes of input were taken (`u32`; at most 262,144 may be on the way), 19
/// the exit code (`i32`), 20 the signal that ended it (`i32`), 21 why there is
/// no more to come, 22 a sign of life. 19, 20 or 21 is the last. The process
/// ends with its connection.
#[utoipa::path(post, path = "/v1/projects/{project}/exec", tag = "services",
    params(("project" = ProjectName, Path)),
    request_body = Exec,
    responses((status = 101, description = "the frames follow"),
        (status = "default", body = ApiError)))]
pub(crate) async fn exec(
    State(api): State<Api>,
    InProject(project): InProject,
    Upgrade(upgrade): Upgrade,
    Json(exec): Json<Exec>,
) -> Result<Response, Refused> {
    let wish = wish(project.id, exec)?;
    if let ExecPlace::Service(service) = &wish.place {
        api.control.service(&wish.project, service).await?;
    }
    let place = api.control.exec_place()?;
    let (project, program) = (wish.project.clone(), wish.command.first().cloned());
    let started = asked("the instance", api.control.inner.ports.fleet.exec(wish)).await?;
    let executed = started.map_err(ControlError::from)?;
    let instance = executed.instance;
    tracing::info!(%project, %instance, program, "a client's process runs in an instance");
    let stopped = api.control.stopped();
    api.control.inner.tasks.spawn("exec", async move {
        let _place = place;
        let upgraded = tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await;
        // Of a client that has gone away the process is dropped.
        if let Ok(Ok(stream)) = upgraded {
            serve(TokioIo::new(stream), executed, stopped).await;
        }
        tracing::info!(%instance, "a client's process is gone");
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

impl Control {
    fn exec_place(&self) -> Result<OwnedSemaphorePermit, ControlError> {
        if *self.inner.stopping.borrow() {
            return Err(unavailable("the server is stopping"));
        }
        let place = self.inner.execs.clone().try_acquire_owned();
        place.map_err(|_| {
            exhausted(format!(
                "{EXECS_MAX} processes of clients run in instances: try again later"
            ))
        })
    }
}

fn wish(project: ProjectId, exec: Exec) -> Result<ExecWish, ControlError> {
    let place = match (exec.service, exec.instance) {
        (Some(service), None) => ExecPlace::Service(service),
        (None, Some(instance)) => ExecPlace::Instance(instance),
        _ => return Err(invalid("either a service or an instance is expected")),
    };
    if exec.command.first().is_none_or(String::is_empty) {
        return Err(invalid("the command is empty"));
    }
    within("the command", &exec.command, limits::ARGS_BYTES_MAX)?;
    within("the environment", &exec.env, limits::ENV_BYTES_MAX)?;
    if exec.env.len() > limits::ENV_VARS_MAX {
        let most = limits::ENV_VARS_MAX;
        return Err(invalid(format!("there are over {most} variables")));
    }
    if let Some(line) = exec.env.iter().find(|line| !is_variable(line)) {
        return Err(invalid(format!("`{line}` is not NAME=VALUE")));
    }
    if let Some(folder) = &exec.workdir
        && !folder.starts_with('/')
    {
        return Err(invalid(format!(
            "the folder `{folder}` does not begin with /"
        )));
    }
    Ok(ExecWish {
        project,
        place,
        command: exec.command,
        env: exec.env,
        workdir: exec.workdir,
        terminal: exec.terminal,
    })
}

fn within(what: &str, words: &[String], most: usize) -> Result<(), ControlError> {
    if words.iter().map(String::len).sum::<usize>() > most {
        return Err(invalid(format!("{what} is over {most} bytes")));
    }
    match words.iter().any(|word| word.contains('\0')) {
        true => Err(invalid(format!("{what} contains a zero byte"))),
        false => Ok(()),
    }
}

fn is_variable(line: &str) -> bool {
    line.split_once('=')
        .is_some_and(|(name, _)| !name.is_empty())
}
