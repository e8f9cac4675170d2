//! What a server with 10,000 services costs beside one with 10, and with none.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use skiff_testkit::Server;

use crate::api::{Api, deployment};
use crate::context::Context;
use crate::probe::first_byte;
use crate::procfs::{process_of, rss_mib};
use crate::report::{Bound, Figure, Report, Spec};
use crate::time::{ms, now};

const FEW: u32 = 10;
const MANY: u32 = 10_000;
const LIMIT: Duration = Duration::from_secs(30);
/// Until a server that has nothing to do is at rest.
const REST: Duration = Duration::from_secs(5);

const DEPLOY: Spec = Spec {
    name: "services_10k_vs_10_deploy",
    unit: "ms",
    bound: Bound::AtMost(1.5),
    peer: Some("10 services"),
};
const START: Spec = Spec {
    name: "services_10k_vs_10_start",
    unit: "ms",
    bound: Bound::None,
    peer: Some("10 services"),
};
const IDLE: Spec = rss("server_idle_rss_mib");
const IDLE_MANY: Spec = rss("server_idle_rss_mib_10k");
pub const SPECS: &[Spec] = &[IDLE, DEPLOY, START, IDLE_MANY];

const fn rss(name: &'static str) -> Spec {
    Spec {
        name,
        unit: "MiB",
        bound: Bound::AtMost(60.0),
        peer: None,
    }
}

/// Takes the group.
pub fn take(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    // Memory is only counted, not used, in this class.
    let set = ["worker.allow_null=true", "worker.memory_mib=1000000"];
    let (few, many) = (context.server(&set), context.server(&set));
    std::thread::sleep(REST);
    report.add(Figure::absolute(IDLE, vec![rss_mib(process_of(&many)?)?]));
    let start = now();
    fill(&few, FEW)?;
    fill(&many, MANY)?;
    println!(
        "    {MANY} services after {} s",
        now().since(start).as_secs()
    );
    std::thread::sleep(REST);
    report.add(Figure::absolute(
        IDLE_MANY,
        vec![rss_mib(process_of(&many)?)?],
    ));

    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for round in 0..=context.rounds(50) {
        ours.push(apply(context, &many, round)?);
        base.push(apply(context, &few, round)?);
    }
    report.add(Figure::ratio(DEPLOY, warm(ours), warm(base)));
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..=context.rounds(50) {
        ours.push(cold(&many)?);
        base.push(cold(&few)?);
    }
    report.add(Figure::ratio(START, warm(ours), warm(base)));
    Ok(())
}

/// Without the first, which fills caches.
fn warm(mut samples: Vec<f64>) -> Vec<f64> {
    samples.remove(0);
    samples
}

fn fill(server: &Server, count: u32) -> anyhow::Result<()> {
    server.import("testapp");
    let names: Vec<String> = (0..count).map(|index| format!("many-{index}")).collect();
    let scaling = json!({"keep_alive_s": 0});
    Api::of(server).deploy_many(&names, &deployment("testapp:1", "null", &scaling))
}

/// From `skiff apply` to the new service's first answer.
fn apply(context: &Context, server: &Server, round: usize) -> anyhow::Result<f64> {
    let name = format!("new-{round}");
    let file = context.home().join("apply.toml");
    let text = format!(
        "[[services]]\nname = \"{name}\"\nimage = \"testapp:1\"\nisolation = \"null\"\nscaling = {{ keep_alive_s = 0 }}\n"
    );
    std::fs::write(&file, text)?;
    let start = now();
    let _applied = server
        .cli(&["apply", "-f", &file.display().to_string()])
        .ok();
    let took = answer(server, &name, start)?;
    Api::of(server).remove(&name)?;
    Ok(took)
}

/// A first answer of a service at zero.
fn cold(server: &Server) -> anyhow::Result<f64> {
    Api::of(server).wait_for_instances("many-7", 0)?;
    answer(server, "many-7", now())
}

fn answer(server: &Server, name: &str, start: skiff_base::Monotonic) -> anyhow::Result<f64> {
    let address: SocketAddr = format!("127.0.0.1:{}", server.port()).parse()?;
    let _first = first_byte(address, &server.host_of(name), "/", start, LIMIT)?;
    Ok(ms(now().since(start)))
}
