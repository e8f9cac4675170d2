//! Which signatures have been used: a call that changes something is taken
//! once, and again only for a moment. Signatures know the second and nothing
//! finer, and AWS's clients sign no nonce: equal calls of one second have
//! equal signatures, and all of them are meant.

use std::collections::{BTreeMap, HashMap};

use crate::sigv4::SKEW_S;

/// For so long after its first use a signature is taken again, seconds.
const REPEAT_S: u64 = 5;
/// Signatures remembered at once. Over it the oldest are forgotten, and with
/// them whatever is signed as early: the window shrinks, nothing is taken twice.
const REPLAYS_MAX: usize = 1 << 20;
/// Signatures are forgotten by spans of so many seconds.
const SPAN_S: u64 = 10;

/// The signature was used already, or is older than what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the signature was used before, or is older than the signatures that are remembered: sign the request anew"
)]
pub struct Replayed;

/// Signatures that were taken, by when they were made.
#[derive(Debug)]
pub struct Replays {
    /// With the second of each one's first use.
    spans: BTreeMap<u64, HashMap<[u8; 16], u64>>,
    count: usize,
    most: usize,
    /// Spans up to this one are forgotten.
    floor: u64,
}

impl Default for Replays {
    fn default() -> Self {
        Self::new(REPLAYS_MAX)
    }
}

impl Replays {
    fn new(most: usize) -> Self {
        Self {
            spans: BTreeMap::new(),
            count: 0,
            most,
            floor: 0,
        }
    }

    /// Takes a verified signature, unless it was first taken too long ago.
    ///
    /// # Errors
    /// When it was taken, or may have been.
    pub fn take(
        &mut self,
        signature: &[u8; 32],
        signed_unix_s: u64,
        now_unix_s: u64,
    ) -> Result<(), Replayed> {
        let expired = now_unix_s.saturating_sub(SKEW_S) / SPAN_S;
        while let Some((span, _)) = self.spans.first_key_value()
            && *span < expired
        {
            self.forget_first();
        }
        let span = signed_unix_s / SPAN_S;
        if span <= self.floor {
            return Err(Replayed);
        }
        let mut short = [0; 16];
        short.copy_from_slice(&signature[..16]);
        let signatures = self.spans.entry(span).or_default();
        if let Some(first) = signatures.get(&short) {
            let repeats = now_unix_s.saturating_sub(*first) <= REPEAT_S;
            return if repeats { Ok(()) } else { Err(Replayed) };
        }
        signatures.insert(short, now_unix_s);
        self.count += 1;
        if self.count > self.most {
            self.forget_first();
        }
        Ok(())
    }

    fn forget_first(&mut self) {
        if let Some((span, signatures)) = self.spans.pop_first() {
            self.count -= signatures.len();
            self.floor = self.floor.max(span);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_taken_for_a_moment_and_forgotten_when_it_is_too_old_anyway() {
        let mut replays = Replays::default();
        assert_eq!(replays.take(&[1; 32], 10_000, 10_000), Ok(()));
        assert_eq!(replays.take(&[1; 32], 10_000, 10_005), Ok(()));
        assert_eq!(replays.take(&[1; 32], 10_000, 10_006), Err(Replayed));
        assert_eq!(replays.take(&[1; 32], 10_000, 10_890), Err(Replayed));
        assert_eq!(replays.take(&[2; 32], 10_000, 10_900), Ok(()));
        assert_eq!(replays.take(&[3; 32], 20_000, 20_000), Ok(()));
        assert_eq!(replays.count, 1);
    }

    #[test]
    fn more_than_fit_shrink_the_window() {
        let mut replays = Replays::new(2);
        for number in 0..3u8 {
            let signed = 10_000 + u64::from(number) * 10;
            assert_eq!(replays.take(&[number; 32], signed, 10_020), Ok(()));
        }
        assert_eq!(replays.take(&[0; 32], 10_000, 10_020), Err(Replayed));
        assert_eq!(replays.take(&[9; 32], 10_009, 10_020), Err(Replayed));
        assert_eq!(replays.take(&[9; 32], 10_011, 10_020), Ok(()));
    }
}
