//! The control plane from outside: over its socket, with a fleet, a gateway
//! and images that do as the test says.
#![allow(clippy::unwrap_used, reason = "a test ends where it goes wrong")]

mod access;
mod bodies;
mod crash;
mod deploy;
mod document;
mod exec;
mod functions;
mod hooks;
mod images;
mod keys;
mod observe;
mod projects;
mod schedules;
mod secrets;
mod sources;
mod store;
mod support;
mod traffic;
