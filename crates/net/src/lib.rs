//! The networks of instances: namespaces prepared ahead of demand and what
//! leads into and out of them.
//!
//! The privileged half is synchronous and made for the single-threaded
//! launcher; `dns`, behind the feature of that name, is the unprivileged
//! half that runs in the server. Neither knows services or requests.
//!
//! Invariants: an instance without egress has no interface but loopback, and
//! one with egress has IPv6 only if the host's operator says so; a
//! namespace is held by descriptors only, so that none outlives its owner;
//! the calling thread always returns to its own namespace or the process
//! ends.
//!
//! Entry points: [`Networks`] makes and removes, [`Network`] is one
//! instance's; [`connect_machine`] is the guest's side of a machine's;
//! `dns::DnsForwarder` answers instances' queries.

#[cfg(feature = "dns")]
pub mod dns;
mod egress;
#[cfg(test)]
mod egress6_tests;
#[cfg(test)]
mod egress_tests;
mod error;
mod forwarding6;
mod inside;
mod ipv6;
mod machine;
#[cfg(test)]
mod machine_tests;
mod namespace;
mod netlink;
mod network;
mod networks;
mod nft;
mod route;
mod share;
mod table;
mod tap;
mod uplink;

pub use error::NetError;
pub use inside::{DNS_LISTEN_PORT, GATEWAY_LISTEN_PORT, SERVICE_ADDRESS};
pub use machine::connect_machine;
pub use network::{EgressState, Network, NetworkState};
pub use networks::{NetOptions, Networks, NetworksState, READY_MAX, SweepReport};
