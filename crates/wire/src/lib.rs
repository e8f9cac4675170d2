//! The framed protocol between the server and its launcher.
//!
//! Sans-I/O: this crate turns messages into frames and back. A frame is one
//! datagram of a `SOCK_SEQPACKET` socket: a version byte, then the message in
//! postcard's encoding (<https://postcard.jamesmunns.com/wire-format>), at
//! most [`FRAME_BYTES_MAX`]. Descriptors travel beside a frame
//! (`SCM_RIGHTS`, unix(7)), at most [`FRAME_FDS_MAX`]. The longest frame is over
//! Linux's default send buffer: both sides set `SO_SNDBUF` to twice its length.
//!
//! Invariants: decoding never panics, never allocates more than the frame is
//! long, and refuses bytes that are left over.

mod frame;
pub mod launcher;

pub use frame::{FRAME_BYTES_MAX, FRAME_FDS_MAX, FrameError, VERSION, decode, encode};
