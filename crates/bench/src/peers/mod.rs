//! What the figures stand beside, each as its users run it.

mod containerd;
mod proxies;
mod runc;

pub use containerd::Containerd;
pub use proxies::{Proxy, haproxy, nginx, upstream, working};
pub use runc::{Bundle, bare_python};
