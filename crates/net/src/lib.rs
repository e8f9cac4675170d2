//! The networks of instances: namespaces prepared ahead of demand and what
//! leads into and out of them.
//!
//! It knows no project, service or request. Nothing here is asynchronous.
//!
//! Invariants: an instance without egress has no interface but loopback; a
//! namespace is held by descriptors only, so that none outlives its owner;
//! the calling thread always returns to its own namespace or the process
//! ends.
//!
//! Entry points: [`Networks`] makes and removes, [`Network`] is one
//! instance's.

mod error;
mod inside;
mod namespace;
#[allow(dead_code, reason = "egress is what uses the rest")]
mod netlink;
mod network;
mod networks;
#[allow(dead_code, reason = "egress is what uses the rest")]
mod nft;
#[allow(dead_code, reason = "egress is what uses the rest")]
mod route;

pub use error::NetError;
pub use inside::{DNS_LISTEN_PORT, GATEWAY_LISTEN_PORT, SERVICE_ADDRESS};
pub use network::{EgressState, Network, NetworkState};
pub use networks::{NetOptions, Networks, READY_MAX};
