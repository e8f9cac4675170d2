//! The gateway beside nginx and haproxy, each as a proxy with keep-alive to
//! the same upstream program.
//!
//! ```text
//!  core 1: wrk or the open loop ──▶ core 0: the proxy ──▶ core 1: upstream
//! ```
//! Skiff's upstream is the program as an instance of a service, the others'
//! the same program beside it. All write an access log except haproxy, whose
//! users have none by default.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use skiff_testkit::Server;

use crate::context::{Context, lacking};
use crate::load::{Load, Pace, get, run};
use crate::peers::{self, Proxy};
use crate::procfs::{Core, OnCore, cpu_seconds, family, pin, process_of};
use crate::report::{Bound, Figure, Report, Spec};
use crate::response::Response;
use crate::sample_image;
use crate::stats::median;

const PROXY_CORE: usize = 0;
const LOAD_CORE: usize = 1;
const CONNECTIONS: usize = 32;
/// A round counts only when the proxy's core is at least this busy, and
/// busy with the proxy: its own share leaves room for the kernel's interrupts.
const BUSY: f64 = 0.9;
const OWN: f64 = 0.75;
const WINDOW: Duration = Duration::from_secs(3);
/// Rounds that were not valid are taken again, this many times as many at most.
const AGAIN: usize = 3;
const HOST: &str = "up.skiff.localhost";

const CPU: [Spec; 2] = [
    spec(
        "gateway_cpu_us_per_request_vs_nginx",
        "µs",
        Bound::AtMost(1.0),
        "nginx",
    ),
    spec(
        "gateway_cpu_us_per_request_vs_haproxy",
        "µs",
        Bound::None,
        "haproxy",
    ),
];
const RPS: [Spec; 2] = [
    spec("gateway_rps_vs_nginx", "1/s", Bound::AtLeast(1.0), "nginx"),
    spec("gateway_rps_vs_haproxy", "1/s", Bound::None, "haproxy"),
];
const P99: [Spec; 2] = [
    spec("gateway_p99_vs_nginx", "ms", Bound::AtMost(1.2), "nginx"),
    spec("gateway_p99_vs_haproxy", "ms", Bound::None, "haproxy"),
];
const P50: [Spec; 2] = [
    spec(
        "gateway_added_p50_vs_nginx",
        "ms",
        Bound::AtMost(1.1),
        "nginx",
    ),
    spec("gateway_added_p50_vs_haproxy", "ms", Bound::None, "haproxy"),
];
pub const SPECS: &[Spec] = &[
    CPU[0], RPS[0], P99[0], P50[0], CPU[1], RPS[1], P99[1], P50[1],
];

const fn spec(name: &'static str, unit: &'static str, bound: Bound, peer: &'static str) -> Spec {
    Spec {
        name,
        unit,
        bound,
        peer: Some(peer),
    }
}

/// A proxy under load.
#[derive(Debug)]
struct Side {
    address: SocketAddr,
    pids: Vec<i32>,
}

/// One window of full load.
#[derive(Clone, Copy, Debug)]
struct Round {
    cpu_us: f64,
    per_second: f64,
    /// How busy the proxy's core was, and which part of that was the proxy.
    core: f64,
    own: f64,
}

/// Takes the group.
pub fn take(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let upstream = peers::upstream(context, Some(LOAD_CORE))?;
    let server = skiff(context)?;
    let skiff = side_of(&server)?;
    let proxies = [
        started("nginx", || {
            peers::nginx(context, PROXY_CORE, upstream.address)
        }),
        started("haproxy", || {
            peers::haproxy(context, PROXY_CORE, upstream.address)
        }),
    ];
    if let Some(reason) = lacking("wrk") {
        for spec in SPECS {
            report.add(Figure::missing(*spec, &reason));
        }
        return Ok(());
    }
    let sides: Vec<Side> = proxies.iter().flatten().map(side).collect();
    let capacity = full_load(context, report, &skiff, &proxies, &sides)?;
    let direct = upstream.address;
    added(context, report, &skiff, &proxies, direct)?;
    open_loop(context, report, &skiff, &proxies, capacity)
}

fn started(name: &str, start: impl FnOnce() -> anyhow::Result<Proxy>) -> Result<Proxy, String> {
    match lacking(name) {
        Some(reason) => Err(reason),
        None => start().map_err(|error| format!("{error:#}")),
    }
}

fn side(proxy: &Proxy) -> Side {
    Side {
        address: proxy.address,
        pids: proxy.pids(),
    }
}

