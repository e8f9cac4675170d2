//! The allocator, and what gives back memory that nobody uses.

/// mimalloc, which takes less processor time for many small allocations on many
/// threads than the C library's does.
pub use mimalloc::MiMalloc as Allocator;

/// Has the kernel take back pages that were freed a second ago or longer.
///
/// Left alone the allocator does that when it is next asked for pages, which a
/// program at rest does not do. When nothing is due this costs the reading of a
/// word (mimalloc: `mi_collect`, `mi_option_purge_delay`).
pub fn give_back() {
    // SAFETY: it takes no argument of ours, any thread may call it at any time,
    // and it gives back only what the program has freed.
    unsafe { libmimalloc_sys::mi_collect(false) }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Duration;

    use skiff_base::{Clock as _, SystemClock};

    use super::{Allocator, give_back};

    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator;

    const MIB: usize = 1 << 20;

    fn resident_mib() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages = text.split_whitespace().nth(1).unwrap();
        pages.parse::<usize>().unwrap() * 4096 / MIB
    }

    #[test]
    fn what_was_freed_is_given_back_without_another_allocation() {
        let before = resident_mib();
        let many: Vec<Vec<u8>> = (0..64 * 1024).map(|_| vec![1; 1000]).collect();
        assert!(resident_mib() >= before + 60, "it is used");
        drop(black_box(many));
        let dropped = SystemClock.now();
        while resident_mib() > before + 20 {
            let waited = SystemClock.now().since(dropped);
            assert!(
                waited < Duration::from_secs(60),
                "{} MiB stay",
                resident_mib()
            );
            give_back();
            std::thread::yield_now();
        }
    }
}
