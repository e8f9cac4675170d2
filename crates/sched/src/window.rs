//! A revision's load over the last minute.

use std::time::Duration;

use skiff_base::Monotonic;

/// Slots of the ring. Each holds a sixtieth of the stable window.
const SLOTS: u64 = 60;
const SLOTS_USIZE: usize = 60;

/// The integral of the load over time, in slots.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// Request-nanoseconds of each slot.
    slots: [u64; SLOTS_USIZE],
    slot_ns: u64,
    /// Up to where it is filled.
    at: u64,
    /// Since when there has been load without a whole window of silence.
    since: u64,
    load: u32,
}

impl Window {
    pub(crate) fn new(now: Monotonic, length: Duration) -> Self {
        let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Self {
            slots: [0; SLOTS_USIZE],
            slot_ns: (length / SLOTS).max(1),
            at: now.as_nanos(),
            since: now.as_nanos(),
            load: 0,
        }
    }

    fn slot(&self, time: u64) -> usize {
        usize::try_from((time / self.slot_ns) % SLOTS).unwrap_or(0)
    }

    /// From now on the load is this.
    pub(crate) fn set(&mut self, now: Monotonic, load: u32) {
        self.advance(now);
        if load > 0 && self.is_empty() {
            self.since = now.as_nanos();
        }
        self.load = load;
    }

    /// Fills the ring up to now with the present load.
    pub(crate) fn advance(&mut self, now: Monotonic) {
        let now = now.as_nanos();
        if now <= self.at {
            return;
        }
        // After a whole window nothing of the ring is left to keep.
        let start = now.saturating_sub(self.slot_ns * (SLOTS - 1));
        if self.at / self.slot_ns + SLOTS <= now / self.slot_ns {
            self.slots = [0; SLOTS_USIZE];
            self.at = self.at.max(start);
            if self.load == 0 {
                self.since = now;
                self.at = now;
                return;
            }
        }
        while self.at < now {
            let end = (self.at / self.slot_ns + 1) * self.slot_ns;
            let upto = end.min(now);
            let slot = self.slot(self.at);
            self.slots[slot] =
                self.slots[slot].saturating_add((upto - self.at).saturating_mul(self.load.into()));
            self.at = upto;
            if upto == end {
                let next = self.slot(end);
                self.slots[next] = 0;
            }
        }
    }

    /// Whether no load is left in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.load == 0 && self.slots.iter().all(|&slot| slot == 0)
    }

    /// How many instances of this many thousandths of a request each the
    /// average of the last `length` needs, rounded up.
    pub(crate) fn instances(&self, length: Duration, target_milli: u32) -> u32 {
        let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let wanted = (length / self.slot_ns).clamp(1, SLOTS);
        let mut sum = 0u128;
        for back in 0..wanted {
            let time = self.at.saturating_sub(back * self.slot_ns);
            sum += u128::from(self.slots[self.slot(time)]);
        }
        // The newest slot is filled in part only.
        let covered = (wanted - 1) * self.slot_ns + self.at % self.slot_ns;
        let span = covered.min(self.at - self.since).max(1);
        let per_instance = u128::from(span) * u128::from(target_milli.max(1));
        u32::try_from((sum * 1000).div_ceil(per_instance)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const BURST: Duration = Duration::from_secs(6);

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_nanos((1000 + seconds) * 1_000_000_000)
    }

    #[test]
    fn a_steady_load_is_its_own_average_from_the_first_second_on() {
        let mut window = Window::new(at(0), MINUTE);
        window.set(at(0), 7);
        for seconds in [1, 5, 30, 59, 61, 600] {
            window.advance(at(seconds));
            assert_eq!(window.instances(MINUTE, 1000), 7, "{seconds}");
            assert_eq!(window.instances(BURST, 1000), 7, "{seconds}");
            assert_eq!(window.instances(MINUTE, 700), 10, "{seconds}");
        }
    }

    #[test]
    fn a_burst_shows_in_the_short_window_first() {
        let mut window = Window::new(at(0), MINUTE);
        window.set(at(0), 1);
        window.set(at(60), 100);
        window.advance(at(66));
        // Six seconds of 100 and the rest of the minute 1.
        assert!(window.instances(BURST, 1000) >= 99);
        let stable = window.instances(MINUTE, 1000);
        assert!((10..=12).contains(&stable), "{stable}");
    }

    #[test]
    fn silence_empties_it() {
        let mut window = Window::new(at(0), MINUTE);
        window.set(at(0), 50);
        window.set(at(10), 0);
        window.advance(at(30));
        assert!(!window.is_empty());
        assert_eq!(window.instances(BURST, 1000), 0);
        window.advance(at(71));
        assert!(window.is_empty());
        window.set(at(71), 3);
        window.advance(at(72));
        assert_eq!(window.instances(MINUTE, 1000), 3);
    }
}
