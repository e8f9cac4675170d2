//! What end-to-end tests drive: the real binaries, as a user would, with real
//! clients.
//!
//! Everything here ends what it started when it is dropped, and panics with a
//! full account when something is not as expected: it is for tests only.
//! Deadlines are stretched by how slow this machine is now.

mod guardian;
mod leaks;
mod ports;
mod registry;
mod server;
mod speed;
mod tools;

pub use guardian::Guardian;
pub use leaks::Leaks;
pub use ports::unused_port;
pub use registry::Registry;
pub use server::{Held, Reply, Server, ServerOptions, SharedServer};
pub use speed::{deadline, wait_for};
pub use tools::{
    Finished, Running, aws_clients, fixture, lacking_for, run, skiff_binary, started,
    started_on_a_terminal,
};
