//! Takes HTTP requests and hands each to an instance of its revision.

mod port;

pub use port::{
    ColdPhases, Demand, Load, Records, RequestRecord, RevisionRoute, ServiceRoute, Upstream,
    WakeError,
};
