//! What is written to a cgroup's files and what their text means. Pure.

use std::path::PathBuf;

use super::layout::{Controller, Layout};

/// A sandbox's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_millis: u32,
    pub(crate) pids: u32,
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    /// A kernel may be built or booted without it.
    pub(crate) optional: bool,
}

const CPU_PERIOD_US: u64 = 100_000;
/// The kernel takes no shorter quota.
const CPU_QUOTA_US_MIN: u64 = 1_000;

fn quota_us(cpu_millis: u32) -> u64 {
    (u64::from(cpu_millis) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN)
}

/// The writes that hold the cgroup `group` (a path below each hierarchy's
/// root) to its limits, in their order.
pub(crate) fn limit_writes(layout: &Layout, group: &str, limits: Limits) -> Vec<Write> {
    let mut writes = Vec::new();
    let quota = quota_us(limits.cpu_millis);
    for hierarchy in layout.all() {
        let v2 = layout.v2.as_ref() == Some(hierarchy);
        let mut write = |name: &str, text: String, optional: bool| {
            writes.push(Write {
                path: hierarchy.root.join(group).join(name),
                text,
                optional,
            });
        };
        if hierarchy.has(Controller::Memory) {
            let bytes = limits.memory_bytes.to_string();
            if v2 {
                write("memory.max", bytes, false);
                write("memory.swap.max", "0".to_owned(), true);
            } else {
                write("memory.limit_in_bytes", bytes.clone(), false);
                // Memory and swap together: no swap.
                write("memory.memsw.limit_in_bytes", bytes, true);
            }
        }
        if hierarchy.has(Controller::Cpu) {
            if v2 {
                write("cpu.max", format!("{quota} {CPU_PERIOD_US}"), false);
            } else {
                write("cpu.cfs_period_us", CPU_PERIOD_US.to_string(), false);
                write("cpu.cfs_quota_us", quota.to_string(), false);
            }
        }
        if hierarchy.has(Controller::Pids) {
            write("pids.max", limits.pids.to_string(), false);
        }
    }
    writes
}

/// The number of `key` in a file of `key number` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

/// The number that is all of a file.
pub(crate) fn single(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::{UNIFIED, V1, V2, machine};
    use super::*;

    const LIMITS: Limits = Limits {
        memory_bytes: 268_435_456,
        cpu_millis: 1500,
        pids: 64,
    };

    fn written(mounts: &[&str], v2: Option<(&str, &str)>) -> Vec<String> {
        let root = machine(mounts, v2);
        let layout = Layout::detect(root.path()).unwrap();
        limit_writes(&layout, "skiff-x/s1", LIMITS)
            .into_iter()
            .map(|write| {
                let path = write.path.strip_prefix(root.path()).unwrap();
                format!("{}={}", path.display(), write.text)
            })
            .collect()
    }

    #[test]
    fn limits_on_v2() {
        assert_eq!(
            written(&[V2], Some(("sys/fs/cgroup", "cpu memory pids"))),
            [
                "sys/fs/cgroup/skiff-x/s1/memory.max=268435456",
                "sys/fs/cgroup/skiff-x/s1/memory.swap.max=0",
                "sys/fs/cgroup/skiff-x/s1/cpu.max=150000 100000",
                "sys/fs/cgroup/skiff-x/s1/pids.max=64",
            ]
        );
    }

    #[test]
    fn limits_on_v1() {
        assert_eq!(
            written(&V1, None),
            [
                "sys/fs/cgroup/memory/skiff-x/s1/memory.limit_in_bytes=268435456",
                "sys/fs/cgroup/memory/skiff-x/s1/memory.memsw.limit_in_bytes=268435456",
                "sys/fs/cgroup/cpu,cpuacct/skiff-x/s1/cpu.cfs_period_us=100000",
                "sys/fs/cgroup/cpu,cpuacct/skiff-x/s1/cpu.cfs_quota_us=150000",
                "sys/fs/cgroup/pids/skiff-x/s1/pids.max=64",
            ]
        );
    }

    #[test]
    fn limits_on_a_hybrid() {
        let mut mounts = V1.to_vec();
        mounts.push(UNIFIED);
        assert_eq!(
            written(&mounts, Some(("sys/fs/cgroup/unified", "hugetlb"))),
            written(&V1, None)
        );
    }

    #[test]
    fn the_kernels_texts_are_read() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(keyed(events, "oom_kill"), Some(2));
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        assert_eq!(keyed(v1, "oom_kill"), Some(1));
        assert_eq!(
            keyed("usage_usec 4711\nuser_usec 1\n", "usage_usec"),
            Some(4711)
        );
        assert_eq!(keyed("", "oom_kill"), None);
        assert_eq!(single("123456\n"), Some(123_456));
        assert_eq!(single("max\n"), None);
    }

    #[test]
    fn a_small_share_of_a_cpu_is_the_smallest_quota() {
        assert_eq!(quota_us(1), 1_000);
        assert_eq!(quota_us(250), 25_000);
    }
}
