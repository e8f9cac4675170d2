//! A fast sum that tells data apart; it holds off no adversary.

/// Odd, with its bits well spread: the golden ratio's.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const LANES: usize = 4;
const STRIDE: usize = LANES * size_of::<u64>();

/// Sums what is written; in pieces of whole strides, as blocks are.
#[derive(Debug)]
pub(crate) struct Fingerprint {
    /// Independent of each other, so that they are computed side by side.
    lanes: [u64; LANES],
}

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self {
            lanes: [1, 2, 3, 4],
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len().is_multiple_of(STRIDE));
        let (words, _) = bytes.as_chunks::<8>();
        let (strides, _) = words.as_chunks::<LANES>();
        for stride in strides {
            for (lane, word) in self.lanes.iter_mut().zip(stride) {
                let mixed = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(MULTIPLIER);
                *lane = mixed.rotate_left(29);
            }
        }
    }

    pub(crate) fn finish(&self) -> [u8; STRIDE] {
        let mut bytes = [0; STRIDE];
        for (target, lane) in bytes.chunks_exact_mut(8).zip(self.lanes) {
            target.copy_from_slice(&lane.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_its_place_count() {
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..256 {
            for value in 0..4 {
                let mut data = [0; 256];
                data[position] = value;
                let mut fingerprint = Fingerprint::new();
                fingerprint.update(&data);
                seen.insert(fingerprint.finish());
            }
        }
        assert_eq!(seen.len(), 256 * 3 + 1);
    }
}
