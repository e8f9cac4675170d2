//! What a planned and an unplanned restart of the server cost its users.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use serde_json::json;
use skiff_testkit::Server;

use crate::api::{Api, deployment};
use crate::context::Context;
use crate::load::{Load, Pace, get, run};
use crate::procfs::{ended, process_of};
use crate::report::{Bound, Figure, Report, Spec};
use crate::response::Response;
use crate::time::wait_until;

const SERVICES: u32 = 10;
const RATE: f64 = 500.0;
const CONNECTIONS: usize = 64;
/// A load with a restart in its midst.
const LOADED: Duration = Duration::from_secs(6);
const STARTING: Duration = Duration::from_secs(60);

const FAILED: Spec = Spec {
    name: "restart_failed_requests",
    unit: "",
    bound: Bound::AtMost(0.0),
    peer: None,
};
const LOST: Spec = Spec {
    name: "restart_lost_instances",
    unit: "",
    bound: Bound::AtMost(0.0),
    peer: None,
};
pub const SPECS: &[Spec] = &[LOST, FAILED];

/// Takes the group.
pub fn take(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let mut server = context.server(&[]);
    server.import("testapp");
    let names: Vec<String> = (0..SERVICES).map(|index| format!("stay-{index}")).collect();
    let api = Api::of(&server);
    api.deploy_many(
        &names,
        &deployment("testapp:1", "container", &json!({"min": 1})),
    )?;
    let mut lost = 0;
    for _ in 0..context.rounds(10) {
        lost += killed(&mut server, &api, &names)?;
    }
    report.add(Figure::absolute(LOST, vec![f64::from(lost)]));
    let mut failed = 0;
    for _ in 0..context.rounds(10) {
        failed += replaced(&mut server, &names)?;
    }
    report.add(Figure::absolute(FAILED, vec![failed as f64]));
    Ok(())
}

/// Kills the server, starts it again, and counts the instances that are not
/// the same ones.
fn killed(server: &mut Server, api: &Api, names: &[String]) -> anyhow::Result<u32> {
    for name in names {
        api.wait_for_instances(name, 1)?;
    }
    let before = instances(api, names)?;
    server.kill();
    server.launch(&[]);
    let after = instances(api, names)?;
    let gone = before.iter().filter(|id| !after.contains(id)).count();
    let outcome = run(&offered(server, names, Duration::from_secs(1))?, good)?;
    ensure!(
        outcome.failed() == 0,
        "after the restart: {:?}",
        outcome.others
    );
    Ok(u32::try_from(gone)?)
}

fn instances(api: &Api, names: &[String]) -> anyhow::Result<Vec<String>> {
    let each = names.iter().map(|name| api.instances(name));
    Ok(each.collect::<anyhow::Result<Vec<_>>>()?.concat())
}

/// `skiff server --replace` under load, again and again; the requests that
/// got no answer or a wrong one.
fn replaced(server: &mut Server, names: &[String]) -> anyhow::Result<u64> {
    let old = process_of(server)?;
    let under_load = offered(server, names, LOADED)?;
    let loaded = std::thread::spawn(move || run(&under_load, good));
    std::thread::sleep(LOADED / 6);
    server.launch(&["--replace"]);
    let outcome = loaded.join().map_err(|_| anyhow!("the load panicked"))??;
    println!(
        "    {} of {} failed {:?}",
        outcome.failed(),
        outcome.offered,
        outcome.others
    );
    wait_until("the server before ends", STARTING, || Ok(ended(old)))?;
    Ok(outcome.failed())
}

fn offered(server: &Server, names: &[String], duration: Duration) -> anyhow::Result<Load> {
    Ok(Load {
        address: format!("127.0.0.1:{}", server.port()).parse()?,
        // Some are in flight for a while at any time.
        requests: names
            .iter()
            .flat_map(|name| ["/", "/sleep/50"].map(|path| get(&server.host_of(name), path)))
            .collect(),
        connections: CONNECTIONS,
        pace: Pace::Open(RATE),
        duration,
        patience: Duration::from_secs(10),
        unsent: Duration::from_secs(10),
        seed: 1,
    })
}

fn good(response: &Response<'_>) -> bool {
    response.status == 200
}
