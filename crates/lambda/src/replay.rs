//! Which signatures have been used: a call that changes something is taken
//! once, and again only for a moment. Signatures know the second and nothing
//! finer, and AWS's clients sign no nonce: equal calls of one second have
//! equal signatures, and all of them are meant.

use std::collections::{BTreeMap, HashMap};

use crate::sigv4::Signature;

/// For so long after its first use a signature is taken again, seconds.
const REPEAT_S: u64 = 5;
/// Signatures remembered at once. Over it those that end first are forgotten,
/// and with them whatever ends as early: the window shrinks, nothing is taken
/// twice.
const REPLAYS_MAX: usize = 1 << 20;
/// The same of presigned requests, which may live for days.
const PRESIGNED_MAX: usize = 1 << 18;
/// Signatures are forgotten by spans of so many seconds.
const SPAN_S: u64 = 10;

/// The signature was used already, or is older than what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the signature was used before, or is older than the signatures that are remembered: sign the request anew"
)]
pub struct Replayed;

/// Signatures that were taken. Those of presigned requests are apart: what
/// lives for days takes no room of what lives for minutes, nor the other way.
#[derive(Debug)]
pub struct Replays {
    headers: Taken,
    presigned: Taken,
}

impl Default for Replays {
    fn default() -> Self {
        Self {
            headers: Taken::new(REPLAYS_MAX),
            presigned: Taken::new(PRESIGNED_MAX),
        }
    }
}

impl Replays {
    /// Takes a verified signature, unless it was first taken too long ago.
    ///
    /// # Errors
    /// When it was taken, or may have been.
    pub fn take(&mut self, signature: &Signature, now_unix_s: u64) -> Result<(), Replayed> {
        let taken = match signature.is_presigned() {
            true => &mut self.presigned,
            false => &mut self.headers,
        };
        taken.take(signature.bytes(), signature.ends_unix_s(), now_unix_s)
    }
}

/// Signatures of one kind, by when they end: from then on nobody believes them.
#[derive(Debug)]
struct Taken {
    /// With the second of each one's first use.
    spans: BTreeMap<u64, HashMap<[u8; 16], u64>>,
    count: usize,
    most: usize,
    /// Spans up to this one are forgotten.
    floor: u64,
}

impl Taken {
    const fn new(most: usize) -> Self {
        Self {
            spans: BTreeMap::new(),
            count: 0,
            most,
            floor: 0,
        }
    }

    fn take(
        &mut self,
        signature: &[u8; 32],
        ends_unix_s: u64,
        now_unix_s: u64,
    ) -> Result<(), Replayed> {
        let ended = now_unix_s / SPAN_S;
        while let Some((span, _)) = self.spans.first_key_value()
            && *span < ended
        {
            self.forget_first();
        }
        let span = ends_unix_s / SPAN_S;
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
    use crate::{Request, Scope, Secret, presigned_query};

    #[test]
    fn a_signature_is_taken_for_a_moment_and_forgotten_when_it_has_ended() {
        let mut taken = Taken::new(REPLAYS_MAX);
        assert_eq!(taken.take(&[1; 32], 10_900, 10_000), Ok(()));
        assert_eq!(taken.take(&[1; 32], 10_900, 10_005), Ok(()));
        assert_eq!(taken.take(&[1; 32], 10_900, 10_006), Err(Replayed));
        assert_eq!(taken.take(&[1; 32], 10_900, 10_900), Err(Replayed));
        assert_eq!(taken.take(&[2; 32], 10_900, 10_900), Ok(()));
        assert_eq!(taken.take(&[3; 32], 20_900, 20_000), Ok(()));
        assert_eq!(taken.count, 1);
    }

    #[test]
    fn more_than_fit_shrink_the_window() {
        let mut taken = Taken::new(2);
        for number in 0..3u8 {
            let ends = 10_900 + u64::from(number) * 10;
            assert_eq!(taken.take(&[number; 32], ends, 10_020), Ok(()));
        }
        assert_eq!(taken.take(&[0; 32], 10_900, 10_020), Err(Replayed));
        assert_eq!(taken.take(&[9; 32], 10_909, 10_020), Err(Replayed));
        assert_eq!(taken.take(&[9; 32], 10_911, 10_020), Ok(()));
    }

    fn presigned(signed_unix_s: u64, path: &str) -> Signature {
        let scope = Scope {
            region: "us-east-1",
            service: "lambda",
        };
        let secret = Secret("secret".to_owned());
        let key = ("SKIF1", &secret);
        let query = presigned_query(("h", path), key, scope, signed_unix_s, 86_400);
        let request = Request {
            method: "GET",
            path,
            query: &query,
            headers: &[("host".to_owned(), "h".to_owned())],
        };
        Signature::of(&request, scope).unwrap()
    }

    #[test]
    fn a_presigned_request_lives_as_long_as_it_says_however_busy_the_server_is() {
        let mut replays = Replays::default();
        let signed = 1_700_000_000;
        let (first, second) = (presigned(signed, "/a"), presigned(signed, "/b"));
        assert_eq!(replays.take(&first, signed), Ok(()));
        for hour in 1..20 {
            let now = signed + hour * 3600;
            assert_eq!(replays.take(&presigned(now, "/c"), now), Ok(()));
            assert_eq!(replays.headers.take(&[7; 32], now + 900, now), Ok(()));
            assert_eq!(replays.take(&first, now), Err(Replayed));
        }
        assert_eq!(replays.take(&second, signed + 20 * 3600), Ok(()));
    }
}
