//! The average number of requests a revision carries, without a tick: the
//! area under the level is summed when the level changes.

use skiff_base::Monotonic;

#[derive(Debug, Default)]
pub(crate) struct LoadMeter {
    since: Monotonic,
    last: Monotonic,
    level: u32,
    area_nanos: u128,
}

impl LoadMeter {
    /// The level is `level` from `now` on.
    pub(crate) fn set(&mut self, now: Monotonic, level: u32) {
        self.area_nanos += now.since(self.last).as_nanos() * u128::from(self.level);
        self.last = self.last.max(now);
        self.level = level;
    }

    /// A fresh start, when nobody has listened for a while.
    pub(crate) fn restart(&mut self, now: Monotonic) {
        *self = Self {
            since: now,
            last: now,
            level: self.level,
            area_nanos: 0,
        };
    }

    /// The average since the last call; the next one starts here.
    #[allow(
        clippy::cast_precision_loss,
        reason = "an average needs no more than 53 bits"
    )]
    pub(crate) fn take(&mut self, now: Monotonic) -> f64 {
        self.set(now, self.level);
        let span = now.since(self.since).as_nanos();
        let average = if span == 0 {
            f64::from(self.level)
        } else {
            self.area_nanos as f64 / span as f64
        };
        self.restart(now);
        average
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_weighs_levels_by_their_time() {
        let at = |ms: u64| Monotonic::from_nanos(ms * 1_000_000);
        let mut meter = LoadMeter::default();
        meter.restart(at(0));
        meter.set(at(100), 4);
        meter.set(at(150), 0);
        assert!((meter.take(at(200)) - 1.0).abs() < 1e-9);
        meter.set(at(200), 2);
        assert!((meter.take(at(300)) - 2.0).abs() < 1e-9);
        assert!(
            (meter.take(at(300)) - 2.0).abs() < 1e-9,
            "no time, the level"
        );
    }
}
