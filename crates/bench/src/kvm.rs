//! The monitor's figures, from what the machine in which it was measured
//! reported, and what was taken on this machine's own KVM ([`crate::native`]),
//! a sample a line (`scripts/bench-kvm.sh`):
//!
//! ```text
//! sample MONITOR exits|cpu_ms|start_ms|outside_kib VALUE
//! sample native first_instruction_p50_us|block_op_ns|… VALUE
//! sample CLASS cold_ms|phase:NAME|idle_pss_kib VALUE          crate::machines
//! sample microvm overhead_kib VALUE
//! ```

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::machines::FULL_MIB;
use crate::report::{Bound, Figure, Phase, Report, Spec};

const SKIFF: &str = "skiff";
const MICROVM: &str = "microvm";
const CONTAINER: &str = "container";
/// Before the name of a phase.
const PHASE: &str = "phase:";
const KIB_PER_MIB: f64 = 1024.0;

/// A figure that is a ratio to another monitor's.
#[derive(Clone, Copy, Debug)]
struct Against {
    spec: Spec,
    peer: &'static str,
    what: &'static str,
}

const fn against(
    name: &'static str,
    unit: &'static str,
    bound: Bound,
    peer: &'static str,
    what: &'static str,
) -> Against {
    Against {
        spec: Spec {
            name,
            unit,
            bound,
            peer: Some(peer),
        },
        peer,
        what,
    }
}

const RATIOS: [Against; 6] = [
    against(
        "vmm_boot_exits_vs_qemu",
        "exits",
        Bound::AtMost(0.9),
        "qemu",
        "exits",
    ),
    against(
        "vmm_boot_exits_vs_firecracker",
        "exits",
        Bound::AtMost(0.9),
        "firecracker",
        "exits",
    ),
    against(
        "vmm_host_cpu_ms_vs_qemu",
        "ms",
        Bound::None,
        "qemu",
        "cpu_ms",
    ),
    against(
        "vmm_host_cpu_ms_vs_firecracker",
        "ms",
        Bound::None,
        "firecracker",
        "cpu_ms",
    ),
    against(
        "vmm_start_to_userspace_vs_qemu",
        "ms",
        Bound::AtMost(1.0),
        "qemu",
        "start_ms",
    ),
    against(
        "vmm_start_to_userspace_vs_firecracker",
        "ms",
        Bound::AtMost(1.0),
        "firecracker",
        "start_ms",
    ),
];

const OUTSIDE: Spec = Spec {
    name: "vmm_memory_outside_guest_mib",
    unit: "MiB",
    bound: Bound::AtMost(5.0),
    peer: None,
};

/// What the host has to have for a machine beyond what its application may
/// take, all of which is taken.
const OVERHEAD: Spec = Spec {
    name: "microvm_overhead_mib",
    unit: "MiB",
    bound: Bound::AtMost(skiff_sandbox::microvm_overhead_mib(FULL_MIB) as f64),
    peer: None,
};

const IDLE: Spec = beside_containers("microvm_idle_pss_mib", "MiB");
const COLD: Spec = beside_containers("microvm_cold_ms", "ms");
const COLD_RATIO: Spec = beside_containers("microvm_cold_vs_container", "ms");

const fn beside_containers(name: &'static str, unit: &'static str) -> Spec {
    Spec {
        name,
        unit,
        bound: Bound::None,
        peer: Some("the container class"),
    }
}

/// A figure of its own samples, which are of a smaller unit.
#[derive(Clone, Copy, Debug)]
struct Native {
    spec: Spec,
    what: &'static str,
    scale: f64,
}

const fn native(name: &'static str, unit: &'static str, what: &'static str) -> Native {
    Native {
        spec: Spec {
            name,
            unit,
            bound: Bound::None,
            peer: None,
        },
        what,
        scale: 1e3,
    }
}

const NATIVE: [Native; 4] = [
    native(
        "vmm_exec_to_first_instruction_ms",
        "ms",
        "first_instruction_p50_us",
    ),
    native(
        "vmm_exec_to_first_instruction_p99_ms",
        "ms",
        "first_instruction_p99_us",
    ),
    native("vmm_cpu_us_per_block_op", "us", "block_op_ns"),
    native("vmm_cpu_us_per_net_op", "us", "net_op_ns"),
];

const FIRST_INSTRUCTION_RATIO: Spec = Spec {
    name: "vmm_exec_to_first_instruction_vs_firecracker",
    unit: "ms",
    bound: Bound::AtMost(1.0),
    peer: Some("firecracker"),
};

/// Prints the table and writes the file; whether nothing missed its bound.
///
/// # Errors
/// When the samples cannot be read, or the file cannot be written.
pub fn run(told: &Path) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(told).with_context(|| told.display().to_string())?;
    let mut report = Report::default();
    report.broken |= samples(&text, SKIFF, "exits").is_empty();
    for ratio in RATIOS {
        report.add(take_ratio(&text, ratio));
    }
    report.add(take_outside(&text));
    add_machines(&mut report, &text);
    for figure in NATIVE {
        report.add(take_native(&text, figure));
    }
    report.add(Figure::missing(
        FIRST_INSTRUCTION_RATIO,
        "Firecracker is started in the emulated machine only",
    ));
    let file = file()?;
    report.write(&file)?;
    println!("\n{}\nwritten to {}", report.table(), file.display());
    Ok(report.good())
}

fn take_ratio(text: &str, ratio: Against) -> Figure {
    let own = samples(text, SKIFF, ratio.what);
    let peer = samples(text, ratio.peer, ratio.what);
    if own.is_empty() {
        return Figure::missing(ratio.spec, "the monitor started no guest");
    }
    if peer.is_empty() {
        let reason = match ratio.peer {
            "firecracker" => "no Firecracker was measured: FIRECRACKER=/path names one",
            _ => "the peer started no guest",
        };
        return Figure::missing(ratio.spec, reason);
    }
    Figure::ratio(ratio.spec, own, peer)
}

