//! Many deployments and removals with a real instance each, containers or
//! virtual machines, every other one with egress; what is there of the server
//! before and after has to be the same count.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::json;
use skiff_testkit::Server;

use crate::api::{Api, deployment};
use crate::context::Context;
use crate::machines::server_with_machines;
use crate::probe::first_byte;
use crate::procfs::{cgroups, descriptors, family, process_of, rss_mib};
use crate::time::{now, stretched, wait_until_every};

const ROUNDS: usize = 1_000;
/// Rounds before the first count: pools and connections fill.
const WARM: usize = 25;
const LIMIT: Duration = Duration::from_secs(60);
/// Until pools are full again and what was removed is gone.
const SETTLING: Duration = Duration::from_secs(60);
/// Counts have settled when they have stayed for so long.
const STILL: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(100);

/// Counts by what is counted.
type Counts = BTreeMap<&'static str, usize>;

/// Soaks `SOAK_ROUNDS` deployments of the class `SOAK_ISOLATION`, and prints
/// both counts; whether they are the same.
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
    let class = std::env::var("SOAK_ISOLATION").unwrap_or_else(|_| "container".to_owned());
    let context = Context::new()?;
    let server = match class.as_str() {
        "container" => context.server(&[]),
        "microvm" => server_with_machines(&context, &[])?,
        _ => bail!("SOAK_ISOLATION={class}: container or microvm is expected"),
    };
    let api = Api::of(&server);
    let soak = Soak { server, api, class };
    let same = soak.run(rounds);
    if same.is_err() {
        eprintln!("--- the server's log\n{}", soak.server.log());
    }
    same
}

/// A server and the class of its instances.
struct Soak {
    server: Server,
    api: Api,
    class: String,
}

impl Soak {
    fn run(&self, rounds: usize) -> anyhow::Result<bool> {
        self.server.import("testapp");
        for round in 0..WARM {
            self.deploy_and_remove(round)?;
        }
        let before = self.settled()?;
        let memory = rss_mib(process_of(&self.server)?)?;
        let start = now();
        for round in 1..=rounds {
            self.deploy_and_remove(WARM + round)?;
            if round % (rounds / 10).max(1) == 0 {
                println!("  {round} rounds after {} s", now().since(start).as_secs());
            }
        }
        let mut after = Counts::new();
        let what = "the counts are as before";
        let same = wait_until_every(LOOK, what, stretched(SETTLING), || {
            after = self.counted()?;
            Ok(after == before)
        });
        let grown = rss_mib(process_of(&self.server)?)? - memory;
        let header = format!("after deployments, {}", self.class);
        println!("\n{header:<28} {WARM:>8} {:>8}", WARM + rounds);
        for (name, count) in &before {
            let now = after.get(name).copied().unwrap_or_default();
            let mark = if now == *count { "" } else { "  NOT THE SAME" };
            println!("{name:<28} {count:>8} {now:>8}{mark}");
        }
        println!("the server's memory grew by {grown:.1} MiB");
        Ok(same.is_ok())
    }

    /// One round: a service with an instance that has answered, and nothing of
    /// it.
    fn deploy_and_remove(&self, round: usize) -> anyhow::Result<()> {
        let name = format!("soak-{round}");
        let mut service = deployment("testapp:1", &self.class, &json!({"keep_alive_s": 60}));
        service["egress"] = json!(round % 2 == 1);
        self.api.deploy(&name, &service)?;
        let address: SocketAddr = format!("127.0.0.1:{}", self.server.port()).parse()?;
        let host = self.server.host_of(&name);
        first_byte(address, &host, "/", now(), stretched(LIMIT))?;
        self.api.remove(&name)
    }

    /// The counts when they have stayed the same for a while.
    fn settled(&self) -> anyhow::Result<Counts> {
        let mut last = self.counted()?;
        let mut since = now();
        wait_until_every(LOOK, "the counts stay", stretched(SETTLING), || {
            let counts = self.counted()?;
            if counts != last {
                (last, since) = (counts, now());
            }
            Ok(now().since(since) > STILL)
        })?;
        Ok(last)
    }

    /// Only what is this server's: others may run beside it.
    fn counted(&self) -> anyhow::Result<Counts> {
        let (process, launcher) = (process_of(&self.server)?, self.server.launcher());
        let mut processes = family(process);
        processes.extend(family(launcher));
        let of_host = self.server.leaks().0.remove("links").unwrap_or_default();
        let vms = self.server.run_dir().join("launcher/vms");
        Ok(Counts::from([
            ("processes", processes.len()),
            ("mounts, server", lines(process, "mountinfo")?),
            ("mounts, launcher", lines(launcher, "mountinfo")?),
            ("namespaces", namespaces(&processes)),
            ("network interfaces", of_host.len() + interfaces(&processes)),
            ("cgroups", cgroups(self.server.id()).len()),
            (
                "machines' folders",
                std::fs::read_dir(vms).map_or(0, Iterator::count),
            ),
            ("descriptors, server", descriptors(process)),
            ("descriptors, launcher", descriptors(launcher)),
        ]))
    }
}

/// In the networks of these processes that are not this one's: taps and ends of
/// veth pairs among them.
fn interfaces(pids: &BTreeSet<i32>) -> usize {
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let mut seen = BTreeSet::from([network("self")]);
    let elsewhere = pids
        .iter()
        .filter(|pid| seen.insert(network(&pid.to_string())));
    // Two lines are the table's head.
    elsewhere
        .map(|pid| lines(*pid, "net/dev").map_or(0, |lines| lines.saturating_sub(2)))
        .sum()
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
