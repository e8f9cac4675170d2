//! What the kernel says of processes and cores.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use skiff_testkit::Server;

/// Processor time of processes, seconds.
///
/// # Errors
/// When one has ended.
pub fn cpu_seconds(pids: &[i32]) -> anyhow::Result<f64> {
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut ticks = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let text = std::fs::read_to_string(&path).with_context(|| path)?;
        let fields = after_name(&text);
        // Fields 14 and 15, user and system; the first here is the third.
        ticks += number(&fields, 11) + number(&fields, 12);
    }
    Ok(ticks as f64 / per_second)
}

fn after_name(stat: &str) -> Vec<&str> {
    let end = stat.rfind(')').map_or(0, |at| at + 1);
    stat[end..].split_whitespace().collect()
}

fn number(fields: &[&str], at: usize) -> u64 {
    fields
        .get(at)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// What a core has done since the start, ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Core {
    busy: u64,
    idle: u64,
}

impl Core {
    /// Of one core now.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn now(core: usize) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let name = format!("cpu{core} ");
        let line = text
            .lines()
            .find(|line| line.starts_with(&name))
            .context(name)?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .flat_map(str::parse)
            .collect();
        // user nice system idle iowait irq softirq steal; guest time is in user.
        let idle = ticks.get(3).unwrap_or(&0) + ticks.get(4).unwrap_or(&0);
        let all: u64 = ticks.iter().take(8).sum();
        Ok(Self {
            busy: all - idle,
            idle,
        })
    }

    /// Which part of the time since then it was busy.
    pub fn busy_since(self, before: Self) -> f64 {
        let busy = (self.busy - before.busy) as f64;
        let idle = (self.idle - before.idle) as f64;
        busy / (busy + idle).max(1.0)
    }
}

/// Resident memory, MiB.
///
/// # Errors
/// When the process has ended.
pub fn rss_mib(pid: i32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("no VmRSS")? / 1024.0)
}

/// Memory of a process, KiB, of which what several share counts in parts; none
/// of one that has ended.
pub fn pss_kib(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}

/// Control groups of a server: its id is in their paths.
pub fn cgroups(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        let inner = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
        for entry in inner {
            let path = entry.path();
            if path.to_string_lossy().contains(id) {
                found.push(path.clone());
            }
            folders.push(path);
        }
    }
    found
}

/// Processes and their parents.
fn parents() -> Vec<(i32, i32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let parent = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        after_name(&text).get(1)?.parse().ok()
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect()
}

/// A process and all that descend from it.
pub fn family(root: i32) -> BTreeSet<i32> {
    let parents = parents();
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        for (pid, parent) in &parents {
            if found.contains(parent) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// The process of a server.
///
/// # Errors
/// When there is none.
pub fn process_of(server: &Server) -> anyhow::Result<i32> {
    let mark = format!("run_dir={} ", server.run_dir().display());
    find(&[" server ", &mark]).context("the server's process is not found")
}

/// Whether a process has ended; its parent may not know yet.
pub fn ended(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |text| text.is_empty())
}

/// The process whose arguments hold all of these.
fn find(marks: &[&str]) -> Option<i32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        marks.iter().all(|mark| text.contains(mark)).then_some(pid)
    })
}

/// How many open descriptors a process has.
pub fn descriptors(pid: i32) -> usize {
    count(Path::new(&format!("/proc/{pid}/fd")))
}

fn count(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Keeps all threads of a process on one core.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(pid: i32, core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let thread = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(thread) = thread.and_then(Pid::from_raw) else {
            continue;
        };
        sched_setaffinity(Some(thread), &set)?;
    }
    Ok(())
}

/// Keeps this thread, and what it starts, on one core while it lives.
#[derive(Debug)]
pub struct OnCore(CpuSet);

impl OnCore {
    /// # Errors
    /// When the kernel refuses.
    pub fn pin(core: usize) -> anyhow::Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set)?;
        Ok(Self(before))
    }
}

impl Drop for OnCore {
    fn drop(&mut self) {
        // The cores it was allowed before are allowed again.
        let _allowed = sched_setaffinity(None, &self.0);
    }
}
