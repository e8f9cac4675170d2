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

/// How many times slower this machine is than those that limits are meant for:
/// `SKIFF_SLOWNESS`, or 1.
pub fn slowness() -> u32 {
    let told = std::env::var("SKIFF_SLOWNESS").ok();
    told.and_then(|text| text.parse().ok())
        .map_or(1, |slowness: u32| slowness.max(1))
}

/// A limit on this machine.
pub fn stretched(limit: Duration) -> Duration {
    limit * slowness()
}

/// Waits until `check` holds.
///
/// # Errors
/// When it does not in time, or fails.
pub fn wait_until(
    what: &str,
    limit: Duration,
    check: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    wait_until_every(Duration::from_millis(5), what, limit, check)
}

/// As [`wait_until`], looking so often.
///
/// # Errors
/// When it does not in time, or fails.
pub fn wait_until_every(
    period: Duration,
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = now().plus(limit);
    while !check()? {
        anyhow::ensure!(now() < end, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(period);
    }
    Ok(())
}
