//! What instances take as virtual machines and as containers, of a server on a
//! machine where both come up: in the one that `scripts/bench-kvm.sh` makes,
//! with the kernels of `SKIFF_KERNELS`. A sample a line, as [`crate::kvm`] reads
//! them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use skiff_testkit::Server;

use crate::api::{Api, deployment};
use crate::context::Context;
use crate::probe::first_byte;
use crate::procfs::{cgroups, pss_kib};
use crate::time::{now, stretched, wait_until, wait_until_every};

const CLASSES: [&str; 2] = ["container", "microvm"];
/// Idle instances of each class.
const IDLE: usize = 10;
/// What an application may have that takes all of it.
pub const FULL_MIB: u64 = 128;
/// What it has then beside what it was told to take: its program and its
/// kernel's notes. What is left of it counts as overhead.
const SPARE_MIB: u64 = 8;
/// How often a start is tried again.
const TRIES: usize = 3;
const KIB_PER_MIB: f64 = 1024.0;

/// Monitors and first processes of containers that wait for their instances
/// would count as such.
const NOTHING_WAITS: [&str; 2] = ["microvm.warm=0", "worker.prepared_networks=0"];

/// For a machine to be tried, or to answer.
const LIMIT: Duration = Duration::from_secs(120);
/// A sandbox has settled when its memory has stayed for so long, to 1 in 200.
const STILL: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(300);

/// Prints the samples of a part: `cold`, `idle` or `full`.
///
/// # Errors
/// When something does not come up, or there is no such part.
pub fn run(part: &str, rounds: &str) -> anyhow::Result<bool> {
    let rounds = rounds.parse().with_context(|| format!("{rounds} rounds"))?;
    let context = Context::new()?;
    let set = if part == "cold" {
        &[][..]
    } else {
        &NOTHING_WAITS
    };
    let bench = Machines::start(&context, set)?;
    let taken = match part {
        "cold" => bench.cold(rounds),
        "idle" => bench.idle(),
        "full" => bench.full(rounds),
        _ => bail!("{part} is none of cold, idle, full"),
    };
    if taken.is_err() {
        eprintln!("--- the server's log\n{}", bench.server.log());
    }
    taken.map(|()| true)
}

/// A server that runs virtual machines.
pub fn server_with_machines(context: &Context, set: &[&str]) -> anyhow::Result<Server> {
    let boot = format!("microvm.boot_timeout_s={}", stretched(LIMIT).as_secs());
    let server = context.server(&[&[boot.as_str()], set].concat());
    let findings = server.run_dir().join("microvm.json");
    let tried = wait_until("virtual machines are tried", stretched(LIMIT), || {
        let text = std::fs::read(&findings).unwrap_or_default();
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        Ok(value["booted"].is_string())
    });
    tried.with_context(|| server.log())?;
    Ok(server)
}

fn sample(class: &str, what: &str, value: f64) {
    println!("sample {class} {what} {value:.3}");
}

/// A server and its API.
struct Machines {
    server: Server,
    api: Api,
}

impl Machines {
    fn start(context: &Context, set: &[&str]) -> anyhow::Result<Self> {
        let server = server_with_machines(context, set)?;
        let api = Api::of(&server);
        Ok(Self { server, api })
    }

    /// Cold starts from zero with their phases, of each class in turn.
    fn cold(&self, rounds: usize) -> anyhow::Result<()> {
        self.server.import("testapp");
        for class in CLASSES {
            let scaling = json!({"keep_alive_s": 0});
            self.api
                .deploy(class, &deployment("testapp:1", class, &scaling))?;
        }
        let mut last = CLASSES.map(|_| String::new());
        // The first round of each fills caches.
        for round in 0..=rounds {
            for (class, last) in CLASSES.iter().zip(&mut last) {
                let took = self.cold_start(class)?;
                let start = self.api.cold_start_after(class, last)?;
                *last = start["instance"].as_str().unwrap_or_default().to_owned();
                if round > 0 {
                    sample(class, "cold_ms", took);
                    tell_phases(class, &start)?;
                }
            }
        }
        Ok(())
    }

    /// Milliseconds of a start from zero. One that takes longer than a request
    /// may wait in the gateway's queue is tried again.
    fn cold_start(&self, class: &str) -> anyhow::Result<f64> {
        let mut tries = 1..=TRIES;
        loop {
            self.api.wait_for_instances(class, 0)?;
            match self.ask(class, "/") {
                Err(error) if tries.next().is_some() => eprintln!("{error:#}; once more"),
                asked => return asked,
            }
        }
    }

