use std::sync::OnceLock;
use std::time::Duration;

use skiff_base::{Clock as _, SystemClock};

/// A deadline of so many seconds on a machine that is not busy, stretched by
/// how slow this one was when the tests began.
#[must_use]
pub fn deadline(seconds: u64) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    Duration::from_secs(seconds) * *FACTOR.get_or_init(measure)
}

/// How often a fixed piece of work takes longer than it should; 1 to 5.
fn measure() -> u32 {
    let clock = SystemClock;
    let start = clock.now();
    let mut sum = 0u64;
    for index in 0..20_000_000u64 {
        sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(index));
    }
    let took = clock.now().since(start).as_millis();
    // An unoptimised build on an idle core of 2020 takes about 150 ms.
    u32::try_from(took / 150).unwrap_or(5).clamp(1, 5)
}

/// Waits until `check` gives something.
///
/// # Panics
/// When it has not after so many seconds, stretched.
#[track_caller]
pub fn wait_for<T>(what: &str, seconds: u64, mut check: impl FnMut() -> Option<T>) -> T {
    let clock = SystemClock;
    let start = clock.now();
    let limit = deadline(seconds);
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(
            clock.now().since(start) < limit,
            "{what}: not within {} s",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
