/// An interrupt line that is raised as an edge.
pub trait Line: Send + Sync + std::fmt::Debug {
    /// Raises it.
    fn raise(&self);
}

/// Why a driver is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Requests of this queue are done.
    Queue(usize),
    /// The device's configuration, or its need of a reset, changed.
    Config,
}

/// How a transport interrupts its driver.
pub trait Interrupt: Send + Sync + std::fmt::Debug {
    /// Interrupts it.
    fn signal(&self, cause: Cause);
}
