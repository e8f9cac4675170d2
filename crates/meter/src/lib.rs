//! What was used, what it costs, and whether the books are right.
//!
//! The ledger is a folder of append-only segments of one worker; see
//! [`LedgerWriter`] and [`Ledger`]. [`Fold`] is what its entries add up to by
//! minute and hour, [`usage`] makes the bill from it, and [`check`] compares
//! the entries with sources that were counted independently.
//!
//! It does not measure anything itself, has no network and no store.
//!
//! Invariants:
//! - an entry whose append has returned survives the end of the process; it
//!   is on the disk within a second;
//! - entries of one writer are numbered without a gap: one that is dropped,
//!   doubled or changed is found;
//! - nothing is billed that no entry proves: a life without an end is billed
//!   to its last sample, or to now if it is known to be alive;
//! - no bytes in a segment make the reader panic or allocate without bound.

mod check;
mod codec;
mod counts;
mod entry;
mod fold;
pub mod ledger;
mod usage;

pub use check::{LifeReport, Sources, check};
pub use codec::{
    Damage, HEADER_BYTES, RECORD_BYTES_MAX, Record, SegmentError, SegmentHeader, SegmentReport,
    encode_record, read_segment,
};
pub use counts::{CountsError, GatewayCounts, RequestCounts, WriterSummary};
pub use entry::{Entry, InstanceEnd, InstanceSample, InstanceStart, RequestEntry};
pub use fold::{Fold, Totals};
pub use ledger::{Ledger, LedgerError, LedgerWriter};
pub use usage::{Prices, UsageQuery, usage};
