//! Many deployments and removals with a real instance each; what is there of
//! the server before and after has to be the same count.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use skiff_testkit::Server;

use crate::api::{Api, deployment};
use crate::context::Context;
use crate::probe::first_byte;
use crate::procfs::{cgroups, descriptors, family, process_of, rss_mib};
use crate::time::{now, wait_until};

const ROUNDS: usize = 1_000;
/// Rounds before the first count: pools and connections fill.
const WARM: usize = 25;
const LIMIT: Duration = Duration::from_secs(60);
/// Until pools are full again and what was removed is gone.
const SETTLING: Duration = Duration::from_secs(60);

/// Counts by what is counted.
type Counts = BTreeMap<&'static str, usize>;

/// Soaks, and prints both counts; whether they are the same.
///
/// # Errors
/// When a deployment fails, or something cannot be counted.
pub fn run() -> anyhow::Result<bool> {
    let rounds = match std::env::var("SOAK_ROUNDS") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("SOAK_ROUNDS={text}"))?,
        Err(_) => ROUNDS,
    };
    let context = Context::new()?;
    let server = context.server(&[]);
    server.import("testapp");
    let api = Api::of(&server);
    for round in 0..WARM {
        deploy_and_remove(&server, &api, round)?;
    }
    let before = settled(&server)?;
    let memory = rss_mib(process_of(&server)?)?;
    let start = now();
    for round in 0..rounds {
        deploy_and_remove(&server, &api, WARM + round)?;
        if (round + 1) % 100 == 0 {
            println!(
                "  {} rounds after {} s",
                round + 1,
                now().since(start).as_secs()
            );
        }
    }
    let mut after = Counts::new();
    let same = wait_until("the counts are as before", SETTLING, || {
        after = counted(&server)?;
        Ok(after == before)
    });
    let grown = rss_mib(process_of(&server)?)? - memory;
    println!(
        "\n{:<24} {:>8} {:>8}",
        "after deployments",
        WARM,
        WARM + rounds
    );
    for (name, count) in &before {
        let now = after.get(name).copied().unwrap_or_default();
        let mark = if now == *count { "" } else { "  NOT THE SAME" };
        println!("{name:<24} {count:>8} {now:>8}{mark}");
    }
    println!("the server's memory grew by {grown:.1} MiB");
    Ok(same.is_ok())
}

/// One round: a service with an instance that has answered, and nothing of it.
fn deploy_and_remove(server: &Server, api: &Api, round: usize) -> anyhow::Result<()> {
    let name = format!("soak-{round}");
    api.deploy(
        &name,
        &deployment("testapp:1", "container", &json!({"keep_alive_s": 60})),
    )?;
    let address: SocketAddr = format!("127.0.0.1:{}", server.port()).parse()?;
    first_byte(address, &server.host_of(&name), "/", now(), LIMIT)?;
    api.remove(&name)
}

/// The counts when they have stayed the same for a while.
fn settled(server: &Server) -> anyhow::Result<Counts> {
    let mut last = counted(server)?;
    let mut since = now();
    wait_until("the counts stay", SETTLING, || {
        let counts = counted(server)?;
        if counts != last {
            (last, since) = (counts, now());
        }
        Ok(now().since(since) > Duration::from_secs(3))
    })?;
    Ok(last)
}

/// Only what is this server's: others may run beside it.
fn counted(server: &Server) -> anyhow::Result<Counts> {
    let (process, launcher) = (process_of(server)?, server.launcher());
    let mut processes = family(process);
    processes.extend(family(launcher));
    Ok(Counts::from([
        ("processes", processes.len()),
        ("mounts, server", lines(process, "mountinfo")?),
        ("mounts, launcher", lines(launcher, "mountinfo")?),
        ("namespaces", namespaces(&processes)),
        ("cgroups", cgroups(server.id()).len()),
        ("descriptors, server", descriptors(process)),
        ("descriptors, launcher", descriptors(launcher)),
    ]))
}

fn lines(pid: i32, file: &str) -> anyhow::Result<usize> {
    let path = format!("/proc/{pid}/{file}");
    Ok(std::fs::read_to_string(&path)
        .with_context(|| path)?
        .lines()
        .count())
}

/// Different namespaces that these processes are in or hold open.
fn namespaces(pids: &BTreeSet<i32>) -> usize {
    let mut found = BTreeSet::new();
    for pid in pids {
        for folder in ["ns", "fd"] {
            let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/{folder}")) else {
                continue;
            };
            let targets = entries
                .flatten()
                .flat_map(|entry| std::fs::read_link(entry.path()));
            found.extend(targets.filter(|target| is_namespace(target)));
        }
    }
    found.len()
}

/// `net:[4026531840]` and the like.
fn is_namespace(target: &Path) -> bool {
    let text = target.to_string_lossy();
    let kinds = [
        "pid:", "net:", "mnt:", "uts:", "ipc:", "user:", "cgroup:", "time:",
    ];
    text.contains(":[") && kinds.iter().any(|kind| text.starts_with(kind))
}
