//! Takes HTTP requests and hands each to an instance of its revision.
//!
//! ```text
//!  connection ─┬─ http1 ─▶ exchange ─┬─▶ forward: route, slot, link ─▶ instance
//!              └─ http2 ─▶ body ─────┘
//! ```
//! HTTP/1 is read and written by [`h1`], towards clients and instances alike;
//! hyper speaks HTTP/2 with clients, and h2, which is hyper's own, with
//! applications that say so. Each serving thread has its own runtime,
//! listener and connections to instances; a request is read, routed, queued,
//! sent, answered and recorded on one thread. The gateway knows no addresses
//! of instances, starts none and decides nothing about their number: it says
//! what waits ([`Demand`]) and is told what is ready
//! ([`Gateway::add_instance`]).
//!
//! Invariants
//! - An instance never has more requests than its revision's concurrency.
//! - A request is sent again only while no byte of it can have been processed.
//! - Where an instance goes on with a request whose client has gone, it is busy
//!   until that is over.
//! - Whatever reached an instance is recorded exactly once, before the end of
//!   its answer is sent.
//! - Every queue and buffer has a bound; bodies are never held whole.
//!
//! Answers of its own: 400 malformed, 404 no such host, 405 CONNECT, 429 over
//! the project's quota, 502 the instance broke off, 503 no slot (queue full
//! or its deadline passed, overload, or nobody can start an instance), 504 the
//! request's time ran out; the time counts from the slot, not from the queue.
//!
//! Entry points: [`Gateway::new`], [`Gateway::serve`].

mod access;
mod answer;
mod aside;
mod body;
mod config;
mod connection;
mod door;
mod exchange;
mod forward;
mod gateway;
mod h1;
mod host;
mod http1;
mod http2;
mod lane;
mod lateness;
mod linger;
mod link;
mod link1;
mod link2;
mod load;
mod metrics;
mod mux;
mod orphan;
mod pool;
mod port;
mod pressure;
mod probe;
mod random;
mod revision;
mod serve;
mod shards;
mod shared;
mod table;
mod tunnel;
mod visit;

pub use aside::{Aside, Connect};
pub use config::GatewayConfig;
pub use gateway::{AddError, Gateway, ServiceCount};
pub use metrics::MetricsSnapshot;
pub use port::{
    ColdPhases, Demand, Load, OWN_ANSWER, Records, RequestRecord, RevisionRoute, ServiceRoute,
    Upstream, WakeError,
};
pub use serve::{DrainError, InnerHandle, ServeError, ServeHandle};
pub use table::RouteError;
