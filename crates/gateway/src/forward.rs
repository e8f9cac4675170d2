//! One request: find its revision, get a slot, send it, and give back the
//! answer. It is sent again elsewhere only while no byte of it can have been
//! processed: when connecting failed, or when a kept connection turned out
//! closed before the request was begun.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use skiff_types::ProjectId;

use crate::access::AccessLine;
use crate::answer;
use crate::body::{AnswerBody, Driver, ProxiedBody};
use crate::headers::{self, Origin};
use crate::host;
use crate::lane::{Lane, Watched, Word};
use crate::link::{Link, LinkError, RequestBody};
use crate::port::ColdPhases;
use crate::revision::{Revision, Slot};
use crate::tunnel;
use crate::visit::Visit;

/// Instances that are tried for one request.
const INSTANCES_TRIED: usize = 4;

/// A client connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) lane: Arc<Lane>,
    pub(crate) watched: Arc<Watched>,
    /// The address as text, and as RFC 7239 writes it.
    pub(crate) address_text: HeaderValue,
    pub(crate) node: String,
    /// For the host of its first request, which is mostly that of all.
    pub(crate) forwarded: OnceLock<(HeaderValue, HeaderValue)>,
    /// Where its requests come from.
    pub(crate) scope: Scope,
}

/// Which services a listener leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All, by their hosts.
    Outside,
    /// Those of one project, as `NAME.skiff.internal`.
    Inside(ProjectId),
}

type Answer = Response<AnswerBody>;

/// Serves one request; always answers.
pub(crate) async fn serve(
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let mut visit = Visit::begin(&client.lane, &client.watched);
    let version = request.version();
    let mut answer = match route(&client, &request, &mut visit) {
        Ok(routed) => forward(&client, visit, routed, request).await,
        Err(answer) => refuse(visit, *answer),
    };
    if client.watched.word() != Word::GoOn {
        say_last(version, &mut answer);
    }
    Ok(answer)
}

/// The connection ends after this answer; HTTP/2 has its own way to say so.
fn say_last(version: Version, answer: &mut Answer) {
    if version < Version::HTTP_2 && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(http::header::CONNECTION, close);
    }
}

/// A request's way.
struct Routed {
    revision: Arc<Revision>,
    authority: HeaderValue,
}

/// The gateway's own answer ends the visit.
fn refuse(mut visit: Visit, answer: Answer) -> Answer {
    visit.leave();
    visit.status = Some(answer.status().as_u16());
    answer
}

fn route(
    client: &Client,
    request: &Request<Incoming>,
    visit: &mut Visit,
) -> Result<Routed, Box<Answer>> {
    let shared = &client.lane.shared;
    let bad = |line: String| {
        shared.metrics.bad_request.up();
        Box::new(answer::text(StatusCode::BAD_REQUEST, line))
    };
    let authority = host::authority(request).map_err(|error| bad(error.to_string()))?;
    if shared.access.is_some() {
        visit.line = Some(AccessLine {
            client: client.address_text.clone(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: authority.clone(),
        });
    }
    if request.method() == Method::CONNECT {
        shared.metrics.bad_request.up();
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(Box::new(answer::text(status, "CONNECT is not served")));
    }
    headers::check_framing(request.headers()).map_err(|error| bad(error.to_string()))?;
    let name = host::name(&authority).map_err(|error| bad(error.to_string()))?;
    let target = match &client.scope {
        Scope::Outside => shared.table.host(&name),
        Scope::Inside(project) => shared.table.inside(project, &name),
    };
    let Some(target) = target else {
        shared.metrics.no_route.up();
        let line = format!("no service answers to the host `{name}`");
        return Err(Box::new(answer::text(StatusCode::NOT_FOUND, line)));
    };
    let Some(revision) = target.pick(crate::random::u64()).cloned() else {
        shared.metrics.no_route.up();
        let line = format!("the service of `{name}` has no revision with traffic");
        return Err(Box::new(answer::later(
            StatusCode::SERVICE_UNAVAILABLE,
            5,
            line,
        )));
    };
    visit.admission = revision.project.admit();
    if visit.admission.is_none() {
        shared.metrics.over_quota.up();
        let line = "the project has as many requests in flight as its quota allows";
        return Err(Box::new(answer::later(
            StatusCode::TOO_MANY_REQUESTS,
            1,
            line,
        )));
    }
    Ok(Routed {
        revision,
        authority,
    })
}

async fn forward(
    client: &Client,
    mut visit: Visit,
    routed: Routed,
    mut request: Request<Incoming>,
) -> Answer {
    let upgrading = hyper_upgrade(&mut request);
    let (mut parts, incoming) = request.into_parts();
    let origin = Origin {
        client: &client.address_text,
        client_node: &client.node,
        forwarded: &client.forwarded,
        authority: routed.authority,
        trust: client.lane.shared.config.trust_forwarded,
    };
    let version = parts.version;
    let upgrade = headers::upgrade(&parts);
    headers::to_instance(&mut parts, origin, upgrade);
    let (body, progress) = RequestBody::new(incoming);
    if progress.is_none() {
        headers::say_no_body(&mut parts);
    }
    visit.progress = progress;
    let mut request = Request::from_parts(parts, body);
    let mut left = INSTANCES_TRIED;
    loop {
        let slot = match routed.revision.slot(visit.arrival).await {
            Ok(slot) => slot,
            Err(refusal) => return refuse_slot(visit, refusal),
        };
        visit.enter(slot);
        let attempt = attempt(client, &mut visit, request, version).await;
        match attempt {
            Attempt::Answered(answered) => {
                return respond(visit, answered, version, upgrading);
            }
            Attempt::Elsewhere(again) if left > 1 => {
                client.lane.shared.metrics.retries.up();
                visit.leave();
                left -= 1;
                request = *again;
            }
            Attempt::Elsewhere(_) => {
                let line = "no instance of this revision takes a connection";
                return refuse(
                    visit,
                    answer::later(StatusCode::SERVICE_UNAVAILABLE, 1, line),
                );
            }
            Attempt::Failed(answer) => {
                visit.status = Some(answer.status().as_u16());
                return *answer;
            }
        }
    }
}

/// The client's half of an upgrade, if it asks for one.
fn hyper_upgrade(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    let asked = request.headers().contains_key(http::header::UPGRADE);
    asked.then(|| hyper::upgrade::on(request))
}

fn refuse_slot(visit: Visit, refusal: crate::revision::Refusal) -> Answer {
    let metrics = &visit.lane.shared.metrics;
    match &refusal {
        crate::revision::Refusal::Full => metrics.queue_full.up(),
        crate::revision::Refusal::Deadline => metrics.queue_deadline.up(),
        crate::revision::Refusal::Refused { .. } => metrics.refused.up(),
    }
    refuse(visit, answer::refusal(refusal))
}

/// What came of one slot.
#[allow(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and a box would cost each request"
)]
enum Attempt {
    Answered(Answered),
    /// Nothing of the request was processed.
    Elsewhere(Box<Request<RequestBody>>),
    Failed(Box<Answer>),
}

