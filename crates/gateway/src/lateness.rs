//! How late this process is with all that it does, seen at the serving
//! threads' ticks: a thread that has more to do than it can comes late to
//! them. It is the measure of an overload of the gateway itself, whatever the
//! instances could still take.
//!
//! Then a refusal is worse than a late one: it costs what an answer costs,
//! brings the client's next request at once, and each turn through them all
//! makes the requests in instances later, which hold their slots for longer.
//! Holding refusals back bounds how many come in a second by the number of
//! connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Below this a tick is as good as in time.
const IN_TIME: Duration = Duration::from_millis(5);
/// A refusal is held back for so many times the lateness,
const TIMES: u32 = 100;
/// and never longer than this.
const LONGEST: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Lateness {
    /// Of the last tick of any thread, smoothed; microseconds.
    micros: AtomicU64,
}

impl Lateness {
    /// A tick came so late.
    pub(crate) fn note(&self, late: Duration) {
        let late = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        let before = self.micros.load(Ordering::Relaxed);
        // What two threads note at the same moment may be lost: the next
        // tick is near.
        let smoothed = before - before / 4 + late / 4;
        self.micros.store(smoothed, Ordering::Relaxed);
    }

    /// How long to hold a refusal back.
    pub(crate) fn pause(&self) -> Duration {
        let late = Duration::from_micros(self.micros.load(Ordering::Relaxed));
        if late < IN_TIME {
            return Duration::ZERO;
        }
        late.saturating_mul(TIMES).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_time_holds_nothing_back() {
        let lateness = Lateness::default();
        assert_eq!(lateness.pause(), Duration::ZERO);
        for _ in 0..100 {
            lateness.note(Duration::from_millis(2));
        }
        assert_eq!(lateness.pause(), Duration::ZERO);
        lateness.note(Duration::from_millis(12));
        assert_eq!(lateness.pause(), Duration::ZERO, "one is none");
        for _ in 0..20 {
            lateness.note(Duration::from_millis(8));
        }
        let pause = lateness.pause().as_millis();
        assert!((780..=800).contains(&pause), "{pause}");
        for _ in 0..20 {
            lateness.note(Duration::from_secs(3600));
        }
        assert_eq!(lateness.pause(), LONGEST);
        for _ in 0..80 {
            lateness.note(Duration::ZERO);
        }
        assert_eq!(lateness.pause(), Duration::ZERO, "it is over");
    }
}
