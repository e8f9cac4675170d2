use std::time::Duration;

use skiff_base::Monotonic;

/// A token bucket: so many at once, and so many a second.
#[derive(Debug)]
pub(crate) struct Bucket {
    burst: u32,
    per_token: Duration,
    /// When the bucket was, or will be, full but for what was taken since.
    full_at: Monotonic,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(burst: u32, per_second: u32, now: Monotonic) -> Self {
        Self {
            burst,
            per_token: Duration::from_secs(1) / per_second.max(1),
            full_at: now,
        }
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now: Monotonic) -> bool {
        let full_at = self.full_at.max(now).plus(self.per_token);
        let allowed = full_at.since(now) <= self.per_token * self.burst;
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Monotonic::from_nanos(5);
        let mut bucket = Bucket::new(3, 10, start);
        let burst = (0..5).filter(|_| bucket.take(start)).count();
        assert_eq!(burst, 3);
        let later = start.plus(Duration::from_millis(250));
        let refilled = (0..5).filter(|_| bucket.take(later)).count();
        assert_eq!(refilled, 2);
        let much_later = start.plus(Duration::from_secs(3600));
        let full = (0..9).filter(|_| bucket.take(much_later)).count();
        assert_eq!(full, 3);
    }
}