struct Answered {
    response: Response<Incoming>,
    link: Box<Link>,
    deadline: skiff_base::Monotonic,
}

async fn attempt(
    client: &Client,
    visit: &mut Visit,
    request: Request<RequestBody>,
    version: Version,
) -> Attempt {
    let shared = &client.lane.shared;
    let Some(slot) = visit.slot() else {
        return Attempt::Elsewhere(Box::new(request));
    };
    let (revision, instance) = (slot.revision.clone(), slot.instance.clone());
    if instance.is_paused() && !Box::pin(wake(client, slot)).await {
        return Attempt::Elsewhere(Box::new(request));
    }
    let timeout = Duration::from_millis(revision.route.timeout_ms);
    let deadline = shared.clock.now().plus(timeout);
    let answered = {
        let mut exchange = pin!(exchange(client, visit, request));
        if version == Version::HTTP_2 {
            tokio::time::timeout(timeout, exchange).await.ok()
        } else {
            client.watched.until(deadline);
            // The lane's tick wakes this connection when its time is over, so
            // that a request needs no timer of its own.
            std::future::poll_fn(|cx| match exchange.as_mut().poll(cx) {
                Poll::Ready(answered) => Poll::Ready(Some(answered)),
                Poll::Pending if client.lane.ticked() > deadline => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            })
            .await
        }
    };
    match answered {
        Some(Ok((response, link))) => Attempt::Answered(Answered {
            response,
            link,
            deadline,
        }),
        Some(Err(failed)) => failed,
        None => {
            timed_out(visit);
            let line = "the instance did not answer within the request's time";
            Attempt::Failed(Box::new(answer::text(StatusCode::GATEWAY_TIMEOUT, line)))
        }
    }
}

/// At concurrency 1 the time that ran out is the instance's: it ends. Over 1
/// only the connection does, which its owner has dropped.
pub(crate) fn timed_out(visit: &Visit) {
    let shared = &visit.lane.shared;
    shared.metrics.timeouts.up();
    if let Some(slot) = visit.slot()
        && slot.revision.route.concurrency == 1
    {
        let reason = "a request timed out at concurrency 1";
        shared.dead(&slot.revision, &slot.instance, reason);
    }
}

async fn wake(client: &Client, slot: &Slot) -> bool {
    let shared = &client.lane.shared;
    let wake = shared.demand.wake(slot.instance.id);
    let reason = match tokio::time::timeout(shared.config.wake_timeout, wake).await {
        Ok(Ok(())) => {
            slot.instance.woke();
            return true;
        }
        Ok(Err(error)) => format!("it cannot be woken: {}", error.0),
        Err(_) => "it was not woken in time".to_owned(),
    };
    shared.dead(&slot.revision, &slot.instance, &reason);
    false
}

