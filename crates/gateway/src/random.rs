//! Cheap randomness for choices and ids that nobody must be unable to guess.

use std::cell::Cell;

thread_local! {
    static STATE: Cell<u64> = Cell::new(skiff_base::random::u64());
}

/// 64 well spread bits (splitmix64).
pub(crate) fn u64() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}
