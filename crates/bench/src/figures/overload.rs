//! Ten times the load that fits: how much of the capacity is still served in
//! time, and what it costs in memory.
//!
//! The baseline of memory is a server that holds as many connections as the
//! overload has, at its capacity: what grows is by the overload alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use skiff_testkit::Server;

use crate::api::{Api, deployment};
use crate::context::Context;
use crate::load::{Load, Outcome, Pace, get, run};
use crate::procfs::{process_of, rss_mib};
use crate::report::{Bound, Figure, Report, Spec};
use crate::response::Response;

const CONCURRENCY: usize = 10;
const INSTANCES: usize = 4;
const TIMES: f64 = 10.0;
/// More than the queue holds, so that the queue is full.
const CONNECTIONS: usize = 2_048;
const IN_TIME: Duration = Duration::from_secs(1);
/// A client without a connection left fails: its request would only grow old
/// in the client and come too late whatever the server does.
const UNSENT: Duration = Duration::from_millis(100);
const WINDOW: Duration = Duration::from_secs(60);

const GOODPUT: Spec = Spec {
    name: "overload_goodput",
    unit: "",
    bound: Bound::AtLeast(0.9),
    peer: None,
};
const GROWTH: Spec = Spec {
    name: "overload_rss_growth_mib",
    unit: "MiB",
    bound: Bound::AtMost(16.0),
    peer: None,
};
pub const SPECS: &[Spec] = &[GOODPUT, GROWTH];

/// Takes the group.
pub fn take(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let server = context.server(&[]);
    server.import("testapp");
    let scaling = json!({"concurrency": CONCURRENCY, "max": INSTANCES, "min": INSTANCES});
    let api = Api::of(&server);
    api.deploy("slow", &deployment("testapp:1", "container", &scaling))?;
    api.wait_for_instances("slow", INSTANCES)?;
    let pid = process_of(&server)?;

    let closed = CONCURRENCY * INSTANCES;
    let capacity = offer(
        context,
        &server,
        closed,
        Pace::Closed,
        Duration::from_secs(5),
    )?;
    let capacity = capacity.latencies_ns.len() as f64 / capacity.elapsed.as_secs_f64();
    let warm = Duration::from_secs(5);
    let before = offer(context, &server, CONNECTIONS, Pace::Open(capacity), warm)?;
    let baseline = rss_mib(pid)?;
    println!(
        "    capacity {capacity:.0}/s, at {baseline:.0} MiB; at capacity {:?}",
        before.others
    );

    let over = AtomicBool::new(false);
    let (outcome, peak) = std::thread::scope(|scope| {
        let watched = scope.spawn(|| {
            let mut peak = baseline;
            while !over.load(Ordering::Relaxed) {
                peak = rss_mib(pid).map_or(peak, |now| now.max(peak));
                std::thread::sleep(Duration::from_millis(200));
            }
            peak
        });
        let pace = Pace::Open(capacity * TIMES);
        let outcome = offer(context, &server, CONNECTIONS, pace, WINDOW);
        over.store(true, Ordering::Relaxed);
        (outcome, watched.join().unwrap_or(f64::NAN))
    });
    let outcome = outcome?;
    let window = context.shortened(WINDOW).as_secs_f64();
    println!(
        "    {:.0}/s offered: {:.0}/s good, {:.0}/s in time, p50 {:.0} ms, {:?}",
        outcome.offered as f64 / window,
        outcome.latencies_ns.len() as f64 / window,
        outcome.within(IN_TIME) as f64 / window,
        outcome.quantile_ms(500),
        outcome.others
    );
    let goodput = outcome.within(IN_TIME) as f64 / window / capacity;
    report.add(Figure::absolute(GOODPUT, vec![goodput]));
    report.add(Figure::absolute(GROWTH, vec![peak - baseline]));
    Ok(())
}

fn offer(
    context: &Context,
    server: &Server,
    connections: usize,
    pace: Pace,
    duration: Duration,
) -> anyhow::Result<Outcome> {
    let load = Load {
        address: format!("127.0.0.1:{}", server.port()).parse()?,
        requests: vec![get(&server.host_of("slow"), "/sleep/20")],
        connections,
        pace,
        duration: context.shortened(duration),
        patience: Duration::from_secs(2),
        unsent: UNSENT,
        seed: 1,
    };
    run(&load, good)
}

fn good(response: &Response<'_>) -> bool {
    response.status == 200
}
