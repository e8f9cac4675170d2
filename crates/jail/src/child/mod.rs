//! What runs in a sandbox's first process, from its birth on.
//!
//! ```text
//!  born (launcher's copy, new pid, mount, uts and ipc namespaces)
//!   │ cgroups entered, /dev and /proc prepared
//!  parked ── the launcher closes ──▶ gone
//!   │ plan and descriptors come
//!  root built, pivot_root, user namespace entered
//!   │ fork ──────────▶ application: (a function with extensions is held here,)
//!   │                  user, capabilities, filter, execve
//!  init: reaps until the application ends, reports, ends; the kernel kills
//!        what else is left in the pid namespace
//! ```
//!
//! The init has no capability once the application runs, takes no input any
//! more, and cannot be traced or signalled from inside.

mod app;
mod devices;
mod disk;
mod extensions;
mod foreign;
mod init;
mod monitor;
mod plan;
mod root;
mod visit;

pub(crate) use disk::{made_file_system, make_file_system};
pub(crate) use init::run;
pub(crate) use monitor::{ForeignTask, MonitorBirth, MonitorTask, run_monitor};
pub(crate) use plan::{Birth, DiskPlan, Plan, Report};
pub(crate) use visit::{Visit, run_visit};
