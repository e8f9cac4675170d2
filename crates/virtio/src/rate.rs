//! A limit on how much may happen in a while.

use std::time::Duration;

use skiff_base::Monotonic;

/// A token bucket's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// How many tokens it holds.
    pub size: u64,
    /// How many more there are once, at the start.
    pub one_time_burst: u64,
    /// How long it takes to fill from empty.
    pub refill: Duration,
}

/// A bucket that fills as time goes on. It keeps no clock: the caller says
/// what time it is.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    shape: Bucket,
    tokens: u64,
    burst: u64,
    /// Tokens that were taken before they were there.
    owed: u64,
    filled: Monotonic,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn new(shape: Bucket, now: Monotonic) -> Self {
        Self {
            shape,
            tokens: shape.size,
            burst: shape.one_time_burst,
            owed: 0,
            filled: now,
        }
    }

    /// Takes that many tokens, or none.
    pub fn take(&mut self, tokens: u64, now: Monotonic) -> bool {
        self.fill(now);
        let from_burst = self.burst.min(tokens);
        let Some(left) = self.tokens.checked_sub(tokens - from_burst) else {
            return false;
        };
        self.burst -= from_burst;
        self.tokens = left;
        true
    }

    /// Takes that many tokens, and owes those that are not there.
    pub fn charge(&mut self, tokens: u64, now: Monotonic) {
        self.fill(now);
        let from_burst = self.burst.min(tokens);
        self.burst -= from_burst;
        let rest = tokens - from_burst;
        let there = self.tokens.min(rest);
        self.tokens -= there;
        self.owed = self.owed.saturating_add(rest - there);
    }

    /// How long it takes until a token is there; nothing when one is.
    pub fn wait(&mut self, now: Monotonic) -> Option<Duration> {
        self.fill(now);
        if self.owed == 0 && (self.burst > 0 || self.tokens > 0) {
            return None;
        }
        if self.shape.size == 0 {
            return Some(Duration::MAX);
        }
        let missing = u128::from(self.owed) + 1;
        // Of 128 bits, of which each factor has at most 64 and 94.
        let nanos = missing.saturating_mul(self.shape.refill.as_nanos());
        let nanos = nanos.div_ceil(u128::from(self.shape.size));
        let nanos = nanos.saturating_sub(now.since(self.filled).as_nanos());
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    fn fill(&mut self, now: Monotonic) {
        let refill = self.shape.refill.as_nanos();
        if refill == 0 {
            self.tokens = self.shape.size;
            self.owed = 0;
            return;
        }
        let passed = now.since(self.filled).as_nanos();
        let earned = passed.saturating_mul(u128::from(self.shape.size)) / refill;
        if earned == 0 {
            return;
        }
        // Tokens are there or owed, and never both.
        let room = u128::from(self.shape.size - self.tokens) + u128::from(self.owed);
        if earned >= room {
            self.tokens = self.shape.size;
            self.owed = 0;
            self.filled = now;
            return;
        }
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        let paid = self.owed.min(earned);
        self.owed -= paid;
        self.tokens += earned - paid;
        // Only the time that whole tokens took: the rest still counts.
        let spent = u128::from(earned) * refill / u128::from(self.shape.size);
        let spent = u64::try_from(spent).unwrap_or(u64::MAX);
        self.filled = self.filled.plus(Duration::from_nanos(spent));
    }
}

/// Limits on bytes and on operations. What is not there is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// How many bytes.
    pub bytes: Option<Bucket>,
    /// How many operations.
    pub operations: Option<Bucket>,
}

/// What becomes of a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BucketChange {
    /// It stays as it is.
    #[default]
    Keep,
    /// There is none any more.
    Lift,
    /// It is this one, full.
    Set(Bucket),
}

/// What becomes of limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitsChange {
    /// How many bytes.
    pub bytes: BucketChange,
    /// How many operations.
    pub operations: BucketChange,
}

/// Limits at work. One operation is let begin when neither bucket is empty,
/// however large it is: what it takes too much, those behind it wait for.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

impl RateLimiter {
    /// A limiter whose buckets are full.
    #[must_use]
    pub fn new(limits: Limits, now: Monotonic) -> Self {
        let bucket = |shape| TokenBucket::new(shape, now);
        Self {
            bytes: limits.bytes.map(bucket),
            operations: limits.operations.map(bucket),
        }
    }

