//! What a monitor gives up before its guest runs an instruction.
//!
//! ```text
//! begun (root of a user namespace, /dev/kvm, cgroups' doors, one folder)
//!   │ VM and vCPUs are made
//! joined: in its cgroups, before the guest's memory is anybody's
//!   │ everything is open, the guest's memory is filled
//! sealed: the folder is its root, no capability, limits   ─▶ threads start,
//!   each behind its own filter of system calls            ─▶ the guest runs
//! ```
//!
//! Joining comes after the machine is made because the kernel makes a thread
//! for each, and moves it into the maker's cgroups, which takes up to 200 ms.
//! A monitor that waits for its machine has joined before it is told which:
//! [`crate::awaited`].
//!
//! The namespaces themselves are the launcher's work, before the monitor's
//! program runs: `skiff_jail`. A monitor that is started by hand has its
//! filters all the same.

mod filters;
mod root;

use std::os::fd::{AsFd, OwnedFd};

pub use filters::{FilterError, Filters, Part};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The largest file that a monitor can make longer: it has none to write but
/// disks, whose size is fixed.
const FILE_BYTES_MAX: u64 = 1 << 44;

/// A monitor cannot be held as it has to be, and does not run.
#[derive(Debug, thiserror::Error)]
#[error("the monitor cannot be confined: {what}")]
pub struct ConfineError {
    what: &'static str,
    #[source]
    source: Errno,
}

impl ConfineError {
    fn at(what: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self { what, source }
    }
}

/// What a monitor is confined to.
#[derive(Debug)]
pub struct Confinement {
    folder: OwnedFd,
    groups: Vec<OwnedFd>,
}

impl Confinement {
    /// To a folder, as a mount that is nowhere yet (`open_tree(2)` with
    /// `OPEN_TREE_CLONE`), and the cgroups whose `cgroup.procs` these are.
    #[must_use]
    pub const fn new(folder: OwnedFd, groups: Vec<OwnedFd>) -> Self {
        Self { folder, groups }
    }

    /// Has the paths of sockets that begin with no `/` mean the folder's,
    /// before and after it is the root.
    ///
    /// # Errors
    /// When it is no folder, or may not be entered.
    pub fn enter_folder(&self) -> Result<(), ConfineError> {
        rustix::process::fchdir(&self.folder).map_err(ConfineError::at("enter its folder"))
    }

    /// Enters the cgroups.
    ///
    /// # Errors
    /// As [`join`].
    pub fn join(&self) -> Result<(), ConfineError> {
        join(&self.groups)
    }

    /// Leaves everything but the folder, and every capability. There must be
    /// one thread: capabilities are each thread's own.
    ///
    /// # Errors
    /// When the kernel refuses a step; nothing may run then.
    pub fn seal(&self) -> Result<(), ConfineError> {
        root::change(&self.folder)?;
        limit(Resource::Core, 0)?;
        limit(Resource::Fsize, FILE_BYTES_MAX)?;
        rustix::thread::set_no_new_privs(true).map_err(ConfineError::at("give up privileges"))?;
        drop_capabilities()?;
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(ConfineError::at("forbid tracing"))
    }
}

/// Enters the cgroups whose `cgroup.procs` these are.
///
/// # Errors
/// When one cannot be entered.
pub fn join(groups: &[OwnedFd]) -> Result<(), ConfineError> {
    for group in groups {
        rustix::io::write(group.as_fd(), b"0").map_err(ConfineError::at("join a cgroup"))?;
    }
    Ok(())
}

fn limit(resource: Resource, value: u64) -> Result<(), ConfineError> {
    let limit = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(resource, limit).map_err(ConfineError::at("set a limit"))
}

/// The bounding set too, so that no program that it could execute has any.
fn drop_capabilities() -> Result<(), ConfineError> {
    let refused = ConfineError::at("drop its capabilities");
    for capability in CapabilitySet::all() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // This kernel does not know it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(refused(errno)),
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(&refused)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(&refused)
}
