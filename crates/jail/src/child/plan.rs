//! What launcher and init say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skiff_wire::launcher::{ProcessSpec, Refusal};

/// What a prepared process needs from its birth. It is passed by the copy of
/// the launcher's memory.
#[derive(Debug)]
pub(crate) struct Birth {
    /// `cgroup.procs` files to enter by.
    pub(crate) doors: Vec<PathBuf>,
    /// Shown below `/sys/fs/cgroup`.
    pub(crate) cgroup_views: Vec<(String, PathBuf)>,
    /// The folder of the launcher's layers, to be left.
    pub(crate) layers: PathBuf,
    /// An empty folder to build on.
    pub(crate) stage: PathBuf,
    /// The first id of the sandbox's range.
    pub(crate) owner: u32,
}

/// What turns a prepared process into a sandbox. Descriptors go along: the
/// user namespace, the network namespace, stdin, stdout and stderr unless
/// there is a terminal, the device for the writable layer if it is on disk, then
/// the layers, lowest first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) process: ProcessSpec,
    pub(crate) hostname: String,
    pub(crate) writable_bytes: u64,
    /// There if the writable layer is on disk.
    pub(crate) disk: Option<DiskPlan>,
    pub(crate) readonly_root: bool,
    /// Columns and rows.
    pub(crate) terminal: Option<(u16, u16)>,
    pub(crate) resolv_conf: String,
    pub(crate) hosts: String,
    /// It is a function, which is held if it has extensions.
    pub(crate) function: bool,
}

/// What the descriptor of a writable layer on disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DiskPlan {
    /// A block device that is to become a file system.
    Empty,
    /// A block device that is one.
    Formatted,
}

/// What the init reports, in this order; a failure may take any one's place.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It has everything that needs no plan.
    Parked,
    /// The application's `execve` has succeeded [its pidfd, the terminal's
    /// controlling side if there is one].
    Started {
        /// Microseconds for the root and for the rest.
        root_us: u32,
        exec_us: u32,
    },
    /// In the place of `Started`: a function's process is just before its
    /// `execve` and goes on when a byte is written to its gate [its pidfd, the
    /// gate, the terminal's controlling side if there is one].
    Held {
        /// As those of `Started`.
        root_us: u32,
        exec_us: u32,
        /// The names of its extensions' files in order, at least one.
        extensions: Vec<String>,
    },
    /// A step has failed; the init ends.
    Failed(Refusal),
    /// The application has ended, with wait(2)'s status, and the sandbox ends.
    Exited(i32),
    /// A function that was held has ended, with wait(2)'s status; its extensions
    /// run on for a while. `Exited` follows.
    AppEnded(i32),
}
