//! The server's side of the protocol in `skiff_wire::launcher`.

mod client;
mod driver;
mod exits;
mod socket;

pub use client::{LauncherClient, LauncherError};
pub use exits::{Exits, UNKNOWN_EXIT};
pub use socket::FrameSocket;
