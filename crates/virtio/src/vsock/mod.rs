//! Sockets between guest and host (virtio 1.3, section 5.10), with Unix
//! sockets on the host's side, as Firecracker has them:
//!
//! ```text
//! host connects to PATH, says "CONNECT port\n" ─▶ guest's port; the answer is "OK port\n"
//! guest connects to port P of CID 2           ─▶ host's socket PATH_P
//! ```
//!
//! Everything that a guest can make grow has a limit: connections, what waits
//! to be written to a host's socket (credit says how much that is), answers
//! that wait for buffers.

mod connection;
mod device;
mod handshake;
mod muxer;
mod packet;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use device::{GUEST_CIDS, Vsock, VsockError};
pub use state::VsockState;
