//! Instances' logs: written by one thread, read by anybody.
//!
//! ```text
//!  stdout, stderr ──▶ Splitter ──▶ LogSink ══bounded══▶ writer thread ─┬─▶ INSTANCE.log, rotated to INSTANCE.1.log
//!                                                                      ├─▶ followers (bounded broadcast)
//!                                    queries ─────────────────────────▶┴─▶ open files and their lengths
//! ```
//!
//! The thread is the one place where lines, queries and collections meet, so
//! that a follower sees each line once: in the files up to the moment of its
//! question, or live after it.

mod collect;
mod files;
mod line;
mod output;
mod page;
mod query;
mod split;
mod store;
mod tap;
#[cfg(test)]
mod tests;
mod writer;

pub use output::{Reader, read_output};
pub use query::{LogFollow, LogQuery};
pub use store::{LogLimits, LogSink, LogStore};
pub use tap::OutputTap;