/// A server on the proxies' core, with one instance of the upstream on the
/// other.
fn skiff(context: &Context) -> anyhow::Result<Server> {
    let layout = sample_image::upstream(context)?;
    let server = {
        let _there = OnCore::pin(PROXY_CORE)?;
        context.server(&["gateway.threads=1"])
    };
    for pid in family(server.launcher()) {
        pin(pid, LOAD_CORE)?;
    }
    let layout = layout.display().to_string();
    let name = "upstream:1";
    let _imported = server
        .cli(&["image", "import", &layout, "--name", name])
        .ok();
    let flags = [
        "--min",
        "1",
        "--memory",
        "256",
        "--cpu",
        "2",
        "--concurrency",
        "1000",
    ];
    let _deployed = server
        .cli(&[&["deploy", "up", "--image", name], &flags[..]].concat())
        .ok();
    Ok(server)
}

fn side_of(server: &Server) -> anyhow::Result<Side> {
    Ok(Side {
        address: format!("127.0.0.1:{}", server.port()).parse()?,
        pids: vec![process_of(server)?],
    })
}

/// Full load from wrk; answers nginx's capacity.
fn full_load(
    context: &Context,
    report: &mut Report,
    skiff: &Side,
    proxies: &[Result<Proxy, String>; 2],
    sides: &[Side],
) -> anyhow::Result<f64> {
    let wanted = context.rounds(10);
    let window = context.shortened(WINDOW);
    // Everybody's first round fills pools and caches.
    for side in std::iter::once(skiff).chain(sides) {
        wrk(context, side, Duration::from_secs(1))?;
    }
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); sides.len() + 1];
    let mut best = f64::NAN;
    for _ in 0..wanted * AGAIN {
        let mut taken = Vec::new();
        for side in std::iter::once(skiff).chain(sides) {
            taken.push(wrk(context, side, window)?);
        }
        best = taken
            .get(1)
            .map_or(f64::NAN, |nginx| nginx.per_second)
            .max(best);
        let valid = taken
            .iter()
            .all(|round| round.core >= BUSY && round.own >= OWN);
        println!(
            "    {}{}",
            shown(&taken),
            if valid { "" } else { " (not valid)" }
        );
        if valid {
            for (list, round) in rounds.iter_mut().zip(taken) {
                list.push(round);
            }
        }
        if rounds[0].len() == wanted {
            break;
        }
    }
    let ours = rounds.remove(0);
    let mut theirs = rounds.into_iter();
    let mut capacity = best;
    for (index, proxy) in proxies.iter().enumerate() {
        let peer = match proxy {
            Err(reason) => Err(reason.clone()),
            Ok(_) => theirs
                .next()
                .filter(|peer| peer.len() == wanted)
                .ok_or_else(|| {
                    "the proxy's core was not busy enough, or busy with others, in too many rounds"
                        .to_owned()
                }),
        };
        if let (0, Ok(peer)) = (index, &peer) {
            capacity = median(&values(peer, |round| round.per_second));
        }
        for (spec, of) in [
            (CPU[index], (|round| round.cpu_us) as fn(&Round) -> f64),
            (RPS[index], |round| round.per_second),
        ] {
            report.add(match &peer {
                Ok(peer) => Figure::ratio(spec, values(&ours, of), values(peer, of)),
                Err(reason) => Figure::missing(spec, reason),
            });
        }
    }
    Ok(capacity)
}

fn values(rounds: &[Round], of: fn(&Round) -> f64) -> Vec<f64> {
    rounds.iter().map(of).collect()
}

fn shown(rounds: &[Round]) -> String {
    let each = rounds.iter().map(|round| {
        format!(
            "{:.0}/s {:.1} µs (core {:.0} %, own {:.0} %)",
            round.per_second,
            round.cpu_us,
            round.core * 100.0,
            round.own * 100.0
        )
    });
    each.collect::<Vec<_>>().join(" · ")
}

fn wrk(context: &Context, side: &Side, window: Duration) -> anyhow::Result<Round> {
    let url = format!("http://{}/", side.address);
    let host = format!("Host: {HOST}");
    let connections = CONNECTIONS.to_string();
    let duration = format!("{}s", window.as_secs());
    let cpu = cpu_seconds(&side.pids)?;
    let (text, core) = {
        let _there = OnCore::pin(LOAD_CORE)?;
        let args = [
            "-t1",
            "-c",
            &connections,
            "-d",
            &duration,
            "-H",
            &host,
            &url,
        ];
        std::thread::scope(|scope| {
            let watched = scope.spawn(|| watch(window));
            let text = context.run("wrk", &args);
            anyhow::Ok((
                text?,
                watched
                    .join()
                    .map_err(|_| anyhow::anyhow!("the watch panicked"))??,
            ))
        })?
    };
    let cpu = cpu_seconds(&side.pids)? - cpu;
    let word = |mark: &str| text.lines().find(|line| line.contains(mark));
    ensure!(
        word("Non-2xx").is_none() && word("Socket errors").is_none(),
        "{} gave errors: {text}",
        side.address
    );
    let count: f64 = word(" requests in ")
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("wrk says {text}"))?;
    let per_second: f64 = word("Requests/sec:")
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .with_context(|| format!("wrk says {text}"))?;
    Ok(Round {
        cpu_us: cpu / count * 1e6,
        per_second,
        core,
        own: cpu / (count / per_second),
    })
}

