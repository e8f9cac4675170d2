//! Which hierarchy holds which controller.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What Skiff uses a controller for. Freezing, killing and the reading of
/// processor time need none on v2, whose core has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    Pids,
    /// v1 only.
    Cpuacct,
    /// v1 only.
    Freezer,
}

impl Controller {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "memory" => Self::Memory,
            "cpu" => Self::Cpu,
            "pids" => Self::Pids,
            "cpuacct" => Self::Cpuacct,
            "freezer" => Self::Freezer,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Cpuacct => "cpuacct",
            Self::Freezer => "freezer",
        }
    }
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) root: PathBuf,
    /// The controllers that Skiff uses of it.
    pub(crate) controllers: BTreeSet<Controller>,
}

impl Hierarchy {
    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }
}

/// The hierarchies that a sandbox has a cgroup in: pure v2 is `v2` alone,
/// pure v1 is `v1` alone, a hybrid is both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) v2: Option<Hierarchy>,
    pub(crate) v1: Vec<Hierarchy>,
}

/// The machine cannot hold a sandbox to its limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A file of the kernel is not readable.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No mounted hierarchy has the controller.
    #[error("no mounted cgroup hierarchy has the controller `{0}`")]
    Missing(&'static str),
}

const NEEDED: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

impl Layout {
    /// Reads it from the kernel's files below `root`, which is `/` but in
    /// tests.
    pub(crate) fn detect(root: &Path) -> Result<Self, LayoutError> {
        let mounts = read(&root.join("proc/self/mountinfo"))?;
        let mut layout = Self::default();
        let mut held = BTreeSet::new();
        if let Some(mount) = mounts.lines().find_map(v2_mount) {
            let path = under(root, mount);
            let names = read(&path.join("cgroup.controllers"))?;
            let controllers: BTreeSet<_> = names
                .split_whitespace()
                .filter_map(Controller::parse)
                .filter(|controller| NEEDED.contains(controller))
                .collect();
            held.extend(controllers.iter().copied());
            layout.v2 = Some(Hierarchy {
                root: path,
                controllers,
            });
        } else {
            held.clear();
        }
        for (mount, controllers) in mounts.lines().filter_map(v1_mount) {
            let wanted: BTreeSet<_> = controllers
                .filter_map(Controller::parse)
                .filter(|controller| layout.v2.is_none() || NEEDED.contains(controller))
                .filter(|controller| !held.contains(controller))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            held.extend(wanted.iter().copied());
            layout.v1.push(Hierarchy {
                root: under(root, mount),
                controllers: wanted,
            });
        }
        for controller in NEEDED {
            if !held.contains(&controller) {
                return Err(LayoutError::Missing(controller.name()));
            }
        }
        if layout.v2.is_none() && !held.contains(&Controller::Freezer) {
            return Err(LayoutError::Missing(Controller::Freezer.name()));
        }
        Ok(layout)
    }

    /// Every hierarchy.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.v2.iter().chain(&self.v1)
    }

    /// The v1 hierarchy of a controller, when v2 does not have it.
    pub(crate) fn v1_of(&self, controller: Controller) -> Option<&Hierarchy> {
        self.v1.iter().find(|one| one.has(controller))
    }

    /// The v2 hierarchy when it has the controller.
    pub(crate) fn v2_of(&self, controller: Controller) -> Option<&Hierarchy> {
        self.v2.as_ref().filter(|one| one.has(controller))
    }
}

fn read(path: &Path) -> Result<String, LayoutError> {
    std::fs::read_to_string(path).map_err(|error| LayoutError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn under(root: &Path, mount: &str) -> PathBuf {
    root.join(mount.trim_start_matches('/'))
}

/// A line of mountinfo (proc(5)): mount point, file-system type, its options.
fn fields(line: &str) -> Option<(&str, &str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let point = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    Some((point, kind, options))
}

fn v2_mount(line: &str) -> Option<&str> {
    let (point, kind, _) = fields(line)?;
    (kind == "cgroup2").then_some(point)
}

fn v1_mount(line: &str) -> Option<(&str, std::str::Split<'_, char>)> {
    let (point, kind, options) = fields(line)?;
    (kind == "cgroup").then(|| (point, options.split(',')))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine's files in a fresh folder.
    pub(crate) fn machine(mounts: &[&str], v2: Option<(&str, &str)>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        std::fs::write(root.path().join("proc/self/mountinfo"), mounts.join("\n")).unwrap();
        if let Some((path, controllers)) = v2 {
            let path = root.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("cgroup.controllers"), controllers).unwrap();
        }
        root
    }

    pub(crate) const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    pub(crate) const UNIFIED: &str =
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
    pub(crate) const V1: [&str; 4] = [
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory",
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct",
        "39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids",
        "37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer",
    ];

    fn names(hierarchy: &Hierarchy) -> Vec<&'static str> {
        hierarchy
            .controllers
            .iter()
            .map(|controller| controller.name())
            .collect()
    }

    #[test]
    fn pure_v2_is_one_hierarchy() {
        let root = machine(
            &[V2],
            Some(("sys/fs/cgroup", "cpuset cpu io memory hugetlb pids rdma\n")),
        );
        let layout = Layout::detect(root.path()).unwrap();
        assert!(layout.v1.is_empty());
        assert_eq!(
            names(layout.v2.as_ref().unwrap()),
            ["memory", "cpu", "pids"]
        );
    }

    #[test]
    fn pure_v1_takes_freezer_and_accounting_too() {
        let root = machine(&V1, None);
        let layout = Layout::detect(root.path()).unwrap();
        assert!(layout.v2.is_none());
        assert_eq!(
            layout.v1.iter().map(names).collect::<Vec<_>>(),
            [
                vec!["memory"],
                vec!["cpu", "cpuacct"],
                vec!["pids"],
                vec!["freezer"]
            ]
        );
    }

    #[test]
    fn a_hybrid_takes_from_v1_only_what_v2_lacks() {
        let mut mounts = V1.to_vec();
        mounts.push(UNIFIED);
        let root = machine(&mounts, Some(("sys/fs/cgroup/unified", "hugetlb pids\n")));
        let layout = Layout::detect(root.path()).unwrap();
        assert_eq!(names(layout.v2.as_ref().unwrap()), ["pids"]);
        assert_eq!(
            layout.v1.iter().map(names).collect::<Vec<_>>(),
            [vec!["memory"], vec!["cpu"]]
        );
        assert!(layout.v1_of(Controller::Pids).is_none());
        assert!(layout.v2_of(Controller::Pids).is_some());
    }

    #[test]
    fn a_machine_without_a_controller_is_refused_by_its_name() {
        let root = machine(&[V2], Some(("sys/fs/cgroup", "cpu pids")));
        assert_eq!(
            Layout::detect(root.path()),
            Err(LayoutError::Missing("memory"))
        );
        let root = machine(&V1[..3], None);
        assert_eq!(
            Layout::detect(root.path()),
            Err(LayoutError::Missing("freezer"))
        );
    }
}
