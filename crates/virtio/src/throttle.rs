//! A limit with a clock, and with an alarm for what has to wait.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use skiff_base::Clock;

use crate::{Limits, LimitsChange, RateLimiter};

/// Nobody waits for less: an alarm costs more than what it would let begin.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// Nobody is left alone for longer.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// A limit that a device's operations are under. It is not part of a saved
/// state: a device that is restored begins with full buckets.
#[derive(Debug)]
pub struct Throttle {
    shared: Arc<Shared>,
}

/// Changes a throttle's limits while its device works.
#[derive(Debug, Clone)]
pub struct ThrottleHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limiter: Mutex<RateLimiter>,
    /// Whether the limiter has to be asked.
    is_limited: AtomicBool,
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
        let limiter = RateLimiter::new(limits, clock.now());
        let shared = Shared {
            is_limited: AtomicBool::new(limiter.is_limited()),
            limiter: Mutex::new(limiter),
            clock,
            alarm: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Who changes it.
    #[must_use]
    pub fn handle(&self) -> ThrottleHandle {
        ThrottleHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Whether an operation of so many bytes may begin. If not, the alarm
    /// rings when it is worth another try.
    pub(crate) fn admit(&mut self, bytes: usize) -> bool {
        if !self.shared.is_limited.load(Ordering::Relaxed) {
            return true;
        }
        let mut limiter = self.shared.lock();
        match limiter.admit(bytes as u64, self.shared.clock.now()) {
            Ok(()) => true,
            Err(wait) => {
                // Under the lock: a change rings after this.
                self.shared.ring_in(wait);
                false
            }
        }
    }

    /// What becomes readable when the alarm rings.
    pub(crate) fn alarm(&self) -> BorrowedFd<'_> {
        self.shared.alarm.as_fd()
    }

    /// The alarm has been heard.
    pub(crate) fn heard(&self) {
        let mut times = [0; 8];
        // Nothing to read is as good.
        rustix::io::read(&self.shared.alarm, &mut times)
            .map(drop)
            .unwrap_or_default();
    }
}

impl ThrottleHandle {
    /// Changes the limits: a bucket that is set is full. What waits tries
    /// again under them.
    pub fn change(&self, change: LimitsChange) {
        let mut limiter = self.shared.lock();
        limiter.change(change, self.shared.clock.now());
        let is_limited = limiter.is_limited();
        self.shared.is_limited.store(is_limited, Ordering::Relaxed);
        self.shared.ring_in(MIN_WAIT);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, RateLimiter> {
        // Nothing under this lock can leave it half changed.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_in(&self, wait: Duration) {
        let wait = wait.clamp(MIN_WAIT, MAX_WAIT);
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
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};
    use skiff_base::ManualClock;

    use super::*;
    use crate::{Bucket, BucketChange};

    fn one_operation() -> Bucket {
        Bucket {
            size: 1,
            one_time_burst: 0,
            refill: Duration::from_secs(3600),
        }
    }

    #[test]
    fn what_waits_tries_again_under_other_limits() {
        let clock = ManualClock::default();
        let mut throttle = Throttle::new(Limits::default(), Arc::new(clock)).unwrap();
        let rings = |throttle: &Throttle| {
            let mut polled = [PollFd::from_borrowed_fd(throttle.alarm(), PollFlags::IN)];
            poll(&mut polled, None).unwrap();
            throttle.heard();
        };
        let handle = throttle.handle();
        let set = |operations| {
            handle.change(LimitsChange {
                operations,
                ..LimitsChange::default()
            });
        };
        for _ in 0..10 {
            assert!(throttle.admit(1));
        }
        set(BucketChange::Set(one_operation()));
        rings(&throttle);
        assert!(throttle.admit(1) && !throttle.admit(1));
        // What is not in a change stays.
        set(BucketChange::Keep);
        rings(&throttle);
        assert!(!throttle.admit(1));
        set(BucketChange::Set(one_operation()));
        rings(&throttle);
        assert!(throttle.admit(1) && !throttle.admit(1));
        set(BucketChange::Lift);
        rings(&throttle);
        assert!(throttle.admit(1) && throttle.admit(1));
    }

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