/// How busy the proxy's core is in the middle of the window.
fn watch(window: Duration) -> anyhow::Result<f64> {
    let edge = window / 8;
    std::thread::sleep(edge);
    let before = Core::now(PROXY_CORE)?;
    std::thread::sleep(window.saturating_sub(edge * 2));
    Ok(Core::now(PROXY_CORE)?.busy_since(before))
}

/// What a proxy adds to the median answer on one connection.
fn added(
    context: &Context,
    report: &mut Report,
    skiff: &Side,
    proxies: &[Result<Proxy, String>; 2],
    direct: SocketAddr,
) -> anyhow::Result<()> {
    let mut ours = Vec::new();
    let mut theirs = [Vec::new(), Vec::new()];
    for _ in 0..context.rounds(20) {
        let bare = median_ms(direct)?;
        ours.push(median_ms(skiff.address)? - bare);
        for (list, proxy) in theirs.iter_mut().zip(proxies) {
            if let Ok(proxy) = proxy {
                list.push(median_ms(proxy.address)? - bare);
            }
        }
    }
    add_ratios(report, &P50, &ours, theirs, proxies);
    Ok(())
}

fn median_ms(address: SocketAddr) -> anyhow::Result<f64> {
    let load = Load {
        address,
        requests: vec![get(HOST, "/")],
        connections: 1,
        pace: Pace::Closed,
        duration: Duration::from_millis(300),
        patience: Duration::from_secs(5),
        unsent: Duration::from_secs(5),
        seed: 1,
    };
    let _there = OnCore::pin(LOAD_CORE)?;
    let outcome = run(&load, hello)?;
    ensure!(outcome.failed() == 0, "{address}: {:?}", outcome.others);
    Ok(outcome.quantile_ms(500))
}

/// The 99th percentile at half of nginx's capacity.
fn open_loop(
    context: &Context,
    report: &mut Report,
    skiff: &Side,
    proxies: &[Result<Proxy, String>; 2],
    capacity: f64,
) -> anyhow::Result<()> {
    if !capacity.is_finite() {
        for spec in P99 {
            report.add(Figure::missing(spec, "nginx's capacity is not known"));
        }
        return Ok(());
    }
    let mut ours = Vec::new();
    let mut theirs = [Vec::new(), Vec::new()];
    for round in 0..context.rounds(10) {
        let seed = round as u64;
        ours.push(p99_ms(context, skiff.address, capacity / 2.0, seed)?);
        for (list, proxy) in theirs.iter_mut().zip(proxies) {
            if let Ok(proxy) = proxy {
                list.push(p99_ms(context, proxy.address, capacity / 2.0, seed)?);
            }
        }
    }
    add_ratios(report, &P99, &ours, theirs, proxies);
    Ok(())
}

fn p99_ms(context: &Context, address: SocketAddr, rate: f64, seed: u64) -> anyhow::Result<f64> {
    let load = Load {
        address,
        requests: vec![get(HOST, "/")],
        connections: CONNECTIONS,
        pace: Pace::Open(rate),
        duration: context.shortened(WINDOW),
        patience: Duration::from_secs(5),
        unsent: Duration::from_secs(5),
        seed,
    };
    let _there = OnCore::pin(LOAD_CORE)?;
    let outcome = run(&load, hello)?;
    ensure!(
        outcome.failed() == 0,
        "{address} at {rate:.0}/s: {:?}",
        outcome.others
    );
    Ok(outcome.quantile_ms(990))
}

fn hello(response: &Response<'_>) -> bool {
    response.status == 200 && response.body == b"Hello, world!"
}

fn add_ratios(
    report: &mut Report,
    specs: &[Spec; 2],
    ours: &[f64],
    theirs: [Vec<f64>; 2],
    proxies: &[Result<Proxy, String>; 2],
) {
    for ((spec, theirs), proxy) in specs.iter().zip(theirs).zip(proxies) {
        report.add(match proxy {
            Ok(_) => Figure::ratio(*spec, ours.to_vec(), theirs),
            Err(reason) => Figure::missing(*spec, reason),
        });
    }
}
