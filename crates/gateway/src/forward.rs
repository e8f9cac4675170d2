//! A request's way, whatever protocol it came by: to a revision, into a slot,
//! onto a connection to its instance.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use skiff_base::Monotonic;
use skiff_types::{ProjectId, Protocol, RevisionId};

use crate::access::AccessLine;
use crate::answer::{self, Own};
use crate::h1::write::Origin;
use crate::host::{self, HostError, Place};
use crate::lane::{Lane, Watched};
use crate::link::{Link, LinkError};
use crate::mux::Connection;
use crate::port::ColdPhases;
use crate::revision::{Revision, Slot};
use crate::visit::Visit;

/// Instances that are tried for one request.
pub(crate) const INSTANCES_TRIED: usize = 4;

/// A client connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) lane: Arc<Lane>,
    pub(crate) watched: Arc<Watched>,
    pub(crate) origin: Origin,
    pub(crate) scope: Scope,
}

/// Which services a listener leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All, by their hosts.
    Outside,
    /// Those of one project, as `NAME.skiff.internal`.
    Inside(ProjectId),
    /// Every revision, as `NAME-00001.PROJECT`; for this process alone.
    Revisions,
}

/// A line of the access log for a request whose place is known.
pub(crate) fn note(client: &Client, visit: &mut Visit, method: &str, place: &Place<'_>) {
    if client.lane.shared.access.is_some() {
        let address = client.origin.address();
        visit.line = Some(AccessLine::new(
            address,
            method,
            &place.authority,
            &place.target,
        ));
    }
}

/// The revision that a request is for, and its admission.
pub(crate) fn route(
    client: &Client,
    visit: &mut Visit,
    method: &str,
    place: &Place<'_>,
) -> Result<Arc<Revision>, Own> {
    let shared = &client.lane.shared;
    if method == "CONNECT" {
        shared.metrics.bad_request.up();
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(answer::text(status, "CONNECT is not served"));
    }
    let name = host::name(&place.authority).map_err(|error| bad_host(client, error))?;
    let target = match &client.scope {
        Scope::Outside => shared.table.host(&name),
        Scope::Inside(project) => shared.table.inside(project, &name),
        Scope::Revisions => return admit(client, visit, named(client, &name)?),
    };
    let Some(target) = target else {
        if client.scope == Scope::Outside
            && let Some(aside) = shared.table.aside.get()
            && let Some(revision) = aside.of(&name, &place.target)
        {
            return Ok(revision.clone());
        }
        shared.metrics.no_route.up();
        let line = format!("no service answers to the host `{name}`");
        return Err(answer::text(StatusCode::NOT_FOUND, line));
    };
    let Some(revision) = target.pick(crate::random::u64()).cloned() else {
        shared.metrics.no_route.up();
        let line = format!("the service of `{name}` has no revision with traffic");
        return Err(answer::later(StatusCode::SERVICE_UNAVAILABLE, 5, line));
    };
    admit(client, visit, revision)
}

/// The revision of `NAME-00001.PROJECT`.
fn named(client: &Client, name: &str) -> Result<Arc<Revision>, Own> {
    let shared = &client.lane.shared;
    let parse = |(revision, project): (&str, &str)| {
        RevisionId::parse(&project.parse().ok()?, revision).ok()
    };
    let id = name.split_once('.').and_then(parse);
    id.and_then(|id| shared.revision(&id)).ok_or_else(|| {
        shared.metrics.no_route.up();
        let line = format!("there is no revision `{name}`");
        answer::text(StatusCode::NOT_FOUND, line)
    })
}

/// As long as the project's quota has room.
fn admit(
    client: &Client,
    visit: &mut Visit,
    revision: Arc<Revision>,
) -> Result<Arc<Revision>, Own> {
    let shared = &client.lane.shared;
    visit.admission = revision.project.admit();
    if visit.admission.is_none() {
        shared.metrics.over_quota.up();
        let line = "the project has as many requests in flight as its quota allows";
        return Err(answer::later(StatusCode::TOO_MANY_REQUESTS, 1, line));
    }
    Ok(revision)
}

