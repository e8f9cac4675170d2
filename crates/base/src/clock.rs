use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A point on the machine's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(u64);

impl Monotonic {
    /// The point this many nanoseconds after the clock's zero.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's zero.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This point and a while, at most the end of time.
    #[must_use]
    pub fn plus(self, while_: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(while_.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// Where time comes from, so that a test can steer it.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Now, for durations and deadlines.
    fn now(&self) -> Monotonic;
    /// Now, for people: milliseconds since 1970.
    fn unix_ms(&self) -> u64;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Monotonic {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Monotonic(nanos(&time))
    }

    fn unix_ms(&self) -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        nanos(&time) / 1_000_000
    }
}

fn nanos(time: &rustix::time::Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// A clock that stands until it is moved.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    nanos: Arc<AtomicU64>,
}

impl ManualClock {
    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Monotonic {
        Monotonic(self.nanos.load(Ordering::SeqCst))
    }

    fn unix_ms(&self) -> u64 {
        self.nanos.load(Ordering::SeqCst) / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_goes_forward_and_knows_the_year() {
        let clock = SystemClock;
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(clock.unix_ms() > 1_700_000_000_000);
    }

    #[test]
    fn a_manual_clock_moves_when_it_is_moved() {
        let clock = ManualClock::default();
        let start = clock.now();
        clock.advance(Duration::from_millis(1500));
        assert_eq!(clock.now().since(start), Duration::from_millis(1500));
        assert_eq!(start.since(clock.now()), Duration::ZERO);
        assert_eq!(clock.unix_ms(), 1500);
    }
}
