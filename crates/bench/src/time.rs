//! The machine's clock in the units of the figures.

use std::time::Duration;

use skiff_base::{Clock as _, Monotonic, SystemClock};

/// Now.
pub fn now() -> Monotonic {
    SystemClock.now()
}

/// A duration in milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Nanoseconds in milliseconds.
pub fn ns_to_ms(nanos: u64) -> f64 {
    ms(Duration::from_nanos(nanos))
}

/// Waits until `check` holds.
///
/// # Errors
/// When it does not in time, or fails.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = now().plus(limit);
    while !check()? {
        anyhow::ensure!(now() < end, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
