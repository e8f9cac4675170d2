//! Cgroups of one server: `skiff-SERVER/sNUMBER` in each hierarchy.
//!
//! On v2, and on a hybrid's v2 side even without controllers, the kernel's
//! own `cgroup.kill`, `cgroup.freeze` and `cpu.stat` are used: a task that v2
//! has frozen can be killed. v1 alone needs its freezer, and a task that it
//! has frozen dies only once it is thawed.

mod files;
mod layout;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use skiff_types::ServerId;
use skiff_wire::launcher::Stats;

use crate::failure::{Context, Step};

pub(crate) use files::Limits;
use files::{keyed, single};
pub use layout::LayoutError;
use layout::{Controller, Layout};

/// How often a killed group is looked at before the sweep gives up: half a
/// minute at one look in ten milliseconds.
const SWEEP_LOOKS_MAX: u32 = 3_000;

/// The hierarchies, and where this server's groups are.
#[derive(Debug)]
pub(crate) struct Cgroups {
    layout: Layout,
    parent: String,
}

impl Cgroups {
    pub(crate) fn open(server: ServerId) -> Result<Self, LayoutError> {
        Ok(Self {
            layout: Layout::detect(Path::new("/"))?,
            parent: format!("skiff-{server}"),
        })
    }

    /// Makes the server's own group and lets controllers into it.
    pub(crate) fn establish(&self) -> Step<()> {
        for hierarchy in self.layout.all() {
            let path = hierarchy.root.join(&self.parent);
            make_dir(&path)?;
        }
        let Some(v2) = &self.layout.v2 else {
            return Ok(());
        };
        let names: Vec<_> = v2
            .controllers
            .iter()
            .map(|controller| format!("+{}", controller.name()))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let text = names.join(" ");
        let control = v2.root.join("cgroup.subtree_control");
        if let Err(error) = std::fs::write(&control, &text) {
            // Inside a container the hierarchy's root is no real root: it may
            // not hold processes and give controllers on.
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error).at("cgroup", control.display());
            }
            move_into_leaf(&v2.root)?;
            std::fs::write(&control, &text).at("cgroup", control.display())?;
        }
        let own = v2.root.join(&self.parent).join("cgroup.subtree_control");
        std::fs::write(&own, &text).at("cgroup", own.display())
    }

    fn group(&self, number: u64) -> String {
        format!("{}/s{number}", self.parent)
    }

    /// Makes the groups of one sandbox, without limits.
    pub(crate) fn make(&self, number: u64) -> Step<()> {
        let group = self.group(number);
        for hierarchy in self.layout.all() {
            if let Err(refusal) = make_dir(&hierarchy.root.join(&group)) {
                self.remove(number);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// The v2 group, for a process to be born in.
    pub(crate) fn birthplace(&self, number: u64) -> Step<Option<OwnedFd>> {
        let Some(v2) = &self.layout.v2 else {
            return Ok(None);
        };
        let path = v2.root.join(self.group(number));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty())
            .map(Some)
            .at("cgroup", path.display())
    }

    /// The `cgroup.procs` files through which a process enters the rest.
    pub(crate) fn doors(&self, number: u64) -> Vec<PathBuf> {
        let group = self.group(number);
        self.layout
            .v1
            .iter()
            .map(|hierarchy| hierarchy.root.join(&group).join("cgroup.procs"))
            .collect()
    }

    /// The `cgroup.procs` files of every hierarchy, for a process that was
    /// born elsewhere.
    pub(crate) fn all_doors(&self, number: u64) -> Vec<PathBuf> {
        let group = self.group(number);
        self.layout
            .all()
            .map(|hierarchy| hierarchy.root.join(&group).join("cgroup.procs"))
            .collect()
    }

    /// What a sandbox shows below `/sys/fs/cgroup`: the name there (nothing
    /// for the folder itself) and the group.
    pub(crate) fn views(&self, number: u64) -> Vec<(String, PathBuf)> {
        let group = self.group(number);
        if self.layout.v1.is_empty() {
            return self
                .layout
                .v2
                .iter()
                .map(|v2| (String::new(), v2.root.join(&group)))
                .collect();
        }
        let v1 = self.layout.v1.iter().flat_map(|hierarchy| {
            hierarchy
                .controllers
                .iter()
                .map(|controller| (controller.name().to_owned(), hierarchy.root.join(&group)))
        });
        v1.collect()
    }

    /// Holds the group to its limits.
    pub(crate) fn limit(&self, number: u64, limits: Limits) -> Step<()> {
        for write in files::limit_writes(&self.layout, &self.group(number), limits) {
            match std::fs::write(&write.path, &write.text) {
                Err(error) if write.optional && error.kind() == std::io::ErrorKind::NotFound => {}
                result => result.at("cgroup", write.path.display())?,
            }
        }
        Ok(())
    }

    /// Kills every process in the group. What dies is told by its pidfd.
    pub(crate) fn kill(&self, number: u64) {
        self.kill_group(&self.group(number));
    }

    fn kill_group(&self, group: &str) {
        if let Some(v2) = &self.layout.v2 {
            let path = v2.root.join(group).join("cgroup.kill");
            if std::fs::write(path, "1").is_ok() {
                return;
            }
        }
        for hierarchy in &self.layout.v1 {
            let path = hierarchy.root.join(group);
            let listed = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in listed.lines().filter_map(|line| line.parse().ok()) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    // A process that has gone meanwhile needs no signal.
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
                }
            }
            if hierarchy.has(Controller::Freezer) {
                // Not there or not frozen: nothing to thaw.
                std::fs::write(path.join("freezer.state"), "THAWED").ok();
            }
        }
    }

    /// Asks for the processes to stand or to go on.
    pub(crate) fn set_frozen(&self, number: u64, frozen: bool) -> Step<()> {
        let group = self.group(number);
        let (path, text) = if let Some(v2) = &self.layout.v2 {
            let path = v2.root.join(group).join("cgroup.freeze");
            (path, if frozen { "1" } else { "0" })
        } else {
            let path = self.freezer_state(&group);
            (path, if frozen { "FROZEN" } else { "THAWED" })
        };
        std::fs::write(&path, text).at("freeze", path.display())
    }

    fn freezer_state(&self, group: &str) -> PathBuf {
        let root = self
            .layout
            .v1_of(Controller::Freezer)
            .map_or(Path::new("/"), |hierarchy| hierarchy.root.as_path());
        root.join(group).join("freezer.state")
    }

    /// Whether every process stands.
    pub(crate) fn is_frozen(&self, number: u64) -> Step<bool> {
        let group = self.group(number);
        if let Some(v2) = &self.layout.v2 {
            let path = v2.root.join(group).join("cgroup.events");
            let text = std::fs::read_to_string(&path).at("freeze", path.display())?;
            return Ok(keyed(&text, "frozen") == Some(1));
        }
        let path = self.freezer_state(&group);
        let text = std::fs::read_to_string(&path).at("freeze", path.display())?;
        Ok(text.trim() == "FROZEN")
    }

    /// What the group uses; zero where the kernel does not say.
    pub(crate) fn stats(&self, number: u64) -> Stats {
        let group = self.group(number);
        let read = |hierarchy: Option<&layout::Hierarchy>, name: &str| {
            hierarchy
                .and_then(|one| std::fs::read_to_string(one.root.join(&group).join(name)).ok())
                .unwrap_or_default()
        };
        let number_in = |hierarchy, name| single(&read(hierarchy, name)).unwrap_or(0);
        let v1 = |controller| self.layout.v1_of(controller);
        let v2 = |controller| self.layout.v2_of(controller);
        let memory = |new, old| match v1(Controller::Memory) {
            Some(hierarchy) => number_in(Some(hierarchy), old),
            None => number_in(v2(Controller::Memory), new),
        };
        let cpu_us = match &self.layout.v2 {
            Some(unified) => keyed(&read(Some(unified), "cpu.stat"), "usage_usec").unwrap_or(0),
            None => number_in(v1(Controller::Cpuacct), "cpuacct.usage") / 1000,
        };
        let oom_text = match v1(Controller::Memory) {
            Some(hierarchy) => read(Some(hierarchy), "memory.oom_control"),
            None => read(v2(Controller::Memory), "memory.events"),
        };
        let pids_in = v1(Controller::Pids).or(v2(Controller::Pids));
        Stats {
            cpu_us,
            memory_bytes: memory("memory.current", "memory.usage_in_bytes"),
            memory_peak_bytes: memory("memory.peak", "memory.max_usage_in_bytes"),
            pids: number_in(pids_in, "pids.current"),
            oom_kills: keyed(&oom_text, "oom_kill").unwrap_or(0),
        }
    }

    /// Removes the groups; false while the kernel still holds one.
    pub(crate) fn remove(&self, number: u64) -> bool {
        self.remove_group(&self.group(number))
    }

    fn remove_group(&self, group: &str) -> bool {
        let mut gone = true;
        for hierarchy in self.layout.all() {
            gone &= remove_tree(&hierarchy.root.join(group));
        }
        gone
    }

    /// Kills and removes whatever an earlier launcher of this server has left.
    ///
    /// Returns how many groups there were. The launcher serves nobody yet, so
    /// it may wait here.
    pub(crate) fn sweep(&self) -> Step<usize> {
        let mut found = std::collections::BTreeSet::new();
        for hierarchy in self.layout.all() {
            found.extend(subgroups(&hierarchy.root.join(&self.parent)));
        }
        for name in &found {
            let group = format!("{}/{name}", self.parent);
            let mut looks = 0;
            while !{
                self.kill_group(&group);
                self.remove_group(&group)
            } {
                looks += 1;
                if looks > SWEEP_LOOKS_MAX {
                    return Err(crate::failure::refuse(
                        "sweep",
                        format!("the processes of {group} do not die"),
                    ));
                }
                pause_ms(10);
            }
        }
        Ok(found.len())
    }

    /// Removes the server's own group, when nothing is in it any more.
    pub(crate) fn abolish(&self) {
        self.remove_group(&self.parent);
    }
}

fn pause_ms(milliseconds: i64) {
    let time = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: milliseconds * 1_000_000,
    };
    // Interrupted early is no harm: the caller looks again.
    drop(rustix::thread::nanosleep(&time));
}

fn make_dir(path: &Path) -> Step<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => result.at("cgroup", path.display()),
    }
}

fn subgroups(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Removes a group with the groups below it; true when it is not there.
fn remove_tree(path: &Path) -> bool {
    match std::fs::remove_dir(path) {
        Ok(()) => return true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    for name in subgroups(path) {
        remove_tree(&path.join(name));
    }
    std::fs::remove_dir(path).is_ok()
}

/// Moves every process of the group into a leaf below it, as v2's rule
/// against inner processes demands.
fn move_into_leaf(root: &Path) -> Step<()> {
    let leaf = root.join("skiff-host");
    make_dir(&leaf)?;
    let processes = root.join("cgroup.procs");
    let listed = std::fs::read_to_string(&processes).at("cgroup", processes.display())?;
    for pid in listed.lines() {
        // One that has gone meanwhile, or is a kernel thread, is left.
        std::fs::write(leaf.join("cgroup.procs"), pid).ok();
    }
    Ok(())
}
