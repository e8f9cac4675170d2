//! The server's side of the protocol in `skiff_wire::agent`: what it asks of
//! the agent in a virtual machine, through the monitor's socket.

mod client;
mod dial;
mod driver;

pub use client::{AgentClient, AgentError, AgentHello};
