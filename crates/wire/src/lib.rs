//! The framed protocols between the server and its launcher, a virtual
//! machine's monitor, and the agent in that machine.
//!
//! Sans-I/O: this crate turns messages into frames and back. A frame is a
//! version byte, then the message in postcard's encoding
//! (<https://postcard.jamesmunns.com/wire-format>), at most
//! [`FRAME_BYTES_MAX`]. To the launcher and to a monitor it is one datagram of a
//! `SOCK_SEQPACKET` socket. Descriptors travel beside it (`SCM_RIGHTS`,
//! unix(7)), at most [`FRAME_FDS_MAX`]. The longest frame is over Linux's
//! default send buffer: both sides set `SO_SNDBUF` to twice its length. To the
//! agent it goes over a byte stream, behind its length: [`framed`],
//! [`FrameReader`]. The one protocol that others speak, too, has frames of its
//! own: [`exec`].
//!
//! Invariants: decoding never panics, never allocates more than the frame is
//! long, and refuses bytes that are left over.

pub mod agent;
pub mod exec;
mod frame;
pub mod launcher;
pub mod monitor;
mod stream;

pub use frame::{FRAME_BYTES_MAX, FRAME_FDS_MAX, FrameError, VERSION, decode, encode};
pub use stream::{FrameReader, framed};