    /// Host memory of an idle Python application of each class.
    fn idle(&self) -> anyhow::Result<()> {
        self.server.import("hello-python");
        for class in CLASSES {
            let scaling = json!({
                "concurrency": 1, "min": IDLE, "max": IDLE, "keep_alive_s": 86_400,
            });
            self.api
                .deploy(class, &deployment("hello-python:1", class, &scaling))?;
            self.api.wait_for_ready(class, IDLE)?;
            let kib = self.settled(IDLE)?;
            sample(class, "idle_pss_kib", kib / IDLE as f64);
            self.remove(class)?;
        }
        Ok(())
    }

    /// What a machine takes beside an application that takes all it may.
    fn full(&self, rounds: usize) -> anyhow::Result<()> {
        self.server.import("testapp");
        let taken = FULL_MIB - SPARE_MIB;
        for round in 0..rounds {
            let name = format!("full-{round}");
            let scaling = json!({"min": 1, "max": 1, "keep_alive_s": 86_400});
            let mut full = deployment("testapp:1", "microvm", &scaling);
            full["resources"]["memory_mib"] = json!(FULL_MIB);
            self.api.deploy(&name, &full)?;
            self.api.wait_for_ready(&name, 1)?;
            let before = self.api.instances(&name)?;
            self.ask(&name, &format!("/allocate/{taken}"))?;
            let kib = self.settled(1)?;
            self.ask(&name, "/")?;
            let after = self.api.instances(&name)?;
            ensure!(before == after, "{name} did not outlive its allocation");
            sample("microvm", "overhead_kib", kib - taken as f64 * KIB_PER_MIB);
            self.remove(&name)?;
        }
        Ok(())
    }

    /// Milliseconds to an answer's first byte.
    fn ask(&self, name: &str, path: &str) -> anyhow::Result<f64> {
        let address: SocketAddr = format!("127.0.0.1:{}", self.server.port()).parse()?;
        let host = self.server.host_of(name);
        first_byte(address, &host, path, now(), stretched(LIMIT))
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.api.remove(name)?;
        wait_until(&format!("{name} is gone"), stretched(LIMIT), || {
            Ok(self.taken().sandboxes == 0)
        })
    }

    /// KiB of so many sandboxes once they do nothing more.
    fn settled(&self, sandboxes: usize) -> anyhow::Result<f64> {
        let mut last = f64::NAN;
        let mut since = now();
        wait_until_every(LOOK, "memory stays", stretched(LIMIT), || {
            let taken = self.taken();
            let stays = (taken.kib - last).abs() <= last / 200.0;
            if !stays || taken.sandboxes != sandboxes {
                (last, since) = (taken.kib, now());
            }
            Ok(now().since(since) > STILL)
        })?;
        Ok(last)
    }

    /// What is in the groups of this server's sandboxes.
    fn taken(&self) -> Taken {
        let parent = format!("skiff-{}/", self.server.id());
        let (mut pids, mut sandboxes) = (BTreeSet::new(), BTreeSet::new());
        for group in cgroups(self.server.id()) {
            let path = group.to_string_lossy();
            let Some((_, inner)) = path.split_once(&parent) else {
                continue;
            };
            // A group that has just gone has no process.
            let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            let before = pids.len();
            pids.extend(text.lines().flat_map(str::parse::<i32>));
            if pids.len() > before {
                let name = inner.split('/').next().unwrap_or_default();
                sandboxes.insert(name.to_owned());
            }
        }
        Taken {
            kib: pids.iter().map(|pid| pss_kib(*pid)).sum(),
            sandboxes: sandboxes.len(),
        }
    }
}

/// Memory of sandboxes that have processes.
struct Taken {
    kib: f64,
    sandboxes: usize,
}

fn tell_phases(class: &str, start: &Value) -> anyhow::Result<()> {
    let phases = start["phases_us"].as_array().context("no phases")?;
    for phase in phases {
        let name = phase[0].as_str().context("a phase without a name")?;
        let us = phase[1].as_f64().context("a phase without a length")?;
        sample(class, &format!("phase:{name}"), us / 1e3);
    }
    Ok(())
}