async fn exchange(
    client: &Client,
    visit: &mut Visit,
    mut request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Box<Link>), Attempt> {
    let Some(slot) = visit.slot() else {
        return Err(Attempt::Elsewhere(Box::new(request)));
    };
    let instance = slot.instance.clone();
    loop {
        let kept = client.lane.unpark(&instance);
        let fresh = kept.is_none();
        let mut link = match kept {
            Some(link) => link,
            None => match Box::pin(connect(client, visit)).await {
                Ok(link) => link,
                Err(()) => return Err(Attempt::Elsewhere(Box::new(request))),
            },
        };
        visit.reach();
        match link.exchange(request).await {
            Ok(response) => return Ok((response, link)),
            Err(LinkError::NotSent(again)) if fresh => {
                return Err(Attempt::Elsewhere(again));
            }
            Err(LinkError::NotSent(again)) => {
                client.lane.shared.metrics.retries.up();
                request = *again;
            }
            Err(LinkError::Failed(error)) => {
                tracing::debug!(instance = %instance.id, %error, "an instance broke a request off");
                let line = "the instance closed the connection before it answered";
                return Err(Attempt::Failed(Box::new(answer::text(
                    StatusCode::BAD_GATEWAY,
                    line,
                ))));
            }
        }
    }
}

async fn connect(client: &Client, visit: &Visit) -> Result<Box<Link>, ()> {
    let Some(slot) = visit.slot() else {
        return Err(());
    };
    let shared = &client.lane.shared;
    let patience = shared.config.connect_timeout;
    let connecting = tokio::time::timeout(patience, slot.instance.upstream.connect());
    let reason = match connecting.await {
        Ok(Ok(stream)) => {
            shared.metrics.upstream_connects.up();
            match Link::open(stream).await {
                Ok(link) => return Ok(Box::new(link)),
                Err(error) => format!("the connection cannot be used: {error}"),
            }
        }
        Ok(Err(error)) if is_our_own(&error) => {
            tracing::error!(%error, "no connection to an instance can be made");
            return Err(());
        }
        Ok(Err(error)) => format!("it takes no connection: {error}"),
        Err(_) => "it took no connection in time".to_owned(),
    };
    shared.dead(&slot.revision, &slot.instance, &reason);
    Err(())
}

/// What this process lacks says nothing of the instance.
pub(crate) fn is_our_own(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
    ];
    let code = error.raw_os_error();
    ours.iter().any(|errno| code == Some(errno.raw_os_error()))
}

fn respond(
    mut visit: Visit,
    answered: Answered,
    version: Version,
    upgrading: Option<OnUpgrade>,
) -> Answer {
    let Answered {
        response,
        link,
        deadline,
    } = answered;
    let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let (mut parts, incoming) = response.into_parts();
    headers::to_client(&mut parts, is_upgrade);
    visit.status = Some(parts.status.as_u16());
    tell_cold_start(&visit, &mut parts.headers);
    if is_upgrade {
        let Some(client_half) = upgrading else {
            drop(link);
            let line = "the instance switched protocols without being asked";
            visit.status = Some(StatusCode::BAD_GATEWAY.as_u16());
            return answer::text(StatusCode::BAD_GATEWAY, line);
        };
        tunnel::start(visit, link, client_half, deadline);
        return Response::from_parts(parts, AnswerBody::Text(None));
    }
    let uploading = visit.progress.as_ref().is_some_and(|p| !p.has_ended());
    let driver = if uploading {
        Driver::task(&visit.lane, link)
    } else {
        Driver::Reader(link)
    };
    let body = ProxiedBody::new(incoming, driver, visit, deadline);
    let body = if version == Version::HTTP_2 {
        AnswerBody::Pumped(body.pump())
    } else {
        AnswerBody::Proxied(body)
    };
    Response::from_parts(parts, body)
}

/// The phases of the instance's start, in the answer of each request that
/// waited for it, and once in the records.
fn tell_cold_start(visit: &Visit, headers: &mut http::HeaderMap) {
    let Some(slot) = visit.slot().filter(|slot| slot.cold) else {
        return;
    };
    let Some(phases) = slot.instance.phases else {
        return;
    };
    let shared = visit.lane.shared.clone();
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let phases = ColdPhases {
        unix_ms: visit.arrival_unix_ms,
        queue_us: micros(phases.decided.since(visit.arrival)),
        first_byte_us: micros(shared.clock.now().since(phases.ready)),
        ..phases
    };
    if let Some(value) = headers::server_timing(&phases) {
        headers.insert(headers::SERVER_TIMING, value);
    }
    if !slot.instance.take_first_cold() {
        return;
    }
    shared.metrics.cold_starts.up();
    let (revision, instance) = (slot.revision.route.id.clone(), slot.instance.clone());
    visit.lane.tasks.spawn("cold start", async move {
        // Behind the head, which the connection's own task is about to send.
        tokio::task::yield_now().await;
        shared
            .records
            .cold_start(&revision, instance.id, instance.class, &phases);
    });
}
