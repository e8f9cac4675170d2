//! Purpose-built guests: flat 64-bit programs of a few instructions, for what
//! is tested on real KVM and for finding out what a KVM is worth.
//!
//! A program starts at [`ENTRY`] by Linux's 64-bit entry: the first 4 GiB are
//! mapped to themselves and it has a stack. It ends by the reset of a PC.
//! Where KVM is a software module an instruction costs a microsecond: none
//! runs more than 10^5 of them before it ends, or can be ended.

mod block;
mod elf;
mod small;
pub mod testing;

pub use block::{BLOCK, BLOCK_LOAD, BLOCK_SAYS, BLOCK_WRITES, LOAD_REQUESTS, LOAD_SAYS, NET_LOAD};
pub use elf::elf;
pub use small::{
    COUNT, COUNTER, EMULATE, HALT, HELLO, HELLO_SAYS, NOWHERE, NOWHERE_SAYS, POWER_OFF,
    ROUND_INSTRUCTIONS, ROUND_PORT, ROUNDS, TRIPLE_FAULT,
};

/// Where a program is loaded, and its first instruction.
pub const ENTRY: u64 = 0x10_0000;

/// A program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    start: unsafe extern "C" fn(),
    end: unsafe extern "C" fn(),
}

impl Program {
    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> &'static [u8] {
        let start = self.start as *const u8;
        let length = self.end as usize - start as usize;
        // SAFETY: both symbols are of one run of assembly, the end behind the
        // start, in a section that is mapped as long as the process lives.
        unsafe { std::slice::from_raw_parts(start, length) }
    }
}

/// Assembles a program between two symbols.
macro_rules! program {
    ($(#[$doc:meta])* $name:ident, $start:ident, $end:ident, $($line:expr,)+) => {
        std::arch::global_asm!(
            ".pushsection .text.skiff_flat, \"ax\", @progbits",
            ".balign 16",
            concat!(".globl ", stringify!($start), ", ", stringify!($end)),
            concat!(stringify!($start), ":"),
            $($line,)+
            concat!(stringify!($end), ":"),
            ".popsection",
        );
        unsafe extern "C" {
            fn $start();
            fn $end();
        }
        $(#[$doc])*
        pub const $name: $crate::Program = $crate::Program {
            start: $start,
            end: $end,
        };
    };
}
use program;
