//! A limit with a clock, and with an alarm for what has to wait.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use skiff_base::Clock;

use crate::{Limits, RateLimiter};

/// Nobody waits for less: an alarm costs more than what it would let begin.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// Nobody is left alone for longer.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// A limit that a device's operations are under. It is not part of a saved
/// state: a device that is restored begins with full buckets.
#[derive(Debug)]
pub struct Throttle {
    limiter: RateLimiter,
    clock: Arc<dyn Clock>,
    alarm: OwnedFd,
}

impl Throttle {
    /// A limit whose buckets are full.
    ///
    /// # Errors
    /// When the system has no timer to give.
    pub fn new(limits: Limits, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            limiter: RateLimiter::new(limits, clock.now()),
            clock,
            alarm: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        })
    }

    /// Whether an operation of so many bytes may begin. If not, the alarm
    /// rings when it is worth another try.
    pub(crate) fn admit(&mut self, bytes: usize) -> bool {
        match self.limiter.admit(bytes as u64, self.clock.now()) {
            Ok(()) => true,
            Err(wait) => {
                self.ring_in(wait.clamp(MIN_WAIT, MAX_WAIT));
                false
            }
        }
    }

    fn ring_in(&self, wait: Duration) {
        let value = Timespec {
            // An hour at most.
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(0),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        // The time is one, and the descriptor a timer's.
        timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &once)
            .map(drop)
            .unwrap_or_default();
    }

    /// What becomes readable when the alarm rings.
    pub(crate) fn alarm(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    /// The alarm has been heard.
    pub(crate) fn heard(&self) {
        let mut times = [0; 8];
        // Nothing to read is as good.
        rustix::io::read(&self.alarm, &mut times)
            .map(drop)
            .unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};
    use skiff_base::ManualClock;

    use super::*;
    use crate::Bucket;

    #[test]
    fn what_has_to_wait_is_told_when_it_need_not() {
        let clock = ManualClock::default();
        let limits = Limits {
            bytes: None,
            operations: Some(Bucket {
                size: 1,
                one_time_burst: 0,
                refill: Duration::from_millis(2),
            }),
        };
        let mut throttle = Throttle::new(limits, Arc::new(clock.clone())).unwrap();
        let rings = |throttle: &Throttle, within: Option<&Timespec>| {
            let mut polled = [PollFd::from_borrowed_fd(throttle.alarm(), PollFlags::IN)];
            poll(&mut polled, within).unwrap() > 0
        };
        assert!(throttle.admit(0));
        assert!(!rings(&throttle, Some(&Timespec::default())));
        assert!(!throttle.admit(0));
        assert!(rings(&throttle, None));
        throttle.heard();
        assert!(!rings(&throttle, Some(&Timespec::default())));
        clock.advance(Duration::from_millis(2));
        assert!(throttle.admit(0));
    }
}
