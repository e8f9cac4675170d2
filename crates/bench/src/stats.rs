//! Medians, ratios and their 95 % intervals.
//!
//! An interval is the percentile bootstrap of the ratio of medians: rounds are
//! drawn with replacement, pairs together where every round has one sample of
//! each side, so that a slow minute of the machine hits both.

/// How often samples are drawn anew.
const RESAMPLES: usize = 4_000;
const SEED: u64 = 0x5EED_0F5C_1FF5;

/// The middle 95 % of what was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// A small generator with a seed: a run can be repeated.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..count`.
    pub fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % (count.max(1) as u64)).unwrap_or(0)
    }

    /// In (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

pub fn median(values: &[f64]) -> f64 {
    quantile(values, 500)
}

/// NaN of none.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The value below which `permille` of a thousand lie; NaN of none.
pub fn quantile(values: &[f64], permille: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let scaled = last * permille;
    let (at, rest) = (scaled / 1000, scaled % 1000);
    let low = sorted[at];
    let high = sorted[(at + 1).min(last)];
    low + (high - low) * rest as f64 / 1000.0
}

/// Of the ratio of medians.
pub fn ratio_interval(ours: &[f64], peers: &[f64]) -> Interval {
    let paired = ours.len() == peers.len();
    drawn(|random| {
        let mine = picks(random, ours.len());
        let theirs = if paired {
            mine.clone()
        } else {
            picks(random, peers.len())
        };
        median(&at(ours, &mine)) / median(&at(peers, &theirs))
    })
}

/// Of the median.
pub fn median_interval(values: &[f64]) -> Interval {
    drawn(|random| {
        let picks = picks(random, values.len());
        median(&at(values, &picks))
    })
}

fn picks(random: &mut Random, count: usize) -> Vec<usize> {
    (0..count).map(|_| random.below(count)).collect()
}

fn at(values: &[f64], picks: &[usize]) -> Vec<f64> {
    picks.iter().map(|index| values[*index]).collect()
}

fn drawn(mut draw: impl FnMut(&mut Random) -> f64) -> Interval {
    let mut random = Random::new(SEED);
    let values: Vec<f64> = (0..RESAMPLES).map(|_| draw(&mut random)).collect();
    Interval {
        low: quantile(&values, 25),
        high: quantile(&values, 975),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert!((median(&values) - 2.5).abs() < 1e-9);
        assert!((quantile(&values, 1000) - 4.0).abs() < 1e-9);
        assert!((quantile(&values, 0) - 1.0).abs() < 1e-9);
        assert!((mean(&values) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan() && mean(&[]).is_nan());
    }

    #[test]
    fn an_interval_holds_the_ratio_and_narrows_for_pairs() {
        // Both sides drift together: the pairs' ratio is always 2.
        let peers: Vec<f64> = (1..=11).map(f64::from).collect();
        let ours: Vec<f64> = peers.iter().map(|value| value * 2.0).collect();
        let paired = ratio_interval(&ours, &peers);
        assert!((paired.low - 2.0).abs() < 1e-9 && (paired.high - 2.0).abs() < 1e-9);
        let apart = ratio_interval(&ours, &peers[..10]);
        assert!(apart.low < 2.0 && apart.high > 2.0);
    }
}