/// A request that is none.
pub(crate) fn bad(client: &Client, line: String) -> Own {
    client.lane.shared.metrics.bad_request.up();
    answer::text(StatusCode::BAD_REQUEST, line)
}

pub(crate) fn bad_host(client: &Client, error: HostError) -> Own {
    bad(client, error.to_string())
}

/// Why a request got no slot, counted.
pub(crate) fn refused(client: &Client, refusal: crate::revision::Refusal) -> Own {
    let metrics = &client.lane.shared.metrics;
    match &refusal {
        crate::revision::Refusal::Full => metrics.queue_full.up(),
        crate::revision::Refusal::Late { .. } => metrics.overload.up(),
        crate::revision::Refusal::Deadline => metrics.queue_deadline.up(),
        crate::revision::Refusal::Refused { .. } => metrics.refused.up(),
    }
    answer::refusal(refusal)
}

/// After the last try.
pub(crate) fn nobody_connects() -> Own {
    let line = "no instance of this revision takes a connection";
    answer::later(StatusCode::SERVICE_UNAVAILABLE, 1, line)
}

/// When a request's time is over that has its slot now.
pub(crate) fn deadline(client: &Client, slot: &Slot) -> Monotonic {
    let timeout = Duration::from_millis(slot.revision.route.timeout_ms);
    client.lane.shared.clock.now().plus(timeout)
}

/// A connection to the slot's instance, and whether it is a new one. `None`
/// when the instance takes none: it is out of rotation then.
pub(crate) async fn link(client: &Client, slot: &Slot) -> Option<(Box<Link>, bool)> {
    // Boxed, for both are rare and would make every request's future larger.
    if slot.instance.is_paused() && !Box::pin(wake(client, slot)).await {
        return None;
    }
    if slot.revision.route.protocol == Protocol::H2c {
        // A stream that is refused is not tried again on the same connection.
        let stream = Box::pin(stream(client, slot)).await;
        return stream.map(|link| (link, true));
    }
    match client.lane.unpark(&slot.instance) {
        Some(link) => Some((link, false)),
        None => Box::pin(connect(client, slot))
            .await
            .map(|link| (link, true)),
    }
}

