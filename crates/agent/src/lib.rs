//! The first process of a virtual machine: it does there what the server asks.
//!
//! ```text
//!  host                              │ guest
//!  server ─▶ monitor ─▶ vsock 1024 ──┼─▶ agent ──▶ launcher ──▶ sandboxes
//!                       vsock 1025 ──┼─▶ streams: stdio, terminals, ports
//!    gateway, DNS ◀─ vsock 1026-28 ──┼── the application's calls to Skiff
//! ```
//!
//! Sandboxes are made by the launcher of `skiff_jail`, a child process: what a
//! container is, is the same on a host and in a machine. The agent translates
//! between `skiff_wire::agent` and `skiff_wire::launcher`, carries streams, and
//! looks after the machine: modules, mounts, disks, clock, randomness, end. It
//! links no runtime and looks no name up.
//!
//! Invariants: one thread, one loop, and nothing in it waits; every buffer, table
//! and wait has a bound; the host is not trusted with more than the machine, and
//! the application with nothing of the agent's.
//!
//! Entry points: [`boot`] makes a machine of a kernel and an initramfs,
//! [`Agent`] serves, [`run_launcher`] is the child process.

mod agent;
mod boot;
mod control;
mod disks;
mod dns;
mod end;
mod flow;
mod launcher;
mod link;
mod machine;
mod requests;
mod sandboxes;
mod services;
mod streams;
mod sys;

pub use agent::{Agent, AgentError, Settings};
pub use boot::{BootError, boot, kernel_word};
pub use disks::DiskNames;
pub use launcher::{LauncherProcess, run_launcher};
pub use machine::power_off;
pub use sys::{Outside, listen};
