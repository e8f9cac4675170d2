//! What the figures stand beside, each as its users run it.

mod containerd;
mod ministack;
mod proxies;
mod runc;
mod runtime_api;
mod sink;

pub use containerd::Containerd;
pub use ministack::Ministack;
pub use proxies::{Proxy, haproxy, nginx, upstream, working};
pub use runc::{Bundle, bare_python};
pub use runtime_api::RuntimeApi;
pub use sink::{Ended, Sink};
