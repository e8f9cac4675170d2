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

    fn fill(&mut self, now: Monotonic) {
        let refill = self.shape.refill.as_nanos();
        if refill == 0 {
            self.tokens = self.shape.size;
            return;
        }
        let passed = now.since(self.filled).as_nanos();
        let earned = passed.saturating_mul(u128::from(self.shape.size)) / refill;
        if earned == 0 {
            return;
        }
        let room = u128::from(self.shape.size - self.tokens);
        if earned >= room {
            self.tokens = self.shape.size;
            self.filled = now;
            return;
        }
        let earned = u64::try_from(earned).unwrap_or(self.shape.size);
        self.tokens += earned;
        // Only the time that whole tokens took: the rest still counts.
        let spent = u128::from(earned) * refill / u128::from(self.shape.size);
        let spent = u64::try_from(spent).unwrap_or(u64::MAX);
        self.filled = self.filled.plus(Duration::from_nanos(spent));
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

    proptest! {
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
