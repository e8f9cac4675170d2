//! What every part of Skiff needs of the machine: time, randomness, owned
//! tasks, back-off and errors told with their causes.
//!
//! It knows nothing of Skiff's words. Everything that waits here has a
//! deadline, and everything that is spawned here has an owner.

mod backoff;
mod chain;
mod clock;
mod date;
#[cfg(feature = "async")]
mod listener;
pub mod process;
pub mod prometheus;
pub mod random;
#[cfg(feature = "async")]
mod stream;
#[cfg(feature = "async")]
mod tasks;

pub use backoff::Backoff;
pub use chain::{Chain, chain};
pub use clock::{Clock, ManualClock, Monotonic, SystemClock};
pub use date::{Date, UtcTime};
#[cfg(feature = "async")]
pub use listener::{Acceptor, Listener};
#[cfg(feature = "async")]
pub use stream::{ByteStream, Inline};
#[cfg(feature = "async")]
pub use tasks::{Tasks, TasksError};
