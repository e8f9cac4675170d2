//! The launcher: the one privileged process, and the container engine in it.
//!
//! It makes sandboxes from mounted layers, and owns their namespaces, mounts,
//! cgroups, networks, pidfds and streams, so that the server can be replaced
//! under them. It pulls no image, parses no bytes but our own frames, and
//! decides nothing about requests or instances.
//!
//! Invariants: one thread; nothing in its loop waits; a creation that fails
//! leaves nothing; a sandbox dies with the launcher; every kernel object
//! carries the server's id or is held by a descriptor alone, and the next
//! launcher of the same server removes what a crash has left. Two sandboxes
//! of a host never share a user id.
//!
//! Entry points: [`launcher_main`] runs a launcher; [`process_from_oci`]
//! turns an OCI process into ours. What a launcher is asked is
//! `skiff_wire::launcher`.

mod cgroup;
pub mod channel;
mod child;
mod failure;
mod handle;
mod ids;
mod launcher;
mod layers;
mod loops;
mod oci;
mod seccomp;
mod sys;

pub use cgroup::LayoutError;
pub use launcher::{LauncherError, LauncherOptions, launcher_main};
pub use oci::{ProcessError, process_from_oci};
