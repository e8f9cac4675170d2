//! What isolates an instance: one trait, and the classes behind it.
//!
//! [`ContainerBackend`] makes namespaced containers by asking the launcher, a
//! process of its own, over [`LauncherClient`]; [`MicrovmBackend`] makes virtual
//! machines, each with a monitor that the launcher starts and an agent that it
//! asks through that; [`AgentClient`] asks the agent in
//! a virtual machine, of which no class is made yet; [`NullBackend`] makes nothing
//! and answers every request itself, for measuring what stands around a
//! sandbox. This crate holds no capability and makes no kernel object: it
//! asks for them and passes descriptors on. It does not decide when a sandbox
//! begins or ends; the worker does.
//!
//! Invariants: a creation that nobody waits for any more is undone; nobody
//! who holds a [`Sandbox`] learns an address; every question to the launcher
//! has a deadline.
//!
//! Entry points: [`Backend`], [`Sandbox`], [`host_checks`].

mod agent;
mod container;
mod doctor;
mod exec;
mod execs;
mod launcher;
mod microvm;
mod null;
mod port;

pub use agent::{AgentClient, AgentError, AgentHello};
pub use container::ContainerBackend;
pub use doctor::{Check, host_checks};
pub use exec::{ExecRequest, Executed, Process, TerminalSize};
pub use execs::ExecExits;
pub use launcher::{Exits, LauncherClient, LauncherError};
pub use microvm::{GuestFiles, MicrovmBackend, Tried, microvm_overhead_mib};
pub use null::{NullBackend, NullOptions};
pub use port::{
    Backend, CreateSpec, Created, Datagrams, Found, LayerFile, Listeners, Needs, Output, Sandbox,
    SandboxError,
};