fn take_outside(text: &str) -> Figure {
    let own = in_mib(text, SKIFF, "outside_kib");
    if own.is_empty() {
        return Figure::missing(OUTSIDE, "the monitor started no guest");
    }
    Figure::absolute(OUTSIDE, own)
}

/// What instances take, by what `skiff-bench machines` has told.
fn add_machines(report: &mut Report, text: &str) {
    let idle = [MICROVM, CONTAINER].map(|class| in_mib(text, class, "idle_pss_kib"));
    let overhead = in_mib(text, MICROVM, "overhead_kib");
    let cold = [MICROVM, CONTAINER].map(|class| samples(text, class, "cold_ms"));
    report.broken |= overhead.is_empty();
    report.add(match overhead.is_empty() {
        true => Figure::missing(OVERHEAD, "no machine was filled"),
        false => Figure::absolute(OVERHEAD, overhead),
    });
    let [own, peer] = idle;
    if own.is_empty() || peer.is_empty() {
        report.broken = true;
        report.add(Figure::missing(IDLE, "there were no idle instances"));
    } else {
        report.add(Figure::absolute_beside(IDLE, own, peer));
    }
    let [own, peer] = cold;
    if own.is_empty() || peer.is_empty() {
        report.broken = true;
        for spec in [COLD, COLD_RATIO] {
            report.add(Figure::missing(spec, "there were no cold starts"));
        }
        return;
    }
    let why = "shown only: an emulated machine's times compare, and mean nothing alone";
    let absolute = Figure::absolute_beside(COLD, own.clone(), peer.clone());
    report.add(absolute.because(why).of_phases(phases(text)));
    report.add(Figure::ratio(COLD_RATIO, own, peer).because(why));
}

fn in_mib(text: &str, class: &str, what: &str) -> Vec<f64> {
    let kib = samples(text, class, what);
    kib.iter().map(|kib| kib / KIB_PER_MIB).collect()
}

/// In the order in which a machine's come, and then what only others have.
fn phases(text: &str) -> Vec<Phase> {
    let mut names: Vec<&str> = Vec::new();
    for class in [MICROVM, CONTAINER] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            if let ["sample", of, what, _] = words[..]
                && of == class
                && let Some(name) = what.strip_prefix(PHASE)
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
    }
    let of = |class, name: &str| samples(text, class, &format!("{PHASE}{name}"));
    names
        .iter()
        .map(|name| Phase {
            name: (*name).to_owned(),
            samples: of(MICROVM, name),
            peer_samples: of(CONTAINER, name),
        })
        .collect()
}

fn take_native(text: &str, figure: Native) -> Figure {
    let own = samples(text, "native", figure.what);
    if own.is_empty() {
        let reason = "it takes /dev/kvm, a network namespace and a tap on this machine";
        return Figure::missing(figure.spec, reason);
    }
    let scaled = own.iter().map(|value| value / figure.scale).collect();
    Figure::absolute(figure.spec, scaled)
}

fn samples(text: &str, monitor: &str, what: &str) -> Vec<f64> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let ours = words.next() == Some("sample")
                && words.next() == Some(monitor)
                && words.next() == Some(what);
            if !ours {
                return None;
            }
            words.next()?.parse().ok()
        })
        .collect()
}

/// `BENCH_OUT`, else beside this binary's profile folder.
fn file() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BENCH_OUT") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).unwrap_or(&own);
    Ok(target.join("bench-kvm.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "sample skiff exits 1000\nsample qemu exits 2000\n\
        sample skiff exits 1010\nsample qemu exits 2020\nsample skiff exits 990\n\
        sample qemu exits 2040\nsample skiff outside_kib 2048\nsample skiff exits x\nend\n";

    #[test]
    fn a_ratio_is_of_what_both_gave() {
        assert_eq!(samples(TEXT, "skiff", "exits"), [1000.0, 1010.0, 990.0]);
        let figure = take_ratio(TEXT, RATIOS[0]);
        assert_eq!(figure.pass(), Some(true));
        let figure = take_outside(TEXT);
        assert_eq!(figure.pass(), Some(true));
    }

    #[test]
    fn what_was_not_taken_is_neither_met_nor_missed() {
        for ratio in &RATIOS[1..] {
            assert_eq!(take_ratio(TEXT, *ratio).pass(), None, "{ratio:?}");
        }
        assert_eq!(take_outside("").pass(), None);
        for figure in NATIVE {
            assert_eq!(take_native("", figure).pass(), None);
        }
    }

    #[test]
    fn a_machines_overhead_is_held_to_what_is_stated() {
        for (mib, held) in [(130, true), (131, false)] {
            let mut report = Report::default();
            let text = format!("sample microvm overhead_kib {}\n", mib * 1024);
            add_machines(&mut report, &text);
            assert!(!report.good(), "cold starts are missing");
            report.broken = false;
            assert_eq!(report.good(), held, "{mib} MiB");
        }
    }

    #[test]
    fn phases_are_in_the_machines_order_beside_the_containers() {
        let text = "sample container phase:queue 1\nsample container phase:create 2\n\
            sample microvm phase:queue 3\nsample microvm phase:kernel 4\nsample microvm phase:app 5\n";
        let phases = phases(text);
        let names: Vec<&str> = phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["queue", "kernel", "app", "create"]);
        assert_eq!(phases[0].samples, [3.0]);
        assert_eq!(phases[0].peer_samples, [1.0]);
        assert!(phases[1].peer_samples.is_empty() && phases[3].samples.is_empty());
    }
}