    /// Whether there is any limit.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.operations.is_some()
    }

    /// Changes its limits.
    pub fn change(&mut self, change: LimitsChange, now: Monotonic) {
        let set = |bucket: &mut Option<TokenBucket>, change| match change {
            BucketChange::Keep => {}
            BucketChange::Lift => *bucket = None,
            BucketChange::Set(shape) => *bucket = Some(TokenBucket::new(shape, now)),
        };
        set(&mut self.bytes, change.bytes);
        set(&mut self.operations, change.operations);
    }

    /// Lets an operation of so many bytes begin.
    ///
    /// # Errors
    /// How long it has to wait before it is worth another try.
    pub fn admit(&mut self, bytes: u64, now: Monotonic) -> Result<(), Duration> {
        let buckets = [self.bytes.as_mut(), self.operations.as_mut()];
        let waits = buckets.into_iter().flatten().map(|bucket| bucket.wait(now));
        if let Some(wait) = waits.flatten().max() {
            return Err(wait);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.charge(1, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(nanos: u64) -> Monotonic {
        Monotonic::from_nanos(nanos)
    }

    fn bucket(size: u64, burst: u64, refill: Duration) -> TokenBucket {
        let shape = Bucket {
            size,
            one_time_burst: burst,
            refill,
        };
        TokenBucket::new(shape, at(0))
    }

    #[test]
    fn what_is_not_there_is_not_given() {
        let mut bucket = bucket(10, 5, Duration::from_secs(1));
        assert!(bucket.take(12, at(0)));
        assert!(!bucket.take(4, at(0)));
        assert!(bucket.take(3, at(0)));
        assert!(!bucket.take(1, at(SECOND / 11)));
        assert!(bucket.take(1, at(SECOND / 10)));
        assert!(!bucket.take(11, at(100 * SECOND)));
        assert!(bucket.take(10, at(100 * SECOND)));
    }

    #[test]
    fn a_bucket_without_tokens_gives_none() {
        let mut bucket = bucket(0, 0, Duration::from_secs(1));
        assert!(!bucket.take(1, at(u64::MAX)));
        assert!(bucket.take(0, at(u64::MAX)));
    }

    /// Exhaustive over small buckets: in no window is more given than the
    /// bucket, the burst and the time allow.
    #[test]
    fn no_small_bucket_gives_too_much() {
        for size in 0..5_u64 {
            for burst in 0..3_u64 {
                for step in 1..7_u64 {
                    let mut bucket = bucket(size, burst, Duration::from_nanos(12));
                    let mut given = 0;
                    for now in (0..120).step_by(usize::try_from(step).unwrap()) {
                        while bucket.take(1, at(now)) {
                            given += 1;
                        }
                        assert!(given <= size + burst + size * now / 12);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_owed_is_waited_for() {
        let mut bucket = bucket(10, 5, Duration::from_secs(1));
        assert_eq!(bucket.wait(at(0)), None);
        bucket.charge(15, at(0));
        assert_eq!(bucket.wait(at(0)), Some(Duration::from_millis(100)));
        assert_eq!(bucket.wait(at(SECOND / 10)), None);
        // 20 more than there are, and one for the next.
        bucket.charge(21, at(SECOND / 10));
        assert_eq!(
            bucket.wait(at(SECOND / 10)),
            Some(Duration::from_millis(2100))
        );
        assert!(!bucket.take(1, at(SECOND * 2)));
        assert_eq!(
            bucket.wait(at(SECOND * 2)),
            Some(Duration::from_millis(200))
        );
        assert_eq!(bucket.wait(at(SECOND * 22 / 10)), None);
    }

    fn limiter(bytes: Option<u64>, operations: Option<u64>) -> RateLimiter {
        let bucket = |size| Bucket {
            size,
            one_time_burst: 0,
            refill: Duration::from_secs(1),
        };
        let limits = Limits {
            bytes: bytes.map(bucket),
            operations: operations.map(bucket),
        };
        RateLimiter::new(limits, at(0))
    }

    #[test]
    fn an_operation_waits_for_the_later_of_both_limits() {
        let mut unlimited = limiter(None, None);
        for _ in 0..1000 {
            assert_eq!(unlimited.admit(u64::MAX, at(0)), Ok(()));
        }
        let mut both = limiter(Some(1000), Some(2));
        assert_eq!(both.admit(500, at(0)), Ok(()));
        assert_eq!(both.admit(0, at(0)), Ok(()));
        assert_eq!(both.admit(0, at(0)), Err(Duration::from_millis(500)));
        assert_eq!(both.admit(3000, at(SECOND / 2)), Ok(()));
        // There were all 1000: it owes 2000.
        assert_eq!(
            both.admit(0, at(SECOND / 2)),
            Err(Duration::from_millis(2001))
        );
    }

    proptest! {
        /// Whoever comes again when it was told to is let in, and no more
        /// than the bucket, the time and one operation allow.
        #[test]
        fn a_limiter_lets_in_what_it_may_and_keeps_nobody_out(
            size in 1..10_000_u64,
            refill_ms in 1..5_000_u64,
            operations in prop::collection::vec(0..30_000_u64, 1..50),
        ) {
            let bucket = Bucket {
                size,
                one_time_burst: 0,
                refill: Duration::from_millis(refill_ms),
            };
            let limits = Limits { bytes: Some(bucket), operations: None };
            let mut limiter = RateLimiter::new(limits, at(0));
            let (mut now, mut before) = (at(0), 0_u128);
            for bytes in operations {
                if let Err(wait) = limiter.admit(bytes, now) {
                    now = now.plus(wait);
                    prop_assert_eq!(limiter.admit(bytes, now), Ok(()));
                }
                let passed = u128::from(now.as_nanos());
                let earned = passed * u128::from(size) / bucket.refill.as_nanos();
                prop_assert!(before <= u128::from(size) + earned + 1);
                before += u128::from(bytes);
            }
        }

        #[test]
        fn no_bucket_gives_too_much_or_panics(
            size in any::<u64>(),
            burst in any::<u64>(),
            refill in any::<u64>(),
            takes in prop::collection::vec((any::<u32>(), any::<u64>()), 1..50),
        ) {
            let mut bucket = bucket(size, burst, Duration::from_nanos(refill));
            let (mut now, mut given) = (0_u64, 0_u128);
            for (wait, tokens) in takes {
                now = now.saturating_add(u64::from(wait));
                if bucket.take(tokens, at(now)) {
                    given += u128::from(tokens);
                }
                if refill > 0 {
                    let earned = u128::from(now).saturating_mul(u128::from(size)) / u128::from(refill);
                    let most = u128::from(size) + u128::from(burst) + earned;
                    prop_assert!(given <= most.saturating_add(1));
                }
            }
        }
    }
}
