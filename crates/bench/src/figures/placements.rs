//! How fast instances come and go: services of the class `null`, concurrency
//! 1, keep-alive 0, so that every request creates an instance and destroys it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use skiff_testkit::Server;

use crate::api::{Api, deployment};
use crate::context::Context;
use crate::load::{Load, Outcome, Pace, get, run};
use crate::report::{Bound, Figure, Report, Spec};
use crate::response::Response;
use crate::stats;
use crate::time::wait_until;
use crate::upstream::steps_of;
use crate::{peers, procfs};

const SERVICES: usize = 1_000;
const CONNECTIONS: usize = 128;
/// Until all instances are gone.
const REST: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(4);
/// The rate of the figure's bound: latencies are taken there.
const FLOOR: f64 = 5_000.0;
/// Rates that are tried, as parts of the floor.
const LADDER: [f64; 8] = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0];
/// Of what is offered, this much has to be answered for a rate to be held.
const HELD: f64 = 0.98;
/// As many as the server has cores to serve with.
const PEER_THREADS: usize = 2;

const RATE: Spec = Spec {
    name: "placements_per_s",
    unit: "1/s",
    bound: Bound::AtLeast(FLOOR),
    peer: None,
};
const P99: Spec = Spec {
    name: "placement_p99_ms",
    unit: "ms",
    bound: Bound::AtMost(5.0),
    peer: Some("two threads that work as long for each answer, and do nothing else"),
};
pub const SPECS: &[Spec] = &[RATE, P99];

/// Takes the group.
pub fn take(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    // Memory is only counted, not used, in this class.
    let server = context.server(&["worker.allow_null=true", "worker.memory_mib=1000000"]);
    let api = Api::of(&server);
    server.import("testapp");
    let names: Vec<String> = (0..SERVICES)
        .map(|index| format!("place-{index}"))
        .collect();
    let scaling = json!({"keep_alive_s": 0, "concurrency": 1});
    api.deploy_many(&names, &deployment("testapp:1", "null", &scaling))?;
    // Those that were started for the deployments would answer without being
    // placed.
    wait_until("the services are at zero", REST, || {
        Ok(metric(&api, "skiff_instances")? == 0.0)
    })?;
    let requests: Vec<Vec<u8>> = names
        .iter()
        .map(|name| get(&server.host_of(name), "/"))
        .collect();

    let address = format!("127.0.0.1:{}", server.port()).parse()?;
    let mut best = 0.0;
    for part in LADDER {
        let before = cold_starts(&api)?;
        let outcome = offer(context, address, &requests, FLOOR * part, placed)?;
        let rate = placements_per_s(&outcome, cold_starts(&api)? - before);
        println!(
            "    {:.0}/s offered: {:.0}/s correct, {rate:.0}/s placed, p50 {:.2} ms, p99 {:.2} ms {:?}",
            FLOOR * part,
            outcome.latencies_ns.len() as f64 / outcome.elapsed.as_secs_f64(),
            outcome.quantile_ms(500),
            outcome.quantile_ms(990),
            outcome.others
        );
        if rate > best {
            best = rate;
        }
        if rate < outcome.offered as f64 / context.shortened(WINDOW).as_secs_f64() * HELD {
            break;
        }
    }
    let (mut rates, mut p99, mut cpu_us) = (Vec::new(), Vec::new(), Vec::new());
    let rounds = context.rounds(10);
    for _ in 0..rounds {
        // What cannot hold the floor is measured where it can.
        let (before, cpu) = (cold_starts(&api)?, cpu_seconds(&server)?);
        let outcome = offer(context, address, &requests, best.max(1.0), placed)?;
        let placed_here = cold_starts(&api)? - before;
        rates.push(placements_per_s(&outcome, placed_here));
        cpu_us.push((cpu_seconds(&server)? - cpu) * 1e6 / placed_here.max(1.0));
    }
    report.add(Figure::absolute(RATE, rates));
    // What this machine's own slow moments cost at that rate: they hit whoever
    // needs the processor as much, and are nothing to who hardly needs it.
    let each = Duration::from_secs_f64(stats::median(&cpu_us) / 1e6);
    let idle = peers::working(context, PEER_THREADS, 0)?;
    let outcome = offer(context, idle.address, &requests, FLOOR, answered)?;
    let answers = outcome.latencies_ns.len().max(1) as f64;
    let own = Duration::from_secs_f64(procfs::cpu_seconds(&idle.pids())? / answers);
    drop(idle);
    let peer = peers::working(context, PEER_THREADS, steps_of(each.saturating_sub(own)))?;
    let mut peer_p99 = Vec::new();
    for _ in 0..rounds {
        p99.push(offer(context, address, &requests, FLOOR, placed)?.quantile_ms(990));
        let outcome = offer(context, peer.address, &requests, FLOOR, answered)?;
        peer_p99.push(outcome.quantile_ms(990));
    }
    let figure = Figure::absolute_beside(P99, p99, peer_p99);
    report.add(if figure.peer_misses() {
        figure.unjudged(format!(
            "the machine cannot show it: two threads that work {:.0} µs for each answer miss it, too",
            each.as_secs_f64() * 1e6
        ))
    } else {
        figure
    });
    Ok(())
}

/// The server's processor time so far, seconds.
fn cpu_seconds(server: &Server) -> anyhow::Result<f64> {
    procfs::cpu_seconds(&[i32::try_from(server.pid())?])
}

fn offer(
    context: &Context,
    address: SocketAddr,
    requests: &[Vec<u8>],
    rate: f64,
    correct: fn(&Response<'_>) -> bool,
) -> anyhow::Result<Outcome> {
    let load = Load {
        address,
        requests: requests.to_vec(),
        connections: CONNECTIONS,
        pace: Pace::Open(rate),
        duration: context.shortened(WINDOW),
        patience: Duration::from_secs(2),
        unsent: Duration::from_secs(2),
        seed: 1,
    };
    run(&load, correct)
}

fn placed(response: &Response<'_>) -> bool {
    response.status == 200 && response.body == b"ok\n"
}

fn answered(response: &Response<'_>) -> bool {
    response.status == 200
}

/// Correct answers count, but no more than instances that were made for them.
fn placements_per_s(outcome: &Outcome, cold_starts: f64) -> f64 {
    cold_starts.min(outcome.latencies_ns.len() as f64) / outcome.elapsed.as_secs_f64()
}

/// Requests so far that waited for an instance.
fn cold_starts(api: &Api) -> anyhow::Result<f64> {
    metric(api, "skiff_cold_starts_total")
}

fn metric(api: &Api, name: &str) -> anyhow::Result<f64> {
    let text = api.call("GET", "/metrics", "")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.with_context(|| format!("no {name} in /metrics"))?;
    Ok(value.trim().parse()?)
}