/// A stream on a connection that is there, or on another: one is made at a
/// time, for it may have room for all who wait.
async fn stream(client: &Client, slot: &Slot) -> Option<Box<Link>> {
    let (pools, instance) = (&client.lane.pools, &slot.instance);
    let link = |seat| Box::new(Link::stream(seat));
    if let Some(seat) = pools.seat(instance) {
        return Some(link(seat));
    }
    let making = pools.making(instance);
    let _making = making.lock().await;
    if let Some(seat) = pools.seat(instance) {
        return Some(link(seat));
    }
    if instance.is_out() {
        return None;
    }
    let connecting = async {
        let stream = instance.upstream.connect().await?;
        Connection::begin(stream).await.map_err(io::Error::other)
    };
    let (connection, moves) = reached(client, slot, connecting).await?;
    let seat = connection.seat();
    pools.keep(instance, &connection, client.lane.ticked());
    client.lane.tasks.spawn("instance's connection", moves);
    seat.map(link)
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

async fn connect(client: &Client, slot: &Slot) -> Option<Box<Link>> {
    let connecting = slot.instance.upstream.connect();
    let stream = reached(client, slot, connecting).await?;
    Some(Box::new(Link::new(stream)))
}

/// What comes of connecting to the slot's instance in time; otherwise it is
/// out of rotation.
async fn reached<T>(
    client: &Client,
    slot: &Slot,
    connecting: impl Future<Output = io::Result<T>>,
) -> Option<T> {
    let shared = &client.lane.shared;
    let patience = shared.config.connect_timeout;
    let reason = match tokio::time::timeout(patience, connecting).await {
        Ok(Ok(connected)) => {
            shared.metrics.upstream_connects.up();
            return Some(connected);
        }
        Ok(Err(error)) if is_our_own(&error) => {
            tracing::error!(%error, "no connection to an instance can be made");
            return None;
        }
        Ok(Err(error)) => format!("it takes no connection: {error}"),
        Err(_) => "it took no connection in time".to_owned(),
    };
    shared.dead(&slot.revision, &slot.instance, &reason);
    None
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

/// At concurrency 1 the time that ran out is the instance's: it ends. Over 1
/// only the connection does, which its owner drops.
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

/// The request's time ran out before there was an answer.
pub(crate) fn too_late(visit: &Visit) -> Own {
    timed_out(visit);
    let line = "the instance did not answer within the request's time";
    answer::text(StatusCode::GATEWAY_TIMEOUT, line)
}

/// An instance has spoilt a request.
pub(crate) fn spoilt(visit: &Visit, error: &LinkError) -> Own {
    let instance = visit.slot().map(|slot| slot.instance.id);
    tracing::debug!(?instance, %error, "an instance broke a request off");
    let line = match error {
        LinkError::Unsayable => {
            let line = "the request's target or host cannot be said in HTTP/2";
            return answer::text(StatusCode::BAD_REQUEST, line);
        }
        LinkError::Stream(error) if error.is_library() => {
            "the instance's answer is not HTTP/2 that can be passed on"
        }
        LinkError::Stream(error) if error.is_reset() => "the instance reset the request",
        LinkError::Stream(_) => "the instance closed the connection before it answered",
        LinkError::Io(_) | LinkError::Ended | LinkError::Upload => {
            "the instance closed the connection before it answered"
        }
        LinkError::Head(_) | LinkError::TooLarge | LinkError::Framing(_) | LinkError::Body(_) => {
            "the instance's answer is not HTTP that can be passed on"
        }
    };
    answer::text(StatusCode::BAD_GATEWAY, line)
}

/// A switch of protocols that nobody asked for.
pub(crate) fn unasked_switch() -> Own {
    let line = "the instance switched protocols without being asked";
    answer::text(StatusCode::BAD_GATEWAY, line)
}

/// The phases of the instance's start, for the answer of each request that
/// waited for it, and once for the records.
pub(crate) fn tell_cold_start(visit: &Visit) -> Option<String> {
    let slot = visit.slot().filter(|slot| slot.cold)?;
    let phases = slot.instance.phases?;
    let shared = visit.lane.shared.clone();
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let phases = ColdPhases {
        unix_ms: visit.arrival_unix_ms,
        queue_us: micros(phases.decided.since(visit.arrival)),
        first_byte_us: micros(shared.clock.now().since(phases.ready)),
        ..phases
    };
    if slot.instance.take_first_cold() {
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
    Some(server_timing(&phases))
}

/// The `Server-Timing` of a cold start.
fn server_timing(phases: &ColdPhases) -> String {
    let named = [
        ("queue", phases.queue_us),
        ("placement", phases.placement_us),
        ("image", phases.image_us),
        ("sandbox", phases.sandbox_us),
        ("app", phases.app_us),
        ("first_byte", phases.first_byte_us),
    ];
    let one = |(name, us): (&str, u64)| format!("{name};dur={}.{:03}", us / 1000, us % 1000);
    named.map(one).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_start_is_told_by_phase() {
        let phases = ColdPhases {
            queue_us: 1_500,
            placement_us: 20,
            app_us: 2_000_001,
            ..ColdPhases::default()
        };
        assert_eq!(
            server_timing(&phases),
            "queue;dur=1.500, placement;dur=0.020, image;dur=0.000, sandbox;dur=0.000, \
             app;dur=2000.001, first_byte;dur=0.000"
        );
    }
}
